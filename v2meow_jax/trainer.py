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
from v2meow_jax import losses
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
    rules: partitioning.Rules = partitioning.RULES,
    microbatches: int = 1,
  ):
    """Lays the state out; computes nothing.

    Args:
      model: object in T5X's protocol.
      optimizer: optax transformation.
      batch: any batch of this process, for its shapes and dtypes.
      seed: of the parameters and of dropout.
      mesh: the devices.
      rules: logical axis to mesh axis.
      microbatches: parts of a batch that are computed one after another, to
        save memory. As in T5X, their losses and gradients are summed, so the
        model's loss must be a sum, divided by a constant at most; those of a
        model that `averages_microbatches` are averaged.

    Raises:
      UserError: microbatches of a model whose `loss_is_mean` over more than
        each of them.
    """
    self._averages = getattr(model, 'averages_microbatches', False)
    is_mean = getattr(model, 'loss_is_mean', False) and not self._averages
    if microbatches > 1 and is_mean:
      raise errors.UserError(
        f'MICROBATCHES is {microbatches}, expected 1: the loss of '
        f'`{type(model).__name__}` is a mean over the batch, and those of '
        'microbatches are summed. Set a smaller BATCH_SIZE to save memory.'
      )
    self._model = model
    self._optimizer = optimizer
    # As T5X derives its keys, so that both runners train alike.
    self._key, self._step_key = jax.random.split(jax.random.PRNGKey(seed))
    self._microbatches = microbatches
    self._batch_sharding = partitioning.batch_sharding(mesh)
    self._num_shards = partitioning.data_shard(mesh).count
    shapes = {
      name: (len(array) * self._num_shards, *np.shape(array)[1:])
      for name, array in batch.items()
    }
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
    self._param_shardings = params
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
    """Copies a batch to the devices.

    Args:
      batch: the examples that this process reads, see `hosts.Shard`.

    Returns:
      The whole batch, over the devices of all processes, and its target
      tokens, if those of the other processes are as many as here.
    """
    batch = numeric(batch)
    num_tokens = np.count_nonzero(batch.get('decoder_loss_weights', 0))
    return {
      name: jax.make_array_from_process_local_data(
        self._batch_sharding,
        array,
        (len(array) * self._num_shards, *array.shape[1:]),
      )
      for name, array in batch.items()
    }, num_tokens * self._num_shards

  def step(self, batch: Batch) -> dict[str, Any]:
    """Does one step.

    Args:
      batch: on the devices.

    Returns:
      'loss', 'gradient_norm' and 'metrics' of it, and 'gradient_norm_<part>'
      of each part that the optimizer treats apart.
    """
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
    rng = jax.random.fold_in(self._step_key, state.step)
    gradients_of = functools.partial(
      jax.value_and_grad(self._loss_fn, has_aux=True), state.params
    )
    if self._microbatches == 1:
      (loss, (metrics, mutables)), gradients = gradients_of(
        batch, rng, state.mutables
      )
    else:
      loss, metrics, mutables, gradients = self._accumulate(
        gradients_of, batch, rng, state
      )
    updates, opt_state = self._optimizer.update(
      gradients, state.opt_state, state.params
    )
    state = checkpoints.TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      mutables=mutables,
    )
    norms = {
      f'gradient_norm_{part}': optax.tree.norm(gradients[part])
      for part in getattr(self._optimizer, 'parts', ())
    }
    return state, {
      'loss': loss,
      'gradient_norm': optax.tree.norm(gradients),
      'metrics': metrics,
      **norms,
    }

  def _loss_fn(self, params, batch, rng, mutables):
    if not mutables:
      loss, metrics = self._model.loss_fn(params, batch, rng)
      return loss, (metrics, mutables)
    loss, (metrics, mutables) = self._model.loss_fn(
      params, batch, rng, mutables
    )
    return loss, (metrics, flax.core.unfreeze(mutables))

  def _accumulate(self, gradients_of, batch, rng, state):
    """Sums loss and gradients of the microbatches, and merges their metrics."""
    count = self._microbatches
    mesh = self._batch_sharding.mesh
    sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(None, partitioning.BATCH_AXES)
    )

    def split(array):
      # [batch, …] -> [microbatches, batch / microbatches, …]. Every device
      # keeps its examples: a microbatch has each `count`-th of them.
      array = array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
      return jax.lax.with_sharding_constraint(array, sharding)

    def add(carry, inputs):
      loss, gradients, mutables = carry
      number, microbatch = inputs
      (more, (metrics, mutables)), new = gradients_of(
        microbatch, jax.random.fold_in(rng, number), mutables
      )
      # As the parameters lie, so that no device sums up all of them.
      gradients = jax.lax.with_sharding_constraint(
        jax.tree.map(jnp.add, gradients, new), self._param_shardings
      )
      return (loss + more, gradients, mutables), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (loss, gradients, mutables), metrics = jax.lax.scan(
      add,
      (jnp.zeros([]), zeros, state.mutables),
      (jnp.arange(count), jax.tree.map(split, batch)),
    )
    if self._averages:
      loss, gradients = jax.tree.map(lambda x: x / count, (loss, gradients))
    return loss, _merge_microbatches(metrics, count), mutables, gradients

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


def _merge_microbatches(metrics: Mapping[str, Any], count: int) -> dict:
  """Merges metrics whose arrays are `[microbatches, …]` to those of a step."""
  merged = {}
  for name, metric in metrics.items():
    parts = (jax.tree.map(lambda x, i=i: x[i], metric) for i in range(count))
    merged[name] = functools.reduce(lambda a, b: a.merge(b), parts)
    if isinstance(metric, losses.PerStep):
      merged[name] = merged[name].replace(steps=metric.steps[0])
  return merged


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
