"""Crops of audio files: a batch is a function of its number."""

import functools
import re

import numpy as np
import pytest
import soundfile

from v2meow_jax import crops
from v2meow_jax import errors
from v2meow_jax import hosts


@pytest.fixture
def manifest(tmp_path, rng):
  """Two short files, of which the second is validation."""
  for name, value in (('a', 0.1), ('b', 0.2), ('c', 0.3)):
    samples = np.full((16000, 2), value) * [1, 0]  # stereo
    soundfile.write(tmp_path / f'{name}.wav', samples, 16000)
  path = tmp_path / 'audio.csv'
  path.write_text(
    'clip_id,file,start_seconds,end_seconds,split\n'
    'a,a.wav,0.25,1,train\nb,b.wav,0,,validation\nc,c.wav,0,.2,train\n'
  )
  return path


def test_crops_are_the_files_own_and_resume_exactly(manifest):
  make = functools.partial(
    crops.CropDataset,
    [manifest],
    'spectral',
    0.4,
    batch_size=64,
    seed=1,
    gain_db=(0.0, 0.0),
  )
  dataset = make(split='train')
  batch = next(dataset.iterator(0))['waveform']
  assert batch.shape == (64, 6400)
  # Means of the two channels: a is whole, c is 0.2 s and then silence.
  is_a = np.isclose(batch, 0.05, atol=1e-4).all(axis=1)
  is_c = np.isclose(batch[:, :3200], 0.15, atol=1e-4).all(axis=1)
  assert (is_a | is_c).all()
  assert (batch[is_c, 3200:] == 0).all()
  assert 0.55 < is_a.mean() < 0.95  # by length: 0.75 of 0.95 s
  later = dataset.iterator(0)
  for _ in range(3):
    expected = next(later)
  np.testing.assert_array_equal(
    expected['waveform'], next(make(split='train').iterator(2))['waveform']
  )
  validation = next(make(split='validation').iterator(0))['waveform']
  np.testing.assert_allclose(validation, 0.1, atol=1e-4)


def test_parts_are_those_of_the_whole_batch(manifest):
  make = functools.partial(
    crops.CropDataset, [manifest], 'spectral', 0.4, 'train', 8, seed=1
  )
  whole = make().batch(3)['waveform']
  assert len({row.tobytes() for row in whole}) == 8
  for process in range(2):
    shard = hosts.make_shard(np.array([[0], [1], [1], [0]]), process)
    part = make(shard=shard).batch(3)['waveform']
    rows = [[0, 1, 6, 7], [2, 3, 4, 5]][process]
    np.testing.assert_array_equal(part, whole[rows])


def test_crops_name_what_is_wrong(manifest):
  make = functools.partial(
    crops.CropDataset, [manifest], 'spectral', 0.4, batch_size=2
  )
  with pytest.raises(errors.UserError, match='no audio of split `test`'):
    make(split='test')
  soundfile.write(manifest.parent / 'a.wav', np.zeros(100), 8000)
  with pytest.raises(errors.UserError, match='8000 Hz, expected 16000 Hz'):
    make(split='train')
  sound = np.zeros(16000, np.float32)
  sound[9000] = np.nan
  path = manifest.parent / 'a.wav'
  soundfile.write(path, sound, 16000, subtype='FLOAT')
  with pytest.raises(errors.UserError) as error:
    make(split='train').batch(0)
  assert re.fullmatch(
    rf'{path}: samples \d+ to \d+ hold NaN or infinity, expected numbers. '
    'Repair the file or take it out of the manifest.',
    str(error.value),
  )
  path.unlink()
  with pytest.raises(errors.UserError, match='cannot read the audio'):
    make(split='train')


def test_crops_bring_what_their_row_says(manifest):
  rows = manifest.read_text().replace('split\n', 'split,caption\n', 1)
  rows = rows.replace('1,train', '1,train,one').replace('.2,train', '.2,train,')
  manifest.write_text(rows)
  length = lambda clip: {'length': np.array(len(clip.caption), np.int32)}
  make = functools.partial(
    crops.CropDataset, [manifest], 'spectral', 0.4, 'train', 16, seed=1
  )
  batch = make(annotate=length, gain_db=(0.0, 0.0)).batch(0)
  is_a = np.isclose(batch['waveform'][:, 0], 0.05, atol=1e-4)
  assert 0 < is_a.sum() < 16
  np.testing.assert_array_equal(batch['length'], np.where(is_a, 3, 0))
  # The crops are those that come without.
  plain = make(gain_db=(0.0, 0.0)).batch(0)
  assert plain.keys() == {'waveform'}
  np.testing.assert_array_equal(plain['waveform'], batch['waveform'])
