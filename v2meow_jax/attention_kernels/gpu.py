"""Attention on an NVIDIA GPU in kernels of Triton: weights are never stored.

`attention.dot_product_attention` with bias and padding, and its gradient, as
Pallas kernels after FlashAttention-2 (Dao, 2023, section 3.1). A program takes
a block of queries, goes over blocks of keys and keeps the largest logit and the
sum of each query so far: all weights of a query are never in one place. The
backward pass gets both from the forward pass and makes the weights again, once
for each kernel: gradients of queries, of keys and values, and of the bias,
which goes over the batch. No two programs write to one place, so that a step
has one result.

What is kept is the largest logit and the sum, not the logarithm of the sum that
the paper keeps: a query without any key has logits of -1e10, beside which the
logarithm of a sum would be lost.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from v2meow_jax.attention_kernels import base

Array = jax.Array

# Queries, keys and warps of a tile, by the bytes of a number and the depth of a
# head, which is filled up to a power of two: compiled for an A100 and an H100,
# the threads of a program keep what they work on in their registers, and two
# programs or more share a processor and its memory (164 and 228 kB).
_TILES = {
  (2, 64): (64, 64, 4),
  (2, 128): (64, 32, 4),
  (2, 256): (32, 32, 8),
  (4, 64): (32, 32, 8),
  (4, 128): (32, 32, 8),
}
# A GPU has an instruction for powers of 2, none for those of e.
_LOG2_E = math.log2(math.e)
# Triton multiplies nothing smaller.
_SMALLEST = 16


def fits(
  query: Array, key: Array, value: Array, bias: Array, padding: Array
) -> bool:
  """Whether the kernels take these: a tile must hold the depth of a head."""
  del key, bias, padding
  return _tile(query, value) is not None


def _tile(query: Array, value: Array) -> tuple[int, int, int] | None:
  """The row of `_TILES` of the least depth that is deep enough."""
  itemsize = max(query.dtype.itemsize, value.dtype.itemsize)
  depth = query.shape[3]
  depths = [d for size, d in _TILES if size == itemsize and d >= depth]
  return _TILES[itemsize, min(depths)] if depths else None


def _power_of_two(number: int) -> int:
  return max(_SMALLEST, pl.next_power_of_2(number))


def forward(
  query: Array,
  key: Array,
  value: Array,
  bias: Array,
  padding: Array,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Output of `attention.dot_product_attention`, and its statistics.

  Args:
    query: `[batch, heads, queries, depth]`.
    key: `[batch, heads, keys, depth]`, dtype as `query`.
    value: `[batch, heads, keys, depth]`; its dtype is that of the weights.
    bias: `[heads, queries, keys]`, added to the logits.
    padding: `[batch, keys]`, added to the logits.
    interpret: whether to compute as the kernel would, on any platform.

  Returns:
    `[batch, heads, queries, depth]`, dtype as `value`; and the largest logit of
    each query, of the base 2, with the sum of its weights when that logit has
    the weight 1: float32 `[2, batch, heads, queries]`.
  """
  sizes = _Sizes.of(query, value, bias)
  query, key, value = (_by_length(x) for x in (query, key, value))
  output, statistics = _call(
    _attention_forward,
    sizes,
    sizes.by_example(sizes.blocks_of_queries),
    (query, key, value, bias, padding.astype(jnp.float32) * _LOG2_E),
    (
      jax.ShapeDtypeStruct(query.shape, value.dtype),
      jax.ShapeDtypeStruct(
        (2, sizes.batch, sizes.heads, sizes.num_queries), jnp.float32
      ),
    ),
    interpret,
  )
  return _by_head(output), statistics


