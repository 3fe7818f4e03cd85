"""Batches from seqio tasks: the road of records to the training loop."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from v2meow_jax import hosts
from v2meow_jax import stages


def tokens_per_batch(stage: stages.Stage, batch_size: int) -> int:
  """Tokens of a full batch: what a summed loss is divided by."""
  return stage.target_length * batch_size


class SeqioDataset:
  """Batches of one split of a seqio task or mixture.

  Step `n` of the same seed is the same batch, whatever was read before: the
  data is read in passes of `steps_per_pass` batches, each shuffled with a seed
  of its own, so that to go on at a step costs at most one pass. Which examples
  are in a batch follows from how many parts the data is read in: `shard.count`.
  seqio and TensorFlow are imported when the first batch is asked for.
  """

  def __init__(
    self,
    mixture_or_task_name: str,
    model: Any,
    split: str = 'train',
    batch_size: int = 8,
    seed: int = 0,
    task_feature_lengths: Mapping[str, int] | None = None,
    steps_per_pass: int = 500,
    use_cached: bool = False,
    shard: hosts.Shard | None = None,
  ):
    """Notes what to read.

    Args:
      mixture_or_task_name: name of a registered task or mixture.
      model: its FEATURE_CONVERTER_CLS makes model features; its stage gives
        the lengths.
      split: split to read.
      batch_size: examples in a batch, over all processes.
      seed: decides order, crops and dropped styles.
      task_feature_lengths: lengths of the task's features; those of the
        model's stage by default.
      steps_per_pass: batches between two shuffles with a new seed.
      use_cached: whether to read a task that `seqio_cache_tasks` wrote.
      shard: the part of the data to read; all of it by default.
    """
    self._name = mixture_or_task_name
    self._model = model
    self._split = split
    self._batch_size = batch_size
    self._seed = seed
    self._lengths = task_feature_lengths or model.stage.task_feature_lengths()
    self._steps_per_pass = steps_per_pass
    self._use_cached = use_cached
    self._shard = shard or hosts.Shard()

  def iterator(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches from step `start_step` on, without end."""
    number, skip = divmod(start_step, self._steps_per_pass)
    while True:
      dataset = self._pass(number).take(self._steps_per_pass).skip(skip)
      yield from dataset.as_numpy_iterator()
      number, skip = number + 1, 0

  def _pass(self, number: int):
    import seqio

    # Any function of both that gives other numbers for other passes.
    seed = int(np.random.default_rng([self._seed, number]).integers(2**31))
    return seqio.get_dataset(
      self._name,
      self._lengths,
      dataset_split=self._split,
      shuffle=True,
      num_epochs=None,
      feature_converter=self._model.FEATURE_CONVERTER_CLS(pack=False),
      shard_info=seqio.ShardInfo(self._shard.index, self._shard.count),
      use_cached=self._use_cached,
      seed=seed,
      batch_size=self._batch_size // self._shard.count,
    )
