"""The state of a training and its steps, on the devices of a mesh."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import functools
import math
import os
import pathlib
from typing import Any

from absl import logging
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from v2meow_jax import checkpoints
from v2meow_jax import errors
from v2meow_jax import partitioning
from v2meow_jax import weights

Batch = Mapping[str, Any]

# Steps that run ahead of the host's look at their loss.
_LAG = 4


class Trainer:
  """A model, its optimizer and its state on the devices of a mesh.

  Attributes:
    state: the state; None before `initialize`.
    abstract: shapes, dtypes and shardings of the state.
  """

  def __init__(
    self,
    model: Any,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    seed: int,
    mesh: jax.sharding.Mesh,
    rules: Sequence[tuple[str, str | None]] = partitioning.RULES,
  ):
    """Lays the state out; computes nothing.

    Args:
      model: object in T5X's protocol.
      optimizer: optax transformation.
      batch: any batch, for its shapes and dtypes.
      seed: of the parameters and of dropout.
      mesh: the devices.
      rules: logical axis to mesh axis.
    """
    self._model = model
    self._optimizer = optimizer
    self._key = jax.random.PRNGKey(seed)
    self._batch_sharding = partitioning.batch_sharding(mesh)
    shapes = {name: np.shape(array) for name, array in batch.items()}
    types = {name: array.dtype for name, array in batch.items()}

    def initial(key):
      variables = dict(
        flax.core.unfreeze(
          model.get_initial_variables(
            rng=key, input_shapes=shapes, input_types=types
          )
        )
      )
      axes = variables.pop('params_axes', None)
      params = variables.pop('params')
      return (
        checkpoints.TrainState(
          step=jnp.zeros([], jnp.int32),
          params=params,
          opt_state=optimizer.init(params),
          mutables=variables,
        ),
        axes,
      )

    shape, axes = jax.eval_shape(initial, self._key)
    whole = partitioning.replicated(mesh)
    params = partitioning.param_shardings(shape.params, axes, mesh, rules)
    shardings = checkpoints.TrainState(
      step=whole,
      params=params,
      opt_state=partitioning.optimizer_shardings(
        optimizer, shape.params, params, mesh
      ),
      mutables=jax.tree.map(lambda _: whole, shape.mutables),
    )
    self.abstract = jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      shape,
      shardings,
    )
    self.state = None
    self._initial = jax.jit(
      lambda key: initial(key)[0], out_shardings=shardings
    )
    self._train_step = jax.jit(
      self._train_step_fn,
      donate_argnums=0,
      out_shardings=(shardings, whole),
    )
    self._eval_step = jax.jit(self._eval_step_fn, out_shardings=whole)

  def initialize(self, path: str | os.PathLike | None = None) -> None:
    """Makes the first state.

    Args:
      path: where to take parameters from; None for random ones.

    Raises:
      UserError: they are those of another model.
    """
    self.state = self._initial(self._key)
    if path:
      params = (
        weights.load_params(path)
        if _is_safetensors(path)
        else (checkpoints.load_params(path))
      )
      params = checkpoints.match_params(params, self.abstract.params, path)
      self.state = self.state.replace(params=params)
      logging.info('Parameters start from %s.', path)

  def to_devices(self, batch: Batch) -> tuple[Batch, int]:
    """Copies a batch to the devices; also returns its target tokens."""
    batch = numeric(batch)
    num_tokens = np.count_nonzero(batch.get('decoder_loss_weights', 0))
    if jax.process_count() == 1:
      return jax.device_put(batch, self._batch_sharding), num_tokens
    put = functools.partial(
      jax.make_array_from_process_local_data, self._batch_sharding
    )
    return {name: put(array) for name, array in batch.items()}, num_tokens

  def step(self, batch: Batch) -> dict[str, Any]:
    """Does one step; returns 'loss', 'gradient_norm' and 'metrics' of it."""
    self.state, result = self._train_step(self.state, batch)
    return result

  def lower_step(self, batch: Batch) -> jax.stages.Lowered:
    """Lowers the step for the devices of the mesh; computes nothing.

    Args:
      batch: arrays, or their shapes and dtypes.
    """
    shapes = {
      name: jax.ShapeDtypeStruct(
        array.shape, array.dtype, sharding=self._batch_sharding
      )
      for name, array in batch.items()
    }
    return self._train_step.lower(self.abstract, shapes)

  def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns the metrics over `batches`, without dropout or change."""
    results = Results(check=False)
    for number, batch in enumerate(batches):
      results.add(number, self._eval_step(self.state, batch))
    return results.summary()

  def _train_step_fn(self, state, batch):
    rng = jax.random.fold_in(self._key, state.step)

    def loss_fn(params):
      if not state.mutables:
        loss, metrics = self._model.loss_fn(params, batch, rng)
        return loss, (metrics, state.mutables)
      return self._model.loss_fn(params, batch, rng, state.mutables)

    (loss, (metrics, mutables)), gradients = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params)
    updates, opt_state = self._optimizer.update(
      gradients, state.opt_state, state.params
    )
    state = checkpoints.TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      mutables=flax.core.unfreeze(mutables),
    )
    return state, {
      'loss': loss,
      'gradient_norm': optax.tree.norm(gradients),
      'metrics': metrics,
    }

  def _eval_step_fn(self, state, batch):
    args = (state.params, batch)
    if state.mutables:
      loss, (metrics, _) = self._model.eval_fn(*args, state.mutables)
    else:
      loss, metrics = self._model.eval_fn(*args)
    return {'loss': loss, 'metrics': metrics}


