import pathlib

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import stage_examples
from tests.golden import t5x
from v2meow_jax import attention
from v2meow_jax import layers
from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import relative_positions
from v2meow_jax import stages
from v2meow_jax import streams

ARCHITECTURES = (stages.ENCODER_DECODER, stages.DECODER_ONLY)
GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(autouse=True)
def quick_compilation():
  """Compiling takes longer than running here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def make_t5x_model(architecture):
  """A stage of two streams of one token a second: T5X's own geometry."""
  view = lambda name, num_codes: stages.View(
    streams.StreamSpec(name, 1, num_codes=num_codes)
  )
  stage = stages.Stage(
    'fine',
    (view('words', t5x.NUM_INPUT_CODES),),
    view('notes', t5x.NUM_TARGET_CODES),
    float(t5x.LENGTH),
    architecture,
  )
  assert stage.vocab_size == t5x.VOCAB_SIZE
  config = network.Config(
    embed_dim=t5x.EMBED_DIM,
    num_encoder_layers=t5x.NUM_LAYERS,
    num_decoder_layers=t5x.NUM_LAYERS,
    num_layers=t5x.NUM_LAYERS,
    dropout_rate=0.0,
    **t5x.DIMENSIONS,
  )
  return models.StageModel(stage, config)


def of_t5x(golden, kind):
  """Nested `params` or `axes` out of the flat arrays."""
  return {
    name.removeprefix(f'{kind}/'): golden[name]
    for name in golden
    if name.startswith(f'{kind}/')
  }


def check_logits_of_t5x(architecture, golden):
  model = make_t5x_model(architecture)
  params = of_t5x(golden, 'params')
  # The target's block of ids is all that is ever predicted.
  block = slice(t5x.TARGET_OFFSET, None)
  kernel = 'decoder/logits_dense/kernel'
  params[kernel] = params[kernel][:, block]
  inputs, targets = golden['inputs'], golden['targets']
  if architecture == stages.ENCODER_DECODER:
    encoder = ({'words': inputs}, {'words': inputs > 0})
  else:
    encoder = ({}, {})
    targets = np.concatenate([inputs, targets], axis=1)
  logits = jax.jit(model.module.apply)(
    {'params': traverse_util.unflatten_dict(params, sep='/')},
    *encoder,
    t5x.shift_right(targets),
    targets,
  )
  is_token = golden['targets'] > 0  # what stands at padding is nobody's
  found = logits[:, :, 0][is_token]
  expected = golden['logits'][..., block][is_token]
  assert np.abs(expected).max() > 1
  # Measured: 1.5e-6.
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_logits_equal_stored_ones_of_t5x(architecture):
  with np.load(GOLDEN / f't5x_{architecture}.npz', allow_pickle=False) as file:
    check_logits_of_t5x(architecture, dict(file))


@pytest.mark.t5x
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_logits_equal_those_of_t5x(architecture):
  try:
    golden = t5x.compute(architecture, seed=1)
  except ImportError as e:
    pytest.skip(f'missing: t5x ({e})')
  check_logits_of_t5x(architecture, golden)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_names_shapes_and_axes_are_those_of_t5x(architecture):
  with np.load(GOLDEN / f't5x_{architecture}.npz', allow_pickle=False) as file:
    golden = dict(file)
  model = make_t5x_model(architecture)
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(
      jax.random.PRNGKey(0), model.feature_shapes(1)
    )
  )
  found = traverse_util.flatten_dict(variables['params'], sep='/')
  shapes = {name: x.shape for name, x in of_t5x(golden, 'params').items()}
  shapes['decoder/logits_dense/kernel'] = (
    t5x.EMBED_DIM,
    t5x.NUM_TARGET_CODES,
  )
  assert {name: x.shape for name, x in found.items()} == shapes
  found = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  axes = {name: tuple(x) for name, x in of_t5x(golden, 'axes').items()}
  assert {name: x.names for name, x in found.items()} == axes


