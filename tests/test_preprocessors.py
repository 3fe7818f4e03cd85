"""Crops stay aligned, levels get their ids, conditions are dropped."""

import fractions

import numpy as np
import pytest
import tensorflow as tf

from v2meow_jax import arrays
from v2meow_jax import feature_converters
from v2meow_jax import preprocessors
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import vocabularies

# Frames of two tokens with codebooks of their own.
PICTURES = stages.View(
  streams.StreamSpec('pictures', 5, num_codes=7, num_levels=2), 0, 2
)


def clip(seconds, names=('scene', 'caption', 'spectral_semantic', 'spectral')):
  """Whole streams in which every value is the time in positions."""
  made = {'clip_id': f'clip of {seconds} s'}
  for name in names:
    spec = streams.get(name)
    dtype = 'i4' if spec.is_discrete else 'f4'
    if not spec.is_timed:
      made[name] = np.arange(1, 1 + spec.num_features, dtype=dtype)
      continue
    length = int(seconds * spec.rate_hz)
    time = np.arange(length, dtype=dtype)[:, None]
    if spec.is_discrete:
      time = (time + np.arange(spec.num_levels)) % spec.num_codes
    made[name] = np.broadcast_to(time, spec.example_shape(length)).astype(dtype)
  return made


def bundled(name, **kwargs):
  return stages.make(
    name,
    visual=() if name == 'fine' else ('scene',),
    style='caption' if name == 'semantic' else None,
    semantic='spectral_semantic',
    acoustic='spectral',
    **kwargs,
  )


def _dataset(*clips):
  first = clips[0]
  signature = {
    k: tf.TensorSpec(
      [None, *np.shape(v)[1:]] if np.ndim(v) == 2 else np.shape(v),
      tf.string if isinstance(v, str) else v.dtype,
    )
    for k, v in first.items()
  }
  return tf.data.Dataset.from_generator(
    lambda: iter(clips), output_signature=signature
  )


def _crops(stage, clips, seed=1):
  """Cropped features, before ids."""
  tf.random.set_seed(seed)
  ds = preprocessors.select(_dataset(*clips), stage=stage)
  return list(preprocessors.crop(ds, stage=stage).as_numpy_iterator())


@pytest.mark.parametrize('seed', range(3))
def test_all_streams_are_cut_at_the_same_seconds(seed):
  stage = bundled('semantic', seconds=2.0)
  starts = []
  for example in _crops(stage, [clip(16.0)] * 20, seed):
    scene = example['scene'][:, 0] / 10
    tokens = example['targets'][:, 0] / 25
    assert scene[0] == pytest.approx(tokens[0])
    np.testing.assert_allclose(np.diff(scene), 0.1, atol=1e-5)
    np.testing.assert_allclose(np.diff(tokens), 0.04, atol=1e-5)
    assert len(scene) == 20
    assert len(tokens) == 50
    starts.append(scene[0])
  # On the grid of 5 Hz, and all over the clip.
  np.testing.assert_allclose(np.array(starts) * 5 % 1, 0, atol=1e-4)
  assert min(starts) < 4
  assert 10 < max(starts) <= 14


def test_the_grid_has_the_paper_s_streams():
  stage = stages.make('coarse', visual=('clip', 'i3d_flow'))
  names = ('clip', 'i3d_flow', 'w2v_bert', 'soundstream')
  for example in _crops(stage, [clip(14.6, names)] * 8):
    seconds = example['clip'][0, 0]
    assert example['i3d_flow'][0, 0] == seconds
    assert example['w2v_bert'][0, 0] == (seconds * 25) % 1024
    assert example['targets'][0, 0] == (seconds * 50) % 1024
    assert example['targets'].shape == (500, 4)


