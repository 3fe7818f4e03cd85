"""Codecs that others publish: their PyTorch layouts and configs."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax import weights

Array = np.ndarray

# A weight with weight norm is two arrays, in both spellings of PyTorch.
_NORMED = (
  ('.weight_g', '.weight_v'),
  ('.parametrizations.weight.original0', '.parametrizations.weight.original1'),
)


def without_weight_norm(arrays: Mapping[str, Array]) -> dict[str, Array]:
  """Makes one weight of each length and direction.

  Args:
    arrays: by name.

  Returns:
    The same with `NAME.weight` in the place of `NAME.weight_g` and
    `NAME.weight_v`, or of their names as parametrizations.
  """
  found = dict(arrays)
  for length_end, direction_end in _NORMED:
    for name in arrays:
      stem = name.removesuffix(length_end)
      if stem == name or stem + direction_end not in found:
        continue
      length, direction = found.pop(name), found.pop(stem + direction_end)
      # Over all axes along which there is but one length.
      axes = tuple(np.flatnonzero(np.array(length.shape) == 1))
      norm = np.sqrt(
        np.square(direction, dtype=np.float64).sum(axes, keepdims=True)
      )
      weight = length * direction / np.maximum(norm, 1e-30)
      found[f'{stem}.weight'] = weight.astype(np.float32)
  return found


def kernel(weight: Array) -> Array:
  """Of a convolution: `[out, in, taps]` to `[taps, in, out]`."""
  return weight.transpose(2, 1, 0)


def upsampling(ours: str, theirs: str, stride: int) -> dict[str, weights.Entry]:
  """Rows for `weights.translate` of a transposed convolution.

  Args:
    ours: name of the convolution of a `chunked.Upsampling`.
    theirs: name of the module.
    stride: outputs per input; the kernel has twice as many taps.
  """
  return {
    f'{ours}/kernel': (f'{theirs}.weight', _upsampling_kernel),
    f'{ours}/bias': (f'{theirs}.bias', lambda bias: np.tile(bias, stride)),
  }


def _upsampling_kernel(weight: Array) -> Array:
  """`[in, out, 2 * stride]` to `[2, in, stride * out]`.

  What the input before and the input itself make of `stride` outputs.
  """
  num_in, num_out, taps = weight.shape
  # [in, out, 2, stride] -> [2, in, stride, out]
  halves = weight.reshape(num_in, num_out, 2, taps // 2).transpose(2, 0, 3, 1)
  return halves[::-1].reshape(2, num_in, -1)


def read_settings(
  config: Mapping[str, Any], names: Iterable[str], path: str
) -> dict[str, Any]:
  """Picks what a network must know from a checkpoint's config.

  Args:
    config: of the checkpoint.
    names: of its entries, all needed.
    path: of the config, for an error.

  Raises:
    UserError: names the entries that are missing.
  """
  missing = [name for name in names if name not in config]
  if missing:
    raise errors.UserError(
      f'{path}: says nothing of {", ".join(missing)}, expected the config.json '
      'that lies with the weights. Fetch the file again.'
    )
  return {name: config[name] for name in names}


def check_geometry(
  spec: streams.StreamSpec, found: Mapping[str, Any], path: str
) -> None:
  """Compares what a checkpoint's config says with the table.

  Args:
    spec: the stream of its codes.
    found: fields of the stream by name, as the config has them.
    path: of the config, for an error.

  Raises:
    UserError: names all that differs.
  """
  wrong = [
    f'{name} {value}, expected {getattr(spec, name)}'
    for name, value in found.items()
    if value != getattr(spec, name)
  ]
  if wrong:
    raise errors.UserError(
      f'{path}: another codec than `{spec.name}`: {"; ".join(wrong)}. Use the '
      'checkpoint that this converter is for.'
    )
