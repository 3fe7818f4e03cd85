"""VGGish: both converters, an independent reference, the PCA, bad weights."""

import dataclasses
import os
import pathlib
import re

import gin
import numpy as np
import pytest
import safetensors.numpy

from tests import contracts
from tests import random_weights
from tests.references import vggish as reference
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weights
from v2meow_jax.embedders import vggish

CONFIG = vggish.Config(channels=(2, 3, 4, 5), hidden=8)
# Where the real weights are, converted or as they are published.
VARIABLE = 'V2MEOW_VGGISH'


@pytest.fixture(scope='module')
def params():
  """Random weights whose embedding is about 1."""
  return random_weights.like(vggish.expected(dataclasses.asdict(CONFIG)))


@pytest.fixture(scope='module')
def embedder(params):
  return vggish.VGGish(params, CONFIG)


def _tensorflow_names(params):
  named = {}
  for ours, theirs, _ in vggish._LAYERS:
    named[f'vggish/{theirs}/weights'] = params[ours]['kernel']
    named[f'vggish/{theirs}/biases'] = params[ours]['bias']
  return named


def _torch_names(params):
  """As torchvggish has them: outputs first."""
  named = {}
  for ours, _, theirs in vggish._LAYERS:
    kernel = params[ours]['kernel']
    axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
    named[f'{theirs}.weight'] = np.ascontiguousarray(kernel.transpose(axes))
    named[f'{theirs}.bias'] = params[ours]['bias']
  return named


def test_contract(embedder):
  contracts.check_hearing(embedder)


def test_equals_the_reference(embedder, params, rng):
  waveform = rng.uniform(-0.5, 0.5, 31500).astype(np.float32)
  found = embedder.embed_windows(waveform[None])[0]
  mels = reference.log_mel(waveform, 0.01)
  expected = [reference.embed(mels[i : i + 96], params) for i in (0, 96)]
  # Measured: 1.4e-5 of values of about 2.
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_hops(params, rng):
  """Half a second, as in Google's distance, is no whole number of frames."""
  waveform = rng.uniform(-0.5, 0.5, (1, 40001)).astype(np.float32)
  half = vggish.VGGish(params, CONFIG, hop_seconds=0.5).embed_windows(waveform)
  assert half.shape == (1, 4, 128)
  alone = vggish.VGGish(params, CONFIG).embed_windows(waveform[:, 8000:])
  np.testing.assert_allclose(half[0, 1], alone[0, 0], atol=1e-5)
  for hop in (0.0, 0.98):
    with pytest.raises(ValueError, match=f'hop_seconds is {hop:g}, expected a'):
      vggish.VGGish(params, CONFIG, hop_seconds=hop)


def test_both_checkpoints_give_the_same_weights(params, tmp_path):
  tf = pytest.importorskip('tensorflow')
  path = tmp_path / 'vggish_model.ckpt'
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variables = [
      tf.compat.v1.get_variable(name, initializer=array)
      for name, array in _tensorflow_names(params).items()
    ]
    variables.append(tf.compat.v1.train.create_global_step())
    session.run(tf.compat.v1.global_variables_initializer())
    for version in (1, 2):  # one file, and the kind with an index
      saver = tf.compat.v1.train.Saver(variables, write_version=version)
      saver.save(session, str(path), write_meta_graph=False)
      converted = pretrained.load('vggish', tmp_path)
      assert weights.read_config(converted) == {
        'channels': [2, 3, 4, 5],
        'hidden': 8,
        'source': 'vggish',
      }
      _check_equal(weights.without_config(converted), params)
      if version == 1:
        path.unlink()
  safetensors.numpy.save_file(
    _torch_names(params), tmp_path / 'vggish.safetensors'
  )
  from_torch = pretrained.load('vggish_torch', tmp_path)
  _check_equal(weights.without_config(from_torch), params)
  # The weights say their dimensions.
  again = vggish.VGGish(from_torch)
  sound = np.sin(np.arange(16000) / 5).astype(np.float32)[None]
  np.testing.assert_array_equal(
    again.embed_windows(sound),
    vggish.VGGish(params, CONFIG).embed_windows(sound),
  )


def _check_equal(given, expected):
  given, expected = weights.flatten(given), weights.flatten(expected)
  assert given.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(given[name], array)


@pytest.mark.pretrained
def test_torch_computes_the_same(params, tmp_path, rng):
  """Its network as torchvggish builds it, with time and mels in its order."""
  torch = pytest.importorskip('torch')
  names = _torch_names(params)
  torch.save({n: torch.tensor(a) for n, a in names.items()}, tmp_path / 'a.pth')
  mels = reference.log_mel(rng.uniform(-0.5, 0.5, 15600), 0.01)
  x = torch.tensor(mels, dtype=torch.float32)[None, None]
  halves = {0, 3, 8, 13}
  for layer in (0, 3, 6, 8, 11, 13):
    weight, bias = (
      torch.tensor(names[f'features.{layer}.{n}']) for n in ('weight', 'bias')
    )
    x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1))
    if layer in halves:
      x = torch.nn.functional.max_pool2d(x, 2)
  x = x.permute(0, 2, 3, 1).reshape(1, -1)
  for layer in (0, 2, 4):
    weight, bias = (
      torch.tensor(names[f'embeddings.{layer}.{n}']) for n in ('weight', 'bias')
    )
    x = torch.relu(x @ weight.T + bias)
  made = vggish.Network(CONFIG).apply(
    {
      'params': weights.without_config(
        pretrained.load('vggish_torch', tmp_path / 'a.pth')
      )
    },
    mels[None].astype(np.float32),
  )
  np.testing.assert_allclose(np.maximum(made, 0), x.numpy(), atol=1e-4)


