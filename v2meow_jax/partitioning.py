"""The device mesh and the rules from logical axes to mesh axes.

The mesh has three axes. A batch is cut along 'data' and 'fsdp' together.
Parameters and their optimizer slots are cut along 'fsdp', which costs a gather
of each layer's parameters in every step and leaves every device its share of
the state alone (ZeRO, fully sharded data parallelism), and along 'model', where
heads and widths are shared out and activations are cut too (tensor
parallelism). An axis of size one cuts nothing.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import flax
import jax
from jax.experimental import mesh_utils
import numpy as np
import optax

from v2meow_jax import errors
from v2meow_jax import hosts

AXES = ('data', 'fsdp', 'model')
BATCH_AXES = ('data', 'fsdp')

# A mesh axis, several that cut one axis together, or None for whole.
MeshAxes = str | tuple[str, ...] | None
Rules = Sequence[tuple[str, MeshAxes]]

# Logical axis to mesh axis, as T5X's standard rules for two-dimensional
# partitioning of parameters. The first rule of a name counts whose mesh axis is
# free; so a batch's 'embed' stays whole, because 'batch' has taken 'fsdp'.
RULES = (
  ('batch', BATCH_AXES),
  ('vocab', 'model'),
  # Ids of padding and EOS make a table of embeddings odd: whole where it does
  # not divide.
  ('vocab', None),
  ('embed', 'fsdp'),
  ('mlp', 'model'),
  ('heads', 'model'),
  ('joined_kv', 'model'),
  ('kv', None),
  ('length', None),
  ('relpos_buckets', None),
  ('layers', None),
)

PyTree = Any


def logical_axis_rules(first: Rules = ()) -> Rules:
  """Returns the rules of this module behind others, which win."""
  return (*(tuple(rule) for rule in first), *RULES)


def make_mesh(
  shape: Sequence[int] = (-1, 1, 1), devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Arranges all devices as `[data, fsdp, model]`.

  Neighbours along 'model', and then along 'fsdp', are neighbours in the
  machine: in a TPU's torus, in a host, in a slice. Between slices runs what is
  needed least often, that of 'data' first.

  Args:
    shape: devices along each axis; one of them may be -1, for the rest.
    devices: what to arrange; all devices by default.

  Returns:
    The mesh, with Auto axes: flax's logical constraints need them.

  Raises:
    UserError: the shape does not fit the devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = _fill_in(tuple(shape), len(devices))
  slices = {getattr(device, 'slice_index', 0) for device in devices}
  try:
    if len(slices) == 1:
      grid = mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True
      )
    else:
      outer = _across_slices(sizes, len(slices))
      inner = [size // count for size, count in zip(sizes, outer)]
      grid = mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
      )
  except (ValueError, NotImplementedError) as e:
    raise errors.UserError(
      f'mesh_shape is {sizes}, which does not fit the {len(devices)} devices '
      f'({" ".join(str(e).split())}). Set another MESH_SHAPE.'
    ) from e
  return jax.sharding.Mesh(grid, AXES)


def _fill_in(shape: tuple[int, ...], num_devices: int) -> tuple[int, ...]:
  """Puts the rest of the devices where the shape has -1."""
  known = math.prod(size for size in shape if size != -1)
  fits = len(shape) == len(AXES) and shape.count(-1) <= 1 and known > 0
  if fits and num_devices % known == 0:
    sizes = tuple(num_devices // known if n == -1 else n for n in shape)
    if math.prod(sizes) == num_devices and min(sizes) > 0:
      return sizes
  raise errors.UserError(
    f'mesh_shape is {shape}, expected devices along {", ".join(AXES)}: three '
    f'numbers whose product is {num_devices}, the number of devices, of '
    'which one may be -1 for the rest. Set MESH_SHAPE, for example (-1, 1, 1).'
  )


def _across_slices(sizes: tuple[int, ...], num_slices: int) -> list[int]:
  """Slices along each axis: along 'data', and along 'fsdp' what is left."""
  outer, left = [], num_slices
  for axis, size in zip(AXES, sizes):
    outer.append(math.gcd(size, left) if axis in BATCH_AXES else 1)
    left //= outer[-1]
  if left > 1:
    raise errors.UserError(
      f'mesh_shape is {sizes} on {num_slices} slices, expected a number of '
      "devices along 'data' and 'fsdp' that the slices divide: 'model' needs "
      'the network inside a slice. Set another MESH_SHAPE.'
    )
  return outer


def num_rows(mesh: jax.sharding.Mesh) -> int:
  """Parts into which the mesh cuts a batch."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def data_shard(mesh: jax.sharding.Mesh) -> hosts.Shard:
  """The part of every batch that this process reads."""
  processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
  return hosts.make_shard(
    processes.reshape(num_rows(mesh), -1), jax.process_index()
  )


