"""Attention as in T5.

Parameter names, shapes and logical axis names are T5X's, as in layers.py. What
differs is how it is computed: causal attention leaves out blocks of keys that
no query of the block may see, and has a gradient of its own; attention of many
positions (`BlockedBias`) never stores the weights of all pairs; and a TPU or a
GPU may compute it in kernels (fused_attention.py).
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import flax
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import layers

Array = jax.Array
DType = Any

# Added to the logits of masked keys. As in T5X, finite: a query without any
# key gets a uniform average instead of NaN.
MASK_VALUE = -1e10


@jax.custom_vjp
def dot_product_attention(
  query: Array, key: Array, value: Array, bias: Array, padding: Array
) -> Array:
  """Attention of T5: logits are not divided by the root of the depth.

  The gradient is written out, because it halves the time of attention on a
  CPU: the weights are never normalised, only the output is, and the sum of
  the bias's gradient over the batch is a product.

  Args:
    query: `[batch, heads, queries, depth]`; its dtype is that of the logits.
    key: `[batch, heads, keys, depth]`, as `query`.
    value: `[batch, heads, keys, depth]`; its dtype is that of the weights.
    bias: `[heads, queries, keys]`, added to the logits.
    padding: `[batch, keys]`, added to the logits; has no gradient.

  Returns:
    `[batch, heads, queries, depth]`.
  """
  return _attention_forward(query, key, value, bias, padding)[0]


def _attention_forward(query, key, value, bias, padding):
  """Output, and what the gradient needs."""
  # [batch, heads, queries, keys]
  logits = jnp.einsum('bhqd,bhkd->bhqk', query, key)
  logits += bias.astype(logits.dtype)
  logits += padding.astype(logits.dtype)[:, None, None, :]
  largest = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - largest)
  # [batch, heads, queries, 1]
  total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
  weights = weights.astype(value.dtype)
  output = jnp.einsum('bhqk,bhkd->bhqd', weights, value)
  output = (output / total).astype(value.dtype)
  return output, (query, key, value, bias, padding, weights, total, output)


def _attention_backward(residuals, gradient):
  """Gradients of query, key, value and bias."""
  query, key, value, bias, padding, weights, total, output = residuals
  # The softmax's gradient needs the mean over the keys of the gradient of the
  # weights, which is that of the output along the output.
  mean = jnp.sum(gradient * output, axis=-1, keepdims=True, dtype=jnp.float32)
  gradient = (gradient / total).astype(value.dtype)
  d_value = jnp.einsum('bhqk,bhqd->bhkd', weights, gradient)
  # [batch, heads, queries, keys]
  d_weights = jnp.einsum('bhqd,bhkd->bhqk', gradient, value)
  d_logits = (weights * (d_weights - mean / total)).astype(query.dtype)
  d_query = jnp.einsum('bhqk,bhkd->bhqd', d_logits, key)
  d_key = jnp.einsum('bhqk,bhqd->bhkd', d_logits, query)
  ones = jnp.ones((1, d_logits.shape[0]), d_logits.dtype)
  d_bias = (ones @ d_logits.reshape(d_logits.shape[0], -1)).reshape(bias.shape)
  return d_query, d_key, d_value, d_bias.astype(bias.dtype), padding * 0


dot_product_attention.defvjp(_attention_forward, _attention_backward)


@flax.struct.dataclass
class BlockedBias:
  """The bias of all pairs, of which a block of queries is made at a time.

  Positions at one place in time have the same biases: kept are those of the
  pairs of places.

  Attributes:
    by_place: `[heads, places of queries, places of keys]`.
    queries: int32 `[queries]`, the place of each query.
    keys: int32 `[keys]`, the place of each key.
    block: queries of a block.
  """

  by_place: Array
  queries: Array
  keys: Array
  block: int = flax.struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, int, int]:
    """`(heads, queries, keys)`, as of the whole bias."""
    return (self.by_place.shape[0], len(self.queries), len(self.keys))

  def rows(self) -> Array:
    """Biases of each query and each place: `[queries, heads, places]`."""
    return self.by_place[:, self.queries].swapaxes(0, 1)


Bias = Array | BlockedBias


def block_bias(
  biases: Callable[[np.ndarray, np.ndarray], Array],
  query_positions: np.ndarray,
  key_positions: np.ndarray,
  block: int,
) -> BlockedBias:
  """The bias of all pairs in blocks.

  Args:
    biases: maps int32 positions of queries and of keys to the biases of their
      pairs, see `relative_positions.Biases`.
    query_positions: int32 `[queries]`.
    key_positions: int32 `[keys]`.
    block: queries of a block.
  """
  query_places, queries = np.unique(query_positions, return_inverse=True)
  key_places, keys = np.unique(key_positions, return_inverse=True)
  return BlockedBias(
    biases(query_places, key_places),
    queries.astype(np.int32),
    keys.astype(np.int32),
    block,
  )


def cut_queries(bias: Bias | None, start: int, end: int | None) -> Bias | None:
  """The bias of the queries from `start` to `end`."""
  if isinstance(bias, BlockedBias):
    return bias.replace(queries=bias.queries[start:end])
  return None if bias is None else bias[:, start:end]


def blockwise_attention(
  query: Array, key: Array, value: Array, bias: BlockedBias, padding: Array
) -> Array:
  """`dot_product_attention`, one block of queries after the other.

  Neither biases nor weights of more than a block of queries are in memory at
  once; the backward pass makes those of each block again.

  Args:
    query: `[batch, heads, queries, depth]`; its dtype is that of the logits.
    key: `[batch, heads, keys, depth]`, as `query`.
    value: `[batch, heads, keys, depth]`; its dtype is that of the weights.
    bias: added to the logits.
    padding: `[batch, keys]`, added to the logits; has no gradient.

  Returns:
    `[batch, heads, queries, depth]`.
  """
  batch, heads, num_queries, depth = query.shape
  block = min(bias.block, num_queries)
  count = -(-num_queries // block)
  room = count * block - num_queries
  # -> [blocks, batch, heads, queries of a block, depth]
  queries = jnp.pad(query, ((0, 0), (0, 0), (0, room), (0, 0)))
  queries = queries.reshape(batch, heads, count, block, depth)
  queries = queries.transpose(2, 0, 1, 3, 4)
  places = jnp.pad(bias.queries, (0, room)).reshape(count, block)
  num_places = bias.by_place.shape[2]
  # float32, because their gradients add up over the blocks.
  memory = [x.astype(jnp.float32) for x in (key, value, bias.by_place)]
  is_at = jax.nn.one_hot(bias.keys, num_places, axis=0)  # [places, keys]

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def attend(memory, xs):
    wide_key, wide_value, by_place = memory
    query, places = xs
    # A product, because the gradient of indexing is slow; exact, as all but
    # one of its terms are 0.
    pairs = jnp.einsum(
      'hqp,pk->hqk',
      by_place[:, places],
      is_at,
      precision=lax.Precision.HIGHEST,
    )
    return dot_product_attention(
      query,
      wide_key.astype(key.dtype),
      wide_value.astype(value.dtype),
      pairs.astype(bias.by_place.dtype),
      padding,
    )

  step = lambda _, xs: (None, attend(memory, xs))
  _, outputs = lax.scan(step, None, (queries, places))
  # [blocks, batch, heads, queries of a block, depth] -> [batch, heads, …]
  outputs = outputs.transpose(1, 2, 0, 3, 4)
  return outputs.reshape(batch, heads, -1, depth)[:, :, :num_queries]


class Attention(nn.Module):
  """Multi-head attention with T5X's parameters.

  Attributes:
    num_heads: number of heads.
    head_dim: depth of a head.
    embed_dim: width of input and output.
    dtype: dtype of the computation.
    dropout_rate: dropout of the attention weights, shared by all queries.
    float32_logits: whether to compute the logits in float32.
    fused: whether a TPU or an NVIDIA GPU computes it in kernels.
  """

  num_heads: int
  head_dim: int
  embed_dim: int
  dtype: DType = jnp.float32
  dropout_rate: float = 0.0
  float32_logits: bool = False
  fused: bool = False

  def setup(self):
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    # T5 does not scale the logits; the initial query kernel does it instead.
    query_init = lambda *args: init(*args) / np.sqrt(self.head_dim)
    joined = self.num_heads * self.head_dim
    inward = functools.partial(
      layers.Dense,
      self.embed_dim,
      joined,
      kernel_axes=('embed', 'joined_kv'),
      dtype=self.dtype,
    )
    self.query = inward(kernel_init=query_init)
    self.key = inward(kernel_init=init)
    self.value = inward(kernel_init=init)
    self.out = layers.Dense(
      joined,
      self.embed_dim,
      kernel_axes=('joined_kv', 'embed'),
      dtype=self.dtype,
      kernel_init=init,
    )
    self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-1,))

  def split_heads(self, x: Array) -> Array:
    """`[batch, length, heads * depth]` to `[batch, heads, length, depth]`."""
    x = x.reshape(*x.shape[:2], self.num_heads, self.head_dim)
    x = nn.with_logical_constraint(x, ('batch', 'length', 'heads', 'kv'))
    return x.transpose(0, 2, 1, 3)

  def project_queries(self, inputs: Array) -> Array:
    """Queries of `[batch, queries, embed]`, by head."""
    return self.split_heads(self.query(inputs))

  def project_memory(self, inputs: Array) -> tuple[Array, Array]:
    """Keys and values of `[batch, keys, embed]`, by head."""
    key, value = self.key(inputs), self.value(inputs)
    return self.split_heads(key), self.split_heads(value)

  def attend(
    self,
    query: Array,
    key: Array,
    value: Array,
    biases: Sequence[Bias] | None,
    key_mask: Array | None,
    deterministic: bool = True,
  ) -> Array:
    """Attends and projects back.

    Args:
      query: `[batch, heads, queries, depth]`.
      key: `[batch, heads, keys, depth]`.
      value: `[batch, heads, keys, depth]`.
      biases: one `[heads, queries of the block, keys of the block]` per block
        of queries, in order, see `split_blocks`, or a `BlockedBias`; None for
        no bias.
      key_mask: bool `[batch, keys]`, False where a key is padding.
      deterministic: whether to leave out dropout.

    Returns:
      `[batch, queries, embed]`.
    """
    # One mask for all queries, as in T5X, is a mask of the values.
    value = self.dropout(value, deterministic=deterministic)
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    batch, heads, num_queries, _ = query.shape
    num_keys = key.shape[2]
    if key_mask is None:
      padding = jnp.zeros((batch, num_keys), jnp.float32)
    else:
      padding = jnp.where(key_mask, 0.0, MASK_VALUE)
    if biases is None:
      biases = [jnp.zeros((heads, num_queries, num_keys), query.dtype)]
    outputs = []
    start = 0
    for bias in biases:
      end, keys = start + bias.shape[1], slice(bias.shape[2])
      if isinstance(bias, BlockedBias):
        attention = blockwise_attention
      elif self.fused:
        from v2meow_jax import fused_attention  # Pallas takes long to import

        attention = fused_attention.dot_product_attention
      else:
        attention = dot_product_attention
      outputs.append(
        attention(
          query[:, :, start:end],
          key[:, :, keys],
          value[:, :, keys],
          bias,
          padding[:, keys],
        )
      )
      start = end
    # [batch, heads, queries, depth]
    x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=2)
    # -> [batch, queries, heads * depth]
    x = x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)
    return self.out(x)


def split_blocks(
  bias: Array, blocks: Sequence[tuple[int, int, int]]
) -> list[Array]:
  """Cuts a causal bias to blocks of queries, each with the keys it may see.

  Cut once for all layers: the gradients of a block then add up in its own
  shape.

  Args:
    bias: `[heads, queries, keys]`, with `MASK_VALUE` where a query may not
      see a key.
    blocks: first query, end of the queries and end of the keys of each block;
      no query of a block may see a later key.

  Returns:
    `[heads, queries of the block, keys of the block]` each.
  """
  return [bias[:, start:end, :keys] for start, end, keys in blocks]
