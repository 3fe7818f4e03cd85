"""K-means: fit and assignment, for semantic tokenizers and for the RVQ.

`fit` starts from k-means++ (Arthur and Vassilvitskii, 2007) and runs Lloyd's
steps over all points in blocks; a centre that no point is nearest to moves to
one of the points farthest from their own centres.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_BLOCK = 4096  # points whose distances to all centres are held at once
# k-means++ draws from so many of the points: its cost is clusters x points.
_START_POINTS = 20_000


@dataclasses.dataclass(frozen=True)
class Fit:
  """Result of `fit`.

  Attributes:
    centres: float32 `[clusters, features]`.
    inertia: mean squared distance of a point to its centre.
    used: share of the clusters that hold at least one point, in (0, 1].
    num_steps: Lloyd's steps made.
  """

  centres: np.ndarray
  inertia: float
  used: float
  num_steps: int


def nearest(points, centres):
  """Index of the nearest centre and the squared distance to it."""
  # |p - c|^2 = |p|^2 - 2 p.c + |c|^2; the first term changes no argmin.
  scores = jnp.sum(centres**2, axis=1) - 2 * jnp.matmul(
    points, centres.T, precision='highest'
  )
  codes = jnp.argmin(scores, axis=1).astype(jnp.int32)
  least = jnp.take_along_axis(scores, codes[:, None], axis=1)[:, 0]
  return codes, jnp.maximum(least + jnp.sum(points**2, axis=1), 0)


def _blocks(points, xp=np):
  """Cuts points into blocks; what is filled up has a weight of 0."""
  num_blocks = -(-len(points) // _BLOCK)
  pad = num_blocks * _BLOCK - len(points)
  # [points, features] -> [blocks, block, features]
  return (
    xp.pad(points, ((0, pad), (0, 0))).reshape(num_blocks, _BLOCK, -1),
    np.pad(np.ones(len(points), np.float32), (0, pad)).reshape(-1, _BLOCK),
  )


@jax.jit
def _assign_blocks(blocks, centres):
  return jax.lax.map(lambda block: nearest(block, centres), blocks)


def assign(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """Finds the nearest centre of every point.

  Compiled once per number of blocks of 4,096 points, not per length.

  Args:
    points: float32 `[points, features]`.
    centres: float32 `[clusters, features]`.

  Returns:
    int32 `[points]`, each in [0, clusters); the first of equal centres.
  """
  if not len(points):
    return np.zeros((0,), np.int32)
  blocks, _ = _blocks(np.asarray(points, np.float32))
  # Blocks one by one: a long recording compiles what a short one does.
  codes = [
    np.asarray(_assign_blocks(blocks[i : i + 1], centres)[0]).ravel()
    for i in range(len(blocks))
  ]
  return np.concatenate(codes)[: len(points)]


@functools.partial(jax.jit, static_argnames='num_clusters')
def _plus_plus(points, num_clusters, key):
  """Starts k-means++: far points are likelier to become centres."""

  def step(i, state):
    centres, nearest = state
    # Gumbel-max draws a point with probability proportional to `nearest`.
    noise = jax.random.gumbel(jax.random.fold_in(key, i), nearest.shape)
    chosen = points[jnp.argmax(jnp.log(nearest + 1e-30) + noise)]
    centres = centres.at[i].set(chosen)
    distance = jnp.sum((points - chosen) ** 2, axis=1)
    return centres, jnp.minimum(nearest, distance)

  centres = jnp.zeros((num_clusters, points.shape[1]), points.dtype)
  # Equal chances for the first one.
  nearest = jnp.full(points.shape[:1], 1e10, points.dtype)
  centres, _ = jax.lax.fori_loop(0, num_clusters, step, (centres, nearest))
  return centres


@jax.jit
def _lloyd(blocks, weights, centres):
  """One of Lloyd's steps: new centres, counts, inertia, farthest points."""
  num_clusters = len(centres)
  num_far = min(num_clusters, _BLOCK)

  def block_sums(carry, block):
    sums, counts, inertia = carry
    points, weight = block
    codes, distance = nearest(points, centres)
    distance = distance * weight
    sums = sums.at[codes].add(points * weight[:, None])
    counts = counts.at[codes].add(weight)
    far, index = jax.lax.top_k(distance, num_far)
    return (sums, counts, inertia + distance.sum()), (far, points[index])

  zeros = (jnp.zeros_like(centres), jnp.zeros(num_clusters), jnp.zeros(()))
  (sums, counts, inertia), (far, points) = jax.lax.scan(
    block_sums, zeros, (blocks, weights)
  )
  means = sums / jnp.maximum(counts, 1)[:, None]
  # [blocks, far] -> [blocks * far]: the farthest of all, not of a block.
  order = jnp.argsort(-far.ravel())[:num_clusters]
  far_points = points.reshape(-1, points.shape[-1])[order]
  dead = counts == 0
  rank = jnp.cumsum(dead) - 1
  spare = far_points[jnp.minimum(rank, len(far_points) - 1)]
  centres = jnp.where(dead[:, None], spare, means)
  return centres, dead.sum(), inertia / weights.sum()


