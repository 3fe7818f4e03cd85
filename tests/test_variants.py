"""Every variant of the paper: stage x visual x size x style, as gin says it.

The numbers here are counted from the paper and from T5 1.1, not by the code.
"""

import dataclasses
import functools
import itertools
import re

import gin
import jax
import numpy as np
import pytest

from v2meow_jax import configs
from v2meow_jax import models
from v2meow_jax import stages

# Width, heads, depth of a head, MLP; layers of the encoder, of the decoder
# behind it and of a decoder alone; buckets of relative positions.
SIZES = {
  'tiny': (16, 2, 8, 32, 1, 1, 1, 32),
  'small': (512, 6, 64, 1024, 8, 8, 8, 128),
  'base': (1024, 16, 64, 4096, 12, 12, 12, 128),
  'large': (1024, 16, 64, 4096, 24, 24, 24, 128),
}
VISUAL = {
  'scene': ['scene'],
  'clip': ['clip'],
  'i3d_flow': ['i3d_flow'],
  'vit_vqgan': ['vit_vqgan'],
  'vit_vqgan_i3d_flow': ['vit_vqgan', 'i3d_flow'],
  'clip_i3d_flow': ['clip', 'i3d_flow'],
}
STYLES = {'none': [], 'caption': ['caption'], 'mulan': ['mulan']}
# Width of what is projected, codes of what is embedded, positions in 10 s.
FEATURES = {
  'scene': 64, 'clip': 768, 'i3d_flow': 1024, 'caption': 32, 'mulan': 128,
}  # fmt: skip
CODES = {
  'vit_vqgan': 8192, 'w2v_bert': 1024,
  'coarse': 4 * 1024, 'fine': 8 * 1024, 'all': 12 * 1024,
}  # fmt: skip
LENGTHS = {
  'scene': 100, 'clip': 10, 'i3d_flow': 10, 'caption': 1, 'mulan': 1,
  'vit_vqgan': 10 * 1024, 'w2v_bert': 250,
  'coarse': 2000, 'fine': 4000, 'all': 6000,
}  # fmt: skip
# What each file of gin/stages sees, beside VISUAL and STYLE; what it predicts.
STAGES = {
  'semantic': (['visual', 'style'], 'w2v_bert'),
  'coarse': (['w2v_bert'], 'coarse'),
  'coarse_visual': (['visual', 'w2v_bert'], 'coarse'),
  'coarse_all': (['w2v_bert'], 'all'),
  'coarse_visual_all': (['visual', 'w2v_bert'], 'all'),
  'direct': (['visual', 'style'], 'coarse'),
  'direct_all': (['visual', 'style'], 'all'),
  'fine': (['coarse'], 'fine'),
}
# Parameters of the paper's stages, all three with 12 + 12 or 12 layers of 1024.
BASE_MILLIONS = {
  ('semantic', 'clip', 'none'): 455.9,
  ('semantic', 'clip_i3d_flow', 'mulan'): 457.1,
  ('semantic', 'vit_vqgan_i3d_flow', 'mulan'): 473.1,
  ('coarse', 'clip', 'none'): 210.8,
  ('coarse_visual', 'clip_i3d_flow', 'none'): 464.3,
  ('direct', 'clip', 'none'): 462.2,
  ('fine', 'clip', 'none'): 222.3,
}
# T5X's Adafactor refuses other names of axes.
T5X_AXES = {
  'vocab', 'embed', 'mlp', 'heads', 'kv', 'joined_kv', 'relpos_buckets',
}  # fmt: skip


def recipe(stage, visual, size, style, adaptor='fold'):
  return [
    f'sizes/{size}.gin',
    f'visual/{visual}.gin',
    f'adaptors/{adaptor}.gin',
    'codecs/soundstream.gin',
    'tokenizers/w2v_bert.gin',
    f'style/{style}.gin',
    'datasets/toy.gin',
    'datasets/arrays.gin',
    f'stages/{stage}.gin',
    'runs/train.gin',
  ]


