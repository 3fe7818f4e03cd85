"""Batches from seqio tasks: the same at every step, whatever was read."""

import functools
import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from tests import records as toy_records
from v2meow_jax import batches
from v2meow_jax import errors
from v2meow_jax import hosts
from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import preprocessors
from v2meow_jax import records
from v2meow_jax import stages
from v2meow_jax import tasks

STAGE = stages.make(
  'semantic',
  visual=('scene',),
  semantic='spectral_semantic',
  seconds=2.0,
)
SCENE = STAGE.inputs[0].spec
NUM_CLIPS = 7


def clips(split, shuffle_files=False, seed=None):
  """Clips of 4 s whose value is their number, plus 100 on validation."""
  del shuffle_files, seed
  numbers = np.arange(NUM_CLIPS) + {'train': 0, 'validation': 100}[split]
  return tf.data.Dataset.from_tensor_slices(
    {
      'clip_id': numbers.astype(str),
      'scene': np.broadcast_to(
        numbers[:, None, None], (NUM_CLIPS, 40, SCENE.num_features)
      ).astype(np.float32),
      'spectral_semantic': np.broadcast_to(
        np.arange(100)[:, None], (NUM_CLIPS, 100, 1)
      ).astype(np.int32),
    }
  )


@pytest.fixture
def make():
  name = 'test_batches'
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(clips, splits=['train', 'validation']),
    preprocessors=[
      functools.partial(preprocessors.select, stage=STAGE),
      functools.partial(preprocessors.crop, stage=STAGE),
      functools.partial(preprocessors.flatten, stage=STAGE),
    ],
    output_features=tasks.output_features(STAGE),
  )
  model = models.StageModel(STAGE, network.Config())
  yield functools.partial(
    batches.SeqioDataset, name, model, batch_size=2, steps_per_pass=4
  )
  seqio.TaskRegistry.remove(name)


def take(dataset, start, count):
  return list(itertools.islice(dataset.iterator(start), count))


def assert_same(a, b):
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])


def test_every_step_is_the_same_batch(make):
  whole = take(make(seed=1), 0, 10)
  for start in (0, 3, 4, 6, 9):
    assert_same(whole[start:], take(make(seed=1), start, 10 - start))


def test_batches_have_the_shapes_that_the_model_wants(make):
  (batch,) = take(make(), 0, 1)
  shapes = models.StageModel(STAGE, network.Config()).feature_shapes(2)
  assert {name: batch[name].shape for name in shapes} == shapes


def test_passes_and_seeds_differ(make):
  first, second = take(make(seed=1), 0, 4), take(make(seed=1), 4, 4)
  other = take(make(seed=2), 0, 4)
  read = lambda batches_: np.concatenate(
    [b['encoder_scene'][:, 0, 0] for b in batches_]
  )
  starts = lambda batches_: np.concatenate(
    [b['decoder_target_tokens'][:, 0] for b in batches_]
  )
  assert (read(first) != read(second)).any()
  assert (read(first) != read(other)).any()
  assert len(set(starts(first))) > 2  # crops are random


def test_parts_share_out_the_clips(make):
  parts = []
  for process in range(2):
    shard = hosts.make_shard(np.array([[0], [1]]), process)
    # Enough batches to read all clips of a part.
    parts.append(take(make(shard=shard, batch_size=4), 0, 4))
    assert len(parts[-1][0]['decoder_target_tokens']) == 2
  clips_ = [
    {int(x) for b in part for x in b['encoder_scene'][:, 0, 0]}
    for part in parts
  ]
  assert not clips_[0] & clips_[1]
  assert clips_[0] | clips_[1] == set(range(NUM_CLIPS))


def test_split(make):
  batch = take(make(split='validation'), 0, 1)[0]
  assert (batch['encoder_scene'] >= 100).all()


def test_tokens_per_batch():
  assert batches.tokens_per_batch(STAGE, 3) == 3 * 50


@pytest.fixture
def recorded(tmp_path):
  """24 clips in 4 files, and what makes batches of 2 of them."""
  paths = toy_records.write(tmp_path)
  name = tasks.register('toy:1.0.0', STAGE, str(tmp_path))
  model = models.StageModel(STAGE, network.Config())
  yield (
    name,
    paths,
    functools.partial(
      batches.SeqioDataset, name, model, batch_size=2, steps_per_pass=3
    ),
  )
  seqio.TaskRegistry.remove(name)


def test_records_are_parsed_for_what_the_stage_sees(recorded):
  source = seqio.get_mixture_or_task(recorded[0]).source
  assert {'text', 'seconds'} < set(source.tfds_dataset.builder.info.features)
  read = source.get_dataset('train', shuffle=False).element_spec
  assert set(read) == {'clip_id', 'scene', 'spectral_semantic'}


def test_records_are_read_in_groups_of_files(recorded):
  _, paths, make = recorded
  whole = take(make(seed=1), 0, 12)
  # A clip's scene is around its number; 6 clips are in a file.
  numbers = [np.round(b['encoder_scene'].mean(axis=(1, 2))) for b in whole]
  files = [set((n // 6).astype(int)) for n in numbers]
  passes = [set.union(*files[start : start + 3]) for start in (0, 3, 6, 9)]
  # An epoch is each file once, though in a pass a clip may come twice.
  assert sorted(map(tuple, passes)) == [(0,), (1,), (2,), (3,)]
  for start in (2, 4):  # files are read in parallel, and in the same order
    assert_same(whole[start:8], take(make(seed=1), start, 8 - start))
  # Small data is read several times before it is shuffled anew.
  assert make(seed=1, batch_size=16)._layout() == (3, 1)
  assert make(steps_per_pass=100)._layout() == (100, 1)
  assert make(steps_per_pass=2)._layout() == (3, 4)
  assert make(steps_per_pass=5)._layout() == (6, 2)
  # By default to skip to the end of a pass takes no longer than it must.
  layout = lambda size: make(steps_per_pass=None, batch_size=size)._layout()
  assert [layout(n) for n in (8, 64, 2048)] == [(500, 1), (256, 1), (32, 1)]


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  'damage, message',
  [
    (lambda p: p.write_bytes(p.read_bytes()[:-1]), 'is damaged at record 6 of'),
    (lambda p: p.write_bytes(b''), 'has 0 records, not'),
    (lambda p: p.unlink(), 'is missing'),
  ],
)
def test_size_of_records_is_checked_first(recorded, damage, message):
  name, paths, _ = recorded
  records.check_sizes(name, 'train')
  damage(paths[2])
  with pytest.raises(errors.UserError) as error:
    records.check_sizes(name, 'train')
  assert str(error.value).startswith(f'{paths[2]}: {message}')
  records.check_sizes(name, 'validation')


def test_record_whose_bytes_have_changed(recorded):
  _, paths, make = recorded
  _flip(paths[1])
  dataset = make()
  with pytest.raises(errors.UserError) as error:
    take(dataset, 0, 13)
  assert str(error.value) == (
    f'{paths[1]}: is damaged at record 3 of 6, expected the file as TFDS wrote '
    'it. Copy it again, or build the dataset again; training then goes on '
    'from its newest checkpoint.'
  )