@pytest.mark.parametrize('seconds', [2.0, 2.1, 2.19, 2.2, 2.4, 7.96, 1.3])
def test_the_number_of_starts_is_that_of_plain_arrays(seconds):
  stage = bundled('semantic', seconds=2.0)
  made = clip(seconds)
  lengths = {
      'scene': len(made['scene']), 'targets': len(made['spectral_semantic'])
  }  # fmt: skip
  free = (
    min(
      fractions.Fraction(lengths['scene'], 10),
      fractions.Fraction(lengths['targets'], 25),
    )
    - 2
  )
  expected = max(int(free * 5 // 1), 0) + 1
  assert int(preprocessors.num_starts(lengths, stage)) == expected


def test_every_start_is_drawn_and_fits():
  stage = bundled('semantic', seconds=2.0)
  starts = {
    float(e['scene'][0, 0]) / 10 for e in _crops(stage, [clip(2.6)] * 60)
  }
  assert sorted(starts) == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_a_short_clip_is_not_cut():
  stage = bundled('semantic', seconds=2.0)
  (example,) = _crops(stage, [clip(1.4)])
  assert example['scene'].shape == (14, 64)
  assert example['targets'].shape == (35, 1)


def test_select_takes_the_levels_of_each_view():
  stage = bundled('fine')
  made = clip(4.0)
  (example,) = preprocessors.select(
    _dataset(made), stage=stage
  ).as_numpy_iterator()
  assert set(example) == {'spectral', 'targets', 'id_pretokenized'}
  np.testing.assert_array_equal(example['spectral'], made['spectral'][:, :4])
  np.testing.assert_array_equal(example['targets'], made['spectral'][:, 4:])
  assert example['id_pretokenized'] == b'clip of 4.0 s'


def test_flatten_gives_the_ids_of_the_stage():
  stage = bundled('coarse', seconds=2.0)
  made = clip(2.0)
  ds = preprocessors.select(_dataset(made), stage=stage)
  (example,) = preprocessors.flatten(ds, stage=stage).as_numpy_iterator()
  np.testing.assert_array_equal(
    example['spectral_semantic'], 2 + made['spectral_semantic'][:, 0]
  )
  np.testing.assert_array_equal(
    example['targets'],
    vocabularies.flatten_levels(made['spectral'][:, :4], 512, 2 + 512),
  )
  assert example['targets'].dtype == np.int32
  np.testing.assert_array_equal(example['scene'], made['scene'])


@pytest.mark.parametrize(
  'visual, style', [(0, 0), (0.3, 0), (0, 0.3), (1, 0.3), (0.3, 0.6)]
)
def test_conditions_are_dropped_at_rates(visual, style):
  stage = stages.make(
    'semantic',
    ('scene', 'clip'),
    'caption',
    'spectral_semantic',
    seconds=2.0,
  )
  tf.random.set_seed(0)
  made = clip(2.0) | clip(2.0, ['clip'])
  ds = preprocessors.select(_dataset(*[made] * 200), stage=stage)
  ds = preprocessors.drop_conditions(
    ds, stage=stage, visual_rate=visual, style_rate=style
  )
  dropped = []
  for example in ds.as_numpy_iterator():
    assert example['caption'].all() or not example['caption'].any()
    # All pictures at once, and what is there is whole.
    assert [len(example[name]) for name in ('scene', 'clip')] in (
      [20, 2],
      [0, 0],
    )
    assert len(example['targets']) == 50
    dropped.append((not len(example['scene']), not example['caption'].any()))
  # Draws of their own: five standard deviations of 200.
  for found, rate in (
    ([v for v, _ in dropped], visual),
    ([s for _, s in dropped], style),
    ([v and s for v, s in dropped], visual * style),
  ):
    margin = 5 * (rate * (1 - rate) / 200) ** 0.5
    assert rate - margin <= np.mean(found) <= rate + margin


def test_tokens_that_a_stage_continues_from_stay():
  stage = bundled('coarse', seconds=2.0)
  ds = preprocessors.select(_dataset(clip(2.0)), stage=stage)
  ds = preprocessors.drop_conditions(
    ds, stage=stage, visual_rate=1.0, style_rate=1.0
  )
  (example,) = ds.as_numpy_iterator()
  assert {
    name: len(x) for name, x in example.items() if name != 'id_pretokenized'
  } == {'scene': 0, 'spectral_semantic': 50, 'targets': 50}


@pytest.mark.parametrize('keep', [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize(
    'stage',
    [bundled('semantic', seconds=2.0), bundled('coarse', seconds=2.0),
     # A prefix with the tokens of frames.
     stages.Stage('coarse', (PICTURES,) + bundled('coarse').inputs[1:],
                  bundled('coarse').target, 2.0, stages.DECODER_ONLY)],
    ids=['semantic', 'coarse', 'prefix'],
)  # fmt: skip
def test_what_is_dropped_is_masked_as_in_plain_arrays(stage, keep):
  made = clip(5.0) | {'pictures': np.full((25, 2), 3, np.int32)}
  expected = arrays.model_features(stage, [made], [2], *([k] for k in keep))
  ds = preprocessors.select(_dataset(made), stage=stage)
  ds = ds.map(lambda x: preprocessors.crop_at(x, stage, tf.constant(2)))
  ds = preprocessors.flatten(ds, stage=stage)
  ds = preprocessors.drop_conditions(
    ds, stage=stage, style_rate=not keep[0], visual_rate=not keep[1]
  )
  if stage.architecture == stages.DECODER_ONLY:
    converter = feature_converters.DecoderOnlyFeatureConverter(stage)
    seen = expected['decoder_target_tokens'][0, :20].any()
  else:
    converter = feature_converters.EncoderDecoderFeatureConverter(stage)
    seen = expected['encoder_scene_mask'].any()
  assert seen == keep[1]
  (found,) = converter(ds, stage.task_feature_lengths()).as_numpy_iterator()
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value[0], err_msg=name)


@pytest.mark.parametrize(
    'stage, seconds, start',
    [
        (bundled('semantic', seconds=2.0), 16.0, 7),
        (bundled('semantic', seconds=2.0), 1.4, 0),
        (bundled('coarse', seconds=2.0), 5.0, 3),
        (stages.make('coarse', semantic='spectral_semantic',
                     acoustic='spectral', seconds=2.0), 5.0, 11),
        (stages.make('coarse', semantic='spectral_semantic', seconds=2.0,
                     acoustic='spectral', coarse_levels=None), 5.0, 11),
        # Without a semantic stage; frames of 1,024 tokens, one of them short.
        (stages.make('coarse', visual=('vit_vqgan', 'scene'), style='caption',
                     semantic=None, acoustic='spectral', seconds=2.0), 5.0, 2),
        (stages.make('coarse', visual=('vit_vqgan',), semantic=None,
                     acoustic='spectral', coarse_levels=None, seconds=2.0),
         1.6, 0),
        (bundled('fine'), 5.0, 13),
        (bundled('fine'), 2.0, 0),
    ],
    ids=lambda x: x.name if isinstance(x, stages.Stage) else str(x),
)  # fmt: skip
def test_model_features_are_those_of_plain_arrays(stage, seconds, start):
  made = clip(seconds) | clip(seconds, ['vit_vqgan'])
  expected = arrays.model_features(stage, [made], [start])
  ds = preprocessors.select(_dataset(made), stage=stage)
  ds = ds.map(lambda x: preprocessors.crop_at(x, stage, tf.constant(start)))
  ds = preprocessors.flatten(ds, stage=stage)
  if stage.architecture == stages.DECODER_ONLY:
    converter = feature_converters.DecoderOnlyFeatureConverter(stage)
  else:
    converter = feature_converters.EncoderDecoderFeatureConverter(stage)
  (found,) = converter(ds, stage.task_feature_lengths()).as_numpy_iterator()
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value[0], err_msg=name)
    assert found[name].dtype == value.dtype, name
