"""Speed and memory of training steps on the devices that are there."""

from collections.abc import Sequence
import statistics
import time

from flax import linen as nn
import jax
import numpy as np

from v2meow_jax import chips
from v2meow_jax import flops
from v2meow_jax import partitioning
from v2meow_jax import training_steps

# Steps that nothing is measured of.
_WARM_UP = 2


def measure(
  recipe: training_steps.Recipe,
  steps: int,
  mesh_shape: Sequence[int] | None = None,
) -> dict:
  """Times the training step of a recipe on noise.

  Args:
    recipe: what is trained.
    steps: steps to time, behind those of the warm-up.
    mesh_shape: devices along each axis of the mesh, see `partitioning`; all
      along the first by default.

  Returns:
    What was measured; seconds, FLOPs and bytes.

  Raises:
    UserError: the mesh, the batch or the parameters cannot be cut so.
  """
  if mesh_shape is None:
    mesh_shape = (-1,) + (1,) * (len(partitioning.AXES) - 1)
  mesh = partitioning.make_mesh(mesh_shape)
  devices = mesh.devices.ravel()
  with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(recipe.rules)):
    training = recipe.trainer(mesh)
    training.initialize()
    batch, num_tokens = training.to_devices(recipe.random_batch())
    start = time.perf_counter()
    compiled = training.lower_step(recipe.batch_shapes()).compile()
    compile_seconds = time.perf_counter() - start
    times = []
    for _ in range(_WARM_UP + steps):
      start = time.perf_counter()
      result = training.step(batch)
      jax.block_until_ready((training.state, result))
      times.append(time.perf_counter() - start)
  seconds = statistics.median(times[_WARM_UP:])
  model_flops = flops.of_step(recipe.model, recipe.batch_shapes())
  analysis = compiled.cost_analysis() or {}
  params = jax.tree.leaves(training.state.params)
  return {
    'steps': steps,
    'mesh': dict(mesh.shape),
    'parameters': sum(leaf.size for leaf in params),
    'loss': float(np.mean(result['loss'])),
    'compile_seconds': compile_seconds,
    'step_seconds': seconds,
    'fastest_step_seconds': min(times[_WARM_UP:]),
    'steps_per_second': 1 / seconds,
    'target_tokens_per_second': float(num_tokens) / seconds,
    'model_flops_per_step': float(model_flops),
    'model_flops_per_second': model_flops / seconds,
    # Of one device; with element-wise work, and loops counted once.
    'cost_analysis_flops_per_step': analysis.get('flops'),
    **_utilization(model_flops / seconds, devices),
    **_device_memory(devices),
  }


def _utilization(flops_per_second: float, devices: Sequence) -> dict:
  kind = devices[0].device_kind
  chip = chips.of_kind(kind)
  if chip is None:
    known = ', '.join(row.kind for row in chips.CHIPS.values())
    reason = f'the peak rate of `{kind}` is not known, only of {known}'
    return {'mfu': None, 'mfu_reason': reason}
  return {'mfu': flops_per_second / (chip.flops * len(devices))}


def _device_memory(devices: Sequence) -> dict:
  """Peak memory of the fullest device, where the platform counts it."""
  stats = [device.memory_stats() or {} for device in devices]
  peaks = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
  return {'peak_device_bytes': max(peaks)} if peaks else {}
