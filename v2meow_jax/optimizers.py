"""Optimizers and learning rates, for gin: `OPTIMIZER = @optimizers.adamw()`.

An `Optimizer` serves both runners: this project's own reads it as an optax
transformation, T5X as the definition of an optimizer (`create`,
`derive_logical_axes`). Nothing here imports T5X.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from v2meow_jax import checkpoints

PyTree = Any
Schedule = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optax transformation that knows its learning rate, for the log.

  Attributes:
    init: params to optimizer state.
    update: (gradients, state, params) to (updates, state).
    learning_rate: step to learning rate; of the first part if there are some.
    parts: the optimizers of `partition` by name; empty for others.
  """

  init: Callable
  update: Callable
  learning_rate: Schedule
  parts: Mapping[str, 'Optimizer'] = dataclasses.field(default_factory=dict)

  def create(self, params: PyTree) -> 'OptimizedParams':
    """Returns `params` with a fresh state, as T5X holds them."""
    state = OptimizerState(jnp.zeros([], jnp.int32), self.init(params))
    return OptimizedParams(self, params, state)

  def derive_logical_axes(
    self, optimized: 'OptimizedParams', params_axes: PyTree
  ) -> 'OptimizedParams':
    """Puts logical axes in the place of arrays, as T5X asks for them.

    Args:
      optimized: parameters and state, arrays or their shapes.
      params_axes: a PartitionSpec of logical names for each parameter.

    Returns:
      The structure of `optimized`. A slot has the axes of its parameter;
      numbers, and slots of another shape (Adafactor's rows and columns), have
      none and are held whole.
    """
    whole = jax.sharding.PartitionSpec()
    slots = optax.tree_map_params(
      self,
      lambda slot, param, axes: axes if slot.shape == param.shape else whole,
      optimized.state.param_states,
      optimized.target,
      params_axes,
      transform_non_params=lambda _: whole,
    )
    return OptimizedParams(self, params_axes, OptimizerState(whole, slots))


@flax.struct.dataclass
class OptimizerState:
  """Steps done, int32 scalar, and the state of the optax transformation."""

  step: Any
  param_states: PyTree


class OptimizedParams(flax.struct.PyTreeNode):
  """Parameters and optimizer state as T5X's train state holds them.

  Attributes:
    optimizer_def: the optimizer.
    target: the parameters.
    state: the optimizer's state.
  """

  optimizer_def: Optimizer = flax.struct.field(pytree_node=False)
  target: PyTree
  state: OptimizerState

  def apply_gradient(
    self, gradients: PyTree, learning_rate: Any = None
  ) -> 'OptimizedParams':
    """Does one step.

    Args:
      gradients: of the parameters.
      learning_rate: not used: the optimizer has its own, which gin/t5x also
        gives to T5X's trainer, for its log.
    """
    del learning_rate
    updates, slots = self.optimizer_def.update(
      gradients, self.state.param_states, self.target
    )
    return self.replace(
      target=optax.apply_updates(self.target, updates),
      state=OptimizerState(self.state.step + 1, slots),
    )

  def state_dict(self) -> dict[str, Any]:
    """Returns the nested dict that a checkpoint holds."""
    return checkpoints.to_tree(self._train_state())

  def restore_state(self, tree: Mapping[str, Any]) -> 'OptimizedParams':
    """Inverse of `state_dict`, into the structure of this one."""
    state = checkpoints.from_tree(tree, self._train_state())
    return self.replace(
      target=flax.serialization.from_state_dict(self.target, tree['target']),
      state=OptimizerState(state.step, state.opt_state),
    )

  def _train_state(self) -> checkpoints.TrainState:
    return checkpoints.TrainState(
      self.state.step, self.target, self.state.param_states, {}
    )


def learning_rate(optimizer: Optimizer) -> Schedule:
  """Returns the optimizer's schedule, for T5X's trainer, which logs it."""
  return optimizer.learning_rate


