"""Compiles a training step for a TPU slice that is not there.

libtpu brings the compiler of TPUs and needs none. What it makes is the program
that a slice would run: its memory is known exactly, what it computes and sends
is counted, and how long a step takes at least follows from what a chip can do.
"""

from collections.abc import Sequence
import importlib.util
import math
import os
import re
import time

from flax import linen as nn
import jax
from jax.experimental import topologies

from v2meow_jax import chips
from v2meow_jax import errors
from v2meow_jax import flops
from v2meow_jax import hlo
from v2meow_jax import partitioning
from v2meow_jax import training_steps

# libtpu looks around for its machine, and says where it finds none; and it lets
# one process in at a time, which is for those that hold a TPU.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

# What a chip sends of the bytes of a collective among n, in a ring.
_SENT = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1.0,
}


def measure(
  recipe: training_steps.Recipe,
  topology: str,
  mesh_shape: Sequence[int] | None = None,
) -> dict:
  """Compiles the training step of a recipe for a slice.

  Args:
    recipe: what is trained.
    topology: such as `v5e:16x16`, in chips.
    mesh_shape: chips along each axis of the mesh, see `partitioning`; all
      along the first by default.

  Returns:
    What the compiler says and what follows from it, of one chip and one step
    unless the name says otherwise: bytes, FLOPs and seconds. Where the program
    does not fit, that and its size, and nothing that needs a program.

  Raises:
    UserError: libtpu is not installed, there is no such slice, or the mesh,
      the batch or the parameters cannot be cut so.
  """
  chip, shape = chips.parse_topology(topology)
  devices = _devices(topology, chip)
  if mesh_shape is None:
    mesh_shape = (-1,) + (1,) * (len(partitioning.AXES) - 1)
  mesh = partitioning.make_mesh(mesh_shape, devices)
  start = time.perf_counter()
  # No array can be on these devices, so only the mesh's axes are set.
  with (
    jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    nn.logical_axis_rules(tuple(recipe.rules)),
  ):
    lowered = recipe.trainer(mesh).lower_step(recipe.batch_shapes())
  lowered_after = time.perf_counter() - start
  model_flops = flops.of_step(recipe.model, recipe.batch_shapes())
  line = {
    'topology': topology,
    'chips': math.prod(shape),
    'mesh': dict(mesh.shape),
    'hbm_bytes_per_chip': chip.hbm_bytes,
    'model_flops_per_step': float(model_flops),
    'lower_seconds': lowered_after,
  }
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = needed_bytes(str(error))
    if needed is None:
      raise
    return line | {'fits': False, 'program_bytes': needed}
  line['compile_seconds'] = time.perf_counter() - start
  memory = compiled.memory_analysis()
  costs = hlo.analyze(compiled.as_text(), len(devices))
  analysis = compiled.cost_analysis()
  return (
    line
    | _memory(memory, chip)
    | {
      'flops': float(costs.flops),
      'hbm_traffic_bytes': float(costs.hbm_bytes),
      'cost_analysis': {
        'flops': analysis.get('flops'),
        'bytes': analysis.get('bytes accessed'),
      },
      'loops': list(costs.loops),
      'collective_bytes': collective_bytes(costs.collectives),
    }
    | roofline(costs, chip, len(devices), model_flops)
  )


def _devices(topology: str, chip: chips.Chip) -> Sequence:
  if importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(
      'libtpu is not installed, expected it: it has the compiler of TPUs. '
      "Install it with pip install 'v2meow_jax[tpu]'."
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **dict(chip.options)
    )
  except jax.errors.JaxRuntimeError as e:
    raise errors.UserError(
      f'No slice is like topology `{topology}` '
      f'({" ".join(str(e).split())}). Choose another, such as '
      f'{chip.name}:{"x".join(["4"] * chip.dimensions)}.'
    ) from e
  return description.devices


def _memory(memory, chip: chips.Chip) -> dict:
  arguments = memory.argument_size_in_bytes
  output = memory.output_size_in_bytes
  # The new state takes the place of the old one.
  fresh = output - memory.alias_size_in_bytes
  total = (
    arguments
    + fresh
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  return {
    'argument_bytes': arguments,
    'temporary_bytes': memory.temp_size_in_bytes,
    'output_bytes': output,
    'program_bytes': total,
    'fits': total <= chip.hbm_bytes,
  }


def needed_bytes(message: str) -> int | None:
  """Reads how much memory a program needs that does not fit.

  Args:
    message: of the compiler's error.

  Returns:
    Bytes, or None where the error is another one.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  found = re.search(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm', message)
  if not found:
    return None
  power = ['', 'K', 'M', 'G', 'T'].index(found[2])
  return int(float(found[1]) * 1024**power)


def collective_bytes(collectives: Sequence[hlo.Collective]) -> dict[str, int]:
  """Bytes of each kind of collective, all group sizes together."""
  totals = dict.fromkeys(hlo.COLLECTIVES, 0)
  for collective in collectives:
    totals[collective.kind] += collective.num_bytes
  return totals


def roofline(
  costs: hlo.Costs, chip: chips.Chip, num_chips: int, model_flops: float
) -> dict[str, float | str | None]:
  """The least time of a step: that of what it needs most.

  Args:
    costs: of one chip.
    chip: what it can do.
    num_chips: chips of the slice.
    model_flops: of a step, all chips together.

  Returns:
    Seconds of computing, of moving to and from HBM and of sending, as if each
    were all there is at its full rate; the largest, its name, and the share of
    the slice's FLOP/s that the model then uses. A collective of all chips uses
    all links, one of a part those of one dimension of the torus.
  """
  sending = 0.0
  for collective in costs.collectives:
    n = collective.group_size
    links = 1 if n == num_chips else chip.dimensions
    sent = collective.num_bytes * _SENT[collective.kind](n)
    sending += sent * links / chip.ici_bandwidth
  seconds = {
    'compute': costs.flops / chip.flops,
    'hbm': costs.hbm_bytes / chip.hbm_bandwidth,
    'ici': sending,
  }
  bound = max(seconds, key=seconds.get)
  least = seconds[bound]
  line = {
    **{f'{name}_seconds': value for name, value in seconds.items()},
    'roofline_seconds': least,
    'bound': bound,
  }
  if None in costs.loops:
    return line | {
      'mfu': None,
      'mfu_reason': 'how often a loop runs is not known, and it counts once',
    }
  return line | {'mfu': model_flops / (num_chips * chip.flops * least)}
