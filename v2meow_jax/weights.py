"""Weights: nested dicts of arrays in safetensors files.

Names in the file are the keys joined by `/`. A bfloat16 file is read back as
float32. Where a network has dimensions that its checkpoint decides, they lie
with the arrays (`add_config`), so that a file says what it is. `translate`
makes such a dict out of the arrays that others publish (pretrained.py).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import re
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from v2meow_jax import errors

# Key of a config: the name of the published weights that these were made of.
SOURCE = 'source'
_CONFIG = 'config.json'  # a leaf of the tree: UTF-8 as uint8 [bytes]


# What becomes of one of their arrays, or of several: `(array, …) -> array`.
Transform = Callable[..., np.ndarray]
Entry = str | tuple[str | Sequence[str], Transform]


def translate(
  arrays: Mapping[str, np.ndarray],
  table: Mapping[str, Entry],
  ignore: Sequence[str] = (),
  what: str = 'the checkpoint',
) -> dict:
  """Makes our nested parameters out of the flat ones of others.

  Args:
    arrays: theirs, by name, as `weight_files.read` returns them.
    table: for each of our names (`a/b/kernel`) their name, or `(their name or
      names, function of these arrays)`. Every parameter of ours has one.
    ignore: regular expressions of their names that we have no use for, each
      for the whole name.
    what: names the checkpoint in an error.

  Returns:
    Our nested dict.

  Raises:
    UserError: lists all arrays that are missing, and all that nothing uses.
  """
  used, missing, flat = set(), [], {}
  for ours, entry in table.items():
    names, transform = (entry, lambda x: x) if isinstance(entry, str) else entry
    names = (names,) if isinstance(names, str) else tuple(names)
    used.update(names)
    lacks = [n for n in names if n not in arrays]
    missing += [f'missing `{n}` (for `{ours}`)' for n in lacks]
    if not lacks:
      flat[ours] = np.asarray(transform(*(arrays[n] for n in names)))
  ignored = [re.compile(pattern) for pattern in ignore]
  unexpected = [
    f'unexpected `{name}` of shape {tuple(arrays[name].shape)}'
    for name in sorted(set(arrays) - used)
    if not any(pattern.fullmatch(name) for pattern in ignored)
  ]
  if missing or unexpected:
    raise errors.UserError(
      f'Weights of {what} do not fit: {"; ".join(missing + unexpected)}. Use '
      'the checkpoint that this converter is for.'
    )
  return unflatten(flat)


def add_config(tree: Mapping, config: Mapping[str, Any]) -> dict:
  """Puts what a network must know, as JSON, with its arrays."""
  text = json.dumps(config, sort_keys=True).encode()
  return {**tree, _CONFIG: np.frombuffer(text, np.uint8)}


def read_config(tree: Mapping) -> dict[str, Any]:
  """Inverse of `add_config`; {} where there is none.

  Raises:
    UserError: it is no JSON object.
  """
  if _CONFIG not in tree:
    return {}
  try:
    found = json.loads(np.asarray(tree[_CONFIG], np.uint8).tobytes())
    return dict(found)
  except (ValueError, TypeError) as error:
    raise errors.UserError(
      f'The config of the weights cannot be read ({error}), expected a JSON '
      'object. Convert the weights again.'
    ) from error


def without_config(tree: Mapping) -> dict:
  """Returns the arrays alone."""
  return {key: value for key, value in tree.items() if key != _CONFIG}


def configure(config: Any, tree: Mapping) -> Any:
  """Lets weights say the dimensions of their network.

  Args:
    config: a dataclass with defaults, such as gin gives it.
    tree: weights, with or without a config.

  Returns:
    `config` with what the weights say in its place.

  Raises:
    UserError: they say what `config` does not know.
  """
  found = read_config(tree)
  found.pop(SOURCE, None)  # says nothing about dimensions
  known = {field.name for field in dataclasses.fields(config)}
  if not found.keys() <= known:
    unknown = ', '.join(sorted(found.keys() - known))
    raise errors.UserError(
      f'The config of the weights holds {unknown}, expected some of '
      f'{", ".join(sorted(known))}. Use weights of this network.'
    )
  to_tuple = lambda x: tuple(map(to_tuple, x)) if isinstance(x, list) else x
  return dataclasses.replace(
    config, **{name: to_tuple(value) for name, value in found.items()}
  )


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
  # safetensors writes the buffer as it lies in memory. NumPy makes a scalar an
  # array of one on the way.
  flat = {
    name: np.ascontiguousarray(value).reshape(value.shape)
    for name, value in flat.items()
  }
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
