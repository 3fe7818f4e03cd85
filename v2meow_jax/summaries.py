"""What a training is made of, as text: parameters, batch, mesh, memory."""

from collections.abc import Mapping
import math
from typing import Any

import flax
import jax
import numpy as np

from v2meow_jax import checkpoints
from v2meow_jax import partitioning

PyTree = Any
PARAMETERS_FILE = 'parameters.txt'


def parameter_table(params: PyTree) -> str:
  """Describes parameters, one line each, behind a line with their number.

  Args:
    params: nested dict of arrays or `ShapeDtypeStruct`; where they have
      shardings, what a device holds of them is said too.
  """
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  rows = [f'  {name}: {_describe(leaf)}' for name, leaf in flat.items()]
  total = sum(math.prod(leaf.shape) for leaf in flat.values())
  return '\n'.join([f'{total} parameters:', *rows])


def batch_table(batch: Mapping[str, np.ndarray]) -> str:
  """Describes the arrays of a batch, one line each."""
  return '\n'.join(
    f'  {k}: {v.dtype} {list(v.shape)}, {np.min(v):g} to {np.max(v):g}, '
    f'begins {v.ravel()[:8].tolist()}'
    for k, v in batch.items()
  )


def _describe(leaf) -> str:
  text = f'{leaf.dtype} {list(leaf.shape)}'
  held = _held_shape(leaf)
  return text if held == leaf.shape else f'{text}, on a device {list(held)}'


def _held_shape(leaf) -> tuple[int, ...]:
  sharding = getattr(leaf, 'sharding', None)
  return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)


def device_bytes(tree: PyTree) -> int:
  """Returns the bytes that one device holds of a tree of arrays or shapes."""
  return sum(
    math.prod(_held_shape(leaf)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def placement(state: checkpoints.TrainState, mesh: jax.sharding.Mesh) -> str:
  """Returns one line on the mesh and what a device holds of the state."""
  shape = ', '.join(f'{name} {size}' for name, size in mesh.shape.items())
  leaves = jax.tree.leaves(state)
  total = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)
  return (
    f'Mesh: {shape}; {mesh.size} devices ({mesh.devices.flat[0].device_kind}), '
    f'{jax.process_count()} processes; each device holds '
    f'{device_bytes(state) / 2**20:.2f} of {total / 2**20:.2f} MiB of state'
  )


def batch_shapes(
  batch: Mapping[str, np.ndarray], batch_size: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of the whole batch that all processes read together.

  Args:
    batch: what this process read of it.
    batch_size: examples of the whole.
    mesh: the devices.
  """
  sharding = partitioning.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct(
      (batch_size, *array.shape[1:]), array.dtype, sharding=sharding
    )
    for name, array in batch.items()
  }


def memory(
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  compiled: Any = None,
) -> dict[str, int]:
  """Estimates what one device holds in a training step, in bytes by what it is.

  Args:
    state: shapes, dtypes and shardings of the state.
    batch: those of a batch.
    compiled: the compiled step; its temporaries are the gradients and the
      activations. Without it gradients count as much as parameters, and
      activations are left out.
  """
  parts = {
    'parameters': device_bytes(state.params),
    'optimizer state': device_bytes(state.opt_state),
  }
  if state.mutables:
    parts['other state'] = device_bytes(state.mutables)
  parts['batch'] = device_bytes(batch)
  if compiled is None:
    parts['gradients'] = parts['parameters']
  else:
    analysis = compiled.memory_analysis()
    parts['gradients and activations'] = analysis.temp_size_in_bytes
  return parts


def describe(
  state: checkpoints.TrainState,
  batch: Mapping[str, np.ndarray],
  batch_size: int,
  mesh: jax.sharding.Mesh,
  compiled: Any = None,
) -> str:
  """Says what a training would be made of.

  Args:
    state: shapes, dtypes and shardings of the state.
    batch: what this process read of the first batch.
    batch_size: examples of a whole batch.
    mesh: the devices.
    compiled: the compiled step; None for no estimate of the activations.

  Returns:
    Several lines of text.
  """
  parts = memory(state, batch_shapes(batch, batch_size, mesh), compiled)
  width = max(map(len, parts))
  left_out = '' if compiled else ' and activations (not estimated)'
  return '\n'.join(
    [
      parameter_table(state.params),
      f'First batch, of {batch_size} examples:',
      batch_table(batch),
      placement(state, mesh),
      'Memory of one device in a step:',
      *(f'  {k:{width}} {v / 2**20:10.2f} MiB' for k, v in parts.items()),
      f'  {"in all":{width}} {sum(parts.values()) / 2**20:10.2f} MiB{left_out}',
    ]
  )