def backward(
  query: Array,
  key: Array,
  value: Array,
  bias: Array,
  padding: Array,
  output: Array,
  statistics: Array,
  gradient: Array,
  interpret: bool = False,
) -> tuple[Array, Array, Array, Array]:
  """Gradients of query, key, value and bias.

  Args:
    query: see `forward`.
    key: see `forward`.
    value: see `forward`.
    bias: see `forward`.
    padding: see `forward`.
    output: of `forward`.
    statistics: of `forward`.
    gradient: of the output, as that.
    interpret: see `forward`.

  Returns:
    One like each of `query`, `key`, `value` and `bias`.
  """
  sizes = _Sizes.of(query, value, bias)
  largest, total = statistics
  # The mean over the keys of the gradient of the weights.
  mean = jnp.sum(gradient.astype(jnp.float32) * output, axis=-1)
  # [3, batch, heads, queries]
  by_query = jnp.stack([largest, 1 / total, mean])
  query, key, value, gradient = (
    _by_length(x) for x in (query, key, value, gradient)
  )
  arrays = (
    *(query, key, value, bias, padding.astype(jnp.float32) * _LOG2_E),
    *(gradient, by_query),
  )
  call = lambda kernel, grid, outputs: _call(
    kernel, sizes, grid, arrays, outputs, interpret
  )
  (d_query,) = call(
    _attention_d_query, sizes.by_example(sizes.blocks_of_queries), [query]
  )
  d_key, d_value = call(
    _attention_d_key_value,
    sizes.by_example(sizes.blocks_of_keys),
    [key, value],
  )
  blocks = (sizes.blocks_of_keys, sizes.blocks_of_queries, sizes.heads)
  (d_bias,) = call(_attention_d_bias, blocks, [bias])
  return _by_head(d_query), _by_head(d_key), _by_head(d_value), d_bias


def _by_length(x: Array) -> Array:
  """`[batch, length, heads, depth]`, as the projections make and take it."""
  return x.transpose(0, 2, 1, 3)


_by_head = _by_length


