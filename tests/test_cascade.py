"""Windows over a long clip, with stages whose tokens tell what they saw."""

import fractions
import types

import jax.numpy as jnp
import numpy as np
import pytest

from v2meow_jax import cascade
from v2meow_jax import sampling
from v2meow_jax import stages

_GRID_HZ = fractions.Fraction(5)


def _stage(name: str) -> stages.Stage:
  return stages.make(
    name,
    visual=('scene',),
    style='caption',
    semantic='spectral_semantic',
    acoustic='spectral',
    seconds={'semantic': 2.0, 'coarse': 2.0, 'fine': 1.0}[name],
  )


class _FakeModel:
  """Each token is the one before plus one; the first is the visual input's.

  The tokens of a window without a prompt begin with the sum of the first
  frame's features, so that they tell where the window was cut.
  """

  def __init__(self, name: str):
    self.stage = _stage(name)
    self.options = sampling.Options(1.0, 0, 1.0)
    self.calls = []

  def decode(self, params, inputs, masks, prompt, seeds, start_frame, options):
    target = self.stage.target
    times = target.spec.length(self.stage.seconds)
    self.calls.append((prompt.shape, {k: v.shape for k, v in inputs.items()}))
    view = self.stage.inputs[0]
    first = jnp.sum(
      inputs[view.name].reshape(len(seeds), -1)[:, : view.num_levels], axis=-1
    ).astype(jnp.int32)
    first += seeds.astype(jnp.int32) * 10000 + params['offset']
    if prompt.shape[1]:
      first = prompt[:, 0, 0]
    codes = first[:, None] + jnp.arange(times)
    codes = jnp.repeat(codes[:, :, None], target.num_levels, axis=2)
    return jnp.concatenate([prompt, codes[:, prompt.shape[1] :]], axis=1)


def _runner(name: str, overlap: float = 0.5) -> cascade.StageRunner:
  params = {'offset': np.int32(0)}
  return cascade.StageRunner(_FakeModel(name), params, _GRID_HZ, overlap)


def _scene(num_frames: int) -> np.ndarray:
  """Features whose sum at time t is the position of the 25 Hz stream."""
  spec = _stage('semantic').inputs[0].spec
  features = np.zeros((num_frames, spec.num_features), np.float32)
  features[:, 0] = 2.5 * np.arange(num_frames)
  return features


def test_window_starts():
  assert cascade.window_starts(10, 10, 5) == [0]
  assert cascade.window_starts(3, 10, 5) == [0]
  assert cascade.window_starts(11, 10, 5) == [0, 1]
  assert cascade.window_starts(15, 10, 5) == [0, 5]
  assert cascade.window_starts(27, 10, 5) == [0, 5, 10, 15, 17]
  # Windows that stand alone.
  assert cascade.window_starts(50, 15, 15) == [0, 15, 30, 35]


@pytest.mark.parametrize('total', range(1, 60))
@pytest.mark.parametrize('overlap', [1, 5, 9])
def test_windows_leave_nothing_out_and_know_their_prompt(total, overlap):
  known = 0
  for start in cascade.window_starts(total, 10, 10 - overlap):
    assert start == 0 or start + overlap <= known
    assert start <= known
    known = max(known, start + 10)
  assert known >= total


def test_common_rate():
  rates = [fractions.Fraction(x) for x in ('5', '25', '1/2', '10')]
  assert cascade.common_rate(rates[:2]) == 5
  assert cascade.common_rate(rates) == fractions.Fraction(1, 2)


@pytest.mark.parametrize('total', [3, 10, 11, 18, 26])
def test_a_long_clip_continues_from_its_own_tokens(total):
  runner = _runner('semantic')
  codes = runner.run(
    {'scene': _scene(total * 2)}, total, 3, runner.model.options
  )
  # Five positions a unit, counted up without a seam.
  assert codes.shape == (total * 5, 1)
  assert codes.dtype == np.int32
  np.testing.assert_array_equal(codes[:, 0], 30000 + np.arange(total * 5))


def test_windows_of_a_stage_have_one_shape():
  runner = _runner('semantic')
  for total in (3, 10, 26, 41):
    runner.run({'scene': _scene(total * 2)}, total, 0, runner.model.options)
  # Traced once for each length of prompt, whatever the length of the clip.
  assert [prompt for prompt, _ in runner.model.calls] == [(1, 0, 1), (1, 25, 1)]
  assert runner.model.calls[0][1] == {'scene': (1, 20, 64), 'caption': (1, 32)}


