"""TensorBoard files, read back by TensorFlow."""

import numpy as np

from v2meow_jax import events


def test_tensorflow_reads_what_was_written(tmp_path):
  import tensorflow as tf

  before = events.EventWriter(tmp_path)
  before.write_scalars(1, {'loss': 3.0})
  before.close()
  writer = events.EventWriter(tmp_path / 'train', step=300)
  writer.write_scalars(301, {'loss': 1.25, 'accuracy/level_0': -2e-8})
  writer.write_scalars(2**40, {'loss': float('inf'), 'é': 0.1})
  writer.close()
  (path,) = (tmp_path / 'train').glob('events.out.tfevents.*')
  # The reader checks the checksums.
  records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  found = [tf.compat.v1.Event.FromString(record) for record in records]
  assert found[0].file_version == 'brain.Event:2'
  assert found[1].session_log.status == tf.compat.v1.SessionLog.START
  assert [event.step for event in found[1:]] == [301, 301, 2**40]
  times = [event.wall_time for event in found]
  assert times == sorted(times)
  scalars = [
    {value.tag: value.simple_value for value in event.summary.value}
    for event in found[2:]
  ]
  assert scalars == [
    {'loss': 1.25, 'accuracy/level_0': float(np.float32(-2e-8))},
    {'loss': float('inf'), 'é': float(np.float32(0.1))},
  ]


def test_runs_of_one_second_have_files_of_their_own(tmp_path):
  for _ in range(3):
    events.EventWriter(tmp_path).close()
  assert len(list(tmp_path.iterdir())) == 3
