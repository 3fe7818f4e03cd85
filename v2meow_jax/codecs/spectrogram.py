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
from v2meow_jax.codecs import convolutions
from v2meow_jax.codecs import losses
from v2meow_jax.codecs import spectral

Array = jax.Array

# Sums of squared windows below this count as this: where only the rim of a
# window has come yet, the signal is not known.
_WEIGHT_FLOOR = 1e-2


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions of the network.

  Attributes:
    window: samples per spectrum.
    hop: samples between spectra; the codec's hop is `stack` times it.
    stack: spectra, and so latents, per position of the codec.
    width: features of a block.
    expansion: width of a block's hidden layer over `width`.
    kernel_size: positions that a block's convolution sees.
    encoder_blocks: number of blocks.
    decoder_blocks: number of blocks.
    num_features: features of a latent; the quantiser sees `stack` times it.
    magnitude_power: compression of the spectra that the encoder sees.
    lookahead: spectra that the search for the phase of one looks ahead.
    iterations: of that search.
  """

  window: int = 1280
  hop: int = 320
  stack: int = 2
  width: int = 192
  expansion: int = 3
  kernel_size: int = 7
  encoder_blocks: int = 2
  decoder_blocks: int = 5
  num_features: int = 32
  magnitude_power: float = 0.4
  lookahead: int = 3
  iterations: int = 8


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
    iterations: of the search per frame.
  """

  window: int
  hop: int
  lookahead: int
  iterations: int

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
    spectra = jnp.pad(state['spectra'], ((0, 0), (0, 1), (0, 0)))
    # The newest frame has no phase yet: it does not count in the first round.
    known = weight * (jnp.arange(self.lookahead + 1) < self.lookahead)[:, None]
    phase = self._agree(state, spectra, known)
    phase = jax.lax.fori_loop(
      0,
      self.iterations,
      lambda _, p: self._agree(state, magnitudes * p, weight),
      phase,
    )
    spectra = magnitudes * phase
    pad = lambda x: jnp.pad(x, ((0, 0), (0, self.hop)))
    signal = pad(state['signal']) + self._frames(spectra[:, 0])
    weight = pad(state['weight']) + weight[:, 0]
    state = {
      'magnitudes': magnitudes[:, 1:],
      'valid': valid[:, 1:],
      'spectra': spectra[:, 1:],
      'signal': signal[:, self.hop :],
      'weight': weight[:, self.hop :],
    }
    return state, phase[:, 0]

  @property
  def _window(self) -> np.ndarray:
    return losses.hann_window(self.window)

  def _frames(self, spectra: Array) -> Array:
    return jnp.fft.irfft(spectra, self.window) * self._window

  def _agree(self, state, spectra, weight):
    """One round: the phase of the sum of all frames in each of them."""
    signal = self._overlap_add(self._frames(spectra), state['signal'])
    total = self._overlap_add(weight, state['weight'])
    signal /= jnp.maximum(total, _WEIGHT_FLOOR)
    frames = losses.frame(signal, self.window, self.hop) * self._window
    spectra = jnp.fft.rfft(frames)
    # Where nothing sounds yet, phase 0.
    spectra += 1e-6
    return spectra / jnp.abs(spectra)

  def _overlap_add(self, frames: Array, tail: Array) -> Array:
    """Sums `[batch, frames, window]` and what is there already."""
    batch, count, parts = *frames.shape[:2], self.window // self.hop
    hops = frames.reshape(batch, count, parts, self.hop)
    total = jnp.pad(
      tail.reshape(batch, parts - 1, self.hop), ((0, 0), (0, count), (0, 0))
    )
    for part in range(parts):
      after = parts - 1 - part
      total += jnp.pad(hops[:, :, part], ((0, 0), (part, after), (0, 0)))
    return total.reshape(batch, -1)


