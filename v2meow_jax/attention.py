"""Attention and relative positions, as in T5.

Parameter names, shapes and logical axis names are T5X's, as in layers.py. What
differs is how it is computed: causal attention leaves out blocks of keys that
no query of the block may see, and has a gradient of its own; attention of many
positions (`BlockedBias`) never stores the weights of all pairs.
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
Initializer = Callable[..., Array]

# Added to the logits of masked keys. As in T5X, finite: a query without any
# key gets a uniform average instead of NaN.
MASK_VALUE = -1e10

# Position of what has no time, such as a once-per-clip vector.
UNTIMED = np.iinfo(np.int32).min

# What stands for the distance of a pair of which one has no time.
_NO_DISTANCE = -(10**9)


def relative_position_bucket(
  relative_position: np.ndarray,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> np.ndarray:
  """Bucket of a relative position (T5, section 2.1).

  Half of the buckets hold one distance each, the others grow with the
  logarithm up to `max_distance`, from where on all distances share the last
  bucket. With `bidirectional`, one half of all buckets is for the keys behind
  the query and the other for those ahead; without, keys ahead are at distance
  0.

  Args:
    relative_position: int, key position minus query position.
    bidirectional: whether keys ahead of the query have buckets.
    num_buckets: number of buckets.
    max_distance: distance at which buckets end.

  Returns:
    int32 of the same shape, in [0, num_buckets).
  """
  distance = -np.asarray(relative_position)
  first = 0
  if bidirectional:
    num_buckets //= 2
    first = np.where(distance < 0, num_buckets, 0)
    distance = np.abs(distance)
  else:
    distance = np.maximum(distance, 0)
  num_exact = num_buckets // 2
  # float32 as in T5X: at a border of buckets the rounding decides.
  ratio = distance.astype(np.float32) / num_exact + np.finfo(np.float32).eps
  octaves = np.log(ratio) / np.log(max_distance / num_exact)
  wide = num_exact + (octaves * (num_buckets - num_exact)).astype(np.int32)
  wide = np.minimum(wide, num_buckets - 1)
  return (first + np.where(distance < num_exact, distance, wide)).astype('i4')


class RelativePositionBiases(nn.Module):
  """A learned bias of the attention logits per head and relative position.

  Attributes:
    num_buckets: number of buckets, see `relative_position_bucket`.
    max_distance: distance at which buckets end.
    num_heads: number of heads.
    bidirectional: whether keys ahead of the query have buckets.
    locality: how much nearer keys are preferred before training: the first
      head starts with weights that fall as distance ** -locality, the last
      with none of it, those between in equal steps. 0 is T5.
    dtype: dtype of the result; the table is float32.
  """

  num_buckets: int
  max_distance: int
  num_heads: int
  bidirectional: bool
  locality: float = 0.0
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(
    self, query_positions: np.ndarray, key_positions: np.ndarray
  ) -> Array:
    """Computes the biases of all pairs.

    Args:
      query_positions: int32 `[queries]`, constant; `UNTIMED` where a position
        has no time: such pairs share the last bucket, that of the farthest
        past.
      key_positions: int32 `[keys]`, the same.

    Returns:
      `[heads, queries, keys]`.
    """
    table = self.param(
      'rel_embedding',
      nn.with_logical_partitioning(
        self._initial_table, ('heads', 'relpos_buckets')
      ),
      (self.num_heads, self.num_buckets),
      jnp.float32,
    )
    distances = _distances(query_positions, key_positions)
    buckets = self._bucket(distances)
    # Both give the same numbers. A TPU gathers slowly, and pads rows of a few
    # heads to 128; elsewhere a gather is faster than the product.
    bias = jax.lax.platform_dependent(
      table,
      tpu=functools.partial(
        _multiply_bias,
        distances=distances,
        buckets=buckets,
        queries=query_positions,
        keys=key_positions,
        dtype=self.dtype,
      ),
      default=functools.partial(
        _gather_bias,
        buckets=buckets,
        queries=query_positions,
        keys=key_positions,
      ),
    )
    return bias.astype(self.dtype)

  def _initial_table(self, key: Array, shape: tuple, dtype: DType) -> Array:
    """T5's, less what `locality` takes from distant keys."""
    table = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')(
      key, shape, dtype
    )
    if not self.locality:
      return table
    places = np.arange(-self.max_distance, self.max_distance + 1)
    buckets = self._bucket(places)
    counts = np.bincount(buckets, minlength=self.num_buckets)
    totals = np.bincount(buckets, np.abs(places), minlength=self.num_buckets)
    distances = totals / np.maximum(counts, 1)
    # What has no time is as near to one position as to any other.
    distances[self._bucket(np.array([_NO_DISTANCE]))] = 0
    falls = np.linspace(self.locality, 0.0, self.num_heads)
    return table - jnp.asarray(falls[:, None] * np.log1p(distances), dtype)

  def _bucket(self, distances: np.ndarray) -> np.ndarray:
    return relative_position_bucket(
      distances, self.bidirectional, self.num_buckets, self.max_distance
    )