def test_variants(params, embedder, tmp_path, rng):
  sound = rng.uniform(-0.5, 0.5, (1, 16000)).astype(np.float32)
  plain = embedder.embed_windows(sound)[0].astype(np.float64)
  assert plain.min() < -0.1
  relu = vggish.VGGish(params, CONFIG, has_final_relu=True)
  np.testing.assert_allclose(
    relu.embed_windows(sound)[0], np.maximum(plain, 0), atol=1e-5
  )
  vectors = rng.normal(0, 0.3, (128, 128))
  means = rng.normal(0, 1, (128, 1))
  path = tmp_path / 'pca.npz'
  np.savez(path, pca_eigen_vectors=vectors, pca_means=means)
  expected = np.clip((vectors @ (plain.T - means)).T, -2, 2)
  assert np.abs(expected).max() == 2
  white = vggish.VGGish(params, CONFIG, pca=path).embed_windows(sound)[0]
  np.testing.assert_allclose(white, expected, atol=1e-4)
  coarse = vggish.VGGish(params, CONFIG, pca=path, is_quantized=True)
  codes = coarse.embed_windows(sound)[0]
  assert (codes == codes.astype(np.uint8)).all()
  # A value at the edge of a step may fall to its other side.
  assert np.abs(codes - ((expected + 2) * 63.75).astype(np.uint8)).max() <= 1
  assert (codes == ((expected + 2) * 63.75).astype(np.uint8)).mean() > 0.98
  with pytest.raises(ValueError, match='is_quantized without pca, expected'):
    vggish.VGGish(params, CONFIG, is_quantized=True)
  np.savez(path, pca_eigen_vectors=vectors[:64], means=means)
  with pytest.raises(errors.UserError) as error:
    vggish.VGGish(params, CONFIG, pca=path)
  assert str(error.value) == (
    'Weights do not fit the model: missing `pca_means`; unexpected `means`; '
    '`pca_eigen_vectors` has shape (64, 128), expected (128, 128). Use the '
    'weights and the gin files that belong together.'
  )


def test_published_pca_whitens(params, shared_data):
  path = shared_data / 'weights' / 'vggish_pca_params.npz'
  sound = np.sin(np.arange(32000) / 5).astype(np.float32)[None]
  codes = vggish.VGGish(
    params, CONFIG, pca=path, is_quantized=True
  ).embed_windows(sound)
  assert 0 <= codes.min() < codes.max() <= 255


def test_weights_that_do_not_fit(params, tmp_path):
  names = _torch_names(params)
  path = tmp_path / 'vggish.safetensors'
  wrong = {n: a for n, a in names.items() if n != 'features.3.bias'}
  wrong['classifier.weight'] = np.zeros((2, 3), np.float32)
  safetensors.numpy.save_file(wrong, path)
  with pytest.raises(
    errors.UserError,
    match=re.escape(
      f'Weights of {path} do not fit: missing `features.3.bias` (for '
      '`conv2/bias`); unexpected `classifier.weight` of shape (2, 3). Use the '
      'checkpoint'
    ),
  ):
    pretrained.load('vggish_torch', path)
  safetensors.numpy.save_file(
    names | {'embeddings.4.weight': np.zeros((64, 8), np.float32)}, path
  )
  with pytest.raises(errors.UserError, match=r'`fc2/kernel` has shape \(8, 64'):
    pretrained.load('vggish_torch', path)
  safetensors.numpy.save_file(names, path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(errors.UserError, match='expected a safetensors file'):
    pretrained.load('vggish_torch', path)
  (tmp_path / 'vggish_model.ckpt').write_bytes(
    b'\0' * 100 + bytes.fromhex('57fb808b247547db')
  )
  pytest.importorskip('tensorflow')
  with pytest.raises(errors.UserError, match='expected a TensorFlow checkpoi'):
    pretrained.load('vggish', tmp_path)


def test_gin_makes_it(params):
  configs.parse(['embedders/vggish.gin'], ['HOP_SECONDS = 0.5'])
  try:
    made = gin.query_parameter('EMBEDDER/macro.value').scoped_configurable_fn(
      params, CONFIG
    )
  finally:
    gin.clear_config()
  assert made.hop_seconds == 0.5


def test_one_kilohertz_with_the_real_weights():
  """Google's smoke test: a sine of 3 s gives these moments."""
  given = os.environ.get(VARIABLE)
  if given is None:
    try:
      params = pretrained.load('vggish')
    except errors.UserError:
      pytest.skip(f'missing: weights of VGGish, in the cache or ${VARIABLE}')
  elif pathlib.Path(given).suffix == '.safetensors':
    params = weights.load_params(given)
  else:
    kind = 'vggish_torch' if given.endswith('.pth') else 'vggish'
    params = pretrained.load(kind, given)
  sine = np.sin(2 * np.pi * 1000 * np.arange(48000) / 16000)
  found = vggish.VGGish(params).embed_windows(sine[None])
  assert found.mean() == pytest.approx(-0.0333, abs=0.001)
  assert found.std() == pytest.approx(0.380, abs=0.01)
