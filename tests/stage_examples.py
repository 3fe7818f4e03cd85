"""Small stages, weights and batches for the tests of network and model."""

import functools

import jax
import numpy as np

from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import vocabularies

SECONDS = 2.0
# Streams of four rates, one without time; the reference rate is 12 Hz.
SCENE = stages.View(streams.StreamSpec('scene', 3, num_features=5))
STYLE = stages.View(streams.StreamSpec('style', None, num_features=4))
WORDS = stages.View(
  streams.StreamSpec(
    'words', 4, num_codes=6, num_levels=2, sample_rate_hz=16000
  ),
  0,
  2,
)
# Levels 1 and 2 of 3: what the fine stage sees of a codec.
CODES = stages.View(
  streams.StreamSpec('codes', 6, num_codes=7, num_levels=3), 1, 2
)


def make_stage(architecture: str) -> stages.Stage:
  """Scene, style and words, or words alone, to codes."""
  if architecture == stages.DECODER_ONLY:
    return stages.Stage('fine', (WORDS,), CODES, SECONDS, architecture)
  inputs = (SCENE, STYLE, WORDS)
  return stages.Stage('coarse', inputs, CODES, SECONDS, architecture)


def make_config(**changes) -> network.Config:
  """A network of two layers of width 8."""
  dimensions = {
    'embed_dim': 8,
    'num_heads': 2,
    'head_dim': 4,
    'mlp_dim': 12,
    'mlp_activations': ('gelu', 'linear'),
    'num_encoder_layers': 2,
    'num_decoder_layers': 2,
    'num_layers': 2,
    'num_buckets': 16,
    'max_distance': 20,
    'dropout_rate': 0.0,
    'cross_relpos_bias': True,
  }
  return network.Config(**dimensions | changes)


@functools.cache
def make_model(architecture: str, **changes) -> models.StageModel:
  """Model of `make_stage`, the same for the same `changes` to its `Config`.

  What one test has compiled, another need not.
  """
  return models.StageModel(make_stage(architecture), make_config(**changes))


@functools.cache
def compiled(model: models.StageModel, method: str):
  """A method of the model, compiled once for all tests."""
  return jax.jit(getattr(model, method))


@functools.cache
def compiled_logits(model: models.StageModel):
  """Logits of parameters and model features, compiled once for all tests."""
  return jax.jit(
    lambda params, batch: model.module.apply(
      {'params': params}, *model._network_inputs(batch)
    )
  )


def make_params(model: models.StageModel, seed: int = 0):
  """Random parameters; nothing starts as a constant."""
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(
      jax.random.PRNGKey(seed), model.feature_shapes(1)
    )
  )
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: 0.5 * rng.standard_normal(x.shape, 'f4'), variables['params']
  )


def make_inputs(stage: stages.Stage, batch_size: int, seed: int = 0):
  """Inputs and masks as `StageModel.decode` takes them."""
  rng = np.random.default_rng(seed)
  inputs, masks = {}, {}
  for view in stage.inputs:
    spec = view.spec
    length = spec.length(stage.seconds)
    if spec.is_discrete:
      shape = (batch_size, length, view.num_levels)
      inputs[view.name] = rng.integers(0, spec.num_codes, shape, 'i4')
    else:
      shape = (length,) if spec.is_timed else ()
      shape = (batch_size, *shape, spec.num_features)
      inputs[view.name] = rng.standard_normal(shape, 'f4')
    masks[view.name] = np.ones((batch_size, view.length(stage.seconds)), 'i4')
  return inputs, masks


def make_codes(stage: stages.Stage, batch_size: int, seed: int = 0):
  """Codes of the target, int32 `[batch, time, levels]`."""
  rng = np.random.default_rng(seed)
  time = stage.target.spec.length(stage.seconds)
  shape = (batch_size, time, stage.target.num_levels)
  return rng.integers(0, stage.target.spec.num_codes, shape, 'i4')


def make_batch(stage: stages.Stage, inputs, masks, codes):
  """The model features that a feature converter would make of these."""
  features = {}
  for view in stage.inputs:
    x = inputs[view.name]
    if view.spec.is_discrete:
      offset = stage.input_offset(view.name)
      x = vocabularies.flatten_levels(x, view.level_ids, offset)
      x = np.where(masks[view.name] != 0, x, 0)
    features[view.name] = x
  targets = vocabularies.flatten_levels(
    codes, stage.target.level_ids, stage.target_offset
  )
  weights = np.ones_like(targets)
  batch = {}
  if stage.architecture == stages.DECODER_ONLY:
    prefix = np.concatenate(list(features.values()), axis=1)
    targets = np.concatenate([prefix, targets], axis=1)
    weights = np.concatenate([np.zeros_like(prefix), weights], axis=1)
  else:
    for name, x in features.items():
      batch[f'encoder_{name}'] = x
      batch[f'encoder_{name}_mask'] = masks[name]
  return batch | {
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': weights,
  }