def test_names_beyond_t5x():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  names = traverse_util.flatten_dict(stage_examples.make_params(model), sep='/')
  plain = stage_examples.make_model(
    stages.ENCODER_DECODER, cross_relpos_bias=False
  )
  plain_names = traverse_util.flatten_dict(
    stage_examples.make_params(plain), sep='/'
  )
  assert set(names) - set(plain_names) == {
    'decoder/cross_relpos_bias/rel_embedding'
  }
  assert names['encoder/scene_projection/kernel'].shape == (5, 8)
  assert names['encoder/style_projection/kernel'].shape == (4, 8)
  # Two levels of seven codes: a block of columns each.
  assert names['decoder/logits_dense/kernel'].shape == (8, 14)


def test_streams_of_different_rates_line_up():
  stage = stage_examples.make_stage(stages.ENCODER_DECODER)
  assert stage.reference_rate_hz == 12  # codes: 6 Hz x 2 levels
  place = lambda view: network.positions(view, stage)
  # 3 Hz: every fourth unit. 4 Hz x 2 levels: every unit and a half, rounded.
  np.testing.assert_array_equal(
    place(stage_examples.SCENE), [0, 4, 8, 12, 16, 20]
  )
  np.testing.assert_array_equal(
    place(stage_examples.WORDS),
    [0, 2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 22],
  )
  np.testing.assert_array_equal(place(stage_examples.CODES), np.arange(24))
  np.testing.assert_array_equal(
    place(stage_examples.STYLE), relative_positions.UNTIMED
  )
  # Half a second into any of them is the same place.
  assert place(stage_examples.WORDS)[4] == place(stage_examples.CODES)[6] == 6


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_bias_of_two_positions_follows_from_their_times(architecture):
  model = stage_examples.make_model(architecture)
  stage = model.stage
  params = stage_examples.make_params(model)
  bias, cross_bias = model.module.apply(
    {'params': params}, method=lambda module: module.decoder.biases()
  )
  bias = np.asarray(bias)
  is_prefix = architecture == stages.DECODER_ONLY
  if is_prefix:
    prefix = stage.input_length
    cross_bias, bias = bias[:, prefix:, :prefix], bias[:, prefix:, prefix:]
  decoder = params['decoder']
  queries = network.positions(stage.target, stage)
  keys = network.input_positions(stage, model.config)
  bucket = lambda distance, bidirectional: relative_positions.bucket(
    np.array(distance), bidirectional, 16, 20
  )
  for i, query in enumerate(queries):
    for j, key in enumerate(keys):
      distance = -(10**6) if key == relative_positions.UNTIMED else key - query
      table = decoder['cross_relpos_bias']['rel_embedding']
      np.testing.assert_array_equal(
        cross_bias[:, i, j], table[:, bucket(distance, True)]
      )
    for j, key in enumerate(queries):
      table = decoder['relpos_bias']['rel_embedding']
      expected = table[:, bucket(key - query, False)]
      np.testing.assert_array_equal(
        bias[:, i, j], expected if j <= i else attention.MASK_VALUE
      )


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_logits_depend_on_tokens_before_them_only(architecture):
  model = stage_examples.make_model(architecture)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  codes = stage_examples.make_codes(stage, 2)
  batch = stage_examples.make_batch(stage, inputs, masks, codes)
  tokens = batch['decoder_input_tokens']
  prefix = network.prefix_length(stage)
  vectors = np.random.default_rng(0).standard_normal((tokens.shape[1], 8), 'f4')

  def logits(vectors):
    def replace(method, arguments, keywords, context):
      is_embedder = isinstance(context.module, layers.Embed)
      if is_embedder and arguments and arguments[0].shape == tokens.shape:
        return jnp.broadcast_to(vectors, (*tokens.shape, 8))
      return method(*arguments, **keywords)

    with nn.intercept_methods(replace):
      x = stage_examples.compiled_logits.__wrapped__(model)(params, batch)
    # [batch, time, levels, codes] -> [positions]
    return jnp.sum(x[0] ** 2, axis=-1).reshape(-1)

  # [positions of the target, positions of the sequence]
  influence = np.abs(jax.jit(jax.jacrev(logits))(vectors)).sum(-1)
  order = np.arange(tokens.shape[1])
  may_see = order <= prefix + np.arange(stage.target_length)[:, None]
  assert (influence[~may_see] == 0).all()
  assert (influence[may_see] > 0).all()


