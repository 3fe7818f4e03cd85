"""Relative positions as in T5: a learned bias for each pair of places in time.

Parameter names, shapes and logical axis names are T5X's.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
DType = Any

# Position of what has no time, such as a once-per-clip vector.
UNTIMED = np.iinfo(np.int32).min

# What stands for the distance of a pair of which one has no time.
_NO_DISTANCE = -(10**9)


def bucket(
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


class Biases(nn.Module):
  """A learned bias of the attention logits per head and relative position.

  Attributes:
    num_buckets: number of buckets, see `bucket`.
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

  def setup(self):
    self.rel_embedding = self.param(
      'rel_embedding',
      nn.with_logical_partitioning(
        self._initial_table, ('heads', 'relpos_buckets')
      ),
      (self.num_heads, self.num_buckets),
      jnp.float32,
    )

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
    table = self.rel_embedding
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

  def by_distance(
    self, query_positions: np.ndarray, key_positions: np.ndarray
  ) -> Array:
    """Biases of all distances of these positions, for `row`.

    Returns:
      `[heads, distances]`: as many below 0 as above, and last that of pairs
      of which one has no time.
    """
    buckets = self._bucket(_distances(query_positions, key_positions))
    return self.rel_embedding[:, buckets].astype(self.dtype)

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
    return bucket(
      distances, self.bidirectional, self.num_buckets, self.max_distance
    )


def row(by_distance: Array, query: Array, keys: np.ndarray) -> Array:
  """Biases of one query, which are never stored for all of them.

  Args:
    by_distance: `[heads, distances]`, see `Biases.by_distance`.
    query: int32 scalar, its position.
    keys: int32 `[keys]`, positions, constant.

  Returns:
    `[heads, keys]`.
  """
  last = by_distance.shape[1] - 1
  zero = (last - 1) // 2
  if (np.diff(keys) == 1).all():
    # Neighbours in time: a piece of the table, which is faster than a gather.
    return jax.lax.dynamic_slice_in_dim(
      by_distance, keys[0] - query + zero, len(keys), axis=1
    )
  keys = jnp.asarray(keys)
  index = jnp.where(keys == UNTIMED, last, keys - query + zero)
  return jnp.take(by_distance, index, axis=1, mode='clip')


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