class Results:
  """Results of steps, looked at some steps later so that nothing waits."""

  def __init__(self, check: bool = True):
    self._check = check
    self._pending = collections.deque()
    self._fetched = []
    self._loss = math.nan

  def add(self, step: int, result: Mapping[str, Any]) -> None:
    """Takes the result of `step`, still on the device."""
    for leaf in jax.tree.leaves(result):
      leaf.copy_to_host_async()
    self._pending.append((step, result))
    if len(self._pending) > _LAG:
      self._fetch_one()

  def fetch(self) -> None:
    """Waits for all results so far.

    Raises:
      UserError: the loss or the gradient of a step is not finite.
    """
    while self._pending:
      self._fetch_one()

  def _fetch_one(self) -> None:
    step, result = self._pending.popleft()
    result = jax.device_get(result)
    if self._check and not _is_finite(result):
      later = [(s, jax.device_get(r)) for s, r in self._pending]
      bad = [(s, r) for s, r in ((step, result), *later) if not _is_finite(r)]
      described = ', '.join(f'{s} (loss {r["loss"]:g})' for s, r in bad)
      raise errors.UserError(
        f'The loss or its gradient is not finite at steps {described}; '
        'expected finite numbers. Nothing was saved after the last '
        'checkpoint: lower the learning rate or look at the data of the '
        'first of these steps, and start again.'
      )
    self._fetched.append(result)

  def latest_loss(self) -> float:
    """Returns the loss since the last summary, or of the last summary."""
    if not self._fetched and self._pending:
      self._fetch_one()
    if self._fetched:
      values = _merge(self._fetched)
      return values[loss_name(values)]
    return self._loss

  def summary(self) -> dict[str, float]:
    """Returns the means of all results since the last summary."""
    self.fetch()
    values = _merge(self._fetched)
    self._fetched = []
    self._loss = values[loss_name(values)]
    return values


def _is_finite(result: Mapping[str, Any]) -> bool:
  return bool(
    np.isfinite(result['loss']) and np.isfinite(result['gradient_norm'])
  )


def _merge(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  values = {
    name: float(np.mean([result[name] for result in results]))
    for name in results[0]
    if name != 'metrics'
  }
  for name in results[0]['metrics']:
    merged = functools.reduce(
      lambda a, b: a.merge(b), (r['metrics'][name] for r in results)
    )
    values[name] = float(merged.compute())
  return values


def loss_name(values: Mapping[str, float]) -> str:
  """The loss that a person compares: per token, where there are tokens."""
  per_token = 'loss_per_nonpadding_target_token'
  return per_token if per_token in values else 'loss'


def numeric(batch: Batch) -> dict[str, np.ndarray]:
  """Leaves out what no device can hold, such as names of clips."""
  arrays = {name: np.asarray(array) for name, array in batch.items()}
  return {n: a for n, a in arrays.items() if a.dtype.kind in 'biuf'}


def _is_safetensors(path: str | os.PathLike) -> bool:
  return pathlib.Path(path).suffix == '.safetensors'
