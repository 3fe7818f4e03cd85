"""Guidance against its formula, from logits of full passes."""

import functools
import math

import jax
import numpy as np
import pytest

from tests import stage_examples
from v2meow_jax import guidance
from v2meow_jax import models
from v2meow_jax import sampling
from v2meow_jax import stages
from v2meow_jax import streams

SEEDS = np.array([3, 4], 'u4')
PROMPT = 5
# Frames as tokens with codebooks of their own, which a prefix can hold.
PICTURES = stages.View(
  streams.StreamSpec('pictures', 3, num_codes=5, num_levels=2), 0, 2
)


@pytest.fixture(autouse=True)
def quick_compilation():
  """Compiling takes longer than running here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def model():
  return stage_examples.make_model(stages.ENCODER_DECODER)


@pytest.fixture(scope='module')
def prefix_model():
  stage = stages.Stage(
    'coarse',
    (PICTURES, stage_examples.WORDS),
    stage_examples.CODES,
    stage_examples.SECONDS,
    stages.DECODER_ONLY,
  )
  return models.StageModel(stage, stage_examples.make_config())


@functools.cache
def _params(model):
  """Weights large enough for conditions to matter."""
  return jax.tree.map(lambda x: 2 * x, stage_examples.make_params(model))


def _decode(model, inputs, masks, how):
  stage = model.stage
  return model.decode(
    _params(model),
    inputs,
    masks,
    stage_examples.make_codes(stage, 2)[:, :PROMPT],
    SEEDS,
    np.zeros(2, 'i4'),
    sampling.Options(),
    how,
  )


def _logits(model, inputs, masks, codes):
  """Logits `[batch, time, levels, codes]` of a full pass."""
  batch = stage_examples.make_batch(model.stage, inputs, masks, codes)
  return np.asarray(
    stage_examples.compiled_logits(model)(_params(model), batch)
  )


def _without(masks, *names):
  return masks | {name: np.zeros_like(masks[name]) for name in names}


def _noise(stage, shape):
  """The random numbers of a clip's seed, stage, time and level."""

  def draw(seed, time, level):
    key = jax.random.key(seed)
    for number in (stage.index, time, stage.target.first_level + level):
      key = jax.random.fold_in(key, number)
    return jax.random.gumbel(key, shape[3:])

  times, levels = np.arange(shape[1]), np.arange(shape[2])
  over = jax.vmap(jax.vmap(jax.vmap(draw, (None, None, 0)), (None, 0, None)))
  return over(SEEDS, np.tile(times, (2, 1)), np.tile(levels, (2, 1)))


def _check(model, decoded, guided, plain):
  """Codes are drawn from `guided`, and scored by `plain`, behind the prompt."""
  codes = np.asarray(decoded.codes)
  drawn = np.argmax(guided + _noise(model.stage, guided.shape), axis=-1)
  np.testing.assert_array_equal(codes[:, PROMPT:], drawn[:, PROMPT:])
  # The guidance has changed something.
  unguided = np.argmax(plain + _noise(model.stage, plain.shape), axis=-1)
  assert (codes[:, PROMPT:] != unguided[:, PROMPT:]).any()
  scores = np.take_along_axis(
    np.array(jax.nn.log_softmax(plain)), codes[..., np.newaxis], axis=-1
  )[..., 0]
  scores[:, :PROMPT] = 0
  # Measured: 1.7e-5.
  np.testing.assert_allclose(decoded.scores, scores, atol=1e-4)


def test_both_weights_are_nested_and_negative_stands_for_no_style(model, rng):
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  negative = rng.standard_normal((2, 4), 'f4')
  decoded = _decode(model, inputs, masks, guidance.Guidance(2.5, 3.0, negative))
  other = inputs | {'style': negative}
  logits = lambda inputs, masks: _logits(model, inputs, masks, decoded.codes)
  every = logits(inputs, masks)
  seen = logits(other, masks)
  neither = logits(other, _without(masks, 'scene'))
  guided = neither + 2.5 * (seen - neither) + 3.0 * (every - seen)
  _check(model, decoded, guided, every)


