import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v2meow_jax import sampling


def reference_restrict(logits, top_k, top_p):
  """One row at a time, by sorting and counting."""
  kept = np.full_like(logits, -np.inf)
  for row, out in zip(logits, kept):
    order = np.argsort(-row, kind='stable')
    if top_k:
      order = order[:top_k]
    if top_p < 1:
      odds = np.exp(row[order] - row.max())
      reached = np.cumsum(odds / odds.sum())
      order = order[: np.searchsorted(reached, top_p) + 1]
    out[order] = row[order]
  return kept


@pytest.mark.parametrize(
  'top_k, top_p',
  [(0, 1.0), (1, 1.0), (5, 1.0), (99, 1.0), (0, 0.5), (0, 0.01), (6, 0.8)],
)
def test_restrict_equals_reference(rng, top_k, top_p):
  logits = 2 * rng.standard_normal((50, 20), 'f4')
  np.testing.assert_array_equal(
    sampling.restrict(logits, top_k, top_p),
    reference_restrict(logits, top_k, top_p),
  )


def draw(logits, options, count, seed=0):
  """Draws `count` codes of one distribution."""
  keys = jax.random.split(jax.random.key(seed), count)
  logits = jnp.broadcast_to(logits, (count, len(logits)))
  return np.asarray(jax.jit(sample)(logits, keys, options))


def sample(logits, keys, options):
  noise = sampling.gumbel(keys, logits.shape[1])
  return sampling.sample(logits, noise, options)


@pytest.mark.parametrize(
  'options',
  [
    sampling.Options(),
    sampling.Options(temperature=0.5),
    sampling.Options(temperature=2.0, top_k=3),
    sampling.Options(temperature=1.5, top_p=0.7),
  ],
)
def test_frequencies_are_the_probabilities(rng, options):
  logits = rng.standard_normal(6, 'f4')
  count = 20000
  codes = draw(logits, options, count)
  scaled = reference_restrict(
    logits[None] / options.temperature, options.top_k, options.top_p
  )[0]
  expected = np.exp(scaled) / np.exp(scaled).sum()
  found = np.bincount(codes, minlength=6) / count
  # Five standard deviations.
  tolerance = 5 * np.sqrt(expected * (1 - expected) / count)
  assert (np.abs(found - expected) <= tolerance).all()


def test_temperature_zero_takes_the_most_likely(rng):
  logits = rng.standard_normal(6, 'f4')
  codes = draw(logits, sampling.Options(temperature=0.0), 50)
  assert set(codes) == {logits.argmax()}


def test_rows_draw_from_their_own_key(rng):
  logits = np.zeros((4, 1000), 'f4')
  keys = jax.random.split(jax.random.key(1), 4)
  codes = sample(logits, keys, sampling.Options())
  assert len(set(codes.tolist())) == 4
  for i in range(4):
    alone = sample(logits[:1], keys[i : i + 1], sampling.Options())
    assert alone[0] == codes[i]
  # Keys of many steps at once give each the noise that it gets alone.
  noise = sampling.gumbel(keys.reshape(2, 2), 1000)
  np.testing.assert_array_equal(
    noise.reshape(4, 1000), sampling.gumbel(keys, 1000)
  )


@pytest.mark.parametrize('spread', [1.0, 0.0])
def test_most_likely_is_argmax(rng, spread):
  # Of equal scores the first, and -inf is a score too.
  scores = spread * rng.integers(-3, 4, (3, 40, 50)).astype('f4')
  scores[0, :20] = -np.inf
  scores[1, :, :7] = -np.inf
  found = sampling.most_likely(scores)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, scores.argmax(-1))


def test_options_do_not_recompile(rng):
  compiled = jax.jit(lambda *arguments: sample(*arguments))
  logits = rng.standard_normal((1, 6), 'f4')
  keys = jax.random.split(jax.random.key(0), 1)
  for options in ((1.0, 0, 1.0), (0.5, 3, 0.9), (0.0, 0, 1.0)):
    compiled(logits, keys, sampling.Options(*options))
  assert compiled._cache_size() == 1


@pytest.mark.parametrize(
  'options, message',
  [
    (
      sampling.Options(temperature=-0.1),
      'temperature is -0.1, expected 0 or more. Pass 0 for the most '
      'likely tokens, about 1 for free ones.',
    ),
    (
      sampling.Options(temperature=float('nan')),
      'temperature is nan, expected 0 or more. Pass 0 for the most '
      'likely tokens, about 1 for free ones.',
    ),
    (
      sampling.Options(top_k=-1),
      'top_k is -1, expected 0 or more. Pass 0 for all tokens.',
    ),
    (
      sampling.Options(top_p=0.0),
      'top_p is 0.0, expected above 0 and up to 1. Pass 1 for all tokens.',
    ),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(ValueError) as e:
    sampling.validate(options)
  assert str(e.value) == message
