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


def test_sounds_are_read_back(tmp_path):
  import tensorflow as tf

  writer = events.EventWriter(tmp_path)
  wave = np.array([0.0, 0.5, -0.25, 2.0], np.float32)
  writer.write_audio(7, {'sample/0': wave, 'target/0': wave[:2]}, 16000)
  writer.close()
  (path,) = tmp_path.iterdir()
  *_, record = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  event = tf.compat.v1.Event.FromString(record)
  assert event.step == 7
  found = event.summary.value
  assert [value.tag for value in found] == ['sample/0', 'target/0']
  audio = found[0].audio
  assert (audio.sample_rate, audio.num_channels) == (16000, 1)
  assert (audio.length_frames, audio.content_type) == (4, 'audio/wav')
  decoded, rate = tf.audio.decode_wav(audio.encoded_audio_string)
  assert rate == 16000
  np.testing.assert_allclose(  # 16 bits; what is too loud is cut off
    decoded[:, 0], [0.0, 0.5, -0.25, 1.0], atol=1 / 2**15
  )


def test_runs_of_one_second_have_files_of_their_own(tmp_path):
  for _ in range(3):
    events.EventWriter(tmp_path).close()
  assert len(list(tmp_path.iterdir())) == 3