def test_one_weight_leaves_the_other_condition(model):
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  for how, name in (
    (guidance.Guidance(visual=4.0), 'scene'),
    (guidance.Guidance(style=4.0), 'style'),
  ):
    decoded = _decode(model, inputs, masks, how)
    every = _logits(model, inputs, masks, decoded.codes)
    without = _logits(model, inputs, _without(masks, name), decoded.codes)
    guided = without + 4.0 * (every - without)
    _check(model, decoded, guided, every)


def test_pictures_in_a_prefix_are_guided(prefix_model):
  inputs, masks = stage_examples.make_inputs(prefix_model.stage, 2)
  decoded = _decode(prefix_model, inputs, masks, guidance.Guidance(3.0, 2.0))
  every = _logits(prefix_model, inputs, masks, decoded.codes)
  without = _logits(
    prefix_model, inputs, _without(masks, 'pictures'), decoded.codes
  )
  guided = without + 3.0 * (every - without)
  _check(prefix_model, decoded, guided, every)


def test_weight_zero_is_the_music_of_no_picture(model):
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  seen = _decode(model, inputs, masks, None)
  without = _decode(model, inputs, _without(masks, 'scene'), None)
  guided = _decode(model, inputs, masks, guidance.Guidance(visual=0.0))
  np.testing.assert_array_equal(guided.codes, without.codes)
  assert (np.asarray(seen.codes) != without.codes).any()


def test_weights_of_one_change_nothing_and_numbers_do_not_recompile(model):
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  negative = np.ones((2, 4), 'f4')
  plain = _decode(model, inputs, masks, None)
  same = _decode(model, inputs, masks, guidance.Guidance(1.0, 1.0, negative))
  np.testing.assert_array_equal(same.codes, plain.codes)
  # Measured: 1.2e-5, since products have three times the rows.
  np.testing.assert_allclose(same.scores, plain.scores, atol=1e-4)
  count = model._decode_jit._cache_size()
  other = guidance.Guidance(7, np.float32(2), -negative)
  changed = _decode(model, inputs, masks, other)
  assert (np.asarray(changed.codes) != same.codes).any()
  assert model._decode_jit._cache_size() == count


def test_stage_of_tokens_alone_has_nothing_to_guide():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  how = guidance.Guidance(3.0, 3.0, np.ones((2, 9), 'f4'))
  assert guidance.weights(model.stage, how) == ()
  rows, _ = guidance.branches(model.stage, inputs, masks, how)
  assert rows['words'].shape == inputs['words'].shape
  plain = _decode(model, inputs, masks, None)
  guided = _decode(model, inputs, masks, how)
  np.testing.assert_array_equal(guided.codes, plain.codes)
  np.testing.assert_array_equal(guided.scores, plain.scores)


def test_weights_that_are_made():
  assert guidance.make(1.0, 1.0, np.ones((1, 4))) is None
  assert guidance.make(2.0, 1.0, np.ones((1, 4))) == (2.0, None, None)
  assert guidance.make(1.0, 0.0) == (None, 0.0, None)
  assert guidance.make(3.0, 2.0) == (3.0, 2.0, None)
  for visual, style, name, found in (
    (-1.0, 1.0, 'visual', '-1.0'),
    (1.0, math.nan, 'style', 'nan'),
  ):
    with pytest.raises(ValueError) as e:
      guidance.make(visual, style)
    assert str(e.value) == (
      f'{name} guidance is {found}, expected 0 or more. Pass 1 for none, '
      'about 3 for much.'
    )


def test_negative_style_of_another_shape_is_named(model):
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  with pytest.raises(ValueError) as e:
    _decode(model, inputs, masks, guidance.Guidance(2.0, 2.0, np.ones(4, 'f4')))
  assert str(e.value) == (
    'Stage `coarse`: the negative style has shape (4,), expected (2, 4) for '
    'stream `style`. Pass a vector for each clip.'
  )


def test_combine_is_the_formula(rng):
  every, seen, neither = rows = rng.standard_normal((3, 2, 7), 'f4')
  # Measured: 5e-7.
  np.testing.assert_allclose(
    guidance.combine(rows, (3.0, 2.5)),
    neither + 2.5 * (seen - neither) + 3.0 * (every - seen),
    atol=4e-6,
  )
  np.testing.assert_array_equal(guidance.combine(rows, (1.0, 1.0)), every)
  np.testing.assert_array_equal(guidance.combine(rows[:1], ()), every)
