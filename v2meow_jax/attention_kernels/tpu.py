"""Attention in one kernel on a TPU: weights never leave the chip.

`attention.dot_product_attention` with bias and padding, and its gradient, as
Pallas kernels. A row of weights, one query's over all keys, is in the chip's
memory at once, so that the softmax is the plain one and the backward pass needs
nothing from the forward pass but what that was given.

What would be large in main memory is read and written once: a head's bias stays
on the chip while its batch is worked off, and so does the bias's gradient, in
which the batch adds up.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from v2meow_jax.attention_kernels import base

Array = jax.Array

# Queries of one step of a kernel.
_ROWS = 256
# Rows of a tile of bfloat16, and lanes of any.
_TILE = (16, 128)
# Added to the logits of keys that are there to fill a tile alone: less than the
# mask of padding, so that a query without any key does not see them.
_NOTHING = -1e30
# A head's bias and the gradient of it, two of each, are on the chip.
_BYTES_PER_PAIR = 2 * (4 + 4)
_MOST_BYTES = 48 * 2**20


def fits(
  query: Array, key: Array, value: Array, bias: Array, padding: Array
) -> bool:
  """Whether the kernels take these: a head's bias must fit the chip."""
  del query, key, value, padding
  return _pair_bytes(*bias.shape[1:]) <= _MOST_BYTES


def _pair_bytes(num_queries: int, num_keys: int) -> int:
  rows = _rows(num_queries)
  padded = _up(num_queries, rows) * _up(num_keys, _TILE[1])
  return padded * _BYTES_PER_PAIR


def _rows(num_queries: int) -> int:
  return min(_ROWS, _up(num_queries, _TILE[0]))


def _up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple


def forward(
  query: Array,
  key: Array,
  value: Array,
  bias: Array,
  padding: Array,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Output of `attention.dot_product_attention`, and no statistics.

  Args:
    query: `[batch, heads, queries, depth]`.
    key: `[batch, heads, keys, depth]`, dtype as `query`.
    value: `[batch, heads, keys, depth]`; its dtype is that of the weights.
    bias: `[heads, queries, keys]`, added to the logits.
    padding: `[batch, keys]`, added to the logits.
    interpret: whether to compute as the kernel would, on any platform.

  Returns:
    `[batch, heads, queries, depth]`, dtype as `value`; and
    `base.no_statistics`.
  """
  num_queries = query.shape[2]
  arrays = _fill_tiles(query, key, value, bias, padding)
  blocks = _Blocks(*arrays[:2])
  output = pl.pallas_call(
    _forward_kernel,
    name='attention_forward',
    grid=blocks.grid,
    in_specs=blocks.inputs,
    out_specs=blocks.queries,
    out_shape=jax.ShapeDtypeStruct(arrays[0].shape, value.dtype),
    compiler_params=blocks.compiler_params,
    cost_estimate=blocks.costs(2, arrays),
    interpret=interpret,
  )(*arrays)
  return output[:, :, :num_queries], base.no_statistics(query)


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
    output: of `forward`; made again here.
    statistics: of `forward`.
    gradient: of the output, as that.
    interpret: see `forward`.

  Returns:
    One like each of `query`, `key`, `value` and `bias`.
  """
  del output, statistics
  num_queries, num_keys = query.shape[2], key.shape[2]
  arrays = _fill_tiles(query, key, value, bias, padding)
  blocks = _Blocks(*arrays[:2])
  room = arrays[0].shape[2] - num_queries
  gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, room), (0, 0)))
  depth = query.shape[3]
  outputs = pl.pallas_call(
    _backward_kernel,
    name='attention_backward',
    grid=blocks.grid,
    in_specs=[*blocks.inputs, blocks.queries],
    out_specs=[blocks.queries, blocks.keys, blocks.keys, blocks.bias],
    out_shape=[
      *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[:3]),
      jax.ShapeDtypeStruct(arrays[3].shape, jnp.float32),
    ],
    scratch_shapes=[
      pltpu.VMEM((arrays[1].shape[2], depth), jnp.float32) for _ in range(2)
    ],
    compiler_params=blocks.compiler_params,
    cost_estimate=blocks.costs(5, arrays),
    interpret=interpret,
  )(*arrays, gradient)
  d_query, d_key, d_value, d_bias = outputs
  return (
    d_query[:, :, :num_queries],
    d_key[:, :, :num_keys],
    d_value[:, :, :num_keys],
    d_bias[:, :num_queries, :num_keys].astype(bias.dtype),
  )


