"""TFDS: the feature spec follows from streams.py; a tiny toy is built."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from v2meow_jax import dataset_builder
from v2meow_jax import errors
from v2meow_jax import extraction
from v2meow_jax import streams

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_features_follow_from_the_table_of_streams():
  spec = dataset_builder.features(list(streams.STREAMS))
  for name, row in streams.STREAMS.items():
    assert spec[name].shape == row.example_shape()
    expected = np.int32 if row.is_discrete else np.float32
    assert spec[name].np_dtype == expected
  assert set(spec) == {
      'clip_id', 'text', 'seconds', 'attributes', *streams.STREAMS
  }  # fmt: skip


def test_a_name_that_tfds_does_not_take(tmp_path):
  plan = extraction.Plan(('caption',))
  with pytest.raises(errors.UserError, match='Dataset name `My-Clips`'):
    dataset_builder.write('My-Clips', [], plan, tmp_path, tmp_path)


def test_tfds_builds_the_toy(tmp_path):
  config = {
    'name': 'tiny',
    'num_clips': 20,
    'seconds': 0.5,
    'renderer': 'numpy',
    'streams': ['caption', 'scene'],
  }
  # What `tfds build` runs. The command itself imports apache_beam, which only
  # its other subcommands need.
  code = (
    'from absl import app\n'
    'from tensorflow_datasets.scripts.cli import build, cli_utils\n'
    'parse = cli_utils.make_flags_parser(build.Args, description="build")\n'
    'app.run(lambda args: args.execute(), flags_parser=parse)'
  )
  subprocess.run(
      [
          sys.executable, '-c', code, 'data/toy', f'--data_dir={tmp_path}',
          f'--config={json.dumps(config)}',
      ],
      cwd=ROOT, check=True, capture_output=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )  # fmt: skip
  builder = tfds.builder_from_directory(tmp_path / 'toy' / 'tiny' / '1.0.0')
  assert {k: v.num_examples for k, v in builder.info.splits.items()} == {
      'train': 18, 'validation': 1, 'test': 1
  }  # fmt: skip
  (example,) = tfds.as_numpy(builder.as_dataset('test'))
  assert example['clip_id'] == b'toy_000019'
  assert example['scene'].shape == (5, 64)
  assert example['caption'].shape == (32,)
  assert np.abs(example['caption']).max() > 0
  assert example['seconds'] == 0.5
  assert len(example['text']) > 5
  attributes = json.loads(example['attributes'])
  assert 75 <= attributes['tempo_bpm'] <= 150
  # Float32 goes through TFRecord bit for bit.
  part = extraction.read_part(tmp_path / 'toy_parts' / 'tiny', 'toy_000019')
  np.testing.assert_array_equal(example['scene'], part.arrays['scene'])
