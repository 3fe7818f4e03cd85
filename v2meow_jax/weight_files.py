"""Arrays out of the files that others publish weights in.

safetensors, PyTorch (only through `weights_only`, which builds no object but
tensors), TensorFlow checkpoints, TFLite (tflite.py), NumPy archives and HDF5.
Nothing is unpickled.
"""

from collections.abc import Iterable, Mapping
import json
import os
import pathlib
import struct

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from v2meow_jax import errors
from v2meow_jax import tflite

Array = np.ndarray

INDEX = '.safetensors.index.json'  # lists the parts of a large checkpoint
TORCH = ('.bin', '.pt', '.pth', '.th', '.ckpt')
TENSORFLOW = '.index'  # the file that names a TensorFlow checkpoint
# Last bytes of a TensorFlow checkpoint of version 1, which is one file.
_TABLE = bytes.fromhex('57fb808b247547db')
_KINDS = (
  f'.safetensors, {", ".join(TORCH)} (PyTorch), {TENSORFLOW} (TensorFlow), '
  '.tflite, .npz or .h5'
)


def read(path: str | os.PathLike) -> dict[str, Array]:
  """Reads all arrays of a file, by the names that they have there.

  Args:
    path: the file. Of a TensorFlow checkpoint, `PREFIX.index`, or the only
      file of version 1; of safetensors in several parts,
      `….safetensors.index.json`.

  Returns:
    Arrays by name; those of 16-bit floating point as float32. Nested PyTorch
    dicts give names joined by dots.

  Raises:
    UserError: the file is missing, broken, of an unknown kind, or would have
      to be unpickled; or the package that reads it is not installed.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(
      f'{path}: no such file, expected weights. Check the path.'
    )
  readers = {
    '.safetensors': _read_safetensors,
    TENSORFLOW: _read_tensorflow,
    '.npz': _read_numpy,
    '.tflite': _read_tflite,
    '.h5': _read_hdf5,
    '.hdf5': _read_hdf5,
    **dict.fromkeys(TORCH, _read_torch),
  }
  reader = _read_parts if path.name.endswith(INDEX) else None
  reader = reader or readers.get(path.suffix)
  if path.suffix == '.ckpt' and _is_table(path):
    reader = _read_tensorflow
  if reader is None:
    raise errors.UserError(
      f'{path}: unknown kind of weights, expected {_KINDS}. Check the path.'
    )
  return {name: _widen(array) for name, array in reader(path).items()}


def read_json(path: str | os.PathLike) -> dict:
  """Reads a JSON object, such as the config of a checkpoint.

  Raises:
    UserError: the file is missing or no JSON object.
  """
  try:
    found = json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise _broken(path, error, 'a JSON object') from error
  if not isinstance(found, dict):
    raise _broken(path, f'a {type(found).__name__}', 'a JSON object')
  return found


def _widen(array: Array) -> Array:
  is_short = array.dtype in (ml_dtypes.bfloat16, np.float16)
  return array.astype(np.float32) if is_short else array


def _broken(path, error, expected) -> errors.UserError:
  text = ' '.join(str(error).split())[:200]
  return errors.UserError(
    f'{os.fspath(path)}: cannot be read ({text}), expected {expected}. Fetch '
    'the file again.'
  )


def _needs(path, package: str) -> errors.UserError:
  return errors.UserError(
    f'{path}: needs the package `{package}` to be read. Install it, or '
    "everything with pip install 'v2meow_jax[pretrained]'."
  )


def _read_safetensors(path):
  try:
    # Not `load`: of bytes it reads no bfloat16.
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise _broken(path, error, 'a safetensors file') from error


def _read_parts(path):
  names = read_json(path).get('weight_map', {}).values()
  arrays = {}
  for name in sorted(set(names)):
    if os.path.basename(name) != name:  # it comes from outside
      raise _broken(path, f'part `{name}`', 'names of files beside it')
    arrays.update(_read_safetensors(path.with_name(name)))
  return arrays


def _read_torch(path):
  try:
    import torch
  except ImportError as error:
    raise _needs(path, 'torch') from error
  try:
    found = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # whatever torch and its readers raise
    raise _broken(
      path, error, 'a PyTorch file of tensors, as weights_only=True loads it'
    ) from error
  return dict(_tensors(found, ''))


def _tensors(found, prefix: str) -> Iterable[tuple[str, Array]]:
  import torch

  if isinstance(found, torch.Tensor):
    if found.dtype == torch.bfloat16:  # NumPy has no such type
      found = found.float()
    yield prefix, found.numpy()
  elif isinstance(found, Mapping):
    for key, value in found.items():
      yield from _tensors(value, f'{prefix}.{key}' if prefix else str(key))
  # Anything else, such as a step or the name of a run, holds no weights.


def _read_tensorflow(path):
  try:
    import tensorflow as tf
  except ImportError as error:
    raise _needs(path, 'tensorflow') from error
  try:
    reader = tf.train.load_checkpoint(os.fspath(path).removesuffix(TENSORFLOW))
    arrays = {
      name: reader.get_tensor(name)
      for name in reader.get_variable_to_shape_map()
    }
  except Exception as error:  # whatever TensorFlow raises
    raise _broken(path, error, 'a TensorFlow checkpoint') from error
  # The graph of objects is a string, no weight.
  return {n: a for n, a in arrays.items() if isinstance(a, Array | np.generic)}


def _is_table(path) -> bool:
  with open(path, 'rb') as file:
    file.seek(-min(len(_TABLE), path.stat().st_size), os.SEEK_END)
    return file.read() == _TABLE


def _read_tflite(path):
  try:
    return tflite.read(path)
  except (OSError, ValueError) as error:
    raise _broken(path, error, 'a TFLite model') from error


def _read_numpy(path):
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as npz:
      return {name: npz[name] for name in npz.files}
  except (OSError, ValueError, KeyError, struct.error) as error:
    raise _broken(path, error, 'a NumPy archive without objects') from error
  except Exception as error:  # zipfile has its own
    raise _broken(path, error, 'a NumPy archive') from error


def _read_hdf5(path):
  try:
    import h5py
  except ImportError as error:
    raise _needs(path, 'h5py') from error
  arrays = {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset) and item.dtype.kind in 'biuf':
      arrays[name] = item[()]

  try:
    with h5py.File(path, 'r') as file:
      file.visititems(visit)
  except (OSError, RuntimeError) as error:
    raise _broken(path, error, 'an HDF5 file') from error
  return arrays
