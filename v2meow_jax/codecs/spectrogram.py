"""Codec of the bundled model: magnitudes in tokens, phase found again.

The tokens say how loud each frequency is, and nothing of where its waves
stand. A steady tone then gives the same token again and again, and a small
stage can learn to write it; the tokens of a codec that keeps phase
(`spectral.py`) look like noise to it. What is given up is the waveform: the
sound has the spectra of the original, but other samples.

The decoder is causal and finds the phase frame by frame (RTISI-LA: Beauregard,
Zhu and Wyse, "An efficient algorithm for real-time spectrogram inversion",
2005; Zhu, Beauregard and Wyse, "Real-time signal estimation from modified
short-time Fourier transform magnitude spectra", 2007), so that it works on
chunks of a clip of any length.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import streams
from v2meow_jax.codecs import base
from v2meow_jax.codecs import losses
from v2meow_jax.codecs import spectra

Array = jax.Array

# Sums of squared windows below this count as this: where only the rim of a
# window has come yet, the signal is not known.
_WEIGHT_FLOOR = 1e-2


@dataclasses.dataclass(frozen=True)
class Config(spectra.Config):
  """Dimensions of the network, as `spectra.Config`, and of the phase search.

  Attributes:
    lookahead: spectra that the search for the phase of one looks ahead.
    iterations: of that search.
    momentum: of that search.
  """

  decoder_blocks: int = 5
  num_features: int = 32
  lookahead: int = 3
  iterations: int = 8
  momentum: float = 1.0


class PhaseSearch(nn.Module):
  """Gives magnitudes a phase, frame by frame, by RTISI-LA.

  Each frame starts with the phase that the frames before it imply, and is
  corrected `iterations` times together with the `lookahead` frames behind it,
  so that overlapping frames agree. The search has no gradient; the magnitudes
  keep theirs.

  Chunk by chunk (collection `stream` mutable) what comes out runs `lookahead`
  frames behind.

  Attributes:
    window: samples per frame.
    hop: samples between frames.
    lookahead: frames behind a frame that are searched with it.
    iterations: of the search per frame, at least 1.
    momentum: share of the last change that is made once more in each iteration
      (Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm", 2013);
      0 is RTISI-LA itself.
  """

  window: int
  hop: int
  lookahead: int
  iterations: int
  momentum: float

  @nn.compact
  def __call__(self, magnitudes: Array, valid: Array) -> tuple[Array, Array]:
    """Finds the phase.

    Args:
      magnitudes: float32 `[batch, frames, bins]`, of spectra of windowed
        frames.
      valid: float32 `[batch, frames]`, 0 for frames behind the end.

    Returns:
      complex64 spectra `[batch, frames, bins]`, and `valid` of each.
    """
    batch, length, bins = magnitudes.shape
    ahead, tail = self.lookahead, self.window - self.hop
    state = {
      'magnitudes': jnp.zeros((batch, ahead, bins)),
      'valid': jnp.zeros((batch, ahead)),
      'spectra': jnp.zeros((batch, ahead, bins), jnp.complex64),
      'signal': jnp.zeros((batch, tail)),
      'weight': jnp.zeros((batch, tail)),
    }
    magnitudes *= valid[..., None]
    streaming = self.is_mutable_collection('stream')
    if streaming and not self.is_initializing():
      past = self.variable('stream', 'past', lambda: state)
      state = past.value
      late = (state['magnitudes'], magnitudes), (state['valid'], valid)
      late = [jnp.concatenate(pair, axis=1)[:, :length] for pair in late]
    else:
      late = [magnitudes, valid]
      magnitudes = jnp.pad(magnitudes, ((0, 0), (0, ahead), (0, 0)))
      valid = jnp.pad(valid, ((0, 0), (0, ahead)))
    # [batch, frames, …] -> [frames, batch, …]
    frames = jax.lax.stop_gradient(
      (jnp.swapaxes(magnitudes, 0, 1), jnp.swapaxes(valid, 0, 1))
    )
    state, phase = jax.lax.scan(self._step, state, frames)
    phase = jnp.swapaxes(phase, 0, 1)
    if streaming and not self.is_initializing():
      past.value = state
    else:
      phase = phase[:, ahead:]
    return late[0] * phase, late[1]

  def _step(self, state, frame):
    """Takes the newest frame, fixes the phase of that `lookahead` ago."""
    magnitudes, valid = (
      jnp.concatenate([state[name], new[:, None]], axis=1)
      for name, new in zip(('magnitudes', 'valid'), frame, strict=True)
    )
    weight = valid[..., None] * jnp.square(self._window)
    found = jnp.pad(state['spectra'], ((0, 0), (0, 1), (0, 0)))
    # The newest frame has no phase yet: it does not count in the first round.
    known = weight * (jnp.arange(self.lookahead + 1) < self.lookahead)[:, None]
    first = self._agree(state, found, self._total(state, known))
    total = self._total(state, weight)

    def search(_, carry):
      wanted, last = carry
      agreed = self._agree(state, magnitudes * _phase(wanted), total)
      # A step beyond where the frames agree: fewer rounds for the same.
      return agreed + self.momentum * (agreed - last), agreed

    first = self._agree(state, magnitudes * _phase(first), total)
    wanted, _ = jax.lax.fori_loop(1, self.iterations, search, (first, first))
    phase = _phase(wanted)
    found = magnitudes * phase
    pad = lambda x: jnp.pad(x, ((0, 0), (0, self.hop)))
    signal = pad(state['signal']) + self._frames(found[:, 0])
    weight = pad(state['weight']) + weight[:, 0]
    state = {
      'magnitudes': magnitudes[:, 1:],
      'valid': valid[:, 1:],
      'spectra': found[:, 1:],
      'signal': signal[:, self.hop :],
      'weight': weight[:, self.hop :],
    }
    return state, phase[:, 0]

  @property
  def _window(self) -> np.ndarray:
    return losses.hann_window(self.window)

  def _frames(self, spectrum: Array) -> Array:
    return jnp.fft.irfft(spectrum, self.window) * self._window

  def _total(self, state, weight):
    """Sum of all squared windows at each sample."""
    total = spectra.overlap_add(weight, self.hop, state['weight'])
    return jnp.maximum(total, _WEIGHT_FLOOR)

  def _agree(self, state, found, total):
    """Spectra of the sum of all frames in each of them."""
    frames = self._frames(found)
    signal = spectra.overlap_add(frames, self.hop, state['signal']) / total
    frames = losses.frame(signal, self.window, self.hop) * self._window
    return jnp.fft.rfft(frames)


def _phase(spectrum: Array) -> Array:
  """Spectra of magnitude 1; where nothing sounds yet, phase 0."""
  spectrum += 1e-6
  return spectrum / jnp.abs(spectrum)


class Network(spectra.Network):
  """Encoder and decoder; the quantiser stands between them, outside.

  Attributes:
    config: dimensions.
  """

  config: Config = Config()

  def setup(self):
    super().setup()
    c = self.config
    self.magnitude_head = nn.Dense(self.num_bins)
    self.phase_search = PhaseSearch(
      c.window, c.hop, c.lookahead, c.iterations, c.momentum
    )

  @property
  def delay(self) -> int:
    """Samples by which decoding chunk by chunk runs behind."""
    c = self.config
    return c.lookahead * c.hop + (c.window - c.hop) // 2

  def __call__(self, waveform: Array) -> Array:
    """Encodes and decodes without quantiser; makes all parameters."""
    return self.reconstruct(self.encode(waveform), waveform)

  def describe(self, spectrum: Array) -> Array:
    """See `spectra.Network`: compressed magnitudes and loudness."""
    size = losses.magnitude(spectrum)
    return jnp.concatenate(
      [size**self.config.magnitude_power, 0.2 * jnp.log(size)], axis=-1
    )

  def decode(self, latents: Array, num_valid: Array | None = None) -> Array:
    """Maps latents to a waveform.

    Args:
      latents: float32 `[batch, time, stack * num_features]`.
      num_valid: int32 scalar; positions from here on lie behind the end of the
        clip and make no sound. None if all belong to it.

    Returns:
      float32 `[batch, time * hop]`; `delay` samples late if chunk by chunk.
    """
    valid = self.valid(latents, num_valid)
    return self.inverse_stft(
      *self.phase_search(self.magnitudes(latents), valid)
    )

  def reconstruct(self, latents: Array, waveform: Array) -> Array:
    """Maps latents to a waveform with the phase of the original.

    This is what training compares with the original while the tokens change:
    no search for a phase stands between them and the loss.

    Args:
      latents: float32 `[batch, time, stack * num_features]`.
      waveform: float32 `[batch, time * hop]`, the original.

    Returns:
      float32 `[batch, time * hop]`.
    """
    original = self.spectra(waveform)
    phase = original / losses.magnitude(original)
    magnitudes = self.magnitudes(latents)
    return self.inverse_stft(magnitudes * phase, self.valid(latents, None))

  def magnitudes(self, latents: Array) -> Array:
    """Maps latents to magnitudes, float32 `[batch, spectra, num_bins]`."""
    x = self.magnitude_head(self.decode_features(latents))
    # Bounded above: a wild latent must not become a wild sample.
    return self.scale * jnp.exp(jnp.minimum(x - 3.0, 6.0))


class SpectrogramCodec(base.Codec):
  """The bundled codec: 16 kHz, 25 Hz, 8 levels of 512 codes.

  Attributes: see `base.Codec`.
  """

  def __init__(self, variables: dict, config: Config = Config()):
    super().__init__(streams.get('spectrogram'), Network(config), variables)