def test_compiled_ahead_is_what_runs():
  runner = _runner('semantic')
  assert runner.prompts(10) == [0]
  assert runner.prompts(11) == [0, 5]
  for prompt in runner.prompts(11):
    runner.compile(prompt)
  assert len(runner.model.calls) == 2
  runner.run({'scene': _scene(50)}, 25, 0, runner.model.options)
  assert len(runner.model.calls) == 2


def test_fine_windows_stand_alone_and_run_together():
  runner = _runner('fine')
  total = 23  # windows of 5 units at 0, 5, 10, 15 and 18
  coarse = np.repeat(np.arange(total * 5, dtype=np.int32)[:, None], 12, axis=1)
  codes = runner.run({'spectral': coarse}, total, 0, runner.model.options)
  assert codes.shape == (total * 5, 8)
  # The sum of the four coarse levels where the window starts, counted up.
  starts = np.array([0, 25, 50, 75, 90])
  for start, end in zip(starts, [25, 50, 75, 90, 115]):
    np.testing.assert_array_equal(
      codes[start:end, 0], 4 * start + np.arange(end - start)
    )
  assert [shape for shape, _ in runner.model.calls] == [(4, 0, 8)]
  assert runner.model.calls[0][1] == {'spectral': (4, 25, 4)}


def test_progress_ends_with_the_clip():
  seconds = []
  runner = _runner('semantic')
  runner.run({'scene': _scene(46)}, 23, 0, runner.model.options, seconds.append)
  assert seconds == [2.0, 3.0, 4.0, 4.6]


def test_what_is_not_there_is_masked(rng):
  stage = _stage('coarse')
  scene = rng.standard_normal((23, 64)).astype(np.float32)
  semantic = rng.integers(0, 512, (60, 1)).astype(np.int32)
  streams = {'scene': scene, 'spectral_semantic': semantic}
  inputs, masks = cascade._cut(stage, streams, [0, 4], _GRID_HZ)
  # The second window starts at 0.8 s; the picture ends at 2.3 s.
  np.testing.assert_array_equal(inputs['scene'][1, :15], scene[8:])
  np.testing.assert_array_equal(inputs['scene'][1, 15:], 0)
  np.testing.assert_array_equal(masks['scene'][0], np.ones(20, np.int32))
  np.testing.assert_array_equal(masks['scene'][1], [1] * 15 + [0] * 5)
  np.testing.assert_array_equal(
    inputs['spectral_semantic'][1, :40], semantic[20:]
  )
  np.testing.assert_array_equal(
    masks['spectral_semantic'][1], [1] * 40 + [0] * 10
  )


def test_mask_of_a_stream_with_levels_covers_each_level():
  streams = {'spectral': np.zeros((3, 12), np.int32)}
  inputs, masks = cascade._cut(_stage('fine'), streams, [0], _GRID_HZ)
  assert inputs['spectral'].shape == (1, 25, 4)
  np.testing.assert_array_equal(masks['spectral'][0], [1] * 12 + [0] * 88)


def test_style_is_masked_where_no_text_was_given(rng):
  stage = _stage('semantic')
  inputs, masks = cascade._cut(stage, {'scene': _scene(20)}, [0, 1], _GRID_HZ)
  np.testing.assert_array_equal(inputs['caption'], np.zeros((2, 32)))
  np.testing.assert_array_equal(masks['caption'], [[0], [0]])
  caption = rng.standard_normal(32).astype(np.float32)
  streams = {'scene': _scene(20), 'caption': caption}
  inputs, masks = cascade._cut(stage, streams, [0, 1], _GRID_HZ)
  np.testing.assert_array_equal(inputs['caption'], [caption, caption])
  np.testing.assert_array_equal(masks['caption'], [[1], [1]])


def test_seed_time_and_options_reach_the_model():
  seen = types.SimpleNamespace()

  class Model(_FakeModel):
    def decode(self, params, inputs, masks, prompt, seeds, start, options):
      seen.dtypes = (seeds.dtype, start.dtype, prompt.dtype)
      seen.options = [x.dtype for x in options]
      codes = jnp.zeros((1, 50, 1), jnp.int32) + start[:, None, None]
      return codes.at[:, 0, 0].add(seeds.astype(jnp.int32) * 1000)

  runner = cascade.StageRunner(Model('semantic'), {}, _GRID_HZ, 0.5)
  codes = runner.run(
    {'scene': _scene(36)}, 18, 7, sampling.Options(0.5, 3, 0.9)
  )
  # Windows at 0, 25 and 40: each says its own absolute start.
  assert codes[0, 0] == 7000
  assert codes[25, 0] == 7025
  assert codes[40, 0] == 7040
  assert codes[-1, 0] == 40
  assert [str(x) for x in seen.dtypes] == ['uint32', 'int32', 'int32']
  assert [str(x) for x in seen.options] == ['float32', 'int32', 'float32']
