"""Codec: waveform to tokens and back."""

from collections.abc import Iterable, Iterator
import functools

import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import streams
from v2meow_jax.codecs import rvq

Array = jax.Array

# Positions per compiled call. Other lengths are padded to a multiple of it, so
# that a clip of any length runs in a function that is compiled already.
CHUNK = 100


class Codec:
  """Encodes waveforms to codes and decodes them, with trained parameters.

  A network is a Flax module with the methods `encode(waveform)` and
  `decode(latents, num_valid)` and the properties `lookahead` and `delay`, as in
  `spectral.Network`. Its decoder is causal, its encoder sees `lookahead`
  samples past the end of a position. Both go on from the collection `stream`
  where it is mutable.

  Attributes:
    spec: the stream of the codes.
    network: encoder and decoder.
    variables: `{'params': …, 'quantizer': {'codebooks': float32 [levels,
      codes, features]}}`.
    below: codec of the first levels, which the codebooks lack (`layered.py`);
      None where there is but one layer.
  """

  def __init__(
    self,
    spec: streams.StreamSpec,
    network,
    variables: dict,
    below: 'Codec | None' = None,
  ):
    """Makes a codec.

    Args:
      spec: see above.
      network: see above.
      variables: see above.
      below: see above.

    Raises:
      ValueError: the codebooks are those of other levels.
    """
    codebooks = jnp.asarray(variables['quantizer']['codebooks'], jnp.float32)
    num_levels = spec.num_levels - (below.spec.num_levels if below else 0)
    if codebooks.shape[:2] != (num_levels, spec.num_codes):
      raise ValueError(
        f'Codec `{spec.name}`: codebooks of shape {codebooks.shape}, '
        f'expected [{num_levels}, {spec.num_codes}, features]. Use '
        'weights that were trained for this codec.'
      )
    self.spec = spec
    self.network = network
    self.below = below
    self.variables = {
      'params': jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), variables['params']
      ),
      'quantizer': {'codebooks': codebooks},
    }

  @property
  def sample_rate_hz(self) -> int:
    """Samples a second of the waveforms."""
    return self.spec.sample_rate_hz

  @property
  def hop(self) -> int:
    """Samples per position."""
    return self.spec.hop

  @functools.cached_property
  def _encode(self):
    def encode(variables, waveform):
      latents = self.network.apply(
        {'params': variables['params']}, waveform, method='encode'
      )
      return rvq.encode(latents, variables['quantizer']['codebooks'])

    return jax.jit(encode)

  @functools.cached_property
  def _encode_chunk(self):
    def encode_chunk(variables, stream, waveform):
      latents, mutated = self.network.apply(
        {'params': variables['params'], 'stream': stream},
        waveform,
        method='encode',
        mutable=['stream'],
      )
      codes = rvq.encode(latents, variables['quantizer']['codebooks'])
      return codes, mutated['stream']

    return jax.jit(encode_chunk)

  @functools.cached_property
  def _decode_chunk(self):
    return jax.jit(self.decode_chunk)

  def decode_chunk(
    self, variables: dict, stream: dict, codes: Array, num_valid: Array
  ) -> tuple[Array, dict]:
    """One call of `decode_chunks`, to be compiled.

    Args:
      variables: those of the codec.
      stream: what the call before has left; see `empty_stream`.
      codes: int32 `[batch, time, levels]`.
      num_valid: int32 scalar, how many positions belong to the clip.

    Returns:
      float32 waveform `[batch, time * hop]`, the network's `delay` late, and
      the stream for the next call.
    """
    latents = self._dequantize(variables['quantizer'], codes)
    waveform, mutated = self.network.apply(
      {'params': variables['params'], 'stream': stream},
      latents,
      num_valid,
      method='decode',
      mutable=['stream'],
    )
    return waveform, mutated['stream']

  def _dequantize(self, quantizer: dict, codes: Array) -> Array:
    """What the network decodes, `[batch, time, features]`."""
    return rvq.decode(codes, quantizer['codebooks'])

  def of_levels(self, num_levels: int) -> 'Codec':
    """The codec that decodes the first so many levels: this or the lower."""
    if self.below and num_levels <= self.below.spec.num_levels:
      return self.below
    return self

  def latents(self, codes: Array) -> Array:
    """What the network decodes.

    Args:
      codes: int32 `[batch, time, levels]`, 1 up to all levels.

    Returns:
      float32 `[batch, time, features]`.
    """
    return self._dequantize(self.variables['quantizer'], codes)

  def quantize(self, waveform: Array) -> Array:
    """Latents of the codes of a waveform; to be called under `jax.jit`.

    Args:
      waveform: float32 `[batch, time * hop]`.

    Returns:
      float32 `[batch, time, features]`.
    """
    return self.latents(self._encode(self.variables, waveform))

  def encode(self, waveform: Array) -> Array:
    """Encodes waveforms; the last position is padded with silence.

    Args:
      waveform: float32 `[batch, samples]` in -1..1 at `sample_rate_hz`.

    Returns:
      int32 codes `[batch, ceil(samples / hop), levels]`.

    Raises:
      ValueError: the waveform is not two-dimensional, holds no sample or holds
        NaN or infinity.
    """
    if np.ndim(waveform) == 2 and not np.shape(waveform)[1]:
      self._refuse(waveform)
    # The same compiled function as for chunks: another shape may round a latent
    # between two codes to the other one.
    chunks = [*self.encode_chunks([waveform])]
    return jnp.asarray(np.concatenate(chunks, axis=1))

  def encode_chunks(self, chunks: Iterable[Array]) -> Iterator[np.ndarray]:
    """Encodes a long clip piece by piece in bounded memory.

    Args:
      chunks: float32 waveforms `[batch, samples]` in -1..1 one after another,
        of any lengths, with the same batch.

    Yields:
      int32 codes `[batch, time, levels]`. Together they are what `encode` gives
      for the whole; where they are cut is not where the waveform was.

    Raises:
      ValueError: see `encode`; chunks without samples add nothing.
    """
    size, ahead = CHUNK * self.hop, self.network.lookahead
    stream, rest = None, None

    def run():
      """Encodes the first `size` samples of `rest`, and takes them away."""
      nonlocal stream, rest
      waveform, rest = rest[:, : size + ahead], rest[:, size:]
      length = min(-(-waveform.shape[1] // self.hop), CHUNK)
      behind = size + ahead - waveform.shape[1]
      waveform = np.pad(waveform, ((0, 0), (0, behind)))
      if stream is None:
        stream = silent_stream(self._encode_chunk, self.variables, {}, waveform)
      codes, stream = self._encode_chunk(self.variables, stream, waveform)
      return np.asarray(codes)[:, :length]

    for chunk in chunks:
      chunk = np.asarray(chunk, np.float32)
      if chunk.ndim != 2 or not np.isfinite(chunk).all():
        self._refuse(chunk)
      rest = chunk if rest is None else np.concatenate([rest, chunk], axis=1)
      while rest.shape[1] >= size + ahead:
        yield run()
    while rest is not None and rest.shape[1]:
      yield run()

  def _refuse(self, waveform: Array) -> None:
    """Says what is wrong with a waveform."""
    if np.ndim(waveform) == 2 and np.size(waveform):
      raise ValueError(
        f'Codec `{self.spec.name}`: the waveform holds NaN or infinity, '
        'expected samples in -1..1. Repair the sound or leave it out.'
      )
    raise ValueError(
      f'Codec `{self.spec.name}`: waveform of shape {np.shape(waveform)}, '
      'expected [batch, samples] with at least one sample. Mix to mono and '
      'add the batch axis.'
    )

  def _check_codes(self, codes: np.ndarray) -> None:
    levels, num_codes = self.spec.num_levels, self.spec.num_codes
    if codes.ndim != 3 or not 1 <= codes.shape[2] <= levels:
      raise ValueError(
        f'Codec `{self.spec.name}`: codes of shape {codes.shape}, expected '
        f'[batch, time, levels] with 1 to {levels} levels. Unflatten the '
        'tokens first.'
      )
    if codes.dtype.kind not in 'iu':
      raise ValueError(
        f'Codec `{self.spec.name}`: codes of type {codes.dtype}, expected '
        'whole numbers. Decode what `encode` returned.'
      )
    if codes.size and not (0 <= codes.min() and codes.max() < num_codes):
      raise ValueError(
        f'Codec `{self.spec.name}`: codes from {codes.min()} to '
        f'{codes.max()}, expected 0 to {num_codes - 1}. Take the vocabulary '
        'offsets off the tokens.'
      )

  def decode(self, codes: Array) -> Array:
    """Decodes codes of all levels or of the first few.

    Args:
      codes: int32 `[batch, time, levels]`, 1 up to all levels.

    Returns:
      float32 waveform `[batch, time * hop]`.

    Raises:
      ValueError: the codes have another shape, type or range.
    """
    # The same compiled function as for chunks: where rounding is amplified, as
    # in a search for phase, another shape would give another sound.
    nothing = np.zeros((np.shape(codes)[0], 0), np.float32)
    chunks = [nothing, *self.decode_chunks([codes])]
    return jnp.asarray(np.concatenate(chunks, axis=1))

  def decode_chunks(self, chunks: Iterable[Array]) -> Iterator[np.ndarray]:
    """Decodes a long clip piece by piece in bounded memory.

    Args:
      chunks: int32 codes `[batch, time, levels]` one after another, of any
        lengths, with the same batch and levels.

    Yields:
      float32 waveforms `[batch, samples]`. Together they are what `decode`
      gives for the whole; where they are cut is not where the codes were.

    Raises:
      ValueError: the codes have another shape or range.
    """
    stream, rest = None, None
    skip, owed = self.network.delay, 0

    def run(codes, num_valid):
      nonlocal stream, skip, owed
      if stream is None:
        stream = self.empty_stream(codes)
      waveform, stream = self._decode_chunk(
        self.variables, stream, codes, num_valid
      )
      skipped, skip = skip, max(0, skip - waveform.shape[1])
      waveform = np.asarray(waveform)[:, skipped:][:, :owed]
      owed -= waveform.shape[1]
      return waveform

    for codes in chunks:
      codes = np.asarray(codes)
      self._check_codes(codes)
      owed += codes.shape[1] * self.hop
      rest = codes if rest is None else np.concatenate([rest, codes], axis=1)
      while rest.shape[1] >= CHUNK:
        yield run(rest[:, :CHUNK], CHUNK)
        rest = rest[:, CHUNK:]
    while owed:
      length = rest.shape[1]
      padded = np.pad(rest, ((0, 0), (0, CHUNK - length), (0, 0)))
      yield run(padded, length)
      rest = rest[:, :0]

  def empty_stream(self, codes: Array | jax.ShapeDtypeStruct) -> dict:
    """What the convolutions remember before the first chunk: silence.

    Args:
      codes: of the first chunk; its shape is read.
    """
    return silent_stream(self._decode_chunk, self.variables, {}, codes, 0)


def silent_stream(function, *arguments) -> dict:
  """The stream that a function would leave behind, all zeros."""
  _, stream = jax.eval_shape(function, *arguments)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), stream)
