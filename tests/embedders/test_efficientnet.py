"""EfficientNet against transformers', on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import efficientnet as golden
from v2meow_jax.embedders import efficientnet

CONFIG = efficientnet.Config(groups=golden.GROUPS, **golden.SETTINGS)


@pytest.fixture(scope='module')
def network():
  return efficientnet.EfficientNet(CONFIG)


@pytest.fixture(scope='module')
def variables(network):
  return golden.variables(network)


def test_equals_what_transformers_recorded(network, variables):
  with np.load(golden.PATH) as file:
    expected = file['features']
  found = jax.jit(network.apply)(variables, golden.picture())
  # Measured: 4.8e-7 of values up to 1.5.
  np.testing.assert_allclose(found, expected, atol=4e-6)


@pytest.mark.pretrained
def test_equals_transformers(network, variables):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  expected = golden.theirs(variables, **golden.SETTINGS)
  found = jax.jit(network.apply)(variables, golden.picture())
  np.testing.assert_allclose(found, expected, atol=4e-6)


def test_b0_has_the_published_size():
  """Four million parameters before the classifier: 5.3 with that of 1,000."""
  shapes = jax.eval_shape(
    efficientnet.EfficientNet().init,
    jax.random.PRNGKey(0),
    jnp.zeros((1, 32, 32, 3)),
  )
  sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params'])]
  assert sum(sizes) + 1280 * 1000 + 1000 == 5_288_548


def test_training_normalises_by_the_batch_and_skips_blocks(variables):
  network = efficientnet.EfficientNet(
    efficientnet.Config(groups=golden.GROUPS, stem=8, head=320, drop_path=0.9)
  )
  run = jax.jit(
    lambda x, key: network.apply(
      variables, x, True, rngs={'dropout': key}, mutable=['batch_stats']
    )
  )
  x = golden.picture()
  one, stats = run(x, jax.random.PRNGKey(0))
  again, _ = run(x, jax.random.PRNGKey(0))
  other, _ = run(x, jax.random.PRNGKey(1))
  np.testing.assert_array_equal(one, again)
  assert not np.allclose(one, other)
  before = variables['batch_stats']['stem_norm']['norm']['mean']
  stem = variables['params']['stem']['kernel']
  mean = jax.lax.conv_general_dilated(
    x, stem, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  ).mean((0, 1, 2))
  np.testing.assert_allclose(
    stats['batch_stats']['stem_norm']['norm']['mean'],
    0.99 * before + 0.01 * mean,
    atol=1e-5,
  )
