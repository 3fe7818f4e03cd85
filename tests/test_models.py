import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import stage_examples
from v2meow_jax import decoding
from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import sampling
from v2meow_jax import stages
from v2meow_jax import tasks
from v2meow_jax import vocabularies

ARCHITECTURES = (stages.ENCODER_DECODER, stages.DECODER_ONLY)
TIMES, LEVELS, CODES = 12, 2, 7  # of the target of `stage_examples`


@pytest.fixture(autouse=True)
def quick_compilation():
  """Compiling takes longer than running here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def make_batch(stage, batch_size, seed=0):
  inputs, masks = stage_examples.make_inputs(stage, batch_size, seed)
  codes = stage_examples.make_codes(stage, batch_size, seed)
  return stage_examples.make_batch(stage, inputs, masks, codes)


def reference_loss(logits, codes, label_smoothing, z_loss):
  """T5X's loss in float64, one code at a time."""
  loss, penalty = np.zeros(codes.shape), np.zeros(codes.shape)
  for index in np.ndindex(codes.shape):
    row = np.asarray(logits[index], np.float64)
    normalizer = np.log(np.sum(np.exp(row - row.max()))) + row.max()
    label = np.full(len(row), label_smoothing / (len(row) - 1))
    label[codes[index]] = 1 - label_smoothing
    known = label[label > 0]
    loss[index] = -np.sum(label * (row - normalizer))
    loss[index] += np.sum(known * np.log(known))
    penalty[index] = z_loss * normalizer**2
  return loss, penalty


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_loss_and_metrics_equal_reference(architecture):
  model = models.StageModel(
    stage_examples.make_stage(architecture),
    stage_examples.make_config(),
    label_smoothing=0.1,
    z_loss=0.01,
    loss_normalizing_factor=50.0,
  )
  stage = model.stage
  params = stage_examples.make_params(model)
  batch = make_batch(stage, 2)
  prefix = network.prefix_length(stage)
  batch['decoder_loss_weights'][1, prefix + 9 :] = 0
  batch['decoder_target_tokens'][1, prefix + 9 :] = 0
  loss, metrics = stage_examples.compiled(model, 'eval_fn')(params, batch)
  logits = np.asarray(stage_examples.compiled_logits(model)(params, batch))
  codes = stage_examples.make_codes(stage, 2)
  weights = batch['decoder_loss_weights'][:, prefix:].reshape(codes.shape)
  token_loss, penalty = reference_loss(logits, codes, 0.1, 0.01)
  token_loss, penalty = token_loss * weights, penalty * weights
  np.testing.assert_allclose(loss, (token_loss + penalty).sum() / 50, rtol=1e-5)
  is_right = (logits.argmax(-1) == codes) * weights
  expected = {
    'loss': loss,
    'z_loss': penalty.sum() / 50,
    'accuracy': is_right.sum() / weights.sum(),
    'loss_per_nonpadding_target_token': (token_loss + penalty).sum()
    / weights.sum(),
    'nonpadding_fraction': weights.mean(),
    'num_tokens': weights.sum(),
  }
  for level in range(LEVELS):
    count = weights[..., level].sum()
    expected[f'accuracy/level_{level}'] = is_right[..., level].sum() / count
    expected[f'loss_per_token/level_{level}'] = (token_loss + penalty)[
      ..., level
    ].sum() / count
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name].compute(), value, rtol=1e-5, err_msg=name
    )


def test_metrics_of_batches_merge_by_tokens():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  params = stage_examples.make_params(model)
  eval_fn = stage_examples.compiled(model, 'eval_fn')
  batches = [make_batch(model.stage, 2, seed) for seed in (0, 1)]
  batches[1]['decoder_loss_weights'][1, 20:] = 0
  (loss, metrics), (other_loss, other) = (eval_fn(params, b) for b in batches)
  counts = [b['decoder_loss_weights'].sum() for b in batches]
  assert counts == [48, 28]
  for name in ('accuracy', 'loss_per_nonpadding_target_token'):
    means = [m[name].compute() for m in (metrics, other)]
    np.testing.assert_allclose(
      metrics[name].merge(other[name]).compute(),
      np.average(means, weights=counts),
      rtol=1e-5,
    )
  # The loss is a sum, so that those of microbatches add up.
  mean = metrics['loss_per_nonpadding_target_token'].merge(
    other['loss_per_nonpadding_target_token']
  )
  np.testing.assert_allclose(
    loss + other_loss, sum(counts) * mean.compute(), rtol=1e-5
  )