def learning_rates(optimizer: Any, step: int) -> dict[str, float]:
  """Returns the learning rates of a step by the names of the log.

  Args:
    optimizer: an `Optimizer`; any other optax transformation has none.
    step: number of the step, from 0.
  """
  if not hasattr(optimizer, 'learning_rate'):
    return {}
  rates = {
    f'learning_rate_{name}': float(part.learning_rate(step))
    for name, part in getattr(optimizer, 'parts', {}).items()
  }
  return rates or {'learning_rate': float(optimizer.learning_rate(step))}


def rsqrt(peak: float = 1e-3, warmup_steps: int = 1000) -> Schedule:
  """Linear warmup to `peak`, then `peak * sqrt(warmup_steps / step)`, as T5."""

  def schedule(step):
    step = step + 1
    warmup = max(warmup_steps, 1)
    return peak * jax.numpy.minimum(step / warmup, (warmup / step) ** 0.5)

  return schedule


def cosine(
  peak: float = 1e-3,
  warmup_steps: int = 1000,
  train_steps: int = 100_000,
  final_fraction: float = 0.05,
) -> Schedule:
  """Linear warmup to `peak`, then a cosine to `peak * final_fraction`."""
  warmup_steps = min(warmup_steps, max(train_steps // 2, 1))
  return optax.warmup_cosine_decay_schedule(
    init_value=peak / max(warmup_steps, 1),
    peak_value=peak,
    warmup_steps=warmup_steps,
    decay_steps=max(train_steps, warmup_steps + 1),
    end_value=peak * final_fraction,
  )


def constant(peak: float = 1e-3) -> Schedule:
  """The same rate at every step."""
  return optax.constant_schedule(peak)


def _is_matrix(params):
  """Which parameters decay: kernels and tables, not scales and biases."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def adamw(
  learning_rate: Schedule,
  b1: float = 0.9,
  b2: float = 0.98,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = 1.0,
) -> Optimizer:
  """AdamW with clipping of the global norm.

  Args:
    learning_rate: step to learning rate.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decay of kernels and tables; scales and biases have none.
    clip_norm: largest norm of all gradients together; None for no clipping.

  Returns:
    The optimizer.
  """
  clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  chain = optax.chain(
    *clip,
    optax.adamw(
      learning_rate,
      b1=b1,
      b2=b2,
      eps=eps,
      weight_decay=weight_decay,
      mask=_is_matrix,
    ),
  )
  return Optimizer(chain.init, chain.update, learning_rate)


def adafactor(
  learning_rate: Schedule,
  decay_rate: float = 0.8,
  clip_norm: float | None = None,
  min_dim_size_to_factor: int = 128,
) -> Optimizer:
  """Adafactor as T5 uses it: relative steps, factored second moments.

  Args:
    learning_rate: step to learning rate, relative to a parameter's scale.
    decay_rate: exponent of the decay of the second moment.
    clip_norm: largest norm of all gradients together; None for no clipping.
    min_dim_size_to_factor: smaller dimensions keep the whole second moment.

  Returns:
    The optimizer.
  """
  clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  chain = optax.chain(
    *clip,
    optax.adafactor(
      learning_rate,
      decay_rate=decay_rate,
      min_dim_size_to_factor=min_dim_size_to_factor,
    ),
  )
  return Optimizer(chain.init, chain.update, learning_rate)


def partition(**parts: Optimizer) -> Optimizer:
  """An optimizer for each part of the parameters: its own rate and clipping.

  Args:
    **parts: optimizer of each part, by the part's name: the parameters are
      `{name: parameters of the part}`.

  Returns:
    The optimizer; its state is `{name: state of the part}`.
  """

  def init(params):
    return {name: part.init(params[name]) for name, part in parts.items()}

  def update(gradients, state, params=None):
    updates, new = {}, {}
    for name, part in parts.items():
      updates[name], new[name] = part.update(
        gradients[name], state[name], None if params is None else params[name]
      )
    return updates, new

  first = next(iter(parts.values()))
  return Optimizer(init, update, first.learning_rate, parts)
