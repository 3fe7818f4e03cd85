"""Batches from seqio tasks: the road of records to the training loop."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from v2meow_jax import hosts
from v2meow_jax import records
from v2meow_jax import stages

# Examples of a pass at least, and the batches that they may be: to start a pass
# takes seconds, and so does to skip to the end of one (600 examples/s on two
# busy cores).
_EXAMPLES_PER_PASS = 16384
_STEPS_PER_PASS = (32, 500)


def tokens_per_batch(stage: stages.Stage, batch_size: int) -> int:
  """Tokens of a full batch: what a summed loss is divided by."""
  return stage.target_length * batch_size


class SeqioDataset:
  """Batches of one split of a seqio task or mixture.

  Step `n` of the same seed is the same batch, whatever was read before: the
  data is read in passes, each shuffled with a seed of its own, so that to go
  on at a step costs at most one pass. A pass is an epoch; of a large dataset
  it is a group of its files, and an epoch is all groups in random order. Small
  ones are read several times in a pass. Which examples are in a batch follows
  from how many parts the data is read in: `shard.count`. seqio and TensorFlow
  are imported when the first batch is asked for.
  """

  def __init__(
    self,
    mixture_or_task_name: str,
    model: Any,
    split: str = 'train',
    batch_size: int = 8,
    seed: int = 0,
    task_feature_lengths: Mapping[str, int] | None = None,
    steps_per_pass: int | None = None,
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
      steps_per_pass: batches of a pass at least; at most twice as many if
        the split has enough files. By default about 16,000 examples, 500
        batches at most.
      use_cached: whether to read a task that `seqio_cache_tasks` wrote.
      shard: the part of the data to read; all of it by default.
    """
    self._name = mixture_or_task_name
    self._model = model
    self._split = split
    self._batch_size = batch_size
    self._seed = seed
    self._lengths = task_feature_lengths or model.stage.task_feature_lengths()
    few, many = _STEPS_PER_PASS
    self._steps_per_pass = steps_per_pass or min(
      max(_EXAMPLES_PER_PASS // batch_size, few), many
    )
    self._use_cached = use_cached
    self._shard = shard or hosts.Shard()

  @property
  def num_examples(self) -> int:
    """Examples of the split; 0 where that is not known."""
    import seqio

    provider = seqio.get_mixture_or_task(self._name)
    return provider.num_input_examples(self._split) or 0

  def iterator(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches from step `start_step` on, without end.

    Raises:
      UserError: a file of the records is missing or damaged.
    """
    import tensorflow as tf

    damage = tf.errors.OpError  # by name: modules may be gone at the very end
    records.check_streams(self._name, self._model.stage)
    records.check_sizes(self._name, self._split)
    steps, groups = self._layout()
    number, skip = divmod(start_step, steps)
    while True:
      try:
        dataset = self._pass(number, groups).take(steps).skip(skip)
        yield from dataset.as_numpy_iterator()
      except damage:
        records.find_damage(self._name, self._split)
        raise  # the files are as they were
      number, skip = number + 1, 0

  def _layout(self) -> tuple[int, int]:
    """Returns steps of a pass, and groups of files that an epoch is cut in."""
    import seqio

    provider = seqio.get_mixture_or_task(self._name)
    epoch = -(-self.num_examples // self._batch_size)
    groups = 1
    # Of a mixture, an epoch is not defined; cached files are seqio's own.
    if isinstance(provider, seqio.Task) and not self._use_cached:
      files = len(provider.source.list_shards(self._split))
      groups = min(files // self._shard.count, epoch // self._steps_per_pass)
      groups = max(groups, 1)
    return max(-(-epoch // groups), self._steps_per_pass), groups

  def _pass(self, number: int, groups: int):
    import seqio

    # Any function of both that gives other numbers for other passes.
    seed = int(np.random.default_rng([self._seed, number]).integers(2**31))
    epoch, place = divmod(number, groups)
    order = np.random.default_rng([self._seed, epoch, groups])
    group = int(order.permutation(groups)[place])
    return seqio.get_dataset(
      self._name,
      self._lengths,
      dataset_split=self._split,
      shuffle=True,
      num_epochs=None,
      feature_converter=self._model.FEATURE_CONVERTER_CLS(pack=False),
      shard_info=seqio.ShardInfo(
        group * self._shard.count + self._shard.index,
        groups * self._shard.count,
      ),
      use_cached=self._use_cached,
      seed=seed,
      batch_size=self._batch_size // self._shard.count,
    )