class _Axis(NamedTuple):
  """Where a tile lies along an axis; it may reach over the end."""

  start: Array | int
  block: int
  size: int


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Sizes of the arrays and of their tiles."""

  batch: int
  heads: int
  num_queries: int
  num_keys: int
  depth: int
  block_queries: int
  block_keys: int
  block_depth: int
  num_warps: int

  @classmethod
  def of(cls, query: Array, value: Array, bias: Array) -> '_Sizes':
    batch, heads, num_queries, depth = query.shape
    num_keys = bias.shape[2]
    most_queries, most_keys, num_warps = _tile(query, value)
    return cls(
      batch,
      heads,
      num_queries,
      num_keys,
      depth,
      min(most_queries, _power_of_two(num_queries)),
      min(most_keys, _power_of_two(num_keys)),
      _power_of_two(depth),
      num_warps,
    )

  @property
  def blocks_of_queries(self) -> int:
    return pl.cdiv(self.num_queries, self.block_queries)

  @property
  def blocks_of_keys(self) -> int:
    return pl.cdiv(self.num_keys, self.block_keys)

  def by_example(self, blocks: int) -> tuple[int, int, int]:
    """Programs, of which those that read one block of the bias run together."""
    return (self.batch, blocks, self.heads)

  def queries(self, index: Array) -> _Axis:
    start = index * self.block_queries
    return _Axis(start, self.block_queries, self.num_queries)

  def keys(self, index: Array) -> _Axis:
    return _Axis(index * self.block_keys, self.block_keys, self.num_keys)

  @property
  def whole_depth(self) -> _Axis:
    return _Axis(0, self.block_depth, self.depth)


def _call(
  kernel, sizes: _Sizes, grid, arrays, outputs, interpret: bool
) -> Sequence[Array]:
  """Calls a kernel, whose programs see all of the arrays."""

  def spec(x):
    # As deep as a tile, because Pallas cuts nothing that is larger.
    shape = (*x.shape[:-1], _power_of_two(x.shape[-1]))
    return pl.BlockSpec(shape, lambda *_: (0,) * x.ndim)

  return pl.pallas_call(
    functools.partial(kernel, sizes=sizes),
    grid=grid,
    in_specs=[spec(x) for x in arrays],
    out_specs=[spec(x) for x in outputs],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
    compiler_params=triton.CompilerParams(
      num_warps=sizes.num_warps, num_stages=2
    ),
    interpret=interpret,
  )(*arrays)


def _place(axes: Sequence[_Axis | Array]):
  """Index of a tile, and what of it there is: None for all."""
  index = tuple(
    pl.ds(axis.start, axis.block)
    if isinstance(axis, _Axis)
    else jnp.int32(axis)
    for axis in axes
  )
  axes = [axis for axis in axes if isinstance(axis, _Axis)]
  mask = None
  for number, axis in enumerate(axes):
    if axis.size % axis.block:
      there = axis.start + lax.iota(jnp.int32, axis.block) < axis.size
      others = [n for n in range(len(axes)) if n != number]
      there = jnp.expand_dims(there, others)
      mask = there if mask is None else jnp.logical_and(mask, there)
  return index, mask


def _read(ref, *axes: _Axis | Array, other: float = 0.0) -> Array:
  """A tile, with `other` behind the end."""
  index, mask = _place(axes)
  other = None if mask is None else other
  return triton.load(ref.at[index], mask=mask, other=other)


def _write(ref, *axes: _Axis | Array, value: Array):
  index, mask = _place(axes)
  triton.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def _logits(query: Array, key: Array, bias: Array, padding: Array) -> Array:
  """Float32 `[queries, keys]`, of the base 2; so is `padding` already."""
  logits = base.product(query, key, 1, 1) + bias.astype(jnp.float32)
  return logits * _LOG2_E + padding[None]


def _read_padding(ref, example: Array, keys: _Axis) -> Array:
  # Weights of keys behind the end are 0.
  return _read(ref, example, keys, other=-jnp.inf)


def _attention_forward(
  query_ref,
  key_ref,
  value_ref,
  bias_ref,
  padding_ref,
  output_ref,
  statistics_ref,
  *,
  sizes: _Sizes,
):
  example, head = pl.program_id(0), pl.program_id(2)
  queries, depth = sizes.queries(pl.program_id(1)), sizes.whole_depth
  query = _read(query_ref, example, queries, head, depth)

  def add_block(index, carry):
    output, largest, total = carry
    keys = sizes.keys(index)
    key = _read(key_ref, example, keys, head, depth)
    logits = _logits(
      query,
      key,
      _read(bias_ref, head, queries, keys),
      _read_padding(padding_ref, example, keys),
    )
    new_largest = jnp.maximum(largest, jnp.max(logits, axis=1))
    weights = jnp.exp2(logits - new_largest[:, None])
    value = _read(value_ref, example, keys, head, depth)
    shrink = jnp.exp2(largest - new_largest)
    output *= shrink[:, None]
    output += base.product(weights.astype(value.dtype), value, 1, 0)
    return output, new_largest, total * shrink + jnp.sum(weights, axis=1)

  block = sizes.block_queries
  output, largest, total = lax.fori_loop(
    0,
    sizes.blocks_of_keys,
    add_block,
    (
      jnp.zeros((block, sizes.block_depth), jnp.float32),
      jnp.full((block,), jnp.finfo(jnp.float32).min),
      jnp.zeros((block,), jnp.float32),
    ),
  )
  output /= total[:, None]
  _write(output_ref, example, queries, head, depth, value=output)
  _write(statistics_ref, 0, example, head, queries, value=largest)
  _write(statistics_ref, 1, example, head, queries, value=total)


class _Inputs(NamedTuple):
  """References of what a kernel of the backward pass is given."""

  query: Array
  key: Array
  value: Array
  bias: Array
  padding: Array
  gradient: Array
  by_query: Array

  def of_queries(self, example, head, queries, depth):
    """What a tile needs of its queries, see `_weights`."""
    return (
      _read(self.query, example, queries, head, depth),
      _read(self.gradient, example, queries, head, depth),
      *(_read(self.by_query, n, example, head, queries) for n in range(3)),
    )

  def of_keys(self, example, head, keys, depth):
    """What a tile needs of its keys, see `_weights`."""
    return (
      _read(self.key, example, keys, head, depth),
      _read(self.value, example, keys, head, depth),
      _read_padding(self.padding, example, keys),
    )


def _weights(of_queries, of_keys, bias: Array) -> tuple[Array, Array]:
  """Weights of a tile, and the gradient of its logits: float32."""
  query, gradient, largest, scale, mean = of_queries
  key, value, padding = of_keys
  logits = _logits(query, key, bias, padding)
  weights = jnp.exp2(logits - largest[:, None]) * scale[:, None]
  d_weights = base.product(gradient, value, 1, 1)
  return weights, weights * (d_weights - mean[:, None])


def _attention_d_query(*refs, sizes: _Sizes):
  inputs, d_query_ref = _Inputs(*refs[:-1]), refs[-1]
  example, head = pl.program_id(0), pl.program_id(2)
  queries, depth = sizes.queries(pl.program_id(1)), sizes.whole_depth
  of_queries = inputs.of_queries(example, head, queries, depth)

  def add_block(index, d_query):
    keys = sizes.keys(index)
    of_keys = inputs.of_keys(example, head, keys, depth)
    bias = _read(inputs.bias, head, queries, keys)
    _, d_logits = _weights(of_queries, of_keys, bias)
    key = of_keys[0]
    return d_query + base.product(d_logits.astype(key.dtype), key, 1, 0)

  d_query = lax.fori_loop(
    0,
    sizes.blocks_of_keys,
    add_block,
    jnp.zeros((sizes.block_queries, sizes.block_depth), jnp.float32),
  )
  _write(d_query_ref, example, queries, head, depth, value=d_query)


def _attention_d_key_value(*refs, sizes: _Sizes):
  inputs, d_key_ref, d_value_ref = _Inputs(*refs[:-2]), *refs[-2:]
  example, head = pl.program_id(0), pl.program_id(2)
  keys, depth = sizes.keys(pl.program_id(1)), sizes.whole_depth
  of_keys = inputs.of_keys(example, head, keys, depth)

  def add_block(index, carry):
    d_key, d_value = carry
    queries = sizes.queries(index)
    of_queries = inputs.of_queries(example, head, queries, depth)
    bias = _read(inputs.bias, head, queries, keys)
    weights, d_logits = _weights(of_queries, of_keys, bias)
    query, gradient = of_queries[:2]
    d_key += base.product(d_logits.astype(query.dtype), query, 0, 0)
    d_value += base.product(weights.astype(gradient.dtype), gradient, 0, 0)
    return d_key, d_value

  zeros = jnp.zeros((sizes.block_keys, sizes.block_depth), jnp.float32)
  d_key, d_value = lax.fori_loop(
    0, sizes.blocks_of_queries, add_block, (zeros, zeros)
  )
  _write(d_key_ref, example, keys, head, depth, value=d_key)
  _write(d_value_ref, example, keys, head, depth, value=d_value)


def _attention_d_bias(*refs, sizes: _Sizes):
  inputs, d_bias_ref = _Inputs(*refs[:-1]), refs[-1]
  keys, queries = (
    sizes.keys(pl.program_id(0)),
    sizes.queries(pl.program_id(1)),
  )
  head, depth = pl.program_id(2), sizes.whole_depth
  bias = _read(inputs.bias, head, queries, keys)

  def add_example(example, d_bias):
    of_queries = inputs.of_queries(example, head, queries, depth)
    of_keys = inputs.of_keys(example, head, keys, depth)
    return d_bias + _weights(of_queries, of_keys, bias)[1]

  d_bias = lax.fori_loop(
    0,
    sizes.batch,
    add_example,
    jnp.zeros((sizes.block_queries, sizes.block_keys), jnp.float32),
  )
  _write(d_bias_ref, head, queries, keys, value=d_bias)
