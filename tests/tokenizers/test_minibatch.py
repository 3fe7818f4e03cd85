"""Mini-batch k-means against a NumPy reference, and where it ends."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import kmeans as reference
from v2meow_jax.tokenizers import kmeans
from v2meow_jax.tokenizers import minibatch


def _run(state, batches, size, seed=0):
  """Updates by batches that are filled up to one size."""
  for batch in batches:
    fill = size - len(batch)
    state = minibatch.update(
      state,
      np.pad(batch, ((0, fill), (0, 0)), constant_values=1e3),
      np.pad(np.ones(len(batch), 'f4'), (0, fill)),
      seed,
    )
  return state


def test_update_matches_numpy_and_ignores_what_fills_a_batch(rng):
  centres = rng.standard_normal((7, 3)).astype('f4')
  batches = [rng.standard_normal((n, 3)).astype('f4') for n in (50, 33, 64)]
  state = _run(minibatch.start(centres), batches, 64)
  expected, counts = reference.minibatch(centres, np.zeros(7), batches)
  np.testing.assert_allclose(state.centres, expected, atol=2e-6)  # 2e-7
  np.testing.assert_array_equal(state.counts, counts)
  np.testing.assert_array_equal(state.hits, counts)
  assert counts.sum() == 147


def test_counts_of_the_start_weigh_against_the_batch(rng):
  centres = rng.standard_normal((4, 2)).astype('f4')
  batch = rng.standard_normal((40, 2)).astype('f4')
  counts = np.array([10.0, 0.0, 1000.0, 3.0])
  state = _run(minibatch.start(centres, counts), [batch], 40)
  expected, _ = reference.minibatch(centres, counts, [batch])
  np.testing.assert_allclose(state.centres, expected, atol=2e-6)
  moved = np.abs(np.asarray(state.centres) - centres).max(1)
  assert moved[2] < 0.1 < moved[1]


def test_ends_near_what_all_points_at_once_give(rng):
  # One cloud: all local optima are about equally good.
  points = rng.standard_normal((12_000, 4)).astype('f4')
  whole = kmeans.fit(points, 24).inertia
  first = kmeans.fit(points[:400], 24).centres
  codes = kmeans.assign(points, first)
  before = ((points - first[codes]) ** 2).sum(1).mean()
  batches = [points[i : i + 500] for i in range(0, 12_000, 500)]
  state = minibatch.start(first)
  for _ in range(3):
    state = _run(minibatch.reset(state), batches, 512)
  assert minibatch.used(state) == 1.0
  assert float(state.hits.sum()) == 12_000
  # Measured 1.026 of what all points at once give, and 1.091 at the start.
  assert minibatch.inertia(state) < 1.035 * whole < before / 1.04


def test_dead_centres_move_to_points(rng):
  points = rng.standard_normal((2000, 3)).astype('f4')
  centres = np.concatenate([points[:10], np.full((6, 3), 99.0)])
  batches = [points[i : i + 100] for i in range(0, 2000, 100)]
  state = _run(minibatch.start(centres), batches[:9], 100)
  assert (np.asarray(state.hits[10:]) == 0).all()  # nobody is near them
  state = _run(state, batches[9:], 100)
  assert np.abs(state.centres).max() < 10
  assert (np.asarray(state.hits) > 0).all()
  other = _run(minibatch.start(centres), batches, 100, seed=1)
  assert np.abs(np.asarray(other.centres - state.centres)).max() > 0.1


def test_more_dead_centres_than_points_wait():
  centres = np.full((30, 2), 50.0) + np.arange(30)[:, None]
  points = np.zeros((4, 2), 'f4') + np.arange(4)[:, None]
  state = minibatch.start(centres)
  for _ in range(10):
    state = minibatch.update(state, jnp.asarray(points), jnp.ones(4), 0)
  found = np.asarray(state.centres)
  assert np.isfinite(found).all()
  # One got all points; those that moved are points, each taken once.
  moved = found[(found[:, 0] < 4) & (found[:, 0] == found[:, 1])]
  assert len(np.unique(moved[:, 0])) == len(moved) >= 3


def test_perplexity_is_the_number_of_equal_clusters():
  state = minibatch.start(np.zeros((8, 2)))
  even = jnp.array([5.0, 5, 5, 5, 0, 0, 0, 0])
  skewed = jnp.array([90.0, 5, 5, 0, 0, 0, 0, 0])
  replace = lambda hits: minibatch.State(
    state.centres, state.counts, hits, jnp.array(40.0), state.num_batches
  )
  assert minibatch.perplexity(replace(even)) == pytest.approx(4)
  assert minibatch.perplexity(replace(skewed)) == pytest.approx(1.483, abs=1e-3)
  assert minibatch.used(replace(even)) == 0.5
  assert minibatch.inertia(replace(even)) == pytest.approx(2)
