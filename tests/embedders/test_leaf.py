"""LEAF's front end against NumPy, its contract, its weights."""

import dataclasses

import gin
import jax
import numpy as np
import pytest

from tests import contracts
from tests import random_weights
from tests.references import leaf as reference
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import efficientnet
from v2meow_jax.embedders import leaf

TINY = efficientnet.Config(
  stem=4, groups=((1, 4, 1, 1, 3), (2, 8, 1, 2, 3)), head=16, drop_path=0.0
)
CONFIG = leaf.Config(num_filters=8, encoder=TINY, window_seconds=0.1)


@pytest.fixture(scope='module')
def variables():
  """Random weights behind a front end as it starts."""
  variables = random_weights.like(leaf.expected(CONFIG))
  front_end = leaf.FrontEnd(CONFIG)
  start = jax.jit(front_end.init)(
    jax.random.PRNGKey(0), np.zeros((1, 800), 'f4')
  )
  variables['params']['front_end'] = jax.tree.map(np.array, start['params'])
  return variables


@pytest.mark.parametrize('num_samples', [801])
def test_front_end_equals_numpy(num_samples, rng):
  config = leaf.Config(num_filters=5)
  waveform = rng.uniform(-0.5, 0.5, (2, num_samples)).astype(np.float32)
  front_end = leaf.FrontEnd(config)
  params = jax.jit(front_end.init)(jax.random.PRNGKey(0), waveform)['params']
  # Every channel with numbers of its own.
  params = jax.tree.map(
    lambda x: np.asarray(x * rng.uniform(0.9, 1.04, x.shape), np.float32),
    params,
  )
  found = jax.jit(front_end.apply)({'params': params}, waveform)
  expected = [reference.front_end(clip, params) for clip in waveform]
  assert found.shape == (2, -(-num_samples // 160), 5)
  # Measured: 2.7e-7 of values up to 0.95.
  np.testing.assert_allclose(found, expected, atol=2.5e-6)


def test_filters_start_where_those_of_mels_are():
  """40 filters from 60 to 7800 Hz, a tone in each centre is heard there."""
  start = leaf.mel_start(leaf.Config())
  assert start.shape == (40, 2)
  hertz = start[:, 0] * 16000 / (2 * np.pi)
  mel = 2595 * np.log10(1 + np.array([60, 7800]) / 700)
  centres = 700 * (10 ** (np.linspace(*mel, 42)[1:-1] / 2595) - 1)
  # Centres are bins of 31.25 Hz.
  np.testing.assert_allclose(hertz, centres, atol=31.25)
  assert (np.diff(start[:, 1]) <= 0).mean() > 0.85  # high ones are broader
  real, imaginary = leaf.gabor_filters(start, 401)
  tone = np.exp(1j * np.arange(401) * start[20, 0])
  response = np.abs(
    (np.asarray(real) + 1j * np.asarray(imaginary)).T @ tone.conj()
  )
  assert response.argmax() == 20


def test_parameters_stay_within_limits():
  wild = np.array([[-1.0, 0.01], [9.0, 9999.0]], np.float32)
  root = np.sqrt(2 * np.log(2))
  tame = np.array(
    [[0.0, 4 * root / np.pi], [np.pi, 401 * root / np.pi]], np.float32
  )
  for found, expected in zip(
    leaf.gabor_filters(wild, 401), leaf.gabor_filters(tame, 401)
  ):
    np.testing.assert_allclose(found, expected, atol=1e-7)
  np.testing.assert_allclose(
    leaf.gaussian_pooling(np.array([0.0, 7.0]), 401),
    leaf.gaussian_pooling(np.array([2 / 401, 0.5]), 401),
    atol=1e-7,
  )


def test_every_parameter_learns(variables, rng):
  waveform = rng.uniform(-0.5, 0.5, (2, 1600)).astype(np.float32)
  network = leaf.Network(CONFIG)

  def loss(params):
    scores = network.apply(dict(variables, params=params), waveform)
    return (scores**2).mean()

  gradient = jax.jit(jax.grad(loss))(variables['params'])
  for path, leaf_gradient in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf_gradient).all(), path
    assert np.abs(leaf_gradient).max() > 0, path


def test_contract(variables):
  embedder = leaf.Leaf(variables, CONFIG)
  assert embedder.labels == audioset.NAMES
  assert embedder.hop_seconds == embedder.window_seconds == 0.1
  contracts.check_hearing(embedder, atol=1e-4)


def test_weights_that_do_not_fit(variables):
  other = dataclasses.replace(CONFIG, num_filters=6)
  with pytest.raises(errors.UserError) as error:
    leaf.Leaf({'params': variables['params']}, other)
  message = str(error.value)
  assert 'missing `batch_stats/encoder/stem_norm/norm/mean`' in message
  assert '`params/front_end/gabor` has shape (8, 2), expected (6, 2)' in message


def test_gin_makes_it(variables):
  bindings = [
    'leaf.Config.num_filters = 8',
    'leaf.Config.window_seconds = 0.1',
    'efficientnet.Config.stem = 4',
    'efficientnet.Config.groups = ((1, 4, 1, 1, 3), (2, 8, 1, 2, 3))',
    'efficientnet.Config.head = 16',
  ]
  configs.parse(['embedders/leaf.gin'], bindings)
  try:
    make = gin.query_parameter('EMBEDDER/macro.value').scoped_configurable_fn
    assert make(variables).spec.name == 'leaf'
  finally:
    gin.clear_config()
