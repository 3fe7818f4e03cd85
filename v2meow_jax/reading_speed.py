"""Speed of reading batches of a stage from TFDS records, on this machine."""

from collections.abc import Sequence
import itertools
import resource
import time

import gin

from v2meow_jax import configs
from v2meow_jax import training_steps

# Batches that nothing is measured of: files are opened, buffers filled.
_WARM_UP = 2
# Splits with fewer examples seqio keeps in memory.
_FEW = 10_000


def measure(
  stage: str,
  dataset: str,
  data_dir: str | None,
  batch_size: int,
  steps: int,
  gin_files: Sequence[str] = (),
  bindings: Sequence[str] = (),
) -> dict:
  """Times the batches that a training on records would get.

  Args:
    stage: a file of gin/stages; its streams are the paper's.
    dataset: name and version of a TFDS dataset that holds them.
    data_dir: folder of the records; TFDS's own if None.
    batch_size: examples of a batch.
    steps: batches to time, behind those of the warm-up.
    gin_files: further files, behind those of the recipe.
    bindings: lines of gin, behind all files.

  Returns:
    What was measured; CPU seconds are those of all threads. `kept_in_memory`
    says that the split is so small that seqio reads it once and keeps it: then
    the rate is not one of reading.

  Raises:
    UserError: there is no such stage, or the records cannot be read.
  """
  values = {
    **training_steps.GEOMETRY,
    'DATASET': dataset,
    'DATA_DIR': data_dir,
    'BATCH_SIZE': batch_size,
    'TRAIN_STEPS': steps,
    'STYLE_DROPOUT': 0.1,
    'VISUAL_DROPOUT': 0.0,
    'MODEL_DIR': '',
  }
  try:
    configs.parse(
      [
        'sizes/tiny.gin',  # the network is not made
        training_steps.choose('stages', 'stage', stage),
        'datasets/records.gin',
        'runs/train.gin',
        *gin_files,
      ],
      [*(f'{name} = {value!r}' for name, value in values.items()), *bindings],
      root='train.train',
    )
    make = gin.get_bindings('train.train')['batches']
    data = make(split='train', batch_size=batch_size, seed=0)
  finally:
    gin.clear_config()
  iterator = data.iterator(0)
  for _ in range(_WARM_UP):
    next(iterator)
  start, start_cpu = time.perf_counter(), _cpu_seconds()
  for batch in itertools.islice(iterator, steps):
    size = sum(array.nbytes for array in batch.values())
  seconds = time.perf_counter() - start
  cpu_seconds = _cpu_seconds() - start_cpu
  iterator.close()
  examples = steps * batch_size
  return {
    'steps': steps,
    'kept_in_memory': data.num_examples < _FEW,
    'batch_bytes': size,
    'seconds': seconds,
    'examples_per_second': examples / seconds,
    'cpu_seconds_per_example': cpu_seconds / examples,
  }


def _cpu_seconds() -> float:
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime
