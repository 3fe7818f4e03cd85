"""Weights of others: every kind of file, and what is wrong with broken ones."""

import json
import re
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests import missing
from v2meow_jax import errors
from v2meow_jax import weight_files


@pytest.fixture
def arrays(rng):
  return {
    'a.weight': rng.standard_normal((3, 4)).astype('f4'),
    'a.steps': np.array(7, np.int64),
  }


def _check(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype
    assert found[name].shape == array.shape
    np.testing.assert_array_equal(found[name], array)


def test_safetensors_with_short_floats(tmp_path, arrays):
  path = tmp_path / 'model.safetensors'
  short = {'b': np.ones(3, ml_dtypes.bfloat16), 'h': np.ones(2, np.float16)}
  safetensors.numpy.save_file({**arrays, **short}, path)
  widened = {name: array.astype('f4') for name, array in short.items()}
  _check(weight_files.read(path), {**arrays, **widened})


def test_safetensors_in_parts(tmp_path, arrays):
  names = [f'part-{i}.safetensors' for i in range(2)]
  for name, (key, array) in zip(names, arrays.items()):
    safetensors.numpy.save_file({key: array}, tmp_path / name)
  index = tmp_path / 'model.safetensors.index.json'
  weight_map = dict(zip(arrays, names))
  index.write_text(json.dumps({'weight_map': weight_map}))
  _check(weight_files.read(index), arrays)
  # A name from outside must not lead out of the folder.
  index.write_text(json.dumps({'weight_map': {'a': '../secret.safetensors'}}))
  with pytest.raises(errors.UserError, match='part `../secret.safetensors`'):
    weight_files.read(index)


def test_numpy_and_hdf5(tmp_path, arrays):
  np.savez(tmp_path / 'a.npz', **arrays)
  _check(weight_files.read(tmp_path / 'a.npz'), arrays)
  h5py = pytest.importorskip('h5py', reason='missing: h5py')
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    file['layer/kernel'] = arrays['a.weight']
    file['layer'].attrs['name'] = 'x'
    file['layer/note'] = 'text is no weight'
  found = weight_files.read(tmp_path / 'a.h5')
  _check(found, {'layer/kernel': arrays['a.weight']})


def test_tensorflow_checkpoint(tmp_path, arrays):
  tf = pytest.importorskip('tensorflow', reason='missing: TensorFlow')
  checkpoint = tf.train.Checkpoint(w=tf.Variable(arrays['a.weight']))
  prefix = checkpoint.write(str(tmp_path / 'model.ckpt'))
  found = weight_files.read(f'{prefix}.index')
  _check(
    {name: a for name, a in found.items() if name.startswith('w/')},
    {'w/.ATTRIBUTES/VARIABLE_VALUE': arrays['a.weight']},
  )


@pytest.mark.pretrained
def test_torch(tmp_path, arrays):
  torch = pytest.importorskip('torch', reason='missing: torch')
  tensors = {name: torch.tensor(array) for name, array in arrays.items()}
  tensors['short'] = torch.ones(2, dtype=torch.bfloat16)
  nested = {'state': tensors, 'epoch': 3, 'name': 'run'}
  path = tmp_path / 'model.pt'
  torch.save(nested, path)
  expected = {f'state.{name}': array for name, array in arrays.items()}
  expected['state.short'] = np.ones(2, 'f4')
  _check(weight_files.read(path), expected)
  # Anything but tensors in plain containers would have to be unpickled.
  torch.save({'w': tensors, 'fault': _Fault()}, path)
  with pytest.raises(errors.UserError, match='expected a PyTorch file of tens'):
    weight_files.read(path)


class _Fault:
  """Ends the test if it is ever unpickled."""

  def __reduce__(self):
    return sys.exit, ('unpickled',)


@pytest.mark.parametrize(
  'name, package', [('a.pt', 'torch'), ('a.index', 'tensorflow')]
)
def test_names_the_package_that_is_missing(
  tmp_path, monkeypatch, name, package
):
  (tmp_path / name).write_bytes(b'x')
  for module in [m for m in sys.modules if m.split('.')[0] == package]:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setattr(sys, 'meta_path', missing.meta_path(package))
  with pytest.raises(errors.UserError) as error:
    weight_files.read(tmp_path / name)
  assert str(error.value) == (
    f'{tmp_path / name}: needs the package `{package}` to be read. Install it, '
    "or everything with pip install 'v2meow_jax[pretrained]'."
  )


@pytest.mark.parametrize(
  'name', ['a.safetensors', 'a.npz', 'model.safetensors.index.json']
)
def test_broken_files_are_one_line(tmp_path, name):
  path = tmp_path / name
  for content in (b'', b'{"no": "weights"', b'\x80\x04K\x01.'):
    path.write_bytes(content)
    with pytest.raises(errors.UserError) as error:
      weight_files.read(path)
    assert re.fullmatch(
      rf'{re.escape(str(path))}: cannot be read \(.*\), expected .*\. Fetch '
      r'the file again\.',
      str(error.value),
    )


def test_numpy_objects_are_not_unpickled(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, a=np.array([_Fault()], object))
  with pytest.raises(errors.UserError, match='Object arrays cannot be loaded'):
    weight_files.read(path)


def test_missing_and_unknown_files(tmp_path):
  with pytest.raises(errors.UserError, match='no such file, expected weights'):
    weight_files.read(tmp_path / 'a.npz')
  (tmp_path / 'a.pkl').write_bytes(b'x')
  with pytest.raises(errors.UserError, match='unknown kind of weights'):
    weight_files.read(tmp_path / 'a.pkl')