def parse(*args):
  """The model that a run of training would get."""
  bindings = ["MODEL_DIR = '/nowhere'", "ARRAYS = '/nowhere'"]
  try:
    configs.parse(recipe(*args), bindings, root='train.train')
    return gin.get_bindings('train.train')['model']
  finally:
    gin.clear_config()


def inputs_of(stage, visual, style):
  """Names of the inputs in order, in words of the table."""
  known = {'visual': VISUAL[visual], 'style': STYLES[style]}
  return [n for i in STAGES[stage][0] for n in known.get(i, [i])]


def count(stage, visual, size, style, adaptor='fold', layers=None):
  """Parameters of a variant; with `layers`, of a network of so few."""
  embed, heads, depth, mlp, encoder, decoder, alone, buckets = SIZES[size]
  if layers:
    encoder, decoder, alone = layers, layers, layers
  inputs, target = inputs_of(stage, visual, style), STAGES[stage][1]
  # Padding, EOS, a block of ids for each input and the target; the head.
  ids = 2 + sum(CODES.get(name, 0) for name in inputs) + CODES[target]
  total = ids * embed + embed * CODES[target]
  # T5 1.1: query, key, value, out; two inward projections and one outward;
  # a norm before each block, and one behind all.
  attention, gated = 4 * embed * heads * depth, 3 * embed * mlp
  if not any(name in FEATURES or name == 'vit_vqgan' for name in inputs):
    total += alone * (attention + gated + 2 * embed) + embed
    return total + 2 * heads * buckets  # prefix and target
  total += encoder * (attention + gated + 2 * embed) + embed
  total += decoder * (2 * attention + gated + 3 * embed) + embed
  total += 3 * heads * buckets  # encoder, decoder and between them
  total += sum(FEATURES.get(name, 0) for name in inputs) * embed
  if 'vit_vqgan' in inputs and adaptor == 'fold':
    # To 32 features a token; 256 tokens a position; 4 positions a frame.
    total += embed * 32 + 256 * 32 * embed + 4 * embed
  elif 'vit_vqgan' in inputs:
    total += 1024 * embed
  return total


@functools.cache
def shapes(stage, config):
  """Parameters and axes of a network, built once for each two that differ."""
  model = models.StageModel(stage, config)
  return jax.eval_shape(
    lambda: model.get_initial_variables(
      jax.random.PRNGKey(0), model.feature_shapes(1)
    )
  )


def num_params(variables):
  return sum(
    int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables['params'])
  )


def check_config(config, size):
  assert SIZES[size] == (
    config.embed_dim,
    config.num_heads,
    config.head_dim,
    config.mlp_dim,
    config.num_encoder_layers,
    config.num_decoder_layers,
    config.num_layers,
    config.num_buckets,
  )


def one_layer(model):
  """A second of the stage, in a network of one layer: quick to build.

  No parameter depends on the seconds, and all layers are alike.
  """
  names = ('num_encoder_layers', 'num_decoder_layers', 'num_layers')
  return (
    dataclasses.replace(model.stage, seconds=1.0),
    dataclasses.replace(
      model.config,
      **dict.fromkeys(names, 1),
      causal_block_queries=10**6,  # fewer operations to trace
    ),
  )


@pytest.mark.parametrize('size', SIZES)
def test_every_combination(size):
  for stage, visual, style in itertools.product(STAGES, VISUAL, STYLES):
    variant = (stage, visual, size, style)
    model = parse(*variant)
    check_config(model.config, size)
    made, inputs = model.stage, inputs_of(stage, visual, style)
    target = STAGES[stage][1]
    # A codec's levels have one name for seqio, and three here.
    named = [{'coarse': 'soundstream'}.get(name, name) for name in inputs]
    assert [view.name for view in made.inputs] == named, variant
    assert made.target.num_ids == CODES[target], variant
    share = made.seconds / 10
    assert share == (0.3 if stage == 'fine' else 1)
    assert made.target_length == round(share * LENGTHS[target])
    assert made.input_length == round(share * sum(LENGTHS[n] for n in inputs))
    is_alone = made.architecture == stages.DECODER_ONLY
    assert is_alone == (stage in ('coarse', 'coarse_all', 'fine'))
    variables = shapes(*one_layer(model))
    assert num_params(variables) == count(*variant, layers=1), variant


