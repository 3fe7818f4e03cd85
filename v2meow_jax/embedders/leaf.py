"""LEAF: a classifier of sounds whose spectrogram is learnt, too.

Zeghidour et al., "LEAF: a learnable frontend for audio classification",
section 3: Gabor filters, their energy, Gaussian pooling and PCEN, each channel
with its own parameters, which start as a mel spectrogram; then EfficientNet-B0.
It is the classifier whose classes the paper compares (V2Meow, Evaluation); no
weights of it are public, so it is trained here (`classifiers.py`).
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy

from v2meow_jax import mels
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import efficientnet
from v2meow_jax.embedders import windowed

Array = jax.Array

_SPEC = streams.get('leaf')
_FFT = 512  # on whose bins the filters start


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions and regularisation.

  Attributes:
    num_filters: channels of the front end.
    window: samples of its filters and of its pooling; odd.
    hop: samples from one frame to the next.
    low_hz: lower edge of the lowest filter at the start.
    high_hz: upper edge of the highest.
    encoder: the network behind it.
    dropout: of what the classifier reads, in training.
    window_seconds: of a clip that it hears at once.
  """

  num_filters: int = 40
  window: int = 401
  hop: int = 160
  low_hz: float = 60.0
  high_hz: float = 7800.0
  encoder: efficientnet.Config = efficientnet.Config()
  dropout: float = 0.2
  window_seconds: float = 1.0


def mel_start(config: Config) -> np.ndarray:
  """Gabor filters that are like those of a mel spectrogram.

  Each has its centre where a mel filter has its peak, and as many bins above
  half of the peak of the magnitude (the root of the filter).

  Args:
    config: of the front end.

  Returns:
    float32 `[filters, 2]`: centre in radians a sample, and deviation in
    samples.
  """
  filters = mels.LogMel(
    _SPEC.sample_rate_hz,
    window=_FFT,
    hop=config.hop,
    fft=_FFT,
    num_mels=config.num_filters,
    low_hz=config.low_hz,
    high_hz=config.high_hz,
    slopes='mel',
  ).filters()
  magnitudes = np.sqrt(filters)
  centre = magnitudes.argmax(0) * (2 * math.pi / _FFT)
  bins = (magnitudes >= magnitudes.max(0) / 2).sum(0)
  deviation = math.sqrt(2 * math.log(2)) * _FFT / (math.pi * bins)
  return np.stack([centre, deviation], axis=1).astype(np.float32)


