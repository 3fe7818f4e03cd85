"""From a record to the task features of one crop: maps for tf.data.

A record holds whole clips (dataset_builder.py). The steps are, in order:
`select` what a stage sees, `crop` all streams at the same seconds, `flatten`
codes to ids, `drop_conditions`.
"""

from collections.abc import Iterator, Mapping
import fractions

import seqio
import tensorflow as tf

from v2meow_jax import arrays
from v2meow_jax import stages
from v2meow_jax import vocabularies

TARGETS = 'targets'
Features = Mapping[str, tf.Tensor]


def _views(stage: stages.Stage) -> Iterator[tuple[str, stages.View]]:
  """Yields the name of each task feature with what it shows."""
  for view in stage.inputs:
    yield view.name, view
  yield TARGETS, stage.target


def record_features(stage: stages.Stage) -> dict[str, bool]:
  """Names of what `select` reads of a record, as TFDS takes them."""
  names = {view.name for _, view in _views(stage)}
  return dict.fromkeys(sorted(names | {'clip_id'}), True)


@seqio.map_over_dataset
def select(features: Features, stage: stages.Stage) -> Features:
  """Keeps the streams and levels that a stage sees.

  Args:
    features: a record: streams by name, and `clip_id`.
    stage: names the streams and levels.

  Returns:
    Task features: the inputs by name and `targets`, each `[time, features]`,
    `[time, levels]` or `[features]`, and `id_pretokenized`.
  """
  selected = {'id_pretokenized': features['clip_id']}
  for name, view in _views(stage):
    stream = features[view.name]
    if view.spec.is_discrete:
      # [time, all levels] -> [time, levels]
      stream = stream[:, view.first_level : view.first_level + view.num_levels]
    selected[name] = stream
  return selected


def num_starts(lengths: Mapping[str, tf.Tensor], stage: stages.Stage):
  """Number of places on the grid at which a crop may start, at least 1.

  Args:
    lengths: int32 positions of each timed task feature by name.
    stage: the stage.

  Returns:
    int32 scalar: 1 where the clip is no longer than a crop.
  """
  grid_hz = arrays.crop_grid_hz(stage)
  free = []
  for name, view in _views(stage):
    if view.spec.is_timed:
      # floor(length / rate x grid - seconds x grid) in whole numbers.
      rate = fractions.Fraction(view.spec.rate_hz)
      step = grid_hz / rate
      crop = fractions.Fraction(stage.seconds) * grid_hz
      unit = step.denominator * crop.denominator
      free.append(
        tf.math.floordiv(
          tf.cast(lengths[name], tf.int64) * int(step * unit)
          - int(crop * unit),
          unit,
        )
      )
  return tf.cast(tf.maximum(tf.reduce_min(tf.stack(free)), 0) + 1, tf.int32)


def crop_at(features: Features, stage: stages.Stage, start) -> Features:
  """Cuts all timed streams at the same seconds.

  Args:
    features: what `select` gives.
    stage: says how long a crop is.
    start: int32 scalar, where it starts in units of the grid.

  Returns:
    The features, shorter than a crop where the clip ends.
  """
  grid_hz = arrays.crop_grid_hz(stage)
  cropped = dict(features)
  for name, view in _views(stage):
    if view.spec.is_timed:
      step = fractions.Fraction(view.spec.rate_hz) / grid_hz
      assert step.denominator == 1, 'the grid divides every rate'
      first = start * int(step)
      cropped[name] = features[name][
        first : first + view.spec.length(stage.seconds)
      ]
  return cropped


@seqio.map_over_dataset(num_seeds=1)
def crop(features: Features, seed: tf.Tensor, stage: stages.Stage) -> Features:
  """Cuts all timed streams at the same seconds, somewhere in the clip."""
  lengths = {
    name: tf.shape(features[name])[0]
    for name, view in _views(stage)
    if view.spec.is_timed
  }
  start = tf.random.stateless_uniform(
    [], seed, 0, num_starts(lengths, stage), tf.int32
  )
  return crop_at(features, stage, start)


@seqio.map_over_dataset
def flatten(features: Features, stage: stages.Stage) -> Features:
  """Turns codes `[time, levels]` to ids `[time * levels]` of the stage."""
  flat = dict(features)
  for name, view in _views(stage):
    if view.spec.is_discrete:
      offset = (
        stage.target_offset if name == TARGETS else stage.input_offset(name)
      )
      ids = features[name] + vocabularies.level_offsets(
        view.num_levels, view.level_ids, offset
      )
      # [time, levels] -> [time * levels]
      flat[name] = tf.reshape(ids, [-1])
  return flat


@seqio.map_over_dataset(num_seeds=2)
def drop_conditions(
  features: Features,
  seeds: tf.Tensor,
  stage: stages.Stage,
  visual_rate: float,
  style_rate: float,
) -> Features:
  """Takes the picture or the style away, so that a model can do without.

  Converters mask what is missing. What the stage continues from stays.

  Args:
    features: task features.
    seeds: int32 `[2, 2]`.
    stage: says which streams are visual and which are once per clip.
    visual_rate: share of the examples that lose all visual streams.
    style_rate: share that lose the once-per-clip streams, drawn apart.

  Returns:
    The features: no positions of a visual stream, zeros for a style.
  """
  dropped = dict(features)
  keep = tf.random.stateless_uniform([], seeds[0]) >= style_rate
  for name in stage.style_names:
    dropped[name] = features[name] * tf.cast(keep, features[name].dtype)
  keep = tf.random.stateless_uniform([], seeds[1]) >= visual_rate
  for name in stage.visual_names:
    dropped[name] = features[name][: tf.where(keep, tf.int32.max, 0)]
  return dropped