class Network(nn.Module):
  """Encoder and decoder; the quantiser stands between them, outside.

  Attributes:
    config: dimensions.
  """

  config: Config = Config()

  def setup(self):
    c = self.config

    def blocks(name, number):
      return [
        spectral.Block(c.expansion, c.kernel_size, name=f'{name}_{i}')
        for i in range(number)
      ]

    self.encoder_in = nn.Dense(c.width)
    self.encoder_blocks = blocks('encoder', c.encoder_blocks)
    self.encoder_norm = nn.LayerNorm()
    self.encoder_out = nn.Dense(c.num_features)
    self.decoder_in = convolutions.CausalConv(c.width, 3)
    self.decoder_blocks = blocks('decoder', c.decoder_blocks)
    self.decoder_norm = nn.LayerNorm()
    self.magnitude_head = nn.Dense(c.window // 2 + 1)
    self.inverse_stft = spectral.InverseStft(c.window, c.hop)
    self.phase_search = PhaseSearch(c.window, c.hop, c.lookahead, c.iterations)

  @property
  def delay(self) -> int:
    """Samples by which decoding chunk by chunk runs behind."""
    c = self.config
    return c.lookahead * c.hop + (c.window - c.hop) // 2

  def __call__(self, waveform: Array) -> Array:
    """Encodes and decodes without quantiser; makes all parameters."""
    return self.reconstruct(self.encode(waveform), waveform)

  def encode(self, waveform: Array) -> Array:
    """Maps a waveform to latents.

    Args:
      waveform: float32 `[batch, time * hop]`.

    Returns:
      float32 `[batch, time, stack * num_features]`, mean square below 1.
    """
    c = self.config
    size = losses.magnitude(self._spectra(waveform) / self._scale)
    x = jnp.concatenate([size**c.magnitude_power, 0.2 * jnp.log(size)], axis=-1)
    x = self.encoder_in(x)
    for block in self.encoder_blocks:
      x = block(x)
    x = self.encoder_out(self.encoder_norm(x))
    # A bound on the whole vector, as in `spectral.Network`.
    x *= jax.lax.rsqrt(1.0 + jnp.square(x).mean(-1, keepdims=True))
    # [batch, spectra, num_features] -> [batch, time, stack * num_features]
    return x.reshape(x.shape[0], -1, c.stack * c.num_features)

  def decode(self, latents: Array, num_valid: Array | None = None) -> Array:
    """Maps latents to a waveform.

    Args:
      latents: float32 `[batch, time, stack * num_features]`.
      num_valid: int32 scalar; positions from here on lie behind the end of the
        clip and make no sound. None if all belong to it.

    Returns:
      float32 `[batch, time * hop]`; `delay` samples late if chunk by chunk.
    """
    magnitudes = self.magnitudes(latents)
    valid = jnp.ones(magnitudes.shape[:2])
    if num_valid is not None:
      valid *= jnp.arange(valid.shape[1]) < num_valid * self.config.stack
    return self.inverse_stft(*self.phase_search(magnitudes, valid))

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
    spectra = self._spectra(waveform)
    phase = spectra / losses.magnitude(spectra)
    magnitudes = self.magnitudes(latents)
    return self.inverse_stft(magnitudes * phase, jnp.ones(phase.shape[:2]))

  def magnitudes(self, latents: Array) -> Array:
    """Maps latents to magnitudes, float32 `[batch, spectra, bins]`."""
    c = self.config
    # [batch, time, stack * num_features] -> [batch, spectra, num_features]
    x = latents.reshape(latents.shape[0], -1, c.num_features)
    x = self.decoder_in(x)
    for block in self.decoder_blocks:
      x = block(x)
    x = self.magnitude_head(self.decoder_norm(x))
    # Bounded above: a wild latent must not become a wild sample.
    return self._scale * jnp.exp(jnp.minimum(x - 3.0, 6.0))

  @property
  def _scale(self) -> float:
    """Magnitude of a spectrum of white noise of RMS 1."""
    window = losses.hann_window(self.config.window)
    return float(np.sqrt(np.square(window).sum()))

  def _spectra(self, waveform: Array) -> Array:
    """Spectra of windowed frames, complex64 `[batch, spectra, bins]`."""
    c = self.config
    pad = (c.window - c.hop) // 2
    padded = jnp.pad(waveform, ((0, 0), (pad, pad)))
    window = losses.hann_window(c.window)
    return jnp.fft.rfft(losses.frame(padded, c.window, c.hop) * window)


class SpectrogramCodec(base.Codec):
  """The bundled codec: 16 kHz, 25 Hz, 8 levels of 512 codes.

  Attributes: see `base.Codec`.
  """

  def __init__(self, variables: dict, config: Config = Config()):
    super().__init__(streams.get('spectrogram'), Network(config), variables)
