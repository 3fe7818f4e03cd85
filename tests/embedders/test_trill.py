"""TRILL from a SavedModel of its signature, built here."""

import sys

import gin
import numpy as np
import pytest

from tests import contracts
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax.embedders import trill


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model with TRILL's windows, whose embedding is of their energy."""
  tf = pytest.importorskip('tensorflow')

  class Model(tf.Module):
    @tf.function(
      input_signature=[
        tf.TensorSpec([None], tf.float32, name='samples'),
        tf.TensorSpec([], tf.int32, name='sample_rate'),
      ]
    )
    def __call__(self, samples, sample_rate):
      lacking = tf.maximum(0, sample_rate - tf.size(samples))
      samples = tf.pad(samples, [[0, lacking]])
      windows = tf.signal.frame(samples, 15600, 2667)
      energy = tf.reduce_mean(windows**2, 1, keepdims=True)
      weights = tf.range(512, dtype=tf.float32)[None]
      return {
        'embedding': energy * weights,
        'layer19': energy * tf.ones([1, 12288]),
        'half': 0.5 * energy * weights,
      }

  path = tmp_path_factory.mktemp('models') / 'trill'
  tf.saved_model.save(Model(), str(path))
  return path


def test_contract(folder):
  contracts.check_hearing(trill.Trill(path=folder))


def test_windows_are_those_of_the_model(folder, rng):
  waveform = rng.uniform(-0.5, 0.5, 32000).astype(np.float32)
  found = trill.Trill(path=folder).embed_windows(waveform[None])[0]
  starts = range(0, 32000 - 15600 + 1, 2667)
  expected = [np.square(waveform[s : s + 15600]).mean() for s in starts]
  np.testing.assert_allclose(found[:, 1], expected, rtol=1e-5)
  np.testing.assert_allclose(found[:, 511], 511 * found[:, 1], rtol=1e-5)
  half = trill.Trill(path=folder, output='half').embed_windows(waveform[None])
  np.testing.assert_allclose(half[0], 0.5 * found, rtol=1e-5)
  # Half a second is followed by silence.
  short = trill.Trill(path=folder).embed_windows(waveform[None, :8000])[0]
  assert short.shape == (1, 512)
  energy = np.square(waveform[:8000]).sum() / 15600
  np.testing.assert_allclose(short[0, 1], energy, rtol=1e-5)


def test_other_models(folder, tmp_path):
  with pytest.raises(errors.UserError, match='None: no SavedModel, expected'):
    trill.Trill()
  with pytest.raises(errors.UserError, match=f'{tmp_path}: no SavedModel, exp'):
    trill.Trill(path=tmp_path)
  with pytest.raises(errors.UserError) as error:
    trill.Trill(path=folder, output='embeddings')
  assert str(error.value) == (
    f'{folder}: returns embedding, half, layer19, expected `embeddings` among '
    'it. Set output to one of these, or use the SavedModel of TRILL.'
  )
  with pytest.raises(errors.UserError, match=r'`layer19` has shape \(1, 12288'):
    trill.Trill(path=folder, output='layer19')
  with pytest.raises(ValueError, match='was given parameters a, expected none'):
    trill.Trill({'a': np.zeros(1)}, folder)
  whole = (folder / 'saved_model.pb').read_bytes()
  (tmp_path / 'saved_model.pb').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(errors.UserError, match=f'{tmp_path}: cannot be loaded'):
    trill.Trill(path=tmp_path)


def test_without_tensorflow(tmp_path, monkeypatch):
  (tmp_path / 'saved_model.pb').write_bytes(b'')
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  with pytest.raises(errors.UserError) as error:
    trill.Trill(path=tmp_path)
  assert str(error.value) == (
    'TRILL needs the package `tensorflow`. Install it, or everything with pip '
    "install 'v2meow_jax[train]'."
  )


def test_a_model_of_another_signature(tmp_path):
  tf = pytest.importorskip('tensorflow')

  class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def __call__(self, x):
      return x

  tf.saved_model.save(Model(), str(tmp_path))
  with pytest.raises(errors.UserError, match=f'{tmp_path}: cannot be called'):
    trill.Trill(path=tmp_path)


def test_gin_makes_it(folder):
  configs.parse(['embedders/trill.gin'], [f"TRILL_PATH = '{folder}'"])
  try:
    make = gin.query_parameter('EMBEDDER/macro.value').scoped_configurable_fn
    assert make().spec.name == 'trill'
  finally:
    gin.clear_config()
