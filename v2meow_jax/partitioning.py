"""The device mesh and the rules from logical axes to mesh axes.

A batch is cut along 'data'; parameters are cut along 'model' where a rule says
so. With one device both axes have size one and nothing is cut.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
import optax

from v2meow_jax import errors

AXES = ('data', 'model')

# Logical axis name to mesh axis; as T5X's standard rules.
RULES = (
  ('batch', 'data'),
  ('vocab', 'model'),
  ('heads', 'model'),
  ('mlp', 'model'),
  ('joined_kv', 'model'),
)

PyTree = Any


def make_mesh(shape: Sequence[int] = (-1, 1)) -> jax.sharding.Mesh:
  """Arranges all devices as `[data, model]`.

  Args:
    shape: devices along each axis; one of them may be -1, for the rest.

  Returns:
    The mesh, with Auto axes: flax's logical constraints need them.

  Raises:
    UserError: the shape does not fit the number of devices.
  """
  devices = np.asarray(jax.devices())
  try:
    grid = devices.reshape(tuple(shape))
  except ValueError as e:
    raise errors.UserError(
      f'mesh_shape is {tuple(shape)}, expected two numbers whose product is '
      f'{devices.size}, the number of devices. Set train.mesh_shape, for '
      'example (-1, 1).'
    ) from e
  return jax.sharding.Mesh(grid, AXES)


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> None:
  """Raises UserError where a batch cannot be cut along 'data'."""
  num_devices = mesh.shape[AXES[0]]
  if batch_size % num_devices:
    raise errors.UserError(
      f'BATCH_SIZE is {batch_size}, expected a multiple of the '
      f"{num_devices} devices along 'data'. Set another BATCH_SIZE or "
      'train.mesh_shape.'
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Sharding of an array whose first axis is the batch."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Sharding of an array that every device holds whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def param_shardings(
  params: PyTree,
  params_axes: Mapping | None,
  mesh: jax.sharding.Mesh,
  rules: Sequence[tuple[str, str | None]] = RULES,
) -> PyTree:
  """Returns a sharding for each parameter.

  Args:
    params: nested dict of arrays or their shapes.
    params_axes: T5X's collection: under `<name>_axes` the logical names of the
      axes of `<name>`. A parameter without is held whole everywhere.
    mesh: the devices.
    rules: pairs of logical axis and mesh axis.

  Raises:
    UserError: an axis that is cut is not a multiple of the devices along it.
  """
  flat_axes = {}
  if params_axes:
    flat = flax.traverse_util.flatten_dict(
      flax.core.unfreeze(params_axes),
      is_leaf=lambda _, x: hasattr(x, 'names'),
    )
    flat_axes = {k: v.names for k, v in flat.items()}
  to_mesh = dict(reversed(list(rules)))  # the first rule of a name wins
  sizes = dict(mesh.shape)

  def sharding(path, leaf):
    names = flat_axes.get(path[:-1] + (f'{path[-1]}_axes',), ())
    axes, used = [], set()
    for size, name in zip(leaf.shape, names, strict=False):
      axis = to_mesh.get(name)
      # A mesh axis cuts one axis of an array, the first that asks for it.
      axis = None if axis in used else axis
      if axis and size % sizes[axis]:
        raise errors.UserError(
          f'Parameter `{"/".join(path)}`: axis `{name}` of size {size} is '
          f'cut along `{axis}`, expected a multiple of its {sizes[axis]} '
          'devices. Choose another train.mesh_shape.'
        )
      used.add(axis)
      axes.append(axis)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

  flat_params = flax.traverse_util.flatten_dict(flax.core.unfreeze(params))
  return flax.traverse_util.unflatten_dict(
    {k: sharding(k, v) for k, v in flat_params.items()}
  )


def optimizer_shardings(
  optimizer, params: PyTree, shardings: PyTree, mesh: jax.sharding.Mesh
) -> PyTree:
  """Shardings of the optimizer's state: each slot as its parameter.

  Args:
    optimizer: optax transformation.
    params: shapes of the parameters.
    shardings: their shardings.
    mesh: the devices.

  Returns:
    The structure of `optimizer.init(params)`. Slots of another shape than
    their parameter's (Adafactor's rows and columns) are held whole.
  """
  whole = replicated(mesh)
  return optax.tree_map_params(
    optimizer,
    lambda slot, param, s: s if slot.shape == param.shape else whole,
    jax.eval_shape(optimizer.init, params),
    params,
    shardings,
    transform_non_params=lambda _: whole,
  )
