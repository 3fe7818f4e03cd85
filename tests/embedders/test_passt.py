"""PaSST against torch, its converter, bad weights."""

import re

import gin
import numpy as np
import pytest
import safetensors.numpy

from tests import contracts
from tests.golden import passt as golden
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weights
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import passt


@pytest.fixture(scope='module')
def params(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'passt.safetensors'
  safetensors.numpy.save_file(golden.state(), path)
  return pretrained.load('passt', path)


def _embed(params, seconds):
  embedder = passt.Passt(params, window_seconds=seconds, hop_seconds=seconds)
  return embedder.embed_windows(golden.waveform(seconds)[None])[0, 0]


# The longer clip has more patches than positions: the rest is cut off.
@pytest.mark.parametrize('name, seconds', [('second', 1.0), ('longer', 1.5)])
def test_scores_are_those_of_torch(params, name, seconds):
  with np.load(golden.PATH) as file:
    expected = file[name]
  # Measured: 2.1e-6 of values up to 3.4.
  np.testing.assert_allclose(_embed(params, seconds), expected, atol=1e-5)


@pytest.mark.pretrained
def test_scores_of_torch_now(params):
  pytest.importorskip('torch')
  expected = golden.theirs(golden.state(), golden.waveform())
  np.testing.assert_allclose(_embed(params, 1.0), expected, atol=1e-5)


def test_contract(params):
  embedder = passt.Passt(params, window_seconds=0.5, hop_seconds=0.25)
  assert embedder.labels == audioset.NAMES
  contracts.check_hearing(embedder, atol=1e-4)


def test_weights_say_their_dimensions(params):
  assert weights.read_config(params) == {
    'width': 16,
    'mlp': 24,
    'layers': 2,
    'heads': 1,
    'stride': 10,
    'num_times': 11,
    'source': 'passt',
  }
  assert passt.Config().num_bands == 12


def test_weights_that_do_not_fit(params, tmp_path):
  path = tmp_path / 'passt.safetensors'
  named = golden.state()
  del named['blocks.1.attn.proj.bias']
  named['pre_logits.weight'] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(named, path)
  with pytest.raises(
    errors.UserError,
    match=re.escape(
      f'Weights of {path} do not fit: missing `blocks.1.attn.proj.bias` (for '
      '`block_1/project/bias`); unexpected `pre_logits.weight` of shape (3,).'
    ),
  ):
    pretrained.load('passt', path)
  named = golden.state()
  named['freq_new_pos_embed'] = np.zeros((1, 16, 7, 1), np.float32)
  safetensors.numpy.save_file(named, path)
  with pytest.raises(errors.UserError, match='7 patches in frequency, expecte'):
    pretrained.load('passt', path)
  wrong = dict(weights.without_config(params), tokens=np.zeros((1, 16)))
  config = passt.Config(16, 24, 2, 1, 10, 11)
  with pytest.raises(
    errors.UserError, match=r'`tokens` has shape \(1, 16\), e'
  ):
    passt.Passt(wrong, config)


def test_gin_makes_it(params):
  bindings = ['WINDOW_SECONDS = 1.0', 'HOP_SECONDS = 0.5']
  configs.parse(['embedders/passt.gin'], bindings)
  try:
    make = gin.query_parameter('EMBEDDER/macro.value').scoped_configurable_fn
    made = make(params)
  finally:
    gin.clear_config()
  assert (made.window_seconds, made.hop_seconds) == (1.0, 0.5)
