"""Model FLOPs utilisation: how much of the devices' rate a training uses."""

from collections.abc import Mapping
from typing import Any

from absl import logging
import jax

from v2meow_jax import checkpoints
from v2meow_jax import chips
from v2meow_jax import flops
from v2meow_jax import models


def peak_steps_per_second(
  model: Any,
  state: checkpoints.TrainState,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  mesh: jax.sharding.Mesh,
) -> float | None:
  """Steps a second of devices that do the model's products and nothing else.

  Args:
    model: object in T5X's protocol.
    state: shapes of the state.
    batch: shapes of a whole batch.
    mesh: the devices.

  Returns:
    Steps a second at the devices' dense bfloat16 rate, of which the measured
    ones are the utilisation (MFU); None where that rate is not known.
  """
  kind = mesh.devices.flat[0].device_kind
  chip = chips.of_kind(kind)
  if chip is None:
    logging.info('The peak rate of `%s` is not known: no MFU.', kind)
    return None
  return chip.flops * mesh.size / _step_flops(model, state, batch)


def _step_flops(model, state, batch) -> int:
  if isinstance(model, models.StageModel):
    return flops.of_step(model, batch)

  def loss(params, mutables, batch):
    rest = (mutables,) if mutables else ()
    return model.loss_fn(params, batch, jax.random.PRNGKey(0), *rest)[0]

  arguments = (state.params, state.mutables, batch)
  return flops.of_function(jax.grad(loss), *arguments)
