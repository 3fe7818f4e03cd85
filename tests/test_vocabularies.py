"""Tests of vocabularies.py: codes to ids and back."""

import numpy as np
import pytest

from v2meow_jax import vocabularies


def test_flatten_levels_is_time_major():
  codes = np.array([[0, 1], [2, 3]], np.int32)  # [time, level]
  ids = vocabularies.flatten_levels(codes, level_ids=10, offset=100)
  np.testing.assert_array_equal(ids, [100, 111, 102, 113])


def test_unflatten_inverts_flatten(rng):
  codes = rng.integers(0, 7, (3, 5, 4), np.int32)  # [batch, time, level]
  ids = vocabularies.flatten_levels(codes, 7, 12)
  assert ids.shape == (3, 20)
  assert ids.min() >= 12 and ids.max() < 12 + 4 * 7
  np.testing.assert_array_equal(
    vocabularies.unflatten_levels(ids, 4, 7, 12), codes
  )


def test_levels_that_share_a_codebook_share_ids(rng):
  codes = rng.integers(0, 7, (2, 3, 4), np.int32)
  ids = vocabularies.flatten_levels(codes, 0, 12)
  np.testing.assert_array_equal(ids, codes.reshape(2, 12) + 12)
  np.testing.assert_array_equal(
    vocabularies.unflatten_levels(ids, 4, 0, 12), codes
  )


def test_levels_have_disjoint_blocks():
  codes = np.stack(np.meshgrid(np.arange(5), np.arange(3)), -1)[..., 0]
  ids = vocabularies.flatten_levels(codes.T.astype(np.int32), 5)
  assert len(set(ids.tolist())) == 15
  assert ids.min() == vocabularies.FIRST_CODE_ID
  assert vocabularies.PAD_ID not in ids and vocabularies.EOS_ID not in ids


def test_unflatten_wants_whole_positions():
  with pytest.raises(ValueError) as error:
    vocabularies.unflatten_levels(np.zeros(7, np.int32), 4, 10)
  assert str(error.value) == (
    '7 tokens, expected a multiple of 4 levels. Cut the sequence at whole '
    'positions.'
  )
