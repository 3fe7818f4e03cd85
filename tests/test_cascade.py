"""Windows over a long clip, with stages whose tokens tell what they saw."""

import fractions

import numpy as np
import pytest

from tests import fake_stages
from v2meow_jax import cascade
from v2meow_jax import sampling

_SETTINGS = cascade.Settings(sampling.Options(1.0, 0, 1.0))


def _windows(total, length, overlap, heard=None, until=None):
  """All windows of a clip whose inputs come as `heard` says, in turn."""
  windows, made = [], 0
  for reach in [*(heard or []), total]:
    has_ended = reach == total
    while window := cascade.next_window(
      made, reach, has_ended, length, overlap, until or reach
    ):
      windows.append(window)
      made = window.start + window.stop
  return windows


def test_windows_of_a_long_clip():
  window = cascade.Window
  assert _windows(10, 10, 5) == [window(0, 0, 10)]
  assert _windows(3, 10, 5) == [window(0, 0, 3)]
  # The last one ends with the clip and makes only what is left.
  assert _windows(11, 10, 5) == [window(0, 0, 10), window(1, 9, 10)]
  assert _windows(27, 10, 5) == [
    window(0, 0, 10),
    window(5, 5, 10),
    window(10, 5, 10),
    window(15, 5, 10),
    window(17, 8, 10),
  ]
  # Windows that stand alone, but for the last.
  assert _windows(35, 15, 0) == [
    window(0, 0, 15),
    window(15, 0, 15),
    window(20, 10, 15),
  ]


@pytest.mark.parametrize('total', range(1, 60))
@pytest.mark.parametrize('overlap', [0, 1, 5, 9])
def test_windows_follow_from_the_length_alone(total, overlap, rng):
  windows = _windows(total, 10, overlap)
  made = 0
  for window in windows:
    # Each goes on where the one before has stopped, and sees no more than
    # a crop, nor behind the end.
    assert window.start + window.first == made
    assert 0 <= window.first < window.stop <= 10
    assert window.start + 10 <= max(10, total)
    made = window.start + window.stop
  assert made == total
  heard = sorted(rng.integers(0, total, 5).tolist())
  assert _windows(total, 10, overlap, heard) == windows


def test_a_part_of_a_clip_sees_what_lies_around_it():
  found = cascade.next_window(12, 40, True, 10, 5, until=14)
  assert found == cascade.Window(7, 5, 7)
  assert cascade.next_window(14, 40, True, 10, 5, until=14) is None


def test_common_rate():
  rates = [fractions.Fraction(x) for x in ('5', '25', '1/2', '10')]
  assert cascade.common_rate(rates[:2]) == 5
  assert cascade.common_rate(rates) == fractions.Fraction(1, 2)


def test_a_call_makes_the_part_that_was_asked_for():
  runner = fake_stages.runner('semantic')
  streams = {'scene': fake_stages.scene(20)}
  made = np.arange(100, 150, dtype='i4')[:, None]
  window = cascade.Window(0, 4, 6)
  request = runner.request(streams, made, window, 3)
  codes, scores = runner.run([request], window, _SETTINGS)
  # Five positions a unit; counted on from the first of the prompt.
  np.testing.assert_array_equal(codes[0, :, 0], 100 + np.arange(20, 30))
  np.testing.assert_array_equal(scores[0, :, 0], np.arange(20, 30))


def test_one_program_for_all_windows_and_numbers():
  runner = fake_stages.runner('semantic', rows=2)
  streams = {'scene': fake_stages.scene(40)}
  runner.compile(_SETTINGS)
  for i, window in enumerate(
    [
      cascade.Window(0, 0, 10),
      cascade.Window(4, 7, 10),
      cascade.Window(9, 1, 3),
    ]
  ):
    made = np.zeros((100, 1), 'i4')
    request = runner.request(streams, made, window, i)
    options = sampling.Options(0.5 * i, i, 0.9)
    runner.run([request], window, cascade.Settings(options))
  assert runner.model.num_traces == 1
  # What is guided is compiled for.
  runner.run([request], window, cascade.Settings(options, visual=2.0))
  runner.run([request], window, cascade.Settings(options, visual=0.0))
  assert runner.model.num_traces == 2


def test_rows_are_always_as_many():
  runner = fake_stages.runner('semantic', rows=4)
  streams = {'scene': fake_stages.scene(20)}
  window = cascade.Window(0, 0, 10)
  requests = [runner.request(streams, None, window, seed) for seed in range(3)]
  codes, _ = runner.run(requests, window, _SETTINGS)
  assert codes.shape == (3, 50, 1)
  np.testing.assert_array_equal(codes[:, 0, 0], [0, 10000, 20000])
  assert runner.model.shapes == [(4, 50, 1)]


def test_seed_time_and_options_reach_the_model():
  runner = fake_stages.runner('semantic')
  window = cascade.Window(4, 0, 10)
  request = runner.request({'scene': fake_stages.scene(40)}, None, window, 7)
  assert (request.seed, request.start_frame) == (7, 20)
  options = sampling.Options(0.5, 3, 0.9)
  runner.run([request], window, cascade.Settings(options, 2.0, None))
  seen = runner.model.seen
  assert [str(x) for x in seen['options']] == ['float32', 'int32', 'float32']
  assert str(seen['seeds']), str(seen['start_frame']) == ('uint32', 'int32')
  assert seen['guidance'].style is None
  assert str(seen['guidance'].visual.dtype) == 'float32'


def test_what_is_not_there_is_masked(rng):
  stage = fake_stages.stage('coarse')
  scene = rng.standard_normal((23, 64)).astype(np.float32)
  semantic = rng.integers(0, 512, (60, 1)).astype(np.int32)
  streams = {'scene': scene, 'spectral_semantic': semantic}
  cut = lambda start: cascade.cut(stage, streams, start, fake_stages.GRID_HZ)
  # The window at 0.8 s; the picture ends at 2.3 s.
  inputs, masks = cut(4)
  np.testing.assert_array_equal(inputs['scene'][:15], scene[8:])
  np.testing.assert_array_equal(inputs['scene'][15:], 0)
  np.testing.assert_array_equal(masks['scene'], [1] * 15 + [0] * 5)
  np.testing.assert_array_equal(inputs['spectral_semantic'][:40], semantic[20:])
  np.testing.assert_array_equal(masks['spectral_semantic'], [1] * 40 + [0] * 10)
  np.testing.assert_array_equal(cut(0)[1]['scene'], np.ones(20, np.int32))


def test_mask_of_a_stream_with_levels_covers_each_level():
  streams = {'spectral': np.zeros((3, 12), np.int32)}
  inputs, masks = cascade.cut(
    fake_stages.stage('fine'), streams, 0, fake_stages.GRID_HZ
  )
  assert inputs['spectral'].shape == (25, 4)
  np.testing.assert_array_equal(masks['spectral'], [1] * 12 + [0] * 88)


def test_style_is_masked_where_no_text_was_given(rng):
  stage = fake_stages.stage('semantic')
  streams = {'scene': fake_stages.scene(20)}
  inputs, masks = cascade.cut(stage, streams, 0, fake_stages.GRID_HZ)
  np.testing.assert_array_equal(inputs['caption'], np.zeros(32))
  np.testing.assert_array_equal(masks['caption'], [0])
  streams['caption'] = rng.standard_normal(32).astype(np.float32)
  inputs, masks = cascade.cut(stage, streams, 1, fake_stages.GRID_HZ)
  np.testing.assert_array_equal(inputs['caption'], streams['caption'])
  np.testing.assert_array_equal(masks['caption'], [1])
