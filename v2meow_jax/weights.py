"""Weights: nested dicts of arrays in safetensors files.

Names in the file are the keys joined by `/`. A bfloat16 file is read back as
float32.
"""

from collections.abc import Mapping
import os

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from v2meow_jax import errors


def flatten(tree: Mapping, prefix: str = '') -> dict[str, np.ndarray]:
  """Flattens `{'a': {'b': x}}` to `{'a/b': x}`.

  Raises:
    ValueError: a key is no string, is empty or holds a `/`.
  """
  flat = {}
  for key, value in tree.items():
    if not isinstance(key, str) or not key or '/' in key:
      raise ValueError(
        f'Parameter key {key!r} under `{prefix}`, expected a non-empty '
        'string without `/`. Rename the module.'
      )
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{prefix}{key}/'))
    else:
      flat[prefix + key] = np.asarray(value)
  return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> dict:
  """Inverse of `flatten`."""
  tree = {}
  for name, value in flat.items():
    *parents, leaf = name.split('/')
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[leaf] = value
  return tree


def save_params(
  path: str | os.PathLike, tree: Mapping, dtype: str | None = None
) -> None:
  """Writes a nested dict of arrays to a safetensors file.

  The file appears under its name when it is whole.

  Args:
    path: of the file.
    tree: nested dict of arrays.
    dtype: 'bfloat16' or 'float32' for floating-point arrays, None as they are.
  """
  flat = flatten(tree)
  if dtype is not None:
    to = {'bfloat16': ml_dtypes.bfloat16, 'float32': np.float32}[dtype]
    flat = {
      name: value.astype(to) if value.dtype.kind in 'fV' else value
      for name, value in flat.items()
    }
  # safetensors writes the buffer as it lies in memory.
  flat = {name: np.ascontiguousarray(value) for name, value in flat.items()}
  temporary = f'{os.fspath(path)}.partial'
  safetensors.numpy.save_file(flat, temporary)
  os.replace(temporary, path)


def load_params(path: str | os.PathLike) -> dict:
  """Reads a safetensors file into a nested dict of NumPy arrays.

  bfloat16 and float16 arrays are returned as float32.

  Raises:
    errors.UserError: there is no such file, or it is not safetensors.
  """
  try:
    # Not `load`: of bytes it reads no bfloat16.
    flat = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise errors.UserError(
      f'{os.fspath(path)}: cannot read the weights ({error}), expected a '
      'safetensors file. Check the path or fetch the file again.'
    ) from error
  return unflatten(
    {
      name: value.astype(np.float32)
      if value.dtype in (ml_dtypes.bfloat16, np.float16)
      else value
      for name, value in flat.items()
    }
  )


def check_params(expected: Mapping, given: Mapping) -> None:
  """Checks that two trees hold the same parameters.

  Args:
    expected: nested dict of arrays or of anything with a `shape`, such as
      `jax.eval_shape` returns.
    given: nested dict of arrays.

  Raises:
    errors.UserError: names every missing, unexpected and misshapen parameter.
  """
  expected, given = _shapes(expected), _shapes(given)
  problems = [f'missing `{n}`' for n in sorted(expected.keys() - given.keys())]
  problems += [
    f'unexpected `{n}`' for n in sorted(given.keys() - expected.keys())
  ]
  problems += [
    f'`{n}` has shape {given[n]}, expected {expected[n]}'
    for n in sorted(expected.keys() & given.keys())
    if given[n] != expected[n]
  ]
  if problems:
    raise errors.UserError(
      f'Weights do not fit the model: {"; ".join(problems)}. Use the weights '
      'and the gin files that belong together.'
    )


def _shapes(tree: Mapping, prefix: str = '') -> dict[str, tuple]:
  shapes = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      shapes.update(_shapes(value, f'{prefix}{key}/'))
    else:
      shapes[f'{prefix}{key}'] = tuple(value.shape)
  return shapes