def check_batch_size(
  batch_size: int, mesh: jax.sharding.Mesh, microbatches: int = 1
) -> None:
  """Raises UserError where a batch cannot be cut."""
  rows = num_rows(mesh)
  if microbatches < 1:
    raise errors.UserError(
      f'MICROBATCHES is {microbatches}, expected 1 or more.'
    )
  if batch_size % (rows * microbatches):
    times = f' times {microbatches} microbatches' if microbatches > 1 else ''
    raise errors.UserError(
      f'BATCH_SIZE is {batch_size}, expected a multiple of the '
      f"{rows} devices along 'data' and 'fsdp'{times}. Set another BATCH_SIZE "
      f'or MESH_SHAPE{" or MICROBATCHES" if times else ""}.'
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Sharding of an array whose first axis is the batch."""
  return jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(BATCH_AXES)
  )


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Sharding of an array that every device holds whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def param_shardings(
  params: PyTree,
  params_axes: Mapping | None,
  mesh: jax.sharding.Mesh,
  rules: Rules = RULES,
) -> PyTree:
  """Returns a sharding for each parameter.

  Args:
    params: nested dict of arrays or their shapes.
    params_axes: T5X's collection: under `<name>_axes` the logical names of the
      axes of `<name>`. A parameter without is held whole everywhere.
    mesh: the devices.
    rules: pairs of logical axis and mesh axis. Of several rules of one name
      the first counts whose mesh axis is free and divides the axis.

  Raises:
    UserError: an axis that is cut is not a multiple of the devices along it,
      or a rule names no axis of the mesh.
  """
  flat_axes = {}
  if params_axes:
    flat = flax.traverse_util.flatten_dict(
      flax.core.unfreeze(params_axes),
      is_leaf=lambda _, x: hasattr(x, 'names'),
    )
    flat_axes = {k: v.names for k, v in flat.items()}
  choices = {}
  for name, axes in rules:
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    for axis in axes:
      if axis not in mesh.shape:
        raise errors.UserError(
          f'The rule for `{name}` says `{axis}`, expected an axis of the '
          f'mesh: {", ".join(mesh.shape)}. Correct the logical axis rules.'
        )
    choices.setdefault(name, []).append(axes)

  def sharding(path, leaf):
    names = flat_axes.get((*path[:-1], f'{path[-1]}_axes'), ())
    spec, used = [], set()
    for size, name in zip(leaf.shape, names, strict=False):
      # A mesh axis cuts one axis of an array, the first that asks for it.
      free = [a for a in choices.get(name, [()]) if used.isdisjoint(a)] or [()]
      counts = [math.prod(mesh.shape[axis] for axis in axes) for axes in free]
      fitting = [a for a, n in zip(free, counts, strict=True) if size % n == 0]
      if not fitting:
        raise errors.UserError(
          f'Parameter `{"/".join(path)}`: axis `{name}` of size {size} is '
          f'cut along {" and ".join(f"`{axis}`" for axis in free[0])}, '
          f'expected a multiple of its {counts[0]} devices. Set another '
          'MESH_SHAPE.'
        )
      used.update(fitting[0])
      spec.append(fitting[0][0] if len(fitting[0]) == 1 else fitting[0] or None)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  flat_params = flax.traverse_util.flatten_dict(flax.core.unfreeze(params))
  return flax.traverse_util.unflatten_dict(
    {k: sharding(k, v) for k, v in flat_params.items()}
  )


@dataclasses.dataclass(frozen=True)
class _Slot:
  """An array of an optimizer's state; no pytree, so that it stays a leaf.

  Attributes:
    shape: its shape.
    probed_shape: its shape for parameters of which no two axes are equal.
  """

  shape: tuple[int, ...]
  probed_shape: tuple[int, ...]


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
    The structure of `optimizer.init(params)`. A slot that lacks one axis of
    its parameter (Adafactor's rows and columns) is cut along the others as the
    parameter is; what is no parameter's is held whole.
  """
  parts = getattr(optimizer, 'parts', {})
  if parts:
    return {
      name: optimizer_shardings(part, params[name], shardings[name], mesh)
      for name, part in parts.items()
    }
  whole = replicated(mesh)
  state = jax.eval_shape(optimizer.init, params)
  # Which axis a slot lacks cannot be told where two are equal. So the optimizer
  # is asked again about parameters that are larger, in the same order.
  probes = jax.tree.map(_unequal, params)
  slots = jax.tree.map(
    lambda slot, probed: _Slot(slot.shape, probed.shape),
    state,
    jax.eval_shape(optimizer.init, probes),
  )

  def sharding(slot, param, probe, of_param):
    if slot.shape == param.shape:
      return of_param
    spec = [*of_param.spec, *[None] * (len(param.shape) - len(of_param.spec))]
    for axis in range(len(param.shape)):
      without = lambda sizes, axis=axis: (*sizes[:axis], *sizes[axis + 1 :])
      if slot.shape == without(param.shape) and slot.probed_shape == without(
        probe.shape
      ):
        return jax.sharding.NamedSharding(
          mesh, jax.sharding.PartitionSpec(*without(tuple(spec)))
        )
    return whole

  return optax.tree_map_params(
    optimizer,
    sharding,
    slots,
    params,
    probes,
    shardings,
    transform_non_params=lambda _: whole,
  )


def _unequal(param: Any) -> jax.ShapeDtypeStruct:
  """Shape of a larger parameter without equal axes, in the order of sizes."""
  ndim = len(param.shape)
  sizes = [size * ndim + axis for axis, size in enumerate(param.shape)]
  return jax.ShapeDtypeStruct(sizes, param.dtype)
