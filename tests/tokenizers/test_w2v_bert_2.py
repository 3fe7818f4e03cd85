"""w2v-BERT 2.0 against transformers, and its loader."""

import dataclasses
import functools
import json

import gin
import jax
import numpy as np
import pytest
import safetensors.numpy

from tests import contracts
from tests.golden import conformers
from tests.tokenizers import published
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import extraction
from v2meow_jax import pretrained
from v2meow_jax import weight_files
from v2meow_jax.tokenizers import w2v_bert_2

CHOICES = dict(layer=1, window_seconds=0.4, context_seconds=0.08)


@pytest.fixture
def folder(tmp_path):
  """A checkpoint as the hub has it, of tiny random weights."""
  golden, arrays = published.read('w2v_bert_2')
  (tmp_path / 'config.json').write_text(str(golden['config']))
  safetensors.numpy.save_file(arrays, tmp_path / 'model.safetensors')
  return tmp_path


@pytest.mark.parametrize('is_live', published.GOLDEN_AND_LIVE)
def test_matches_transformers(is_live):
  golden, arrays = published.read('w2v_bert_2', seed=int(is_live))
  if is_live:
    golden = published.compute('w2v_bert_2', seed=1)
  waveform = conformers.make_waveform(8000, seed=int(is_live))
  features = w2v_bert_2.standardise(w2v_bert_2.log_mel(waveform))
  features = features.reshape(-1, 160)
  # Measured: 4e-6.
  assert published.error(features, golden['features']) < 2e-5
  config = w2v_bert_2.read_config(json.loads(str(golden['config'])))
  params = w2v_bert_2.translate(arrays, config)['params']
  for layer in (0, 2):
    network = w2v_bert_2.Network(w2v_bert_2.Config(**config, layer=layer))
    run = jax.jit(functools.partial(network.apply, method='encode'))
    found = run({'params': params}, golden['features'][None])
    # Measured: 5e-7.
    assert published.error(found[0], golden[f'layer_{layer}']) < 4e-6


def test_a_token_is_the_mean_of_two_positions(rng):
  golden, arrays = published.read('w2v_bert_2')
  config = w2v_bert_2.read_config(json.loads(str(golden['config'])))
  variables = w2v_bert_2.translate(arrays, config)
  made = w2v_bert_2.Config(**config, **CHOICES | {'layer': 0})
  tokenizer = w2v_bert_2.W2vBert2(variables, made)
  waveform = rng.uniform(-0.5, 0.5, 6400).astype('f4')
  found = tokenizer.features(waveform)
  # Half of what a frame of 25 ms is longer than its hop, on either side.
  x = w2v_bert_2.standardise(w2v_bert_2.log_mel(np.pad(waveform, 120)))
  assert x.shape == (40, 80)
  params = variables['params']
  x = x.reshape(20, 160)
  x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
  x = x * params['input_norm']['scale'] + params['input_norm']['bias']
  x = x @ params['projection']['kernel'] + params['projection']['bias']
  expected = (x[::2] + x[1::2]) / 2
  # Measured: 1e-5 of values up to 8: the norm's epsilon is left out here.
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_loads_checks_and_makes_tokens(folder, rng):
  variables = pretrained.load('w2v_bert_2', folder)
  config = w2v_bert_2.Config(**CHOICES)
  tokenizer = w2v_bert_2.W2vBert2(variables, config=config)
  made = tokenizer.network.config
  assert (made.embed_dim, made.num_layers, made.layer) == (16, 2, 1)
  waveform = rng.uniform(-0.5, 0.5, 32000).astype('f4')
  fitted = published.add_fit(tokenizer, waveform)
  pretrained.check(pretrained.get_checkpoint('w2v_bert_2'), fitted)
  contracts.check_tokenizer(w2v_bert_2.W2vBert2(fitted, config))
  silence = w2v_bert_2.W2vBert2(fitted, config).encode(np.zeros((1, 16000)))
  assert silence.shape == (1, 25, 1)


def test_gin_makes_it(folder):
  files = ['tokenizers/w2v_bert_2.gin', 'runs/prepare.gin']
  bindings = ['EXTRACTORS = ()', 'CODEC = None', 'EMBEDDER = None']
  configs.parse(files, [*bindings, 'w2v_bert_2.Config.layer = 2'])
  try:
    make = gin.get_configurable(extraction.Recipe)().tokenizer
    variables = pretrained.load('w2v_bert_2', folder)
    assert make(variables).network.config.layer == 2
  finally:
    gin.clear_config()


def test_published_geometry():
  """The dimensions of the checkpoint are the defaults; 0.58 G parameters."""
  shapes = pretrained.get_checkpoint('w2v_bert_2').expected({})['params']
  assert shapes['projection']['kernel'].shape == (160, 1024)
  block = shapes['conformer']['layers_23']
  assert block['attention']['distance'].shape == (73, 64)
  assert block['convolution']['kernel'].shape == (31, 1024)
  flat = [x.size for x in _leaves(shapes)]
  assert sum(flat) == 580_492_096


def _leaves(tree):
  for value in tree.values():
    if isinstance(value, dict):
      yield from _leaves(value)
    else:
      yield value


def test_another_checkpoint_is_refused(folder):
  arrays = weight_files.read(folder / 'model.safetensors')
  del arrays['feature_projection.layer_norm.bias']
  name = 'encoder.layers.1.ffn1.output_dense.weight'
  arrays[name] = arrays[name][:, :5].copy()
  arrays['head.weight'] = np.zeros((3, 2), 'f4')
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  with pytest.raises(errors.UserError) as error:
    pretrained.load('w2v_bert_2', folder)
  assert str(error.value) == (
    'Weights of w2v-BERT 2.0 do not fit: missing `feature_projection.'
    'layer_norm.bias` (for `input_norm/bias`); unexpected `head.weight` of '
    'shape (3, 2). Use the checkpoint that this converter is for.'
  )
  del arrays['head.weight']
  arrays['feature_projection.layer_norm.bias'] = np.zeros(9, 'f4')
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  with pytest.raises(errors.UserError) as error:
    pretrained.load('w2v_bert_2', folder)
  assert str(error.value) == (
    'Weights do not fit the model: `params/conformer/layers_1/mlp_0/wo/kernel` '
    'has shape (5, 16), expected (24, 16); `params/input_norm/bias` has shape '
    '(9,), expected (160,). Use the weights and the gin files that belong '
    'together.'
  )


def test_a_truncated_checkpoint(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(errors.UserError, match='expected a safetensors file'):
    pretrained.load('w2v_bert_2', folder)


def test_a_config_of_another_network(folder):
  config = json.loads((folder / 'config.json').read_text())
  config |= {'position_embeddings_type': 'rotary', 'hidden_size': None}
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(errors.UserError) as error:
    pretrained.load('w2v_bert_2', folder)
  assert str(error.value) == (
    'config.json is not that of w2v-BERT 2.0: position_embeddings_type is '
    "'rotary', expected 'relative_key'; hidden_size is None, expected a whole "
    'number above 0. Use the files of facebook/w2v-bert-2.0.'
  )


def test_config_fields_are_all_translated():
  known = {field.name for field in dataclasses.fields(w2v_bert_2.Config)}
  found = w2v_bert_2.read_config(
    json.loads(str(conformers.read('w2v_bert_2')['config']))
  )
  choices = {'layer', 'window_seconds', 'context_seconds', 'dtype'}
  assert known - found.keys() == choices