def gabor_filters(parameters: Array, window: int) -> tuple[Array, Array]:
  """Real and imaginary parts of Gabor filters.

  Centres stay within 0..pi, and the width of a filter's response within what
  the window can hold.

  Args:
    parameters: float32 `[filters, 2]`, see `mel_start`.
    window: samples, odd.

  Returns:
    Both float32 `[window, filters]`.
  """
  root = math.sqrt(2 * math.log(2))
  centre = jnp.clip(parameters[:, 0], 0, math.pi)
  deviation = jnp.clip(
    parameters[:, 1], 4 * root / math.pi, window * root / math.pi
  )
  time = jnp.arange(window)[:, None] - (window // 2)
  envelope = jnp.exp(-0.5 * jnp.square(time / deviation))
  envelope /= math.sqrt(2 * math.pi) * deviation
  return envelope * jnp.cos(time * centre), envelope * jnp.sin(time * centre)


def gaussian_pooling(deviation: Array, window: int) -> Array:
  """Windows of pooling, float32 `[window, filters]`, with 1 in the middle.

  Args:
    deviation: float32 `[filters]`, of half a window.
    window: samples, odd.
  """
  deviation = jnp.clip(deviation, 2.0 / window, 0.5)
  half = 0.5 * (window - 1)
  time = jnp.arange(window)[:, None] - half
  return jnp.exp(-0.5 * jnp.square(time / (deviation * half)))


def _energy(waveform: Array, real: Array, imaginary: Array) -> Array:
  """Squared magnitude of a waveform behind complex filters.

  Silence on both sides, so that there are as many samples as before. By FFT: a
  tenth of the work of 401 taps.

  Args:
    waveform: float32 `[batch, samples]`.
    real: float32 `[window, filters]`; the middle of the window is time 0.
    imaginary: the same.

  Returns:
    float32 `[batch, samples, filters]`.
  """
  num_samples, half = waveform.shape[1], real.shape[0] // 2
  size = scipy.fft.next_fast_len(num_samples + 2 * half)
  padded = jnp.pad(waveform, ((0, 0), (half, size - num_samples - half)))
  # The filter slides over the waveform as it is: a correlation.
  filters = jnp.fft.fft(real - 1j * imaginary, size, axis=0)
  spectrum = jnp.fft.fft(padded)[..., None] * filters.conj()
  # [batch, bins, filters] -> [batch, samples, filters]
  x = jnp.fft.ifft(spectrum, axis=1)[:, :num_samples]
  return jnp.square(x.real) + jnp.square(x.imag)


def _pool(energy: Array, window: Array, hop: int) -> Array:
  """Weighs and sums what lies around the middle of each hop ('SAME').

  Args:
    energy: float32 `[batch, samples, filters]`.
    window: float32 `[window, filters]`.
    hop: samples.

  Returns:
    float32 `[batch, time, filters]`, time = samples / hop, rounded up.
  """
  batch, num_samples, channels = energy.shape
  count = -(-num_samples // hop)
  lacking = max(0, (count - 1) * hop + len(window) - num_samples)
  parts = -(-len(window) // hop)
  size = (count + parts - 1) * hop
  left = lacking // 2
  # What is behind the last window is cut off with it.
  energy = jnp.pad(
    energy, ((0, 0), (left, max(0, size - left - num_samples)), (0, 0))
  )[:, :size]
  window = jnp.pad(window, ((0, parts * hop - len(window)), (0, 0)))
  # [batch, samples, filters] -> [batch, hops, hop, filters]: a window is some
  # hops, and a convolution of each channel alone is slow on CPUs.
  hops = energy.reshape(batch, -1, hop, channels)
  return sum(
    jnp.einsum(
      'btsf,sf->btf',
      hops[:, i : i + count],
      window[i * hop : (i + 1) * hop],
      precision='highest',
    )
    for i in range(parts)
  )


class FrontEnd(nn.Module):
  """A waveform to what its channels hold, a frame every 10 ms."""

  config: Config = Config()

  @nn.compact
  def __call__(self, waveform: Array) -> Array:
    """Maps float32 `[batch, samples]` to `[batch, time, filters]`."""
    c = self.config
    gabor = self.param('gabor', lambda key: jnp.asarray(mel_start(c)))
    # [batch, samples] -> [batch, samples, filters]
    x = _energy(waveform, *gabor_filters(gabor, c.window))
    deviation = self.param(
      'pooling', nn.initializers.constant(0.4), (c.num_filters,)
    )
    # [batch, samples, filters] -> [batch, time, filters]
    x = _pool(x, gaussian_pooling(deviation, c.window), c.hop)
    return _Pcen(name='pcen')(jnp.maximum(x, 1e-5))


class _Pcen(nn.Module):
  """Energy over its own past average, compressed (Wang et al., 2017)."""

  @nn.compact
  def __call__(self, energy: Array) -> Array:
    """Maps float32 `[batch, time, filters]`, above 0, to the same shape."""
    channels = energy.shape[-1:]

    def param(name, value):
      return self.param(name, nn.initializers.constant(value), channels)

    exponent = jnp.minimum(param('alpha', 0.96), 1.0)
    smooth = jnp.clip(param('smooth', 0.04), 0.0, 1.0)
    delta = param('delta', 2.0)
    root = 1.0 / jnp.maximum(param('root', 2.0), 1.0)

    def step(average, now):
      average = smooth * now + (1.0 - smooth) * average
      return average, average

    # The average starts as the first frame.
    _, average = jax.lax.scan(step, energy[:, 0], energy.swapaxes(0, 1))
    x = energy / (1e-12 + average.swapaxes(0, 1)) ** exponent
    return (x + delta) ** root - delta**root


class Network(nn.Module):
  """A waveform to scores of classes, before the sigmoid."""

  config: Config = Config()

  @nn.compact
  def __call__(self, waveform: Array, is_training: bool = False) -> Array:
    """Maps float32 `[batch, samples]` to `[batch, classes]`."""
    # [batch, samples] -> [batch, time, filters]
    x = FrontEnd(self.config, name='front_end')(waveform)
    encoder = efficientnet.EfficientNet(self.config.encoder, name='encoder')
    # [batch, time, filters] -> [batch, time / 32, filters / 32, head]
    x = encoder(x[..., None], is_training)
    # [batch, time / 32, filters / 32, head] -> [batch, head]
    x = x.max(axis=(1, 2))
    x = nn.Dropout(self.config.dropout)(x, deterministic=not is_training)
    return nn.Dense(_SPEC.num_features, name='classifier')(x)


def expected(config: Config) -> Mapping[str, Any]:
  """Shapes of parameters and averages."""
  samples = round(config.window_seconds * _SPEC.sample_rate_hz)
  waveform = jax.ShapeDtypeStruct((1, samples), jnp.float32)
  return jax.eval_shape(Network(config).init, jax.random.PRNGKey(0), waveform)


class Leaf(windowed.Windowed):
  """LEAF as an embedder: scores of the 527 classes of AudioSet."""

  def __init__(
    self,
    params: Mapping,
    config: Config = Config(),
    hop_seconds: float | None = None,
  ):
    """Takes the weights.

    Args:
      params: `params` and `batch_stats`, as training writes them.
      config: what they were trained with.
      hop_seconds: from one window to the next; a window by default.

    Raises:
      UserError: weights that do not fit.
      ValueError: a bad hop.
    """
    weights.check_params(expected(config), params)
    super().__init__(
      _SPEC.name,
      Network(config).apply,
      params,
      round(config.window_seconds * _SPEC.sample_rate_hz),
      config.window_seconds if hop_seconds is None else hop_seconds,
      audioset.NAMES,
    )
