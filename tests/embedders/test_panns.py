"""Cnn14 at both rates against torch, its converter, bad weights."""

import re

import gin
import numpy as np
import pytest
import safetensors.numpy

from tests import contracts
from tests.golden import panns as golden
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weights
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import panns

RATES = {'panns_16k': 16000, 'panns_32k': 32000}


@pytest.fixture(scope='module')
def params(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'panns.safetensors'
  # As torch.save({'model': …, 'iteration': …}) is read.
  named = {f'model.{n}': a for n, a in golden.state().items()}
  named['iteration'] = np.array(600000)
  safetensors.numpy.save_file(named, path)
  return pretrained.load('panns_16k', path)


def _embed(params, stream):
  embedder = panns.Panns(params, stream=stream, window_seconds=1, hop_seconds=1)
  return embedder.embed_windows(golden.waveform(RATES[stream])[None])[0, 0]


@pytest.mark.parametrize('stream', RATES)
def test_scores_are_those_of_torch(params, stream):
  with np.load(golden.PATH) as file:
    expected = file[str(RATES[stream])]
  # Measured: 1.8e-7 of values up to 0.75.
  np.testing.assert_allclose(_embed(params, stream), expected, atol=1e-6)


@pytest.mark.pretrained
@pytest.mark.parametrize('stream', RATES)
def test_scores_of_torch_now(params, stream):
  pytest.importorskip('torch')
  rate = RATES[stream]
  expected = golden.theirs(golden.state(), golden.waveform(rate), rate)
  np.testing.assert_allclose(_embed(params, stream), expected, atol=1e-6)


def test_contract(params):
  embedder = panns.Panns(
    params, stream='panns_16k', window_seconds=0.5, hop_seconds=0.25
  )
  assert embedder.labels == audioset.NAMES
  contracts.check_hearing(embedder, atol=1e-4)


def test_weights_say_their_dimensions(params):
  config = weights.read_config(params)
  assert config == {'channels': list(golden.CHANNELS), 'source': 'panns_16k'}


def test_weights_that_do_not_fit(params, tmp_path):
  path = tmp_path / 'panns.safetensors'
  named = golden.state()
  del named['conv_block2.bn1.running_var']
  named['att_block.weight'] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(named, path)
  missing = 'missing `conv_block2.bn1.running_var` (for `conv_2_1/'
  with pytest.raises(
    errors.UserError,
    match=re.escape(
      f'Weights of {path} do not fit: {missing}kernel`); {missing}bias`); '
      'unexpected `att_block.weight` of shape (3,). Use the checkpoint'
    ),
  ):
    pretrained.load('panns_32k', path)
  with pytest.raises(ValueError, match='Unknown stream `panns`, expected one'):
    panns.Panns(params, stream='panns')
  with pytest.raises(ValueError, match='Cnn14 at 24000 Hz, expected one of 16'):
    panns.log_mel(24000)


@pytest.mark.parametrize('stream', RATES)
def test_gin_makes_it(params, stream):
  bindings = ['WINDOW_SECONDS = 1.0', 'HOP_SECONDS = 0.5']
  configs.parse([f'embedders/{stream}.gin'], bindings)
  try:
    make = gin.query_parameter('EMBEDDER/macro.value').scoped_configurable_fn
    made = make(params)
  finally:
    gin.clear_config()
  assert made.spec.name == stream
  assert (made.window_seconds, made.hop_seconds) == (1.0, 0.5)