def _fill_tiles(query, key, value, bias, padding):
  """Fills up queries and keys; `padding` becomes `[batch, 1, keys]`."""
  num_queries, num_keys = bias.shape[1:]
  queries = (0, _up(num_queries, _rows(num_queries)) - num_queries)
  keys = (0, _up(num_keys, _TILE[1]) - num_keys)
  whole = (0, 0)
  padding = padding.astype(jnp.float32)[:, None]
  return (
    jnp.pad(query, (whole, whole, queries, whole)),
    jnp.pad(key, (whole, whole, keys, whole)),
    jnp.pad(value, (whole, whole, keys, whole)),
    jnp.pad(bias, (whole, queries, keys)),
    jnp.pad(padding, (whole, whole, keys), constant_values=_NOTHING),
  )


class _Blocks:
  """What a step of the grid `[heads, batch, rows of queries]` works on."""

  def __init__(self, query: Array, key: Array):
    batch, heads, num_queries, depth = query.shape
    num_keys = key.shape[2]
    rows = _rows(num_queries)
    self.grid = (heads, batch, num_queries // rows)
    self.queries = pl.BlockSpec(
      (None, None, rows, depth), lambda h, b, i: (b, h, i, 0)
    )
    self.keys = pl.BlockSpec(
      (None, None, num_keys, depth), lambda h, b, i: (b, h, 0, 0)
    )
    self.bias = pl.BlockSpec(
      (None, num_queries, num_keys), lambda h, b, i: (h, 0, 0)
    )
    padding = pl.BlockSpec((None, 1, num_keys), lambda h, b, i: (b, 0, 0))
    self.inputs = [self.queries, self.keys, self.keys, self.bias, padding]
    self._product_flops = 2 * batch * heads * num_queries * num_keys * depth
    # Beside what `_pair_bytes` counts: weights of the rows, at different
    # stages, and keys and values with their gradients, in lanes of 128.
    more = num_keys * (8 * rows + 12 * _TILE[1]) * 4
    self.compiler_params = pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=_pair_bytes(num_queries, num_keys) + more,
    )

  def costs(self, products: int, arrays) -> pl.CostEstimate:
    """Costs of a kernel of some products over all pairs."""
    batch = arrays[0].shape[0]
    return pl.CostEstimate(
      flops=products * self._product_flops,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
      transcendentals=arrays[3].size * batch,
    )


def _own_rows(query_ref):
  """The place of this step's queries among all."""
  rows = query_ref.shape[0]
  return pl.ds(pl.multiple_of(pl.program_id(2) * rows, rows), rows)


def _weights(query_ref, key_ref, bias_ref, padding_ref):
  """Weights before they are normalised, and their sum: float32."""
  logits = base.product(query_ref[...], key_ref[...], 1, 1)  # [rows, keys]
  logits += bias_ref[_own_rows(query_ref)].astype(jnp.float32)
  logits += padding_ref[...]
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  return weights, jnp.sum(weights, axis=1, keepdims=True)


def _forward_kernel(
  query_ref, key_ref, value_ref, bias_ref, padding_ref, output_ref
):
  weights, total = _weights(query_ref, key_ref, bias_ref, padding_ref)
  output = base.product(weights.astype(value_ref.dtype), value_ref[...], 1, 0)
  output_ref[...] = (output / total).astype(output_ref.dtype)


def _backward_kernel(
  query_ref,
  key_ref,
  value_ref,
  bias_ref,
  padding_ref,
  gradient_ref,
  d_query_ref,
  d_key_ref,
  d_value_ref,
  d_bias_ref,
  key_sum_ref,
  value_sum_ref,
):
  weights, total = _weights(query_ref, key_ref, bias_ref, padding_ref)
  weights /= total
  d_weights = base.product(gradient_ref[...], value_ref[...], 1, 1)
  mean = jnp.sum(weights * d_weights, axis=1, keepdims=True)
  d_logits = weights * (d_weights - mean)
  _add(
    d_bias_ref, _own_rows(query_ref), d_logits, is_first=pl.program_id(1) == 0
  )
  d_logits = d_logits.astype(query_ref.dtype)
  d_query = base.product(d_logits, key_ref[...], 1, 0)
  d_query_ref[...] = d_query.astype(d_query_ref.dtype)

  weights = weights.astype(value_ref.dtype)
  add = functools.partial(_add, rows=..., is_first=pl.program_id(2) == 0)
  add(key_sum_ref, value=base.product(d_logits, query_ref[...], 0, 0))
  add(value_sum_ref, value=base.product(weights, gradient_ref[...], 0, 0))

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    d_key_ref[...] = key_sum_ref[...].astype(d_key_ref.dtype)
    d_value_ref[...] = value_sum_ref[...].astype(d_value_ref.dtype)


def _add(ref, rows, value, is_first):
  """Adds to what is there, which is nothing at first."""

  @pl.when(is_first)
  def _():
    ref[rows] = value

  @pl.when(jnp.logical_not(is_first))
  def _():
    ref[rows] += value
