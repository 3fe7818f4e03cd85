"""Batches of this project's own roads, in the shape that T5X's drivers ask for.

gin/t5x/train.gin binds both functions, so that T5X trains on what BATCHES of
gin/datasets reads (records or arrays), in the same order as this project's own
runner, and goes on at the step of the newest checkpoint, whoever wrote it.
Nothing here imports T5X; it calls with its `DatasetConfig`, of which only
`split`, `batch_size` and `seed` are read.
"""

from collections.abc import Callable, Iterator, Mapping
import itertools
import os
from typing import Any

from absl import logging
from clu.data import dataset_iterator
import jax
import numpy as np

from v2meow_jax import checkpoints
from v2meow_jax import errors
from v2meow_jax import trainer

Batch = Mapping[str, np.ndarray]


class TrainBatches(dataset_iterator.DatasetIterator):
  """Training batches from a step on.

  Step `n` of a seed is always the same batch: where to go on follows from the
  step alone and is not part of a checkpoint.
  """

  def __init__(self, data: Any, step: int):
    """Opens the batches.

    Args:
      data: an object with `iterator(start_step)`, see `train.train`.
      step: the first step.
    """
    self._data = data
    self._step = step
    self._iterator = None
    self._spec = None
    self.reset()

  def __next__(self) -> Batch:
    return next(self._iterator)

  def reset(self) -> None:
    """Goes back to the first step."""
    iterator = map(trainer.numeric, self._data.iterator(self._step))
    first = next(iterator)
    self._spec = _spec(first)
    self._iterator = itertools.chain([first], iterator)

  @property
  def element_spec(self) -> dict[str, dataset_iterator.ArraySpec]:
    return self._spec

  def save(self, filename: os.PathLike) -> None:
    """There is nothing to save."""

  def restore(self, filename: os.PathLike) -> None:
    """There is nothing to restore: `train_batches` knows the step."""


class EvalBatches:
  """The first batches of a split, always the same ones, kept in memory.

  Attributes:
    element_spec: dtype and shape of each model feature.
  """

  def __init__(self, data: Any, num_steps: int):
    """Reads `num_steps` batches of `data`, see `TrainBatches`."""
    batches = itertools.islice(data.iterator(0), num_steps)
    self._batches = [trainer.numeric(batch) for batch in batches]
    self.element_spec = _spec(self._batches[0])

  def __iter__(self) -> Iterator[Batch]:
    return iter(self._batches)


def train_batches(
  cfg: Any,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable,
  *,
  batches: Callable[..., Any],
  model_dir: str,
) -> TrainBatches:
  """T5X's `get_dataset_fn`.

  Args:
    cfg: T5X's `DatasetConfig` of the training split.
    shard_id: which shard of the data this process reads.
    num_shards: how many there are.
    feature_converter_cls: unused; `batches` yields model features.
    batches: as in `train.train`.
    model_dir: folder of the checkpoints.

  Raises:
    UserError: T5X's mesh asks for other shards than one for each process.
  """
  del feature_converter_cls
  data = _open(cfg, shard_id, num_shards, batches)
  step = checkpoints.newest_step(model_dir)
  logging.info('Training batches start at step %d.', step)
  return TrainBatches(data, step)


def eval_batches(
  cfg: Any,
  shard_id: int,
  num_shards: int,
  eval_steps: int,
  feature_converter_cls: Callable,
  *,
  batches: Callable[..., Any],
) -> dict[str, EvalBatches]:
  """T5X's `train_eval_get_dataset_fn`: the split's name to its batches.

  Args:
    cfg: T5X's `DatasetConfig` of the split.
    shard_id: which shard of the data this process reads.
    num_shards: how many there are.
    eval_steps: batches of one evaluation.
    feature_converter_cls: unused; `batches` yields model features.
    batches: as in `train.train`.

  Raises:
    UserError: T5X's mesh asks for other shards than one for each process.
  """
  del feature_converter_cls
  data = _open(cfg, shard_id, num_shards, batches)
  return {cfg.split: EvalBatches(data, eval_steps)}


def _open(cfg, shard_id, num_shards, batches) -> Any:
  process = (jax.process_index(), jax.process_count())
  if (shard_id, num_shards) != process:
    raise errors.UserError(
      f'T5X asks process {process[0]} of {process[1]} for shard {shard_id} of '
      f'{num_shards}, expected a shard for each process. Choose a mesh whose '
      'model axis stays inside a process (partitioning.PjitPartitioner).'
    )
  return batches(split=cfg.split, batch_size=cfg.batch_size, seed=cfg.seed)


def _spec(batch: Batch) -> dict[str, dataset_iterator.ArraySpec]:
  return {
    name: dataset_iterator.ArraySpec(array.dtype, array.shape)
    for name, array in batch.items()
  }
