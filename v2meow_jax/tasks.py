"""seqio tasks: one for each dataset and stage, added from gin.

`register` is called where gin names MIXTURE_OR_TASK_NAME:

  MIXTURE_OR_TASK_NAME = @tasks.register()
  tasks.register:
    dataset = 'toy:1.0.0'
    stage = %STAGE
"""

import functools
import threading

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from v2meow_jax import preprocessors
from v2meow_jax import stages
from v2meow_jax import task_metrics

_lock = threading.Lock()


class TokenVocabulary(seqio.Vocabulary):
  """Ids of a stage as seqio and T5X want them.

  Tokens are never text. There is no EOS in a sequence of fixed length, and
  seqio must not cut one where it happens to meet id 1.

  Attributes:
    size: number of ids.
  """

  def __init__(self, size: int):
    """Makes the vocabulary of `stages.Stage.vocab_size` ids."""
    super().__init__()
    self.size = size

  @property
  def bos_id(self):
    return 0

  @property
  def eos_id(self):
    return None

  @property
  def unk_id(self):
    return None

  @property
  def _base_vocab_size(self):
    return self.size

  def _encode(self, s):
    return s

  def _decode(self, ids):
    return ids

  def _encode_tf(self, s):
    return s

  def _decode_tf(self, ids):
    return ids

  def __eq__(self, other):
    # T5X compares the model's vocabulary with the task's.
    return isinstance(other, TokenVocabulary) and self.size == other.size

  def __hash__(self):
    return hash((TokenVocabulary, self.size))

  def __str__(self):
    return f'TokenVocabulary(size={self.size})'


def output_features(stage: stages.Stage) -> dict[str, seqio.Feature]:
  """Returns the task features of a stage as seqio describes them."""
  tokens = seqio.Feature(
    TokenVocabulary(stage.vocab_size), add_eos=False, dtype=tf.int32
  )
  features = {}
  for view in stage.inputs:
    features[view.name] = (
      tokens
      if view.spec.is_discrete
      else seqio.ContinuousFeature(
        dtype=tf.float32, rank=2 if view.spec.is_timed else 1
      )
    )
  features[preprocessors.TARGETS] = tokens
  return features


def feature_lengths(stage: stages.Stage) -> dict[str, int]:
  """Returns the lengths of a crop's features, T5X's TASK_FEATURE_LENGTHS."""
  return stage.task_feature_lengths()


def task_name(dataset: str, stage: stages.Stage) -> str:
  """Returns the name of a task, spelt out: dataset, stage, inputs, target.

  `toy.semantic.scene.caption.spectral_semantic` is stage 1 of the toy dataset
  on scenes and captions. A stream of which only some levels are seen carries
  them: `toy.fine.spectral_0_3.spectral_4_11`.
  """

  def name(view):
    if view.num_levels == view.spec.num_levels:
      return view.name
    last = view.first_level + view.num_levels - 1
    return f'{view.name}_{view.first_level}_{last}'

  dataset = dataset.split(':')[0].replace('/', '_')
  views = (*stage.inputs, stage.target)
  return '.'.join([dataset, stage.name, *map(name, views)])


def register(
  dataset: str,
  stage: stages.Stage,
  data_dir: str | None = None,
  style_dropout: float = 0.0,
  visual_dropout: float = 0.0,
) -> str:
  """Adds the seqio task of a stage on a dataset; once, however often called.

  Args:
    dataset: name and version of a TFDS dataset: 'toy:1.0.0'.
    stage: what is an input and what a target, and how long a crop is.
    data_dir: folder that holds the dataset; TFDS's own by default.
    style_dropout: share of the examples whose once-per-clip streams are
      masked, so that the model can do without.
    visual_dropout: share whose visual streams are masked, all at once.

  Returns:
    The name of the task.

  Raises:
    ValueError: the name is taken by a task with other settings.
  """
  name = task_name(dataset, stage)
  if style_dropout:
    name += f'.drop_{round(100 * style_dropout)}'
  if visual_dropout:
    name += f'.drop_visual_{round(100 * visual_dropout)}'
  settings = (dataset, stage, data_dir, style_dropout, visual_dropout)
  with _lock:
    if name in _settings and name in seqio.TaskRegistry.names():
      if _settings[name] != settings:
        raise ValueError(
          f'Task `{name}` is registered with {_settings[name]}, expected '
          f'the same again, not {settings}. Use one of them per process.'
        )
      return name
    steps = [
      functools.partial(preprocessors.select, stage=stage),
      seqio.CacheDatasetPlaceholder(),  # deterministic above, random below
      functools.partial(preprocessors.crop, stage=stage),
      functools.partial(preprocessors.flatten, stage=stage),
    ]
    if style_dropout or visual_dropout:
      steps.append(
        functools.partial(
          preprocessors.drop_conditions,
          stage=stage,
          visual_rate=visual_dropout,
          style_rate=style_dropout,
        )
      )
    seqio.TaskRegistry.add(
      name,
      source=seqio.TfdsDataSource(
        tfds_name=dataset,
        tfds_data_dir=data_dir,
        # A record holds all streams: parse what the stage sees.
        decoders=tfds.decode.PartialDecoding(
          preprocessors.record_features(stage)
        ),
      ),
      preprocessors=steps,
      output_features=output_features(stage),
      metric_fns=task_metrics.metric_fns(stage),
    )
    _settings[name] = settings
  return name


_settings: dict[str, tuple] = {}  # of the tasks that `register` has added
