"""Mini-batch k-means: centres from more points than a machine holds.

Sculley, "Web-Scale K-Means Clustering" (2010): each batch moves a centre to the
mean of all points it ever got. Points of a batch may lie on any number of
devices. A centre that gets hardly any points moves to one of the batch, a far
one likelier than a near one, as k-means++ starts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from v2meow_jax.tokenizers import kmeans

Array = jax.Array

# A centre is dead if it got fewer than this share of what a centre gets on
# average; looked at every so many batches.
_DEAD_SHARE = 0.02
_DEAD_PERIOD = 10


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['centres', 'counts', 'hits', 'distance', 'num_batches'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
  """Centres on their way.

  Attributes:
    centres: float32 `[clusters, features]`.
    counts: float32 `[clusters]`, points that each centre is the mean of.
    hits: float32 `[clusters]`, points since `reset`.
    distance: float32, sum of the squared distances of these.
    num_batches: int32, batches so far.
  """

  centres: Array
  counts: Array
  hits: Array
  distance: Array
  num_batches: Array


def start(centres: Array, counts: Array | None = None) -> State:
  """Starts from centres.

  Args:
    centres: float32 `[clusters, features]`, such as `kmeans.fit` finds.
    counts: float32 `[clusters]`, points that they are the means of; none, so
      that the first batch decides, by default.
  """
  centres = jnp.asarray(centres, jnp.float32)
  zeros = jnp.zeros(len(centres), jnp.float32)
  counts = zeros if counts is None else jnp.asarray(counts, jnp.float32)
  none = jnp.zeros((), jnp.float32)
  return State(centres, counts, zeros, none, jnp.zeros((), jnp.int32))


def reset(state: State) -> State:
  """Forgets hits and distances, for those of the next pass."""
  zeros = jax.tree.map(jnp.zeros_like, state)
  return dataclasses.replace(state, hits=zeros.hits, distance=zeros.distance)


@jax.jit
def update(state: State, points: Array, weights: Array, seed: Array) -> State:
  """Moves the centres by one batch.

  Args:
    state: so far.
    points: float32 `[points, features]`.
    weights: float32 `[points]`: 1, or 0 for what only fills the batch up.
    seed: int32, of the moves of dead centres.

  Returns:
    The new state.
  """
  num_clusters = len(state.centres)
  codes, distance = kmeans.nearest(points, state.centres)
  distance = distance * weights
  gather = functools.partial(
    jax.ops.segment_sum, segment_ids=codes, num_segments=num_clusters
  )
  sums, got = gather(points * weights[:, None]), gather(weights)
  counts = state.counts + got
  step = (sums - got[:, None] * state.centres) / jnp.maximum(counts, 1)[:, None]
  state = State(
    state.centres + step,
    counts,
    state.hits + got,
    state.distance + distance.sum(),
    state.num_batches + 1,
  )
  return jax.lax.cond(
    state.num_batches % _DEAD_PERIOD == 0,
    lambda: _move_dead(state, points, distance, seed),
    lambda: state,
  )


def _move_dead(state: State, points, distance, seed) -> State:
  """Moves dead centres to points of the batch."""
  least = _DEAD_SHARE * state.counts.mean()
  dead = state.counts < least
  key = jax.random.fold_in(jax.random.key(seed), state.num_batches)
  # Gumbel-max draws without replacement, in proportion to the distance; a
  # distance of 0, as of what fills the batch up, is never worth a centre.
  noise = jax.random.gumbel(key, distance.shape)
  order = jnp.where(distance > 0, jnp.log(distance + 1e-30) + noise, -jnp.inf)
  num_drawn = min(len(dead), len(points))
  best, drawn = jax.lax.top_k(order, num_drawn)
  rank = jnp.minimum(jnp.cumsum(dead) - 1, num_drawn - 1)
  # More dead centres than points to take: the rest waits for a later batch.
  moves = dead & (jnp.cumsum(dead) <= num_drawn) & (best[rank] > -jnp.inf)
  return dataclasses.replace(
    state,
    centres=jnp.where(moves[:, None], points[drawn[rank]], state.centres),
    # As many as a centre needs not to be dead at once.
    counts=jnp.where(moves, least, state.counts),
  )


def used(state: State) -> float:
  """Share of the clusters that got a point since `reset`."""
  return float((state.hits > 0).mean())


def perplexity(state: State) -> float:
  """How many clusters, used equally, would be as hard to guess."""
  p = state.hits / jnp.maximum(state.hits.sum(), 1)
  return float(jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(p), 0.0))))


def inertia(state: State) -> float:
  """Mean squared distance of a point to its centre since `reset`."""
  return float(state.distance / jnp.maximum(state.hits.sum(), 1))
