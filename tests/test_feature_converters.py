"""Converters against batches made by hand."""

import numpy as np
import pytest
import tensorflow as tf

from v2meow_jax import feature_converters
from v2meow_jax import stages
from v2meow_jax import streams

# Two frames of two features, tokens of two levels with two codes.
_PICTURE = streams.StreamSpec('picture', rate_hz=1, num_features=2)
_STYLE = streams.StreamSpec('style', rate_hz=None, num_features=3)
_WORDS = streams.StreamSpec('words', rate_hz=2, num_codes=5)
_SOUND = streams.StreamSpec('sound', rate_hz=2, num_codes=4, num_levels=2)


def _stage(*inputs, architecture=stages.ENCODER_DECODER):
  return stages.Stage(
    'coarse',
    tuple(stages.View(s, 0, s.num_levels) for s in inputs),
    stages.View(_SOUND, 0, 2),
    seconds=3.0,
    architecture=architecture,
  )


def _convert(converter, stage, **features):
  ds = tf.data.Dataset.from_tensors(features)
  made = converter(stage, pack=False)(ds, stage.task_feature_lengths())
  (example,) = made.as_numpy_iterator()
  return {k: v.tolist() for k, v in example.items()}


def test_encoder_decoder():
  # One second is missing at the end; one picture is black, which is no
  # padding.
  stage = _stage(_PICTURE, _STYLE, _WORDS)
  assert _convert(
    feature_converters.EncoderDecoderFeatureConverter,
    stage,
    picture=tf.constant([[1.0, 2.0], [0.0, 0.0]]),
    style=tf.constant([0.0, 0.5, 0.0]),
    words=tf.constant([2, 6, 3, 4], tf.int32),
    targets=tf.constant([7, 11, 8, 12, 9, 13, 10, 14], tf.int32),
  ) == {
    'encoder_picture': [[1, 2], [0, 0], [0, 0]],
    'encoder_picture_mask': [1, 1, 0],
    'encoder_style': [0, 0.5, 0],
    'encoder_style_mask': [1],
    'encoder_words': [2, 6, 3, 4, 0, 0],
    'encoder_words_mask': [1, 1, 1, 1, 0, 0],
    'decoder_target_tokens': [7, 11, 8, 12, 9, 13, 10, 14, 0, 0, 0, 0],
    'decoder_input_tokens': [0, 7, 11, 8, 12, 9, 13, 10, 14, 0, 0, 0],
    'decoder_loss_weights': [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
  }


def test_a_style_that_says_nothing_is_masked():
  stage = _stage(_PICTURE, _STYLE)
  found = _convert(
    feature_converters.EncoderDecoderFeatureConverter,
    stage,
    picture=tf.zeros([3, 2]),
    style=tf.zeros([3]),
    targets=tf.zeros([12], tf.int32) + 2,
  )
  assert found['encoder_style_mask'] == [0]
  assert found['encoder_picture_mask'] == [1, 1, 1]


def test_decoder_only():
  stage = _stage(_WORDS, architecture=stages.DECODER_ONLY)
  assert _convert(
    feature_converters.DecoderOnlyFeatureConverter,
    stage,
    words=tf.constant([2, 6, 3, 4], tf.int32),
    targets=tf.constant([7, 11, 8, 12, 9, 13, 10, 14], tf.int32),
  ) == {
    'decoder_target_tokens': [2, 6, 3, 4, 0, 0]
    + [7, 11, 8, 12, 9, 13, 10, 14, 0, 0, 0, 0],
    'decoder_input_tokens': [0, 2, 6, 3, 4, 0, 0]
    + [7, 11, 8, 12, 9, 13, 10, 14, 0, 0, 0],
    'decoder_loss_weights': [0] * 6 + [1] * 8 + [0] * 4,
    'decoder_causal_attention': [1] * 7 + [0] * 11,
  }


def test_packing_is_refused():
  with pytest.raises(ValueError, match='pack is True, expected False: '):
    feature_converters.EncoderDecoderFeatureConverter(_stage(_WORDS), pack=True)


def test_lengths_must_be_the_stage_s():
  stage = _stage(_WORDS)
  ds = tf.data.Dataset.from_tensors(
    {'words': tf.zeros([6], tf.int32), 'targets': tf.zeros([12], tf.int32)}
  )
  converter = feature_converters.EncoderDecoderFeatureConverter(stage)
  with pytest.raises(ValueError, match="expected {'targets': 12, 'words': 6}"):
    converter(ds, {'words': 6, 'targets': 100})


def test_model_features_are_what_the_model_expects():
  from v2meow_jax import models
  from v2meow_jax import network

  stage = stages.make(
      'semantic', visual=('scene',), style='caption',
      semantic='spectral_semantic', acoustic='spectral', seconds=2.0,
  )  # fmt: skip
  model = models.StageModel(stage, network.Config())
  converter = model.FEATURE_CONVERTER_CLS(
    pack=False, use_custom_packing_ops=False
  )
  ds = (
    tf.data.Dataset.from_tensors(
      {
        'scene': tf.zeros([20, 64]),
        'caption': tf.ones([32]),
        'targets': tf.fill([50], 2),
      }
    )
    .batch(1)
    .unbatch()
  )
  lengths = stage.task_feature_lengths()
  (example,) = converter(ds, lengths).as_numpy_iterator()
  shapes = {k: (1, *np.shape(v)) for k, v in example.items()}
  assert shapes == model.feature_shapes(1)
