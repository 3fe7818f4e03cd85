"""Small TFDS records with several files in a split, written in a second."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from v2meow_jax import dataset_builder
from v2meow_jax import streams

STREAMS = ('scene', 'spectral_semantic')


def write(
  folder: pathlib.Path,
  num_clips: int = 24,
  clips_per_file: int = 6,
  seconds: float = 3.0,
  name: str = 'toy',
) -> list[pathlib.Path]:
  """Writes the splits train and validation of clips that differ in all values.

  Returns:
    The files of the split train.
  """
  rng = np.random.default_rng(0)
  path = folder / name / dataset_builder.VERSION
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=name,
      version=dataset_builder.VERSION,
      data_dir=str(path),
      module_name='',
    ),
    features=dataset_builder.features(STREAMS),
  )
  path.mkdir(parents=True)
  writer = tfds.core.SequentialWriter(
    info, max_examples_per_shard=clips_per_file
  )
  writer.initialize_splits(['train', 'validation'])
  for split, count in (('train', num_clips), ('validation', 4)):
    for number in range(count):
      clip = {
        'clip_id': f'{split}{number}',
        'text': '',
        'seconds': np.float32(seconds),
        'attributes': '{}',
      }
      for stream in STREAMS:
        spec = streams.get(stream)
        shape = spec.example_shape(spec.length(seconds))
        clip[stream] = (
          rng.integers(spec.num_codes, size=shape, dtype=np.int32)
          if spec.is_discrete
          else rng.normal(number, 0.1, shape).astype(np.float32)
        )
      writer.add_examples({split: [clip]})
  writer.close_all()
  return sorted(path.glob('*-train.*'))
