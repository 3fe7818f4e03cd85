"""Weights files: round trip, bfloat16 and the list of what does not fit."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from v2meow_jax import errors
from v2meow_jax import weights


@pytest.fixture
def tree(rng):
  return {
    'params': {
      'dense': {'kernel': rng.standard_normal((3, 4)).astype('f4')},
      'scale': rng.standard_normal(4).astype('f4'),
    },
    'steps': np.array(7, np.int32),
  }


def test_round_trip_keeps_names_values_and_dtypes(tmp_path, tree):
  path = tmp_path / 'a.safetensors'
  # Neither a transposed view nor a JAX array is laid out as the file is.
  tree['params']['dense']['kernel'] = tree['params']['dense']['kernel'].T
  tree['params']['scale'] = jax.numpy.asarray(tree['params']['scale'])
  weights.save_params(path, tree)
  loaded = weights.load_params(path)
  assert set(safetensors.numpy.load_file(path)) == {
    'params/dense/kernel',
    'params/scale',
    'steps',
  }
  assert jax.tree.structure(loaded) == jax.tree.structure(tree)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(loaded)):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_array_equal(a, b)
  assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


def test_bfloat16_is_stored_small_and_read_as_float32(tmp_path, tree):
  path = tmp_path / 'a.safetensors'
  weights.save_params(path, tree, 'bfloat16')
  stored = safetensors.numpy.load_file(path)
  assert stored['params/scale'].dtype == ml_dtypes.bfloat16
  loaded = weights.load_params(path)
  assert loaded['params']['scale'].dtype == np.float32
  assert loaded['steps'] == 7
  # Eight bits of mantissa.
  np.testing.assert_allclose(
    loaded['params']['scale'], tree['params']['scale'], rtol=2**-8
  )
  # What is bfloat16 already stays as it is.
  weights.save_params(path, loaded, 'bfloat16')
  np.testing.assert_array_equal(
    weights.load_params(path)['params']['scale'], loaded['params']['scale']
  )


def test_check_params_lists_everything_that_does_not_fit(tree):
  weights.check_params(tree, tree)
  given = {
    'params': {
      'dense': {'kernel': np.zeros((4, 3))},
      'bias': np.zeros(4),
    },
    'steps': np.array(0),
  }
  expected = jax.eval_shape(lambda: tree)
  with pytest.raises(
    errors.UserError,
    match=re.escape(
      'Weights do not fit the model: missing `params/scale`; unexpected '
      '`params/bias`; `params/dense/kernel` has shape (4, 3), expected '
      '(3, 4). Use the weights and the gin files that belong together.'
    ),
  ):
    weights.check_params(expected, given)


def test_unreadable_files_are_named(tmp_path):
  with pytest.raises(errors.UserError, match='missing.safetensors: cannot re'):
    weights.load_params(tmp_path / 'missing.safetensors')
  path = tmp_path / 'broken.safetensors'
  path.write_bytes(b'not a safetensors file at all')
  with pytest.raises(errors.UserError, match='expected a safetensors file'):
    weights.load_params(path)


def test_keys_that_cannot_be_names_are_refused(tmp_path):
  for key in ('a/b', '', 3):
    with pytest.raises(ValueError, match='expected a non-empty string'):
      weights.save_params(tmp_path / 'a.safetensors', {key: np.zeros(1)})