def test_gradient_reaches_every_parameter():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  params = stage_examples.make_params(model)
  batch = make_batch(model.stage, 2)
  loss = lambda params: model.loss_fn(params, batch, None)[0]
  gradient = jax.jit(jax.grad(loss))(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path


def test_dropout_follows_its_key():
  model = stage_examples.make_model(stages.DECODER_ONLY, dropout_rate=0.5)
  params = stage_examples.make_params(model)
  batch = make_batch(model.stage, 2)
  loss_fn = stage_examples.compiled(model, 'loss_fn')
  run = lambda key: float(loss_fn(params, batch, key)[0])
  keys = jax.random.split(jax.random.key(0, impl='rbg'), 2)
  assert run(keys[0]) == run(keys[0])
  assert run(keys[0]) != run(keys[1])
  plain = stage_examples.make_model(stages.DECODER_ONLY)
  expected, _ = stage_examples.compiled(plain, 'eval_fn')(params, batch)
  np.testing.assert_allclose(run(None), expected, rtol=1e-6)


def test_initial_variables_follow_the_protocol():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  # T5X finds the model through the bound method.
  assert model.get_initial_variables.__self__ is model
  shapes = model.feature_shapes(3)
  assert shapes == {
    'encoder_scene': (3, 6, 5),
    'encoder_scene_mask': (3, 6),
    'encoder_style': (3, 4),
    'encoder_style_mask': (3, 1),
    'encoder_words': (3, 16),
    'encoder_words_mask': (3, 16),
    'decoder_input_tokens': (3, 24),
    'decoder_target_tokens': (3, 24),
    'decoder_loss_weights': (3, 24),
  }
  init = lambda key: model.get_initial_variables(
    rng=key, input_shapes=shapes, input_types=None
  )
  variables = jax.eval_shape(init, jax.random.PRNGKey(0))
  assert set(variables) == {'params', 'params_axes'}
  axes = variables['params_axes']
  assert axes['encoder']['scene_projection']['kernel_axes'].names == (
    'mlp',
    'embed',
  )
  assert axes['decoder']['cross_relpos_bias']['rel_embedding_axes'].names == (
    'heads',
    'relpos_buckets',
  )


def test_features_of_other_lengths_are_refused():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  key = jax.random.PRNGKey(0)
  shapes = model.feature_shapes(1)
  assert set(shapes) == {
    'decoder_input_tokens',
    'decoder_target_tokens',
    'decoder_loss_weights',
  }
  with pytest.raises(ValueError) as e:
    model.get_initial_variables(key, shapes | {'decoder_input_tokens': (1, 39)})
  assert str(e.value) == (
    'Model feature `decoder_input_tokens` has shape (1, 39), expected '
    '[batch, 40] for 2 s. Set TASK_FEATURE_LENGTHS to the '
    "stage's own."
  )
  del shapes['decoder_loss_weights']
  with pytest.raises(ValueError) as e:
    model.get_initial_variables(key, shapes)
  assert str(e.value) == (
    'Model feature `decoder_loss_weights` is missing, expected '
    'decoder_input_tokens, decoder_target_tokens, decoder_loss_weights. Use '
    'FEATURE_CONVERTER_CLS of this model.'
  )


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_scores_are_log_likelihoods(architecture):
  model = stage_examples.make_model(architecture)
  params = stage_examples.make_params(model)
  batch = make_batch(model.stage, 2)
  score = lambda params, batch: model.score_batch(params, batch, True)
  scores, parts = jax.jit(score)(params, batch)
  assert scores.shape == (2,)
  loss, _ = stage_examples.compiled(model, 'eval_fn')(params, batch)
  np.testing.assert_allclose(-scores.sum(), loss, rtol=1e-5)
  np.testing.assert_allclose(
    parts['token_scores'].sum((1, 2)), scores, rtol=1e-6
  )


@pytest.mark.parametrize(
  'architecture, times, aligned, block',
  [
    # Caches that grow twice, at the borders of no time, and once for all.
    (stages.ENCODER_DECODER, 0, True, 8),
    (stages.ENCODER_DECODER, 5, False, 24),
    (stages.DECODER_ONLY, 0, False, 24),
    (stages.DECODER_ONLY, 5, True, 5),
  ],
)
def test_cached_steps_equal_full_pass(architecture, times, aligned, block):
  model = stage_examples.make_model(architecture, cross_relpos_bias=aligned)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  masks['words'][1, -4:] = 0
  codes = stage_examples.make_codes(stage, 2)
  batch = stage_examples.make_batch(stage, inputs, masks, codes)
  arguments = model._network_inputs(batch)
  first = network.prefix_length(stage) + times * LEVELS
  tokens = arguments[3][:, :first]
  forced = jnp.asarray(codes.reshape(2, -1))

  def choose(logits, place):
    return forced[:, place], logits

  found_codes, logits = jax.jit(
    lambda params: decoding.decode(
      model.module,
      params,
      *arguments[:2],
      tokens,
      tokens > 0,
      choose,
      block=block,
    )
  )(params)
  given = times * LEVELS
  np.testing.assert_array_equal(found_codes[:, given:], forced[:, given:])
  full = np.asarray(stage_examples.compiled_logits(model)(params, batch))
  full = full[:, times:].reshape(2, -1, CODES)
  np.testing.assert_allclose(logits[given:].swapaxes(0, 1), full, atol=2e-5)


def decode(model, params, batch_size=2, **changes):
  """`model.decode` of the example's inputs, without a prompt."""
  inputs, masks = stage_examples.make_inputs(model.stage, batch_size)
  arguments = {
    'inputs': inputs,
    'input_masks': masks,
    'prompt': np.zeros((batch_size, 0, LEVELS), 'i4'),
    'seeds': np.arange(batch_size, dtype='u4'),
    'start_frame': np.zeros(batch_size, 'i4'),
    'options': sampling.Options(),
  }
  return np.asarray(model.decode(params, **arguments | changes).codes)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_decoded_codes_are_codes(architecture):
  model = stage_examples.make_model(architecture)
  params = stage_examples.make_params(model)
  codes = decode(model, params)
  assert codes.shape == (2, TIMES, LEVELS)
  assert codes.dtype == np.int32
  assert set(codes.ravel()) == set(range(CODES))


def test_greedy_decoding_takes_the_most_likely_codes():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  stage = model.stage
  params = stage_examples.make_params(model)
  codes = decode(model, params, options=sampling.Options(temperature=0.0))
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(stage, inputs, masks, codes)
  logits = np.asarray(stage_examples.compiled_logits(model)(params, batch))
  np.testing.assert_array_equal(logits.argmax(-1), codes)


def test_seed_stage_and_time_make_the_random_numbers():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  params = stage_examples.make_params(model)
  codes = decode(model, params)
  np.testing.assert_array_equal(codes, decode(model, params))
  other = decode(model, params, seeds=np.array([0, 7], 'u4'))
  np.testing.assert_array_equal(codes[0], other[0])
  assert (codes[1] != other[1]).any()
  later = decode(model, params, start_frame=np.array([0, 7], 'i4'))
  np.testing.assert_array_equal(codes[0], later[0])
  assert (codes[1] != later[1]).any()


def test_random_number_follows_the_documented_scheme():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  # Without weights all codes are equally likely: only the numbers decide.
  params = jax.tree.map(np.zeros_like, stage_examples.make_params(model))
  codes = decode(
    model,
    params,
    seeds=np.array([3, 4], 'u4'),
    start_frame=np.array([10, 100], 'i4'),
  )
  for clip, (seed, start) in enumerate(((3, 10), (4, 100))):
    for time, level in ((0, 0), (0, 1), (11, 1)):
      key = jax.random.key(seed)
      # The fine stage is the third; its levels start at 1 of the stream.
      for number in (2, start + time, 1 + level):
        key = jax.random.fold_in(key, number)
      expected = np.argmax(jax.random.gumbel(key, (CODES,)))
      assert codes[clip, time, level] == expected


def test_prompt_is_kept_and_continued():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  params = stage_examples.make_params(model)
  codes = decode(model, params)
  # The same numbers at the same times: the continuation is the same.
  again = decode(model, params, prompt=codes[:, :5])
  np.testing.assert_array_equal(codes, again)
  other = (codes[:, :5] + 1) % CODES
  changed = decode(model, params, prompt=other)
  np.testing.assert_array_equal(changed[:, :5], other)
  assert (changed[:, 5:] != codes[:, 5:]).any()


def test_clip_of_a_batch_gets_what_it_gets_alone():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  params = stage_examples.make_params(model)
  codes = decode(model, params)
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  for i in range(2):
    one = slice(i, i + 1)
    alone = decode(
      model,
      params,
      1,
      inputs={name: x[one] for name, x in inputs.items()},
      input_masks={name: x[one] for name, x in masks.items()},
      seeds=np.array([i], 'u4'),
    )
    np.testing.assert_array_equal(alone[0], codes[i])


def test_masked_inputs_do_not_reach_the_codes():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  masks['scene'][:, 3:] = 0
  masks['words'][:, 6:] = 0
  codes = decode(model, params, inputs=inputs, input_masks=masks)
  inputs['scene'][:, 3:] = np.nan
  inputs['words'][:, 3:] = 5
  other = decode(model, params, inputs=inputs, input_masks=masks)
  np.testing.assert_array_equal(codes, other)


def test_options_do_not_recompile():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  params = stage_examples.make_params(model)
  found = decode(model, params)
  count = model._decode_jit._cache_size()
  for options in ((0.5, 3, 0.9), (0.0, 0, 1.0)):
    other = decode(model, params, options=sampling.Options(*options))
    assert (other != found).any()
  assert model._decode_jit._cache_size() == count


def test_predictions_are_ids_of_the_target():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  params = stage_examples.make_params(model)
  batch = make_batch(model.stage, 2)
  prefix = network.prefix_length(model.stage)
  predict = stage_examples.compiled(model, 'predict_batch_with_aux')
  ids, aux = predict(params, batch, rng=jax.random.PRNGKey(0))
  codes = vocabularies.unflatten_levels(
    np.asarray(ids), LEVELS, CODES, model.stage.target_offset
  )
  assert codes.shape == (2, TIMES, LEVELS)
  assert codes.min() >= 0
  assert codes.max() < CODES
  # The target is not looked at, and the score is that of what was sampled.
  batch['decoder_target_tokens'][:, prefix:] = ids
  batch['decoder_input_tokens'][:, prefix + 1 :] = ids[:, :-1]
  np.testing.assert_array_equal(
    predict(params, batch, rng=jax.random.PRNGKey(0))[0], ids
  )
  np.testing.assert_allclose(
    aux['scores'],
    stage_examples.compiled(model, 'score_batch')(params, batch),
    rtol=1e-5,
  )


def test_prediction_follows_rng_and_sample_seed():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  params = stage_examples.make_params(model)
  batch = make_batch(model.stage, 2)
  predict = stage_examples.compiled(model, 'predict_batch_with_aux')
  ids, _ = predict(params, batch, rng=jax.random.PRNGKey(0))
  assert ids.shape == (2, TIMES * LEVELS)
  other, _ = predict(params, batch, rng=jax.random.PRNGKey(1))
  assert (ids != other).any()
  seeded = models.StageModel(model.stage, model.config, sample_seed=1)
  predict = stage_examples.compiled(seeded, 'predict_batch')
  other = predict(params, batch, rng=jax.random.PRNGKey(0))
  assert other.shape == ids.shape
  assert (ids != other).any()


@pytest.mark.parametrize(
  'name, temperature', [('semantic', 1.0), ('coarse', 0.95), ('fine', 0.4)]
)
def test_temperatures_are_those_of_the_paper(name, temperature):
  stage = stage_examples.make_stage(stages.ENCODER_DECODER)
  stage = stages.Stage(name, stage.inputs, stage.target, stage.seconds)
  config = stage_examples.make_config()
  assert models.StageModel(stage, config).options == (temperature, 0, 1.0)
  model = models.StageModel(stage, config, temperature=0.0, top_k=3)
  assert model.options == (0.0, 3, 1.0)


def test_bad_arguments_of_decode_are_named():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  inputs, masks = stage_examples.make_inputs(model.stage, 2)
  cases = [
    (
      {'inputs': inputs | {'scene': inputs['scene'][:, :5]}},
      'Stage `coarse`: inputs of `scene` has shape (2, 5, 5), expected '
      '[batch, 6, 5] for 2 s. Pad to the length of the stage and mask '
      'what is padding.',
    ),
    (
      {'input_masks': {'scene': masks['scene']}},
      'Stage `coarse`: stream `style` is missing in input_masks, expected '
      '`scene`, `style`, `words`. Pass zeros and a mask of 0 for a stream '
      'that is not there.',
    ),
    (
      {'prompt': np.zeros((2, 12, 2), 'i4')},
      'Stage `coarse`: the prompt has shape (2, 12, 2), expected [batch, '
      '0 to 11, 2]. Pass codes of whole times and leave some to generate.',
    ),
  ]
  for changes, message in cases:
    with pytest.raises(ValueError) as e:
      decode(model, {}, **changes)
    assert str(e.value) == message


def test_converter_follows_the_architecture():
  for architecture, name in (
    (stages.ENCODER_DECODER, 'EncoderDecoderFeatureConverter'),
    (stages.DECODER_ONLY, 'DecoderOnlyFeatureConverter'),
  ):
    model = stage_examples.make_model(architecture)
    converter = model.FEATURE_CONVERTER_CLS(
      pack=False, use_custom_packing_ops=False
    )
    assert type(converter).__name__ == name
    assert converter.stage is model.stage


def test_vocabularies_are_those_of_the_task():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  feature = tasks.output_features(model.stage)['targets']
  assert model.output_vocabulary == feature.vocabulary
  assert model.input_vocabulary == model.output_vocabulary


def test_import_is_light():
  heavy = 'tensorflow torch seqio tensorflow_datasets orbax optax clu'
  code = (
    'import sys; import v2meow_jax.models; '
    f'print([m for m in {heavy.split()} if m in sys.modules])'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'