def _distances(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """All that key minus query can be, in order; last that without time."""
  positions = np.concatenate([queries, keys])
  timed = positions[positions != UNTIMED]
  span = int(np.ptp(timed)) if timed.size else 0
  return np.append(np.arange(-span, span + 1), _NO_DISTANCE).astype(np.int32)


def _gather_bias(
  table: Array, buckets: np.ndarray, queries: np.ndarray, keys: np.ndarray
) -> Array:
  """Biases `[heads, queries, keys]`, looked up by distance.

  Args:
    table: `[heads, buckets]`.
    buckets: bucket of each of `_distances`.
    queries: int32 `[queries]`, positions.
    keys: int32 `[keys]`, positions.
  """
  last = len(buckets) - 1
  queries, keys = jnp.asarray(queries)[:, None], jnp.asarray(keys)[None, :]
  # int32 [queries, keys]; distance 0 is in the middle.
  index = jnp.where(
    (queries == UNTIMED) | (keys == UNTIMED),
    last,
    keys - queries + (last - 1) // 2,
  )
  # [heads, buckets] -> [distances, heads] -> [queries, keys, heads]
  bias = jnp.take(table.T[buckets], index, axis=0, mode='clip')
  # -> [heads, queries, keys]
  return bias.transpose(2, 0, 1)


def _multiply_bias(
  table: Array,
  distances: np.ndarray,
  buckets: np.ndarray,
  queries: np.ndarray,
  keys: np.ndarray,
  dtype: DType,
) -> Array:
  """The same, as a product with one-hot rows that XLA does not store.

  Args:
    table: `[heads, buckets]`.
    distances: int32, see `_distances`.
    buckets: bucket of each.
    queries: int32 `[queries]`, positions.
    keys: int32 `[keys]`, positions.
    dtype: dtype of the product, and of the result before it is a `table`'s.
  """
  # The distances of a bucket are an interval, empty where it has none.
  first = np.full(table.shape[1], np.iinfo(np.int32).max, np.int32)
  last = np.full(table.shape[1], np.iinfo(np.int32).min, np.int32)
  np.minimum.at(first, buckets, distances)
  np.maximum.at(last, buckets, distances)
  queries, keys = jnp.asarray(queries)[:, None], jnp.asarray(keys)[None, :]
  # int32 [queries, keys]
  distance = jnp.where(
    (queries == UNTIMED) | (keys == UNTIMED), _NO_DISTANCE, keys - queries
  )
  # bool [buckets, queries, keys]
  is_in = (distance >= first[:, None, None]) & (distance <= last[:, None, None])
  bias = jnp.einsum(
    'hb,bqk->hqk',
    table.astype(dtype),
    is_in.astype(dtype),
    precision=jax.lax.Precision.HIGHEST,
  )
  return bias.astype(table.dtype)


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
      pairs, see `RelativePositionBiases`.
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
  """

  num_heads: int
  head_dim: int
  embed_dim: int
  dtype: DType = jnp.float32
  dropout_rate: float = 0.0
  float32_logits: bool = False

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
      is_blocked = isinstance(bias, BlockedBias)
      attention = blockwise_attention if is_blocked else dot_product_attention
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
