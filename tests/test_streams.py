"""Tests of streams.py: the table and its arithmetic."""

import pytest

from v2meow_jax import streams


def test_paper_geometry():
  """The rows that the paper fixes (V2Meow, Implementation Details)."""
  rows = {
    'clip': (1, 768, 0, 1),
    'i3d_flow': (1, 1024, 0, 1),
    'vit_vqgan': (1, 0, 8192, 1024),
    'mulan': (None, 128, 0, 1),
    'w2v_bert': (25, 0, 1024, 1),
    'soundstream': (50, 0, 1024, 12),
  }
  for name, row in rows.items():
    spec = streams.get(name)
    assert (
      spec.rate_hz,
      spec.num_features,
      spec.num_codes,
      spec.num_levels,
    ) == row
  assert streams.get('soundstream').hop == 2 * 4 * 5 * 8
  assert streams.get('w2v_bert').hop == 640
  shared = [s.name for s in streams.STREAMS.values() if s.shares_codebook]
  assert shared == ['vit_vqgan']


def test_every_row_is_either_features_or_codes():
  for name, spec in streams.STREAMS.items():
    assert spec.name == name
    assert spec.is_discrete == (spec.num_codes > 0)
    assert (spec.num_features > 0) != spec.is_discrete
    assert spec.is_timed or spec.length(7.3) == 1


def test_length_is_seconds_times_rate():
  assert streams.get('soundstream').length(10) == 500
  assert streams.get('scene').length(0.3) == 3
  with pytest.raises(ValueError) as error:
    streams.get('clip').length(2.5)
  assert str(error.value) == (
    'Stream `clip`: 2.5 s at 1 Hz is 2.5 positions, expected a whole '
    'number. Choose other seconds.'
  )


def test_example_shape():
  assert streams.get('soundstream').example_shape(500) == (500, 12)
  assert streams.get('clip').example_shape() == (None, 768)
  assert streams.get('mulan').example_shape() == (128,)


def test_unknown_stream_lists_the_table():
  with pytest.raises(ValueError, match='Unknown stream `dino`, expected one'):
    streams.get('dino')


def test_a_row_is_one_kind():
  with pytest.raises(ValueError, match='expected exactly one of them above 0'):
    streams.StreamSpec('both', 1, num_features=3, num_codes=4)


def test_hop_must_be_whole():
  spec = streams.StreamSpec('x', 3, num_codes=4, sample_rate_hz=16000)
  with pytest.raises(ValueError, match='16000 Hz is not a multiple of 3 Hz'):
    spec.hop  # pylint: disable=pointless-statement
