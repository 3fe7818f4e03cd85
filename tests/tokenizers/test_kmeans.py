"""K-means against a NumPy reference and against known clusters."""

import jax
import numpy as np
import pytest

from tests.references import kmeans as reference
from v2meow_jax.tokenizers import kmeans


def _blobs(rng, num_clusters, num_points, spread):
  centres = 10 * rng.standard_normal((num_clusters, 5)).astype('f4')
  labels = rng.integers(num_clusters, size=num_points)
  noise = rng.standard_normal((num_points, 5)).astype('f4')
  return centres, labels, centres[labels] + spread * noise


def test_assign_matches_numpy(rng):
  centres = rng.standard_normal((7, 3)).astype('f4')
  points = rng.standard_normal((300, 3)).astype('f4')
  np.testing.assert_array_equal(
    kmeans.assign(points, centres), reference.assign(points, centres)
  )


def test_assign_does_not_depend_on_the_blocks(rng):
  centres = rng.standard_normal((7, 3)).astype('f4')
  points = rng.standard_normal((9000, 3)).astype('f4')
  whole = kmeans.assign(points, centres)
  parts = [kmeans.assign(points[i : i + 100], centres) for i in (0, 4090, 8900)]
  np.testing.assert_array_equal(whole[:100], parts[0])
  np.testing.assert_array_equal(whole[4090:4190], parts[1])
  np.testing.assert_array_equal(whole[8900:], parts[2])


def test_assign_of_nothing_is_nothing():
  assert kmeans.assign(np.zeros((0, 3), 'f4'), np.ones((2, 3), 'f4')).size == 0


def test_fit_finds_known_clusters(rng):
  centres, labels, points = _blobs(rng, 12, 5000, 0.1)
  fit = kmeans.fit(points, 12, seed=1)
  assert fit.used == 1.0
  # Every true centre is found, within the noise of a mean of ~400 points.
  distance = np.linalg.norm(fit.centres[:, None] - centres, axis=-1)
  assert distance.min(0).max() < 0.05  # measured 0.014
  codes = kmeans.assign(points, fit.centres)
  np.testing.assert_array_equal(distance.argmin(1)[codes], labels)
  assert fit.inertia == pytest.approx(5 * 0.1**2, rel=0.05)


def test_fit_is_where_lloyds_steps_stay(rng):
  points = rng.standard_normal((400, 4)).astype('f4')
  fit = kmeans.fit(points, 9, num_steps=500, tolerance=0.0)
  np.testing.assert_allclose(
    reference.step(points, fit.centres), fit.centres, atol=1e-5
  )
  assert fit.inertia == pytest.approx(
    reference.inertia(points, fit.centres), rel=1e-5
  )


def test_dead_centres_move_to_the_farthest_points(rng):
  # Two far points in 3,000 equal ones: a start at one place leaves both other
  # centres dead, and they must find the two.
  points = np.zeros((3000, 2), 'f4')
  points[1000], points[2000] = [100, 0], [0, 90]
  blocks, weights = kmeans._blocks(points)
  centres = np.zeros((3, 2), 'f4')
  new, num_dead, inertia = kmeans._lloyd(blocks, weights, centres)
  assert num_dead == 2
  np.testing.assert_array_equal(np.asarray(new)[1:], [[100, 0], [0, 90]])
  assert inertia == pytest.approx((100**2 + 90**2) / 3000)


def test_all_clusters_are_used_and_the_seed_decides(rng):
  points = rng.standard_normal((3000, 6)).astype('f4')
  fit = lambda seed: kmeans.fit(points, 128, seed=seed, num_steps=10)
  first, again, other = fit(3), fit(3), fit(4)
  assert first.used == 1.0
  np.testing.assert_array_equal(first.centres, again.centres)
  assert np.abs(first.centres - other.centres).max() > 0


def test_fit_inside_a_program_ends_at_means_of_used_clusters(rng):
  # Three far clusters of unequal size, over more than one block.
  centres = np.repeat([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], [6000, 20, 5], 0)
  points = (centres + rng.standard_normal(centres.shape)).astype('f4')
  fit = jax.jit(lambda key, x: kmeans.fit_traced(key, x, 8, 200))
  found = np.asarray(fit(jax.random.key(0), points))
  codes = kmeans.assign(points, found)
  assert set(codes) == set(range(8))
  np.testing.assert_allclose(reference.step(points, found), found, atol=1e-2)
  whole = lambda centres: reference.inertia(points, centres)
  assert whole(found) < 1.1 * kmeans.fit(points, 8).inertia


def test_fit_reports_each_step(rng):
  steps = []
  fit = kmeans.fit(
    rng.standard_normal((200, 2)).astype('f4'),
    4,
    progress=lambda step, inertia: steps.append((step, inertia)),
  )
  assert [s for s, _ in steps] == list(range(1, fit.num_steps + 1))
  inertias = [i for _, i in steps]
  assert inertias == sorted(inertias, reverse=True)


def test_too_few_points():
  with pytest.raises(ValueError, match='at least 5 points for as many cluster'):
    kmeans.fit(np.zeros((4, 2)), 5)


def test_points_that_are_not_finite():
  with pytest.raises(ValueError, match='NaN or infinity'):
    kmeans.fit(np.full((4, 2), np.nan), 2)