def test_prefix_is_seen_both_ways():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  stage = model.stage
  params = stage_examples.make_params(model)
  tokens = np.full((1, 20), 3)
  apply = lambda tokens: model.module.apply(
    {'params': params},
    method=lambda module: module.decoder(tokens, None, None, None)[0],
  )
  run = jax.jit(apply)
  changed = tokens.copy()
  changed[0, stage.input_length - 1] = 4  # the last position of the prefix
  assert stage.input_length == 16
  difference = np.abs(run(tokens) - run(changed)).max(-1)[0]
  assert (difference > 0).all()
  changed = tokens.copy()
  changed[0, stage.input_length] = 4  # the first of the target
  difference = np.abs(run(tokens) - run(changed)).max(-1)[0]
  assert (difference[:16] == 0).all()
  assert (difference[16:] > 0).all()


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_padding_changes_nothing(architecture):
  model = stage_examples.make_model(architecture)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  codes = stage_examples.make_codes(stage, 2)
  masks['words'][:, -4:] = 0
  other = {name: x.copy() for name, x in inputs.items()}
  other['words'][:, -2:] = 0
  if architecture == stages.ENCODER_DECODER:
    masks['scene'][:, 4:] = 0
    masks['style'][:] = 0  # dropped
    other['scene'][:, 4:] = np.nan
    other['style'][:] = np.nan
  apply = stage_examples.compiled_logits(model)
  run = lambda x: apply(
    params, stage_examples.make_batch(stage, x, masks, codes)
  )
  np.testing.assert_array_equal(run(inputs), run(other))
  # And what is no padding does change something.
  other['words'][:, 0] = (other['words'][:, 0] + 1) % 6
  assert np.abs(run(inputs) - run(other)).max() > 1e-3


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_padded_targets_are_not_attended_to(architecture):
  model = stage_examples.make_model(architecture)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(
    stage, inputs, masks, stage_examples.make_codes(stage, 2)
  )
  prefix = network.prefix_length(stage)
  padded = {name: np.array(x) for name, x in batch.items()}
  hole = slice(prefix + 3, prefix + 5)
  padded['decoder_target_tokens'][:, hole] = 0
  same = {name: x.copy() for name, x in padded.items()}
  same['decoder_input_tokens'][:, hole] = 5
  run = stage_examples.compiled_logits(model)
  logits, other, unpadded = (
    np.reshape(run(params, x), (2, -1, 7))[:, 5:] for x in (padded, same, batch)
  )
  np.testing.assert_array_equal(logits, other)
  assert np.abs(logits - unpadded).max() > 1e-3


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_examples_of_a_batch_do_not_meet(architecture):
  model = stage_examples.make_model(architecture)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 3)
  codes = stage_examples.make_codes(stage, 3)
  batch = stage_examples.make_batch(stage, inputs, masks, codes)
  run = stage_examples.compiled_logits(model)
  whole = run(params, batch)
  for i in range(3):
    alone = {name: x[i : i + 1] for name, x in batch.items()}
    np.testing.assert_allclose(run(params, alone)[0], whole[i], atol=1e-5)


def test_logits_are_those_of_the_own_level():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(
    stage, inputs, masks, stage_examples.make_codes(stage, 2)
  )
  run = stage_examples.compiled_logits(model)
  logits = run(params, batch)
  assert logits.shape == (2, 12, 2, 7)
  kernel = params['decoder']['logits_dense']['kernel']
  params['decoder']['logits_dense']['kernel'] = kernel * np.repeat(
    [1, 0], 7
  ).astype('f4')
  silenced = run(params, batch)
  np.testing.assert_array_equal(silenced[:, :, 0], logits[:, :, 0])
  assert (silenced[:, :, 1] == 0).all()


