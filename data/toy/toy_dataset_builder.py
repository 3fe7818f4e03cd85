"""The toy dataset: procedural scenes with music that follows them.

`tfds build data/toy` makes it with the codec and the tokenizer of the bundled
model. Another number of clips, or other weights:

  tfds build data/toy --config '{"name": "small", "num_clips": 40}'

`v2meow prepare --toy N` makes the same clips from the same seed.
"""

import dataclasses

import tensorflow_datasets as tfds

from v2meow_jax import dataset_builder
from v2meow_jax import extraction
from v2meow_jax import sources


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """One toy dataset.

  Attributes:
    num_clips: of every 20 in a row, 18 train, one validates and one tests.
    seed: of all clips.
    seconds: length of a clip.
    renderer: 'fluidsynth' (needs FluidSynth and a General MIDI soundfont) or
      'numpy' (needs nothing).
    streams: what is in a record.
    model: name or folder of the model whose codec and tokenizer are used.
    codec: path of other weights of the codec.
    tokenizer: path of other weights of the tokenizer.
    gin_files: files that name the extractors.
    processes: how many clips are worked on at once.
  """

  num_clips: int = 1500
  seed: int = 0
  seconds: float = 16.0
  renderer: str = 'fluidsynth'
  streams: tuple[str, ...] = extraction.STREAMS
  model: str = 'bundled'
  codec: str | None = None
  tokenizer: str | None = None
  gin_files: tuple[str, ...] = extraction.GIN_FILES
  processes: int = 1


class Toy(dataset_builder.DatasetBuilder):
  """Animated scenes that share tempo, mode, energy and style with music."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  builder_config_cls = Config
  BUILDER_CONFIGS = [
    Config(name='default', description='What the bundled model learnt from.'),
    Config(
      name='numpy',
      description='The same music from a synthesiser in NumPy.',
      renderer='numpy',
    ),
  ]

  @property
  def processes(self):
    return self.builder_config.processes

  def clips(self):
    config = self.builder_config
    return [
      sources.ToySource(i, config.seed, config.seconds, config.renderer)
      for i in range(config.num_clips)
    ]

  def plan(self):
    config = self.builder_config
    return extraction.make_plan(
      config.streams,
      config.model,
      config.codec,
      config.tokenizer,
      config.gin_files,
    )