def fit_traced(
  key: Array, points: Array, num_clusters: int, num_steps: int
) -> Array:
  """Fits centres inside a compiled program: a fixed number of Lloyd's steps.

  Args:
    key: random key of the start.
    points: float32 `[points, features]`.
    num_clusters: centres wanted.
    num_steps: Lloyd's steps.

  Returns:
    float32 `[num_clusters, features]`.
  """
  # Every nth point: all of a long recording has a part.
  stride = max(1, len(points) // max(_START_POINTS, num_clusters))
  centres = _plus_plus(points[::stride], num_clusters, key)
  blocks, weights = _blocks(points, jnp)
  return jax.lax.fori_loop(
    0, num_steps, lambda _, c: _lloyd(blocks, weights, c)[0], centres
  )


def fit(
  points: np.ndarray,
  num_clusters: int,
  seed: int = 0,
  num_steps: int = 100,
  tolerance: float = 1e-4,
  progress: Callable[[int, float], None] | None = None,
) -> Fit:
  """Fits centres to points.

  Args:
    points: float32 `[points, features]`.
    num_clusters: centres wanted, at most the number of points.
    seed: of the start.
    num_steps: most of Lloyd's steps.
    tolerance: stops where the inertia falls by less than this share and no
      centre is dead.
    progress: called after each step with its number and the inertia.

  Returns:
    The centres and what they achieve.

  Raises:
    ValueError: fewer points than clusters, or points that are not finite.
  """
  points = np.asarray(points, np.float32)
  if points.ndim != 2 or len(points) < num_clusters:
    raise ValueError(
      f'Points of shape {points.shape}, expected [points, features] with '
      f'at least {num_clusters} points for as many clusters. Give more '
      'audio or ask for fewer clusters.'
    )
  if not np.isfinite(points).all():
    raise ValueError(
      'Points hold NaN or infinity, expected finite features. Check the '
      'features of the training clips.'
    )
  order = np.random.default_rng(seed).permutation(len(points))
  start = points[order[: max(_START_POINTS, num_clusters)]]
  centres = _plus_plus(start, num_clusters, jax.random.key(seed))
  blocks, weights = _blocks(points)
  last = np.inf
  step = 0
  for step in range(1, num_steps + 1):
    new_centres, num_dead, inertia = _lloyd(blocks, weights, centres)
    inertia = float(inertia)
    if progress:
      progress(step, inertia)
    if step > 1 and not num_dead and last - inertia <= tolerance * last:
      break
    centres, last = new_centres, inertia
  centres = np.asarray(centres)
  codes, distance = _assign_blocks(blocks, centres)
  codes = np.asarray(codes).ravel()[: len(points)]
  distance = np.asarray(distance).ravel()[: len(points)]
  used = len(np.unique(codes)) / num_clusters
  return Fit(centres, float(distance.mean()), used, step)
