"""Batches from seqio tasks: the same at every step, whatever was read."""

import functools
import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from v2meow_jax import batches
from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import preprocessors
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


def test_split(make):
  batch = take(make(split='validation'), 0, 1)[0]
  assert (batch['encoder_scene'] >= 100).all()


def test_tokens_per_batch():
  assert batches.tokens_per_batch(STAGE, 3) == 3 * 50
