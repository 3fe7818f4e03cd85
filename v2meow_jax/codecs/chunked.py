"""Networks of any receptive field, chunk by chunk, and codecs of them.

Every chunk has the same shape, so that one compilation serves clips of any
length in bounded memory. A layer that sees ahead gives its output later: what
runs through a network lags behind the clip by a number of positions that only
the architecture decides, and nothing is computed twice. Where a clip begins and
ends, each layer sees what it sees in the whole clip: zeros, or the clip
mirrored.
"""

from collections.abc import Callable, Iterable, Iterator
import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax.codecs import base
from v2meow_jax.codecs import rvq

Array = jax.Array


@flax.struct.dataclass
class Span:
  """Where in its clip the array of a layer lies.

  Attributes:
    start: int32 scalar, positions in the chunks before.
    length: int32 scalar, positions that the clip has as far as is known.
    delay: positions by which the array lags behind the clip.
  """

  start: Array
  length: Array
  delay: int = flax.struct.field(pytree_node=False, default=0)

  def inside(self, size: int, before: int = 0) -> Array:
    """Which positions belong to the clip.

    Args:
      size: of the array.
      before: positions of the chunks before that are put in front of it.

    Returns:
      bool `[before + size, 1]`.
    """
    place = self.start - self.delay - before + jnp.arange(before + size)
    return ((place >= 0) & (place < self.length))[:, None]

  def later(self, positions: int) -> 'Span':
    """Of a layer that sees so many positions ahead."""
    return self.replace(delay=self.delay + positions)

  def divided(self, stride: int, delay: int = 0) -> 'Span':
    """Of a layer that makes one position of `stride`."""
    return Span(self.start // stride, self.length // stride, delay)

  def multiplied(self, stride: int, trimmed: int = 0) -> 'Span':
    """Of a layer that makes `stride` positions of each.

    Args:
      stride: positions made of one.
      trimmed: see `Upsampling`.
    """
    kept = stride - 2 * trimmed if trimmed else 0
    return Span(
      self.start * stride,
      self.length * stride + kept,
      self.delay * stride + trimmed,
    )


class Clock(nn.Module):
  """Counts the positions of a stream."""

  @nn.compact
  def __call__(self, size: int, num_valid: Array | None) -> Span:
    """Where the next chunk lies.

    Args:
      size: positions of the chunk.
      num_valid: int32 scalar, how many of them belong to the clip; None for
        all.
    """
    zero = lambda: jnp.zeros((), jnp.int32)
    num_valid = jnp.asarray(size if num_valid is None else num_valid, jnp.int32)
    start = stream_variable(self, 'start', zero)
    length = stream_variable(self, 'length', zero)
    if not start:
      return Span(zero(), num_valid)
    span = Span(start.value, length.value + num_valid)
    start.value, length.value = start.value + size, span.length
    return span


class Past(nn.Module):
  """Puts what the chunks before ended with in front of a chunk.

  What lies outside the clip is zero. With `mirrors` the clip, mirrored at its
  first position, lies before its start, as in reflect padding, and what lies
  behind its end stays as it is: nothing causal sees it.

  Attributes:
    size: positions to put in front.
    mirrors: see above.
  """

  size: int
  mirrors: bool = False

  @nn.compact
  def __call__(self, x: Array, span: Span) -> Array:
    """Maps `[batch, time, features]` to `[batch, size + time, features]`."""
    if not self.size:
      return x
    empty = lambda: jnp.zeros((x.shape[0], self.size, x.shape[2]), x.dtype)
    variable = stream_variable(self, 'past', empty)
    past = variable.value if variable else empty()
    if self.mirrors:
      assert not variable or x.shape[1] > self.size, 'chunks are too short'
      # Behind the end of a short clip there are zeros to mirror.
      front = jnp.where(span.inside(x.shape[1]), x, 0.0)[:, 1 : 1 + self.size]
      missing = self.size - front.shape[1]
      mirrored = jnp.pad(front, ((0, 0), (0, missing), (0, 0)))[:, ::-1]
      past = jnp.where(span.start == 0, mirrored, past)
    joined = jnp.concatenate([past, x], axis=1)
    if variable:
      variable.value = joined[:, joined.shape[1] - self.size :]
    if self.mirrors:
      return joined
    return jnp.where(span.inside(x.shape[1], self.size), joined, 0.0)


class Convolution(nn.Module):
  """Convolution over time without padding.

  Attributes:
    features: width of the output.
    kernel_size: taps.
    stride: inputs per output.
    dilation: inputs between taps.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, reach + time, in]` to `[batch, outputs, features]`."""
    kernel = self.param(
      'kernel',
      nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal'),
      (self.kernel_size, x.shape[-1], self.features),
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(self.stride,),
      padding='VALID',
      rhs_dilation=(self.dilation,),
      dimension_numbers=('NWC', 'WIO', 'NWC'),
    )
    return y + bias


class Upsampling(nn.Module):
  """Transposed convolution with a kernel of two strides.

  Written as a convolution with two taps that makes `stride` outputs at once.

  Attributes:
    features: width of the output.
    stride: outputs per input.
    trimmed: outputs cut off at both ends, as `padding` in PyTorch; 0 for a
      causal one, which loses `stride` of them at the end.
  """

  features: int
  stride: int
  trimmed: int = 0

  @nn.compact
  def __call__(self, x: Array, span: Span) -> tuple[Array, Span]:
    """Maps `[batch, time, in]` to `[batch, time * stride, features]`."""
    x = Past(1, name='past')(x, span)
    x = Convolution(self.features * self.stride, 2, name='conv')(x)
    # [batch, time, stride * features] -> [batch, time * stride, features]
    x = x.reshape(x.shape[0], -1, self.features)
    return x, span.multiplied(self.stride, self.trimmed)


def stream_variable(
  module: nn.Module, name: str, init: Callable[[], Any]
) -> nn.Variable | None:
  """What a module keeps from chunk to chunk; None where there is one chunk."""
  if _is_streaming(module):
    return module.variable('stream', name, init)
  return None


def _is_streaming(module: nn.Module) -> bool:
  return module.is_mutable_collection('stream') and not (
    module.is_initializing()
  )


class Network(nn.Module):
  """Encoder and decoder; the quantiser stands between them, outside.

  A subclass makes `encoder` and `decoder`, which map `(x, span)` to the same,
  and has the properties `hop`, `encode_delay` and `delay`.
  """

  def setup(self):
    self.encoder_clock = Clock()
    self.decoder_clock = Clock()

  def __call__(self, waveform: Array) -> Array:
    """Encodes and decodes without quantiser; makes all parameters."""
    return self.decode(self.encode(waveform))

  def encode(self, waveform: Array, num_valid: Array | None = None) -> Array:
    """Maps a waveform to latents.

    Args:
      waveform: float32 `[batch, time * hop]`.
      num_valid: int32 scalar; positions from here on lie behind the end of the
        clip. None if all belong to it.

    Returns:
      float32 `[batch, time, features]`; `encode_delay` positions late if chunk
      by chunk.
    """
    length, delay = waveform.shape[1] // self.hop, self.encode_delay
    if not _is_streaming(self):
      num_valid = length if num_valid is None else num_valid
      waveform = jnp.pad(waveform, ((0, 0), (0, delay * self.hop)))
    span = self.encoder_clock(waveform.shape[1] // self.hop, num_valid)
    latents, span = self.encoder(waveform[..., None], span.multiplied(self.hop))
    assert span.delay == delay, (span.delay, delay)
    return latents if _is_streaming(self) else latents[:, delay:]

  def decode(self, latents: Array, num_valid: Array | None = None) -> Array:
    """Maps latents to a waveform.

    Args:
      latents: float32 `[batch, time, features]`.
      num_valid: see `encode`.

    Returns:
      float32 `[batch, time * hop]`; `delay` samples late if chunk by chunk.
    """
    length, delay = latents.shape[1], self.delay
    if not _is_streaming(self):
      num_valid = length if num_valid is None else num_valid
      behind = -(-delay // self.hop)
      latents = jnp.pad(latents, ((0, 0), (0, behind), (0, 0)))
    waveform, span = self.decoder(
      latents, self.decoder_clock(latents.shape[1], num_valid)
    )
    assert span.delay == delay, (span.delay, delay)
    waveform = waveform[..., 0]
    if _is_streaming(self):
      return waveform
    return waveform[:, delay : delay + length * self.hop]

  def reconstruct(self, latents: Array, waveform: Array) -> Array:
    """What training compares with the original `waveform`: `decode`."""
    del waveform
    return self.decode(latents)


def param_shapes(network: Network) -> dict:
  """Shapes of all parameters, a nested dict."""
  waveform = jax.ShapeDtypeStruct((1, network.hop), jnp.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), waveform)
  return variables['params']


class Codec(base.Codec):
  """A codec that also encodes chunk by chunk.

  Its network's `encode(waveform, num_valid)` is of the kind of `decode`, and
  lags behind by `encode_delay` positions.

  Attributes: see `base.Codec`.
  """

  @functools.cached_property
  def _encode(self):
    def encode(variables, waveform):
      latents = self.network.apply(
        {'params': variables['params']}, waveform, method='encode'
      )
      return self._quantize(variables['quantizer'], latents)

    return jax.jit(encode)

  @functools.cached_property
  def _encode_chunk(self):
    def encode_chunk(variables, stream, waveform, num_valid):
      latents, mutated = self.network.apply(
        {'params': variables['params'], 'stream': stream},
        waveform,
        num_valid,
        method='encode',
        mutable=['stream'],
      )
      codes = self._quantize(variables['quantizer'], latents)
      return codes, mutated['stream']

    return jax.jit(encode_chunk)

  def _quantize(self, quantizer: dict, latents: Array) -> Array:
    """Codes of latents, int32 `[batch, time, levels]`."""
    return rvq.encode(latents, quantizer['codebooks'])

  def encode(self, waveform: Array) -> Array:
    """Encodes waveforms; the last position is padded with silence.

    Args:
      waveform: float32 `[batch, samples]` in -1..1 at `sample_rate_hz`.

    Returns:
      int32 codes `[batch, ceil(samples / hop), levels]`.

    Raises:
      ValueError: the waveform is not two-dimensional, holds no sample, or NaN
        or infinity.
    """
    if np.ndim(waveform) == 2 and not np.shape(waveform)[1]:
      self._refuse(waveform)
    # The same compiled function as for chunks: one for clips of any length.
    chunks = [*self.encode_chunks([waveform])]
    return jnp.asarray(np.concatenate(chunks, axis=1))

  def encode_chunks(self, chunks: Iterable[Array]) -> Iterator[np.ndarray]:
    """Encodes a long clip piece by piece in bounded memory.

    Args:
      chunks: float32 waveforms `[batch, samples]` one after another, of any
        lengths, with the same batch.

    Yields:
      int32 codes `[batch, time, levels]`. Together they are what `encode` gives
      for the whole; where they are cut is not where the waveforms were.

    Raises:
      ValueError: see `encode`; chunks without samples add nothing.
    """
    size = base.CHUNK * self.hop
    stream, rest = None, None
    skip, owed = self.network.encode_delay, 0

    def run(waveform, num_valid):
      nonlocal stream, skip, owed
      if stream is None:
        stream = base.silent_stream(
          self._encode_chunk, self.variables, {}, waveform, 0
        )
      codes, stream = self._encode_chunk(
        self.variables, stream, waveform, num_valid
      )
      skipped, skip = skip, max(0, skip - codes.shape[1])
      codes = np.asarray(codes)[:, skipped:][:, :owed]
      owed -= codes.shape[1]
      return codes

    for waveform in chunks:
      waveform = np.asarray(waveform, np.float32)
      if waveform.ndim != 2 or not np.isfinite(waveform).all():
        self._refuse(waveform)
      rest = waveform if rest is None else np.concatenate([rest, waveform], 1)
      while rest.shape[1] >= size:
        owed += base.CHUNK
        yield run(rest[:, :size], base.CHUNK)
        rest = rest[:, size:]
    if rest is None:
      return
    owed += -(-rest.shape[1] // self.hop)
    while owed:
      num_valid = -(-rest.shape[1] // self.hop)
      padded = np.pad(rest, ((0, 0), (0, size - rest.shape[1])))
      yield run(padded, num_valid)
      rest = rest[:, :0]
