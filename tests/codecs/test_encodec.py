"""EnCodec: causality, its start, its memory and its training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import codecs as golden
from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import chunked
from v2meow_jax.codecs import encodec
from v2meow_jax.codecs import models

TINY = encodec.Config(2, (64, 5), 1, 4)


@pytest.fixture(scope='module')
def params(tmp_path_factory):
  config, shapes, _ = golden.read('encodec')
  folder = golden.write_folder(
    tmp_path_factory.mktemp('encodec'), config, golden.make_arrays(shapes)
  )
  return pretrained.load('encodec_24khz', folder)


def test_defaults_are_those_of_the_published_weights():
  config, spec = encodec.Config(), streams.get('encodec')
  assert np.prod(config.strides) == spec.hop == 320
  expected = pretrained.get_checkpoint('encodec_24khz').expected({})
  number = lambda tree: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
  # Of transformers' model, whose upsampling has one bias for all its phases and
  # whose LSTM has two.
  phases = sum(512 // 2**i * (s - 1) for i, s in enumerate([8, 5, 4, 2], 1))
  assert number(expected['params']) == 14_846_817 + phases - 4 * 2048
  assert expected['quantizer']['codebooks'].shape == (8, 1024, 128)
  # 75 positions of 8 levels of 10 bits.
  assert spec.rate_hz * spec.num_levels * 10 == 6000


def test_only_the_levels_of_the_row_are_kept(params):
  assert params['quantizer']['codebooks'].shape == (8, 1024, 8)
  first = golden.make_arrays({'quantizer.layers.7.codebook.embed': [1024, 8]})
  np.testing.assert_array_equal(
    params['quantizer']['codebooks'][7], *first.values()
  )


def test_nothing_later_is_seen_but_at_the_start(params):
  codec = encodec.Encodec(params)
  waveform = golden.make_waveform(23)[:1]
  encode = lambda x: codec.network.apply(
    {'params': codec.variables['params']}, x, method='encode'
  )
  compiled = jax.jit(
    lambda i: jax.grad(lambda x: encode(x)[0, i].sum())(waveform)[0]
  )
  gradient = lambda i: np.asarray(compiled(i))
  late = np.flatnonzero(gradient(20))
  assert late.max() == 21 * 320 - 1
  # The mirrored start: positions 1 to 6 are before position 0.
  assert np.flatnonzero(gradient(0)).max() == 7 * 320 - 1


def test_past_mirrors_what_there_is():
  x = np.arange(1.0, 6.0, dtype='f4')[None, :, None]

  def front(size, length):
    span = chunked.Span(jnp.int32(0), jnp.int32(length))
    return chunked.Past(size, mirrors=True).apply({}, x, span)[0, :size, 0]

  np.testing.assert_array_equal(front(3, 5), [4, 3, 2])
  np.testing.assert_array_equal(front(3, 2), [0, 0, 2])  # behind the end: 0
  np.testing.assert_array_equal(front(6, 5), [0, 0, 5, 4, 3, 2])


def test_lstm_is_that_of_numpy(rng):
  """One step at a time, each gate by its own."""
  module = encodec.Lstm(2)
  x = rng.standard_normal((2, 6, 3)).astype('f4')
  variables = module.init(jax.random.key(0), x)
  params = variables['params']
  sigmoid = lambda a: 1 / (1 + np.exp(-a))
  y = x.astype('f8')
  for layer in range(2):
    p = {k: np.asarray(v, 'f8') for k, v in params[f'layer_{layer}'].items()}
    p['bias'] += np.arange(12) / 10
    params[f'layer_{layer}']['bias'] = p['bias'].astype('f4')
    state, cell, made = np.zeros((2, 3)), np.zeros((2, 3)), []
    for t in range(6):
      gates = y[:, t] @ p['kernel'] + state @ p['recurrent'] + p['bias']
      keep, forget, new, show = (gates[:, i : i + 3] for i in (0, 3, 6, 9))
      cell = sigmoid(forget) * cell + sigmoid(keep) * np.tanh(new)
      state = sigmoid(show) * np.tanh(cell)
      made.append(state)
    y = np.stack(made, 1)
  np.testing.assert_allclose(
    module.apply({'params': params}, x), x + y, atol=1e-6
  )


def test_a_trained_one_is_a_codec(params, tmp_path):
  """It can be trained as SoundStream is; its weights need no config."""
  model = models.CodecModel(
    encodec.Network(TINY), 'encodec', 'joint', kmeans_iterations=1
  )
  waveform = jnp.asarray(golden.make_waveform(4))
  key = jax.random.key(0)
  variables = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype),
    jax.eval_shape(
      lambda: model.get_initial_variables(key, {'waveform': waveform.shape})
    ),
  )
  mutables = {'quantizer': variables['quantizer']}
  loss = lambda params: model.loss_fn(
    params, {'waveform': waveform}, key, mutables
  )
  # Traced only: what it learns is that of tests/codecs/test_models.py.
  (_, (_, mutables_after)), gradient = jax.eval_shape(
    jax.value_and_grad(loss, has_aux=True), variables['params']
  )
  weights.check_params(gradient, variables['params'])
  weights.check_params(mutables_after, mutables)
  path = tmp_path / 'codec.safetensors'
  weights.save_params(path, {'params': variables['params'], **mutables})
  codec = encodec.Encodec(weights.load_params(path), TINY)
  assert isinstance(codec, base.Codec)
  assert codec.variables['quantizer'].keys() == {'codebooks'}
