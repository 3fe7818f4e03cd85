"""TFDS records behind a seqio task: whether the files are those written.

A file that lost its end at the border of two records reads without an error,
and so does an empty one: training would go on with other data. The sum of all
sizes, which TFDS has noted, tells it before the first step.
"""

from collections.abc import Iterator
import concurrent.futures
import os

from absl import logging

from v2meow_jax import errors
from v2meow_jax import stages
from v2meow_jax import streams

# TFRecord: length and two CRCs around each example.
_BYTES_AROUND = 16
_THREADS = 8


def check_sizes(name: str, split: str) -> None:
  """Compares the files of a split with what TFDS noted when it wrote them.

  Args:
    name: registered task or mixture.
    split: name of the split; parts of one (`train[:10%]`) are not checked.

  Raises:
    UserError: a file is missing or has another size; it names the file.
  """
  import tensorflow_datasets as tfds

  for data in _datasets(name):
    info = data.builder.info
    plain = info.file_format == tfds.core.file_adapters.FileFormat.TFRECORD
    if split not in info.splits or not plain:
      continue
    facts = info.splits[split]
    try:
      size = sum(os.path.getsize(path) for path in facts.filepaths)
    except FileNotFoundError as e:
      raise _error(e.filename, 'is missing') from e
    if size != int(facts.num_bytes) + _BYTES_AROUND * facts.num_examples:
      find_damage(name, split)


def check_streams(name: str, stage: stages.Stage) -> None:
  """Checks that the records hold what a stage sees.

  Args:
    name: registered task or mixture.
    stage: the stage.

  Raises:
    UserError: a stream is missing; it names the stream and what there is.
  """
  for data in _datasets(name):
    held = data.builder.info.features
    missing = sorted(
      {view.name for view in (*stage.inputs, stage.target)} - set(held)
    )
    if missing:
      found = ', '.join(sorted(set(held) & set(streams.STREAMS))) or 'none'
      raise errors.UserError(
        f'{data.builder.data_dir}: no stream {" and ".join(missing)}, which '
        f'stage `{stage.name}` needs; found {found}. Prepare the records again '
        'with --streams, or choose other files of gin/.'
      )


def find_damage(name: str, split: str) -> None:
  """Reads all records of a split.

  Raises:
    UserError: there are fewer or more than there should be, or one of them is
      damaged; it names the file.
  """
  files = [
    (file.filename, file.examples_in_shard)
    for data in _datasets(name)
    for file in data.files(split)
  ]
  logging.info('Looking for damage in %d files of records.', len(files))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for error in pool.map(lambda file: _find_damage(*file), files):
      if error is not None:
        pool.shutdown(cancel_futures=True)
        raise error


def _datasets(name: str) -> Iterator:
  """Yields the TFDS loaders of a task or of the tasks of a mixture."""
  import seqio

  provider = seqio.get_mixture_or_task(name)
  for task in getattr(provider, 'tasks', [provider]):
    if isinstance(task.source, seqio.TfdsDataSource):
      yield task.source.tfds_dataset


def _find_damage(path: str, num_expected: int) -> errors.UserError | None:
  import tensorflow as tf

  count = 0
  try:
    for _ in tf.data.TFRecordDataset(path):
      count += 1
  except tf.errors.NotFoundError:
    return _error(path, 'is missing')
  except tf.errors.OpError:
    return _error(path, f'is damaged at record {count + 1} of {num_expected}')
  if count != num_expected:
    return _error(path, f'has {count} records, not {num_expected}')
  return None


def _error(path: str, what: str) -> errors.UserError:
  return errors.UserError(
    f'{path}: {what}, expected the file as TFDS wrote it. Copy it again, or '
    'build the dataset again; training then goes on from its newest '
    'checkpoint.'
  )
