"""Tokens of frames become positions of the encoder."""

import functools

import jax
import numpy as np
import pytest

from tests import stage_examples
from v2meow_jax import adaptors
from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import stages
from v2meow_jax import streams

# 2 s: four frames of six tokens, beside the features and codes of the others.
FRAMES = stages.View(
  streams.StreamSpec(
    'frames', 2, num_codes=9, num_levels=6, shares_codebook=True
  ),
  0,
  6,
)
STAGE = stages.Stage(
  'coarse',
  (FRAMES, stage_examples.SCENE),
  stage_examples.CODES,
  stage_examples.SECONDS,
)
# Folded into one or three positions; kept, at once and in blocks.
ADAPTORS = {
  'one': {'frame_positions': 1},
  'three': {'frame_positions': 3},
  'kept': {'frame_positions': None},
  'blocks': {'frame_positions': None, 'input_block_queries': 7},
}


@pytest.fixture(autouse=True)
def quick_compilation():
  """Compiling takes longer than running here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@functools.cache
def make_model(name, **changes):
  config = stage_examples.make_config(
    num_encoder_layers=1, num_decoder_layers=1, **ADAPTORS[name] | changes
  )
  return models.StageModel(STAGE, config)


def make_batch(batch_size, mask_from=None, seed=0):
  """Model features, and the same whose padding holds something else."""
  inputs, masks = stage_examples.make_inputs(STAGE, batch_size, seed)
  codes = stage_examples.make_codes(STAGE, batch_size, seed)
  if mask_from is not None:
    masks['frames'][:, mask_from:] = 0
  batch = stage_examples.make_batch(STAGE, inputs, masks, codes)
  other = dict(batch)
  ids = batch['encoder_frames'].copy()
  ids[masks['frames'] == 0] = 5
  other['encoder_frames'] = ids
  return batch, other


def test_fold_is_a_projection_of_each_token_at_its_place(rng):
  adaptor = adaptors.FrameAdaptor(num_tokens=6, num_positions=2, embed_dim=4)
  ids = rng.integers(0, 9, (2, 18), 'i4')
  mask = np.ones((2, 18), bool)
  mask[1, 11:] = False  # the last frame, and a token of the one before
  table = rng.standard_normal((9, 4), 'f4')
  params = {
    'tokens': {'kernel': rng.standard_normal((4, 32), 'f4')},
    'projection': {'kernel': rng.standard_normal((3 * 32, 4), 'f4')},
    'places': rng.standard_normal((2, 4), 'f4'),
  }
  x, found_mask = adaptor.apply({'params': params}, ids, mask, table)
  assert x.shape == (2, 6, 4)
  expected = np.zeros((2, 6, 4))
  for example, position in np.ndindex(2, 6):
    for k in range(3):
      token = 3 * position + k
      if mask[example, token]:
        vector = table[ids[example, token]] @ params['tokens']['kernel']
        kernel = params['projection']['kernel'][32 * k : 32 * k + 32]
        expected[example, position] += vector @ kernel
    expected[example, position] += params['places'][position % 2]
  # Measured: 6.9e-6 of values up to 61.
  np.testing.assert_allclose(x, expected, atol=5e-5)
  np.testing.assert_array_equal(
    found_mask, [[True] * 6, [True] * 4 + [False] * 2]
  )


def test_kept_tokens_are_their_vectors_and_places(rng):
  adaptor = adaptors.FrameAdaptor(num_tokens=3, num_positions=3, embed_dim=4)
  ids = rng.integers(0, 9, (2, 6), 'i4')
  table = rng.standard_normal((9, 4), 'f4')
  places = rng.standard_normal((3, 4), 'f4')
  mask = np.ones((2, 6), bool)
  x, found = adaptor.apply({'params': {'places': places}}, ids, mask, table)
  expected = table[ids] + np.concatenate([places, places])
  np.testing.assert_allclose(x, expected, rtol=1e-6)
  assert found is mask or (np.asarray(found) == mask).all()


def test_positions_of_a_frame_share_its_time():
  config = lambda name: make_model(name).config
  scene = network.positions(stage_examples.SCENE, STAGE)
  assert STAGE.reference_rate_hz == 12
  times = [0, 6, 12, 18]
  for name, count in (('one', 1), ('three', 3), ('kept', 6)):
    np.testing.assert_array_equal(
      network.input_positions(STAGE, config(name)),
      np.concatenate([np.repeat(times, count), scene]),
    )


def test_parameters_and_their_axes():
  expected = {
    'one': {'tokens': (8, 32), 'projection': (6 * 32, 8), 'places': (1, 8)},
    'three': {'tokens': (8, 32), 'projection': (2 * 32, 8), 'places': (3, 8)},
    'kept': {'places': (6, 8)},
  }
  axes = {
    'tokens': ('embed', 'mlp'),
    'projection': ('mlp', 'embed'),
    'places': ('relpos_buckets', 'embed'),
  }
  for name, shapes in expected.items():
    model = make_model(name)
    made = jax.eval_shape(
      lambda model=model: model.get_initial_variables(
        jax.random.PRNGKey(0), model.feature_shapes(1)
      )
    )
    adaptor = made['params']['encoder']['frames_adaptor']
    named = made['params_axes']['encoder']['frames_adaptor']
    found = {
      k: v['kernel'].shape if k != 'places' else v.shape
      for k, v in adaptor.items()
    }
    assert found == shapes
    for k in shapes:
      leaf = named['places_axes'] if k == 'places' else named[k]['kernel_axes']
      assert leaf.names == axes[k]
    # One block of ids for all tokens of a frame.
    table = made['params']['token_embedder']['embedding']
    assert table.shape == (2 + 9 + 2 * 7, 8)


@pytest.mark.parametrize('aligned, remat', [(True, False), (False, True)])
def test_blocks_change_nothing(aligned, remat):
  models_ = [
    make_model('kept', cross_relpos_bias=aligned),
    make_model('blocks', cross_relpos_bias=aligned, remat=remat),
  ]
  params = stage_examples.make_params(models_[0])
  batch, _ = make_batch(2, mask_from=12)
  found, expected = (
    jax.jit(
      jax.value_and_grad(
        lambda params, model=model: model.loss_fn(params, batch, None)[0]
      )
    )(params)
    for model in models_
  )
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    # Measured: 9.5e-7 of values up to 101.
    np.testing.assert_allclose(a, b, atol=9e-6)
  assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(expected))


@pytest.mark.parametrize('name', ['three', 'kept', 'blocks'])
def test_padding_changes_nothing(name):
  model = make_model(name)
  params = stage_examples.make_params(model)
  run = stage_examples.compiled_logits(model)
  batch, other = make_batch(2, mask_from=12)
  np.testing.assert_array_equal(run(params, batch), run(params, other))
  # And what is no padding does change something: each token of a frame.
  for token in (0, 5, 11):
    other = {k: v.copy() for k, v in batch.items()}
    ids = other['encoder_frames']
    ids[:, token] = 2 + (ids[:, token] - 1) % 9
    assert np.abs(run(params, batch) - run(params, other)).max() > 1e-3


@pytest.mark.parametrize('name', ['three', 'kept', 'blocks'])
def test_tokens_count_at_their_place(name):
  """Two tokens of a frame that change places make another frame."""
  model = make_model(name)
  params = stage_examples.make_params(model)
  run = stage_examples.compiled_logits(model)
  batch, _ = make_batch(2)
  other = {k: v.copy() for k, v in batch.items()}
  ids = other['encoder_frames']
  ids[:, 0], ids[:, 1] = 3, 4
  batch = {k: v.copy() for k, v in other.items()}
  ids[:, 0], ids[:, 1] = 4, 3
  assert np.abs(run(params, batch) - run(params, other)).max() > 1e-3


@pytest.mark.parametrize('name', ['three', 'kept', 'blocks'])
def test_examples_of_a_batch_do_not_meet(name):
  model = make_model(name)
  params = stage_examples.make_params(model)
  run = stage_examples.compiled_logits(model)
  batch, other = make_batch(2)
  other['encoder_frames'] = batch['encoder_frames'].copy()
  other['encoder_frames'][1] = 4
  changed = np.abs(run(params, batch) - run(params, other)).max((1, 2, 3))
  assert changed[0] == 0 and changed[1] > 1e-3


@pytest.mark.parametrize('name', ['three', 'blocks'])
def test_decoding_follows_the_full_pass(name):
  """Of each code, the likelihood in decoding is that of the full pass."""
  model = make_model(name)
  params = stage_examples.make_params(model)
  batch, _ = make_batch(2, mask_from=12)
  ids, aux = stage_examples.compiled(model, 'predict_batch_with_aux')(
    params, batch, jax.random.PRNGKey(1)
  )
  batch['decoder_target_tokens'] = np.asarray(ids)
  batch['decoder_input_tokens'] = np.pad(ids[:, :-1], ((0, 0), (1, 0)))
  scores = stage_examples.compiled(model, 'score_batch')(params, batch)
  # Measured: 9e-8.
  np.testing.assert_allclose(aux['scores'], scores, rtol=9e-7)


def test_frames_that_cannot_be_shared_out():
  with pytest.raises(ValueError) as error:
    adaptors.positions_per_time(FRAMES, 4)
  assert str(error.value) == (
    'frame_positions is 4, expected a divisor of the 6 tokens of a frame of '
    '`frames`, or None to keep them all. Set network.Config.frame_positions.'
  )
  # It is of no concern to other streams.
  assert adaptors.positions_per_time(stage_examples.WORDS, 4) == 2
