"""Log-mel spectrograms in JAX, as the networks of others were trained on.

What differs between them is a field of `LogMel`: framing, window, mel scale,
shape and size of the filters, and the logarithm.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

SCALES = ('htk', 'slaney')


@dataclasses.dataclass(frozen=True)
class LogMel:
  """Makes log-mel spectrograms of one kind.

  Attributes:
    sample_rate_hz: of the waveform.
    window: samples of the Hann window.
    hop: samples from one frame to the next.
    fft: FFT size, at least `window`.
    num_mels: filters.
    low_hz: lower edge of the first filter.
    high_hz: upper edge of the last.
    scale: 'htk', or 'slaney', which is linear up to 1 kHz.
    slopes: in which the sides of a filter are straight: 'hertz', as in librosa
      and torchaudio, or 'mel', as in TensorFlow and Kaldi.
    is_area_one: whether filters are scaled by 2 / width in Hz ('slaney' of
      librosa); their peak is 1 otherwise.
    power: of the magnitude: 1 or 2.
    is_centred: whether frame `t` is centred on sample `t * hop`, the waveform
      mirrored at its ends. It starts there otherwise, and frames that reach
      beyond the end are left out.
    is_periodic: whether the window is that of a period, as FFTs want it.
    floor: lower values count as this.
    offset: added before the logarithm.
    is_decibel: whether 10 log10, and not the natural logarithm.
  """

  sample_rate_hz: int
  window: int
  hop: int
  fft: int
  num_mels: int
  low_hz: float
  high_hz: float
  scale: str = 'htk'
  slopes: str = 'hertz'
  is_area_one: bool = False
  power: int = 2
  is_centred: bool = False
  is_periodic: bool = True
  floor: float = 0.0
  offset: float = 0.0
  is_decibel: bool = False

  def __post_init__(self):
    if self.scale not in SCALES or self.slopes not in ('hertz', 'mel'):
      raise ValueError(
        f'Mel scale `{self.scale}` with slopes in `{self.slopes}`, expected '
        f'{" or ".join(SCALES)}, and hertz or mel.'
      )
    if not 0 < self.window <= self.fft:
      raise ValueError(
        f'A window of {self.window} samples and an FFT of {self.fft}, expected '
        'a window that is no longer than the FFT.'
      )

  def num_frames(self, num_samples: int) -> int:
    """Frames of a waveform of `num_samples`."""
    if self.is_centred:
      return 1 + num_samples // self.hop
    return max(0, 1 + (num_samples - self.window) // self.hop)

  def __call__(self, waveform: Array) -> Array:
    """Maps float32 `[..., samples]` to float32 `[..., frames, mels]`."""
    window = hann(self.window, self.is_periodic)
    if self.is_centred:
      ends = [(0, 0)] * (waveform.ndim - 1) + [(self.fft // 2, self.fft // 2)]
      waveform = jnp.pad(waveform, ends, mode='reflect')
      # The window lies in the middle of the FFT.
      left = (self.fft - self.window) // 2
      window = np.pad(window, (left, self.fft - self.window - left))
    num_frames = 1 + (waveform.shape[-1] - len(window)) // self.hop
    starts = jnp.arange(num_frames) * self.hop
    # [..., samples] -> [..., frames, window]
    frames = waveform[..., starts[:, None] + jnp.arange(len(window))]
    # [..., frames, window] -> [..., frames, bins]
    spectrum = jnp.fft.rfft(frames * window, self.fft)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    magnitude = power if self.power == 2 else jnp.sqrt(power)
    # [..., frames, bins] -> [..., frames, mels]
    mels = jnp.matmul(magnitude, self.filters(), precision='highest')
    mels = jnp.maximum(mels, self.floor) + self.offset
    return 10.0 * jnp.log10(mels) if self.is_decibel else jnp.log(mels)

  def filters(self) -> np.ndarray:
    """Returns the filters, float32 `[fft // 2 + 1, mels]`."""
    return filters(
      self.sample_rate_hz,
      self.fft,
      self.num_mels,
      self.low_hz,
      self.high_hz,
      self.scale,
      self.slopes,
      self.is_area_one,
    )


def hann(size: int, is_periodic: bool = True) -> np.ndarray:
  """Returns the Hann window, float32 `[size]`."""
  period = size if is_periodic else size - 1
  return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / period)).astype(
    np.float32
  )


# Slaney's scale: 200 / 3 Hz a mel up to 1 kHz, 27 mels for each factor of 6.4
# above (Auditory Toolbox, 1998).
_KNEE_HZ, _KNEE_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


def _to_mel(hertz, scale):
  hertz = np.asarray(hertz, np.float64)
  if scale == 'htk':
    return 2595.0 * np.log10(1.0 + hertz / 700.0)
  above = np.maximum(hertz, _KNEE_HZ)
  return np.where(
    hertz < _KNEE_HZ,
    hertz * _KNEE_MEL / _KNEE_HZ,
    _KNEE_MEL + np.log(above / _KNEE_HZ) / _LOG_STEP,
  )


def _to_hertz(mel, scale):
  if scale == 'htk':
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
  return np.where(
    mel < _KNEE_MEL,
    mel * _KNEE_HZ / _KNEE_MEL,
    _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)),
  )


@functools.lru_cache
def filters(
  sample_rate_hz: float,
  fft: int,
  num_mels: int,
  low_hz: float,
  high_hz: float,
  scale: str = 'htk',
  slopes: str = 'hertz',
  is_area_one: bool = False,
) -> np.ndarray:
  """Returns triangular filters, float32 `[fft // 2 + 1, num_mels]`.

  Args: see `LogMel`.
  """
  mels = np.linspace(*_to_mel([low_hz, high_hz], scale), num_mels + 2)
  hertz = _to_hertz(mels, scale)
  bins = np.arange(fft // 2 + 1)[:, None] * (sample_rate_hz / fft)
  edges = hertz
  if slopes == 'mel':
    bins, edges = _to_mel(bins, scale), mels
  rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
  falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
  filters = np.maximum(0.0, np.minimum(rising, falling))
  if is_area_one:
    filters *= 2.0 / (hertz[2:] - hertz[:-2])
  return filters.astype(np.float32)