@pytest.mark.parametrize('size', SIZES)
def test_tokens_that_are_kept(size):
  for visual in ('vit_vqgan', 'vit_vqgan_i3d_flow'):
    variant = ('semantic', visual, size, 'mulan', 'keep')
    model = parse(*variant)
    check_config(model.config, size)
    assert model.config.input_block_queries == 128
    variables = shapes(*one_layer(model))
    assert num_params(variables) == count(*variant, layers=1), variant


@pytest.mark.parametrize('stage', ['semantic', 'fine'])  # both architectures
@pytest.mark.parametrize('size', ['base', 'large'])
def test_all_layers(stage, size):
  variant = (stage, 'vit_vqgan_i3d_flow', size, 'mulan')
  model = parse(*variant)
  second = dataclasses.replace(model.stage, seconds=1.0)
  assert num_params(shapes(second, model.config)) == count(*variant)


@pytest.mark.parametrize('variant, millions', BASE_MILLIONS.items())
def test_parameters_of_the_paper(variant, millions):
  stage, visual, style = variant
  assert round(count(stage, visual, 'base', style) / 1e6, 1) == millions


def test_readme_shows_every_variant():
  text = (configs.folder() / 'README.md').read_text()
  text = text[text.index("## The paper's variants") :]
  shown = re.findall(r'--gin_file=(\S+)', text)
  assert shown == recipe('semantic', 'clip_i3d_flow', 'base', 'mulan')
  rows = re.findall(r'^\|.*\| (`.*\.gin`) \| ([\d.]+) \|$', text, re.MULTILINE)
  seen = set()
  for files, millions in rows:
    choice = {
      'stages': 'semantic', 'visual': 'clip_i3d_flow', 'sizes': 'base',
      'style': 'mulan', 'adaptors': 'fold',
    } | dict(re.findall(r'`(\w+)/(\w+)\.gin`', files))  # fmt: skip
    variant = tuple(choice.values())
    parse(*variant)
    assert f'{count(*variant) / 1e6:.1f}' == millions, variant
    seen |= set(choice.items())
  folder = configs.folder()
  for axis in ('stages', 'visual', 'adaptors'):
    made = {path.stem for path in (folder / axis).glob('*.gin')} - {'scene'}
    assert {name for key, name in seen if key == axis} == made


def test_axes_are_t5x_s():
  for adaptor in ('fold', 'keep'):
    model = parse('semantic', 'vit_vqgan_i3d_flow', 'tiny', 'mulan', adaptor)
    axes = shapes(*one_layer(model))['params_axes']
    leaves = jax.tree.leaves(axes, is_leaf=lambda x: hasattr(x, 'names'))
    assert set().union(*(leaf.names for leaf in leaves)) <= T5X_AXES


def test_table_is_complete():
  folder = configs.folder()
  found = lambda name: {path.stem for path in (folder / name).glob('*.gin')}
  assert found('stages') == set(STAGES)
  assert found('visual') == set(VISUAL)
  # Others are vectors in the place of MuLan's, or train it.
  others = {'clap', 'musiccoca', 'musiccoca_saved_model'}
  training = {'train_mulan', 'train_mulan_small'}
  assert found('style') == {*STYLES, *others, *training}
  assert found('sizes') == {*SIZES, 'bundled'}
  assert found('adaptors') == {'fold', 'keep'}
