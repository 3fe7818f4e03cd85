"""The TFDS builder that every dataset of data/ subclasses.

A record holds one whole clip: its streams, and `clip_id`, `text` (the caption
in words), `seconds` and `attributes` (a JSON object). Which streams, is up to
the dataset; their shapes and types follow from streams.py. Shards, splits,
metadata and versions are those of TFDS.

This module imports TensorFlow.
"""

import abc
from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import re
import sys

import numpy as np
import tensorflow_datasets as tfds

from v2meow_jax import errors
from v2meow_jax import extraction
from v2meow_jax import manifests
from v2meow_jax import prepare
from v2meow_jax import streams

VERSION = '1.0.0'


def features(stream_names: Sequence[str]) -> tfds.features.FeaturesDict:
  """Returns the feature spec of records that hold these streams."""
  spec = {
    'clip_id': tfds.features.Text(doc='name of the clip'),
    'text': tfds.features.Text(doc='caption: the music in words'),
    'seconds': tfds.features.Scalar(np.float32, doc='length of the clip'),
    'attributes': tfds.features.Text(doc='a JSON object'),
  }
  for name in stream_names:
    row = streams.get(name)
    dtype = np.int32 if row.is_discrete else np.float32
    spec[name] = tfds.features.Tensor(shape=row.example_shape(), dtype=dtype)
  return tfds.features.FeaturesDict(spec)


class DatasetBuilder(
  tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True
):
  """Builds a dataset of clips; a subclass says which clips and streams."""

  VERSION = tfds.core.Version(VERSION)
  # How many clips are worked on at once.
  processes = 1

  @abc.abstractmethod
  def clips(self) -> Sequence[extraction.Source]:
    """Returns the clips of all splits."""

  @abc.abstractmethod
  def plan(self) -> extraction.Plan:
    """Returns which streams there are and what makes them."""

  def parts(self) -> str:
    """Returns where the streams of each clip are kept, to go on from."""
    config = self.builder_config.name if self.builder_config else ''
    return os.path.join(self.data_dir_root, f'{self.name}_parts', config)

  def make_parts(self) -> None:
    """Makes the streams of all clips that are not there yet.

    Raises:
      UserError: a clip cannot be used.
    """
    clips = self.clips()
    failures = prepare.make_parts(
      clips, self.plan(), self.parts(), self.processes
    )
    if failures:
      raise errors.UserError(
        f'{len(failures)} of {len(clips)} clips cannot be used, expected '
        'all. ' + ' '.join(failures.values())
      )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=features(self.plan().stream_names)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    self.make_parts()
    clips = self.clips()
    return {
      split: self._generate_examples(chosen)
      for split in manifests.SPLITS
      if (chosen := [s for s in clips if s.split == split])
    }

  def _generate_examples(
    self, clips: Sequence[extraction.Source]
  ) -> Iterator[tuple[str, dict]]:
    for source in clips:
      part = extraction.read_part(self.parts(), source.clip_id)
      yield (
        source.clip_id,
        {
          'clip_id': source.clip_id,
          'text': source.caption,
          'seconds': np.float32(part.seconds),
          'attributes': source.attributes,
          **part.arrays,
        },
      )


def write(
  name: str,
  clips: Sequence[extraction.Source],
  plan: extraction.Plan,
  data_dir: str | os.PathLike,
  parts: str | os.PathLike,
) -> pathlib.Path:
  """Writes clips as a TFDS dataset; an older one of that name is replaced.

  Args:
    name: of the dataset, as TFDS takes it: small letters, digits and `_`.
    clips: the clips.
    plan: which streams.
    data_dir: where datasets are; this one is in `NAME/VERSION`.
    parts: where `prepare.make_parts` has put the streams of the clips.

  Returns:
    The folder of the dataset.

  Raises:
    UserError: the name is not one that TFDS takes.
  """
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise errors.UserError(
      f'Dataset name `{name}`, expected small letters, digits and `_`, a '
      'letter first. Pass another --name.'
    )
  chosen, made, kept = list(clips), plan, str(parts)

  class Prepared(DatasetBuilder, skip_registration=True):
    """Clips of a manifest."""

    def clips(self):
      return chosen

    def plan(self):
      return made

    def parts(self):
      return kept

    def make_parts(self):
      pass  # they are there, and what could not be made is left out

  Prepared.name = name
  # Results alone go to stdout, and TFDS writes there what it does.
  with contextlib.redirect_stdout(sys.stderr):
    builder = Prepared(data_dir=str(data_dir))
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
      )
    )
  return pathlib.Path(builder.data_dir)
