"""Residual quantiser against its slow reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import rvq as reference
from v2meow_jax.codecs import rvq

# Compiled once each: op by op they take seconds.
encode = jax.jit(rvq.encode)
decode = jax.jit(rvq.decode)
quantize = jax.jit(rvq.quantize)
update_ema = jax.jit(rvq.update_ema, static_argnums=3)


@pytest.fixture
def codebooks(rng):
  # [level, code, features]; deeper levels are smaller, as residuals are.
  scale = 0.5 ** np.arange(4)[:, None, None]
  return (scale * rng.standard_normal((4, 16, 8))).astype('f4')


@pytest.fixture
def latents(rng):
  return rng.standard_normal((3, 7, 8)).astype('f4')


def test_encode_matches_reference(latents, codebooks):
  codes = encode(latents, codebooks)
  assert codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, reference.encode(latents, codebooks))


@pytest.mark.parametrize('levels', [1, 3, 4])
def test_decode_matches_reference(rng, codebooks, levels):
  codes = rng.integers(0, 16, (2, 5, levels))
  np.testing.assert_allclose(
    decode(codes, codebooks),
    reference.decode(codes, codebooks),
    atol=1e-6,
  )


def test_quantize_uses_the_first_levels_of_each_clip(latents, codebooks):
  num_levels = np.array([1, 4, 2])
  quantised, codes, residuals = quantize(latents, codebooks, num_levels)
  expected = reference.encode(latents, codebooks)
  np.testing.assert_array_equal(codes, expected)
  for clip, number in enumerate(num_levels):
    np.testing.assert_allclose(
      quantised[clip],
      reference.decode(expected[clip, :, :number], codebooks),
      atol=1e-6,
    )
  np.testing.assert_allclose(
    residuals[2],
    latents - reference.decode(expected[..., :2], codebooks),
    atol=1e-6,
  )


def test_straight_through_passes_value_and_gradient(latents):
  f = lambda x: jnp.sum(jnp.square(rvq.straight_through(x, jnp.round(x))))
  value, gradient = jax.value_and_grad(f)(jnp.asarray(latents))
  np.testing.assert_allclose(
    value, np.square(np.round(latents)).sum(), rtol=1e-6
  )
  np.testing.assert_allclose(gradient, 2 * np.round(latents), atol=1e-6)


def test_sample_num_levels_covers_all_and_keeps_the_share():
  levels = np.asarray(
    jax.jit(rvq.sample_num_levels, static_argnums=(1, 2, 3))(
      jax.random.PRNGKey(0), 20_000, 8, 0.5
    )
  )
  share = np.bincount(levels, minlength=9) / 20_000
  assert share[0] == 0
  np.testing.assert_allclose(share[1:8], 0.5 / 8, atol=0.01)
  np.testing.assert_allclose(share[8], 0.5 + 0.5 / 8, atol=0.01)


def test_update_ema_matches_reference(rng, latents, codebooks):
  counts = rng.uniform(0.5, 2, (4, 16)).astype('f4')
  sums = (codebooks * counts[..., None]).astype('f4')
  num_levels = np.array([4, 1, 3])
  _, codes, residuals = quantize(latents, codebooks)
  state = update_ema(
    rvq.State(codebooks, counts, sums), residuals, codes, 0.9, num_levels
  )
  expected = reference.update_ema(
    codebooks, counts, sums, latents, 0.9, num_levels
  )
  np.testing.assert_allclose(state.codebooks, expected[0], atol=2e-6)
  np.testing.assert_allclose(state.counts, expected[1], atol=1e-6)
  np.testing.assert_allclose(state.sums, expected[2], atol=2e-6)


def test_unused_codes_keep_their_place(latents, codebooks):
  far = np.concatenate([codebooks[:1, :15], np.full((1, 1, 8), 100.0)], 1)
  state = rvq.init_state(jnp.asarray(far, jnp.float32))
  _, codes, residuals = quantize(latents, state.codebooks)
  # Long enough for the counts to leave float32's range.
  for _ in range(60):
    state = update_ema(state, residuals, codes, 0.1)
  np.testing.assert_allclose(state.codebooks[0, 15], 100.0, rtol=1e-5)
  assert np.isfinite(state.codebooks).all()


def test_restart_replaces_dead_codes_only(latents, codebooks):
  counts = np.ones((4, 16), 'f4')
  counts[1, 3] = counts[2, 7] = 0.01
  state = rvq.State(codebooks, counts, codebooks * counts[..., None])
  _, _, residuals = quantize(latents, codebooks)
  restart = jax.jit(rvq.restart_dead_codes)
  after = restart(state, residuals, jax.random.PRNGKey(1), 0.1)
  moved = np.any(np.asarray(after.codebooks) != codebooks, axis=-1)
  assert np.argwhere(moved).tolist() == [[1, 3], [2, 7]]
  for level, code in ((1, 3), (2, 7)):
    vectors = np.asarray(residuals[level]).reshape(-1, 8)
    distance = np.abs(vectors - after.codebooks[level, code]).max(-1).min()
    assert distance == 0  # it is a vector that this level was given
    np.testing.assert_allclose(after.counts[level, code], 0.1)
    np.testing.assert_allclose(
      after.sums[level, code] / after.counts[level, code],
      after.codebooks[level, code],
      rtol=1e-5,
    )


def test_fit_levels_each_shrink_the_residual(rng):
  vectors = jnp.asarray(rng.standard_normal((2000, 4)), jnp.float32)
  codebooks = rvq.fit(jax.random.PRNGKey(0), vectors, 3, 16)
  codes = encode(vectors, codebooks)
  errors = [
    float(jnp.square(vectors - decode(codes[:, :n], codebooks)).mean())
    for n in (1, 2, 3)
  ]
  # Rate-distortion theory: 1 bit per feature and level would give 1 / 4.
  assert errors[0] < 0.4
  assert errors[1] < 0.5 * errors[0]
  assert errors[2] < 0.5 * errors[1]