def test_blocks_of_a_long_target_change_nothing():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(
    stage, inputs, masks, stage_examples.make_codes(stage, 2)
  )
  whole = stage_examples.compiled_logits(model)(params, batch)
  assert network._causal_blocks(16, 40, 5) == [
    (0, 16, 16),
    (16, 21, 21),
    (21, 26, 26),
    (26, 30, 30),
    (30, 35, 35),
    (35, 40, 40),
  ]
  model = stage_examples.make_model(stages.DECODER_ONLY, causal_block_queries=5)
  found = stage_examples.compiled_logits(model)(params, batch)
  np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize(
  'architecture', [stages.ENCODER_DECODER, stages.DECODER_ONLY]
)
def test_a_loop_over_layers_changes_nothing(architecture, remat):
  sizes = {f'num_{kind}layers': 3 for kind in ('encoder_', 'decoder_', '')}
  model = stage_examples.make_model(architecture, **sizes)
  loop = stage_examples.make_model(
    architecture, scan_layers=True, remat=remat, **sizes
  )
  stage = model.stage
  params = stage_examples.make_params(model)
  shapes = lambda model: jax.tree.map(
    jnp.shape, stage_examples.make_params(model)
  )
  assert shapes(loop) == shapes(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(
    stage, inputs, masks, stage_examples.make_codes(stage, 2)
  )
  gradient = lambda model: jax.jit(
    jax.value_and_grad(lambda p: model.eval_fn(p, batch)[0])
  )(params)
  (loss, found), (expected_loss, expected) = gradient(loop), gradient(model)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  text = jax.jit(model.eval_fn).lower(params, batch).as_text()
  assert 'stablehlo.while' not in text
  text = jax.jit(loop.eval_fn).lower(params, batch).as_text()
  assert 'stablehlo.while' in text


def test_a_loop_draws_dropout_from_the_key():
  model = stage_examples.make_model(
    stages.DECODER_ONLY, scan_layers=True, num_layers=3, dropout_rate=0.5
  )
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(
    stage, inputs, masks, stage_examples.make_codes(stage, 2)
  )
  loss = jax.jit(lambda key: model.loss_fn(params, batch, key)[0])
  losses = [float(loss(jax.random.PRNGKey(i))) for i in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]


def test_remat_changes_nothing():
  architecture = stages.ENCODER_DECODER
  model = stage_examples.make_model(architecture)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(
    stage, inputs, masks, stage_examples.make_codes(stage, 2)
  )
  run = stage_examples.compiled_logits
  gradient = lambda model: jax.jit(
    jax.grad(lambda params: jnp.sum(run(model)(params, batch) ** 2))
  )(params)
  expected = gradient(model)
  products = {}
  for policy in (None, 'dots_with_no_batch_dims_saveable'):
    again = stage_examples.make_model(
      architecture, remat=True, remat_policy=policy
    )
    found = gradient(again)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    step = jax.make_jaxpr(jax.grad(lambda p, m=again: m.eval_fn(p, batch)[0]))
    products[policy] = str(step(params)).count('dot_general')
  # What is kept is not computed twice.
  assert products['dots_with_no_batch_dims_saveable'] < products[None]


def test_unknown_remat_policy_is_refused():
  with pytest.raises(ValueError, match='remat_policy is `all`, expected None'):
    network.Config(remat_policy='all')


def test_bfloat16_is_near_float32():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  stage = model.stage
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(stage, 2)
  batch = stage_examples.make_batch(
    stage, inputs, masks, stage_examples.make_codes(stage, 2)
  )
  half = stage_examples.make_model(
    stages.ENCODER_DECODER, dtype=jnp.bfloat16, float32_attention_logits=True
  )
  found = stage_examples.compiled_logits(half)(params, batch)
  expected = stage_examples.compiled_logits(model)(params, batch)
  assert found.dtype == jnp.float32
  error = np.abs(found - expected).mean() / np.abs(expected).mean()
  assert 0 < error < 0.1
