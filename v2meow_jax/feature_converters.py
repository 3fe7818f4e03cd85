"""Task features to model features: padding, masks and shifted targets.

The same example from plain arrays is `arrays.model_features`.
"""

from collections.abc import Mapping
import functools

import seqio
import tensorflow as tf

from v2meow_jax import stages

_Spec = seqio.FeatureConverter.FeatureSpec
_TARGETS = 'targets'


def _task_spec(view: stages.View) -> _Spec:
  if view.spec.is_discrete:
    return _Spec(dtype=tf.int32, rank=1)
  return _Spec(dtype=tf.float32, rank=2 if view.spec.is_timed else 1)


class _StageConverter(seqio.FeatureConverter):
  """What both converters share.

  Attributes:
    stage: the stage whose features are converted.
  """

  # Set for each stage, in __init__.
  TASK_FEATURES = None
  MODEL_FEATURES = None
  PACKING_FEATURE_DTYPES = None

  def __init__(self, stage: stages.Stage, pack: bool = False, **kwargs):
    """Makes the converter of a stage.

    Args:
      stage: the stage.
      pack: must be False; seqio's and T5X's own default is True.
      **kwargs: see `seqio.FeatureConverter`.

    Raises:
      ValueError: `pack` is True.
    """
    if pack:
      raise ValueError(
        'pack is True, expected False: crops of clips have one length and '
        'their features are no tokens. Bind utils.DatasetConfig.pack = '
        'False, in the scopes train/ and train_eval/ too.'
      )
    self.stage = stage
    self.TASK_FEATURES = {view.name: _task_spec(view) for view in stage.inputs}
    self.TASK_FEATURES[_TARGETS] = _Spec(dtype=tf.int32)
    self.MODEL_FEATURES = self._model_features()
    super().__init__(pack=False, **kwargs)

  def _model_features(self) -> dict[str, _Spec]:
    raise NotImplementedError

  def _check_lengths(self, lengths: Mapping[str, int]) -> None:
    """The stage says how long everything is; other lengths are mistakes."""
    expected = self.stage.task_feature_lengths()
    if dict(lengths) != expected:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS are {dict(lengths)}, expected {expected} for '
        f'stage `{self.stage.name}` of {self.stage.seconds:g} s. Use '
        'those, or set the seconds of the stage.'
      )

  def _shift_right(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.concat([tf.constant([self.bos_id], ids.dtype), ids[:-1]], axis=0)


def _pad(x: tf.Tensor, length: int) -> tf.Tensor:
  """Appends zeros to the first axis, up to a length."""
  padding = [[0, length - tf.shape(x)[0]]] + [[0, 0]] * (x.shape.rank - 1)
  padded = tf.pad(x, padding)
  return tf.ensure_shape(padded, [length, *x.shape[1:]])


class EncoderDecoderFeatureConverter(_StageConverter):
  """Inputs to `encoder_<stream>` with masks, targets to `decoder_*`.

  The masks are made before the padding, because a row of zeros is a legal
  feature vector. A once-per-clip vector of zeros is one that says nothing, and
  is masked.
  """

  def _model_features(self):
    specs = {}
    for view in self.stage.inputs:
      specs[f'encoder_{view.name}'] = _task_spec(view)
      specs[f'encoder_{view.name}_mask'] = _Spec(dtype=tf.int32)
    for name in ('target_tokens', 'input_tokens', 'loss_weights'):
      specs[f'decoder_{name}'] = _Spec(dtype=tf.int32)
    return specs

  def _convert_example(self, features, lengths):
    converted = {}
    for view in self.stage.inputs:
      x = features[view.name]
      name = f'encoder_{view.name}'
      if view.spec.is_timed:
        mask = tf.ones_like(x if x.shape.rank == 1 else x[:, 0], tf.int32)
        x, mask = _pad(x, lengths[view.name]), _pad(mask, lengths[view.name])
      else:
        mask = tf.cast(tf.reduce_any(x != 0), tf.int32)[tf.newaxis]
      converted[name], converted[f'{name}_mask'] = x, mask
    targets = _pad(features[_TARGETS], lengths[_TARGETS])
    return converted | {
      'decoder_target_tokens': targets,
      'decoder_input_tokens': self._shift_right(targets),
      'decoder_loss_weights': tf.cast(targets != 0, tf.int32),
    }

  def _convert_features(self, ds, task_feature_lengths):
    self._check_lengths(task_feature_lengths)
    return ds.map(
      functools.partial(self._convert_example, lengths=task_feature_lengths),
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  def get_model_feature_lengths(self, task_feature_lengths):
    lengths = {}
    for view in self.stage.inputs:
      length = task_feature_lengths[view.name]
      lengths[f'encoder_{view.name}'] = length
      lengths[f'encoder_{view.name}_mask'] = length if view.spec.is_timed else 1
    for name in ('target_tokens', 'input_tokens', 'loss_weights'):
      lengths[f'decoder_{name}'] = task_feature_lengths[_TARGETS]
    return lengths


class DecoderOnlyFeatureConverter(_StageConverter):
  """Inputs, in order and each in its full length, in front of the targets.

  The targets always start at the same position; what a short clip lacks is
  padding with id 0. Inputs carry no loss and see each other both ways
  (`decoder_causal_attention`), as in T5X's prefix language model.
  """

  _FEATURES = (
    'decoder_target_tokens',
    'decoder_input_tokens',
    'decoder_loss_weights',
    'decoder_causal_attention',
  )

  def _model_features(self):
    return {name: _Spec(dtype=tf.int32) for name in self._FEATURES}

  def _convert_example(self, features, lengths):
    prefix = [
      _pad(features[view.name], lengths[view.name])
      for view in self.stage.inputs
    ]
    targets = _pad(features[_TARGETS], lengths[_TARGETS])
    ids = tf.concat([*prefix, targets], axis=0)
    position = tf.range(ids.shape[0])
    num_prefix = ids.shape[0] - targets.shape[0]
    return {
      'decoder_target_tokens': ids,
      'decoder_input_tokens': self._shift_right(ids),
      'decoder_loss_weights': tf.cast(
        (position >= num_prefix) & (ids != 0), tf.int32
      ),
      # The inputs are shifted right: the last token of the prefix is the
      # input at the first position of the targets.
      'decoder_causal_attention': tf.cast(position <= num_prefix, tf.int32),
    }

  def _convert_features(self, ds, task_feature_lengths):
    self._check_lengths(task_feature_lengths)
    return ds.map(
      functools.partial(self._convert_example, lengths=task_feature_lengths),
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  def get_model_feature_lengths(self, task_feature_lengths):
    return dict.fromkeys(self._FEATURES, sum(task_feature_lengths.values()))
