"""Codec of waveforms by their spectra: a residual quantiser between two STFTs.

Of the family of SpectroStream and Vocos: the network works on short-time
spectra at 50 Hz, never on samples, so that it is cheap on a CPU. Two latents
side by side are one vector for the quantiser, at 25 Hz: a network that strides
learns phase late or never. The encoder sees 30 ms past the end of a position
(half a window minus half a hop), the decoder nothing but the past; overlap-add
then needs the next 30 ms.
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

Array = jax.Array


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
  """

  window: int = 1280
  hop: int = 320
  stack: int = 2
  width: int = 192
  expansion: int = 3
  kernel_size: int = 7
  encoder_blocks: int = 2
  decoder_blocks: int = 8
  num_features: int = 64
  magnitude_power: float = 0.4


class Block(nn.Module):
  """ConvNeXt block over time: depthwise convolution, then an MLP, added.

  Attributes:
    expansion: width of the hidden layer over the block's.
    kernel_size: taps of the convolution.
  """

  expansion: int
  kernel_size: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, time, features]` to the same shape."""
    width = x.shape[-1]
    y = convolutions.CausalConv(
      width, self.kernel_size, depthwise=True, name='conv'
    )(x)
    y = nn.LayerNorm(name='norm')(y)
    y = nn.Dense(width * self.expansion, name='wi')(y)
    y = nn.Dense(width, name='wo')(nn.gelu(y))
    scale = self.param('scale', nn.initializers.constant(0.3), (width,))
    return x + scale * y


class InverseStft(nn.Module):
  """Overlap-add of windowed frames.

  Frame t is centred on the middle of its hop, so the first and the last
  `delay` samples lie outside the clip. Chunk by chunk (collection `stream`
  mutable) the output runs `delay` samples behind instead of being trimmed.

  Attributes:
    window: samples per frame.
    hop: samples between frames.
  """

  window: int
  hop: int

  @nn.compact
  def __call__(self, spectrum: Array, valid: Array) -> Array:
    """Maps complex `[batch, frames, bins]` to `[batch, frames * hop]`.

    Args:
      spectrum: of each frame.
      valid: float32 `[batch, frames]`, 0 for frames behind the end.
    """
    window = losses.hann_window(self.window)
    frames = jnp.fft.irfft(spectrum, self.window) * window
    frames *= valid[..., None]
    weights = valid[..., None] * jnp.square(window)
    # The sum of squared windows rides along as one more clip per clip.
    both = jnp.concatenate([frames, weights])
    batch, length, parts = *both.shape[:2], self.window // self.hop
    tail = jnp.zeros((batch, parts - 1, self.hop))
    streaming = self.is_mutable_collection('stream')
    if streaming and not self.is_initializing():
      past = self.variable('stream', 'past', lambda: tail)
      tail = past.value
    hops = both.reshape(batch, length, parts, self.hop)
    total = jnp.pad(tail, ((0, 0), (0, length), (0, 0)))
    for part in range(parts):
      after = parts - 1 - part
      total += jnp.pad(hops[:, :, part], ((0, 0), (part, after), (0, 0)))
    if streaming and not self.is_initializing():
      past.value = total[:, length:]
    signal, weight = jnp.split(total.reshape(batch, -1), 2)
    signal /= jnp.maximum(weight, 1e-3)
    start = 0 if streaming else (self.window - self.hop) // 2
    return signal[:, start : start + length * self.hop]


class Network(nn.Module):
  """Encoder and decoder; the quantiser stands between them, outside.

  Attributes:
    config: dimensions.
  """

  config: Config = Config()

  def setup(self):
    c = self.config
    bins = c.window // 2 + 1

    def blocks(name, number):
      return [
        Block(c.expansion, c.kernel_size, name=f'{name}_{i}')
        for i in range(number)
      ]

    self.encoder_in = nn.Dense(c.width)
    self.encoder_blocks = blocks('encoder', c.encoder_blocks)
    self.encoder_norm = nn.LayerNorm()
    self.encoder_out = nn.Dense(c.num_features)
    self.decoder_in = convolutions.CausalConv(c.width, 3)
    self.decoder_blocks = blocks('decoder', c.decoder_blocks)
    self.decoder_norm = nn.LayerNorm()
    self.gain_head = nn.Dense(bins)
    self.wave_head = nn.Dense(2 * bins)
    self.inverse_stft = InverseStft(c.window, c.hop)

  @property
  def delay(self) -> int:
    """Samples by which decoding chunk by chunk runs behind."""
    return (self.config.window - self.config.hop) // 2

  def __call__(self, waveform: Array) -> Array:
    """Encodes and decodes without quantiser; makes all parameters."""
    return self.decode(self.encode(waveform))

  def encode(self, waveform: Array) -> Array:
    """Maps a waveform to latents.

    Args:
      waveform: float32 `[batch, time * hop]`.

    Returns:
      float32 `[batch, time, stack * num_features]`, mean square below 1.
    """
    c = self.config
    window = losses.hann_window(c.window)
    padded = jnp.pad(waveform, ((0, 0), (self.delay, self.delay)))
    spectrum = jnp.fft.rfft(
      losses.frame(padded, c.window, c.hop)
      * (window / np.sqrt(np.square(window).sum()))
    )
    size = losses.magnitude(spectrum)
    gain = size ** (c.magnitude_power - 1.0)
    x = jnp.concatenate(
      [spectrum.real * gain, spectrum.imag * gain, 0.2 * jnp.log(size)], -1
    )
    x = self.encoder_in(x)
    for block in self.encoder_blocks:
      x = block(x)
    x = self.encoder_out(self.encoder_norm(x))
    # A bound on the whole vector: with one on each feature, by tanh, features
    # saturate and die.
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
    c = self.config
    # [batch, time, stack * num_features] -> [batch, spectra, num_features]
    x = latents.reshape(latents.shape[0], -1, c.num_features)
    x = self.decoder_in(x)
    for block in self.decoder_blocks:
      x = block(x)
    x = self.decoder_norm(x)
    # The wave head is linear and so learns phase early; the gain spans the
    # range of loudness. Bounded above: a wild latent must not become a wild
    # sample.
    gain = jnp.exp(jnp.minimum(self.gain_head(x) - 1.0, 6.0))
    real, imaginary = jnp.split(self.wave_head(x), 2, axis=-1)
    spectrum = jax.lax.complex(gain * real, gain * imaginary)
    valid = jnp.ones(spectrum.shape[:2])
    if num_valid is not None:
      valid *= jnp.arange(spectrum.shape[1]) < num_valid * c.stack
    return self.inverse_stft(spectrum, valid)

  def reconstruct(self, latents: Array, waveform: Array) -> Array:
    """What training compares with the original `waveform`: `decode`."""
    del waveform
    return self.decode(latents)


class SpectralCodec(base.Codec):
  """Keeps the waveform: 16 kHz, 25 Hz, 12 levels of 512 codes.

  Attributes: see `base.Codec`.
  """

  def __init__(self, variables: dict, config: Config = Config()):
    super().__init__(streams.get('spectral'), Network(config), variables)
