"""What the codecs that work on short-time spectra share.

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


def overlap_add(frames: Array, hop: int, tail: Array) -> Array:
  """Sums frames that overlap, and what is there already.

  Args:
    frames: `[batch, frames, window]`.
    hop: samples between the starts of two frames; divides the window.
    tail: `[batch, window - hop]`, what earlier frames left behind.

  Returns:
    `[batch, frames * hop + window - hop]`; the last window - hop samples still
    lack the frames to come.
  """
  batch, count, parts = *frames.shape[:2], frames.shape[2] // hop
  hops = frames.reshape(batch, count, parts, hop)
  total = jnp.pad(
    tail.reshape(batch, parts - 1, hop), ((0, 0), (0, count), (0, 0))
  )
  for part in range(parts):
    after = parts - 1 - part
    total += jnp.pad(hops[:, :, part], ((0, 0), (part, after), (0, 0)))
  return total.reshape(batch, -1)


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


class Surroundings(nn.Module):
  """Puts what comes before and after around a waveform.

  Chunk by chunk (collection `stream` mutable) a waveform brings what comes
  after it, `size` samples, and the past is that of the chunk before.

  Attributes:
    size: samples before and after.
  """

  size: int

  @nn.compact
  def __call__(self, waveform: Array) -> Array:
    """Maps `[batch, samples]` to `[batch, size + samples + size]`."""
    size = self.size
    if not self.is_mutable_collection('stream') or self.is_initializing():
      return jnp.pad(waveform, ((0, 0), (size, size)))
    shape = (waveform.shape[0], size)
    past = self.variable('stream', 'past', jnp.zeros, shape, waveform.dtype)
    x = jnp.concatenate([past.value, waveform], axis=1)
    past.value = x[:, x.shape[1] - 2 * size : x.shape[1] - size]
    return x


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
    length = both.shape[1]
    tail = jnp.zeros((both.shape[0], self.window - self.hop))
    streaming = self.is_mutable_collection('stream')
    if streaming and not self.is_initializing():
      past = self.variable('stream', 'past', lambda: tail)
      tail = past.value
    total = overlap_add(both, self.hop, tail)
    if streaming and not self.is_initializing():
      past.value = total[:, length * self.hop :]
    signal, weight = jnp.split(total, 2)
    signal /= jnp.maximum(weight, 1e-3)
    start = 0 if streaming else (self.window - self.hop) // 2
    return signal[:, start : start + length * self.hop]


class Network(nn.Module):
  """Encoder and the trunk of the decoder; the quantiser stands between them.

  A codec adds `describe`, what its encoder sees of a spectrum, and heads behind
  `decode_features`.

  Attributes:
    config: dimensions.
  """

  config: Config = Config()

  def setup(self):
    c = self.config

    def blocks(name, number):
      return [
        Block(c.expansion, c.kernel_size, name=f'{name}_{i}')
        for i in range(number)
      ]

    self.surroundings = Surroundings(self.lookahead)
    self.encoder_in = nn.Dense(c.width)
    self.encoder_blocks = blocks('encoder', c.encoder_blocks)
    self.encoder_norm = nn.LayerNorm()
    self.encoder_out = nn.Dense(c.num_features)
    self.decoder_in = convolutions.CausalConv(c.width, 3)
    self.decoder_blocks = blocks('decoder', c.decoder_blocks)
    self.decoder_norm = nn.LayerNorm()
    self.inverse_stft = InverseStft(c.window, c.hop)

  @property
  def lookahead(self) -> int:
    """Samples past the end of a position that the encoder sees."""
    return (self.config.window - self.config.hop) // 2

  @property
  def num_bins(self) -> int:
    """Frequencies of a spectrum."""
    return self.config.window // 2 + 1

  @property
  def scale(self) -> float:
    """Magnitude of a spectrum of white noise of RMS 1."""
    window = losses.hann_window(self.config.window)
    return float(np.sqrt(np.square(window).sum()))

  def spectra(self, waveform: Array) -> Array:
    """Spectra of windowed frames.

    Args:
      waveform: float32 `[batch, time * hop]`; chunk by chunk `lookahead`
        samples more, which the next chunk starts with.

    Returns:
      complex64 `[batch, spectra, num_bins]`.
    """
    c = self.config
    window = losses.hann_window(c.window)
    padded = self.surroundings(waveform)
    return jnp.fft.rfft(losses.frame(padded, c.window, c.hop) * window)

  def describe(self, spectrum: Array) -> Array:
    """What the encoder sees.

    Args:
      spectrum: complex64 `[batch, spectra, num_bins]`, of magnitude 1 for
        white noise of RMS 1.

    Returns:
      float32 `[batch, spectra, features]`.
    """
    raise NotImplementedError

  def encode(self, waveform: Array) -> Array:
    """Maps a waveform to latents.

    Args:
      waveform: float32 `[batch, time * hop]`.

    Returns:
      float32 `[batch, time, stack * num_features]`, mean square below 1.
    """
    c = self.config
    x = self.encoder_in(self.describe(self.spectra(waveform) / self.scale))
    for block in self.encoder_blocks:
      x = block(x)
    x = self.encoder_out(self.encoder_norm(x))
    # A bound on the whole vector: with one on each feature, by tanh, features
    # saturate and die.
    x *= jax.lax.rsqrt(1.0 + jnp.square(x).mean(-1, keepdims=True))
    # [batch, spectra, num_features] -> [batch, time, stack * num_features]
    return x.reshape(x.shape[0], -1, c.stack * c.num_features)

  def unstack(self, latents: Array) -> Array:
    """Gives each spectrum its part of the latents.

    Args:
      latents: float32 `[batch, time, stack * num_features]`.

    Returns:
      float32 `[batch, spectra, num_features]`.
    """
    stack = self.config.stack
    return latents.reshape(latents.shape[0], -1, latents.shape[2] // stack)

  def decode_features(self, latents: Array) -> Array:
    """What the heads of a decoder see.

    Args:
      latents: float32 `[batch, time, stack * num_features]`.

    Returns:
      float32 `[batch, spectra, width]`.
    """
    x = self.decoder_in(self.unstack(latents))
    for block in self.decoder_blocks:
      x = block(x)
    return self.decoder_norm(x)

  def valid(self, latents: Array, num_valid: Array | None) -> Array:
    """Which spectra belong to the clip.

    Args:
      latents: `[batch, time, …]`.
      num_valid: int32 scalar; positions from here on lie behind the end of the
        clip. None if all belong to it.

    Returns:
      float32 `[batch, spectra]`, 1 or 0.
    """
    stack = self.config.stack
    valid = jnp.ones((latents.shape[0], latents.shape[1] * stack))
    if num_valid is not None:
      valid *= jnp.arange(valid.shape[1]) < num_valid * stack
    return valid
