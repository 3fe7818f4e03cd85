"""Arrays of whole clips: written, read, cropped with all streams aligned."""

import dataclasses
import fractions
import itertools
import json

import numpy as np
import pytest

from v2meow_jax import arrays
from v2meow_jax import errors
from v2meow_jax import hosts
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import vocabularies

SCENE = streams.get('scene')
SEMANTIC = streams.get('spectral_semantic')
ACOUSTIC = streams.get('spectral')
STYLE = streams.get('caption')
SPECS = (SCENE, SEMANTIC, ACOUSTIC, STYLE)


def make(name, **kwargs):
  """A stage over the bundled streams, with crops of 2 s."""
  options = {
    'visual': ('scene',),
    'style': 'caption',
    'semantic': 'spectral_semantic',
    'acoustic': 'spectral',
    'seconds': 2.0,
  }
  return stages.make(name, **(options | kwargs))


def clip_of(number, seconds):
  """Streams whose value at a position is its time, in 0.02 s.

  The time is in every feature and level; level `l` adds `l`, clip `number`
  adds 1000 to continuous streams.
  """
  made = {}
  for spec in SPECS:
    if not spec.is_timed:
      made[spec.name] = np.full(spec.num_features, 1000 * number, np.float32)
      continue
    times = np.arange(spec.length(seconds)) * 50 / spec.rate_hz
    if spec.is_discrete:
      levels = np.arange(spec.num_levels)
      made[spec.name] = (times[:, None] % 256 + levels).astype(np.int32)
    else:
      made[spec.name] = np.repeat(
        times[:, None] + 1000 * number, spec.num_features, axis=1
      ).astype(np.float32)
  return made


def features(stage, clip, start, **kwargs):
  """Model features of one crop, without the axis of the batch."""
  batch = arrays.model_features(stage, [clip], [start], **kwargs)
  return {name: array[0] for name, array in batch.items()}


@pytest.fixture
def folder(tmp_path):
  """Clips 0 to 4 of 3 to 5 s, and clip 5, which is shorter than a crop."""
  with arrays.ArrayWriter(tmp_path, 'train', SPECS) as writer:
    for number, seconds in enumerate((3.0, 3.4, 4.0, 4.2, 5.0, 1.2)):
      writer.add(f'clip{number}', clip_of(number, seconds), seconds)
  return tmp_path


def test_files_are_plain_arrays(folder):
  index = json.loads((folder / 'train' / 'index.json').read_text())
  assert index['streams']['scene'] == dataclasses.asdict(SCENE)
  assert index['clips'][1] == {
    'clip_id': 'clip1',
    'seconds': 3.4,
    'offsets': {
      'scene': [30, 34],
      'spectral_semantic': [75, 85],
      'spectral': [75, 85],
      'caption': [1, 1],
    },
  }
  codes = np.load(folder / 'train' / 'spectral.npy', allow_pickle=False)
  assert codes.dtype == np.int32
  assert codes.shape == (round(20.8 * 25), 12)
  np.testing.assert_array_equal(codes[75:160], clip_of(1, 3.4)['spectral'])
  styles = np.load(folder / 'train' / 'caption.npy', allow_pickle=False)
  assert styles.dtype == np.float32
  np.testing.assert_array_equal(styles[:, 0], 1000 * np.arange(6))
  assert sorted(path.name for path in (folder / 'train').iterdir()) == [
    'caption.npy',
    'index.json',
    'scene.npy',
    'spectral.npy',
    'spectral_semantic.npy',
  ]


def write(folder, *clips):
  with arrays.ArrayWriter(folder, 'train', SPECS) as writer:
    for number, clip in enumerate(clips):
      writer.add(f'clip{number}', clip, 3.0)


def test_failed_writing_leaves_nothing(tmp_path):
  good = clip_of(0, 3.0)
  lacking = {name: array for name, array in good.items() if name != 'caption'}
  with pytest.raises(ValueError, match='Clip clip1: no stream `caption`, exp'):
    write(tmp_path, good, lacking)
  assert not list((tmp_path / 'train').iterdir())
  wrong = good | {'scene': np.zeros((3, 1))}
  with pytest.raises(ValueError, match=r'`scene` has shape \(3, 1\), expected'):
    write(tmp_path, wrong)


def test_crop_grid():
  rates = {
    ('clip',): fractions.Fraction(1),  # 1, 25 Hz
    ('scene',): fractions.Fraction(5),  # 10, 25 Hz
    ('clip', 'scene'): fractions.Fraction(1),
  }
  for visual, rate in rates.items():
    assert arrays.crop_grid_hz(make('semantic', visual=visual)) == rate
  assert arrays.crop_grid_hz(make('fine')) == 25


def test_crop_of_semantic_stage():
  stage = make('semantic')
  clip = clip_of(1, 4.0)
  example = features(stage, clip, 6)  # at 1.2 s
  scene = example['encoder_scene']
  assert scene.shape == (20, SCENE.num_features)
  np.testing.assert_array_equal(scene[:, 0], 1060 + 5 * np.arange(20))
  np.testing.assert_array_equal(example['encoder_scene_mask'], np.ones(20))
  np.testing.assert_array_equal(example['encoder_caption'], clip['caption'])
  np.testing.assert_array_equal(example['encoder_caption_mask'], [1])
  targets = example['decoder_target_tokens']
  np.testing.assert_array_equal(targets, 2 + 60 + 2 * np.arange(50))
  np.testing.assert_array_equal(
    example['decoder_input_tokens'], [0, *targets[:-1]]
  )
  np.testing.assert_array_equal(example['decoder_loss_weights'], np.ones(50))
  assert {name: array.dtype for name, array in example.items()} == {
    'encoder_scene': np.float32,
    'encoder_scene_mask': np.int32,
    'encoder_caption': np.float32,
    'encoder_caption_mask': np.int32,
    'decoder_target_tokens': np.int32,
    'decoder_input_tokens': np.int32,
    'decoder_loss_weights': np.int32,
  }


def test_crop_shorter_than_the_stage_is_padded():
  example = features(make('semantic'), clip_of(1, 1.2), 0)
  assert example['encoder_scene'][12:].any() == 0
  np.testing.assert_array_equal(
    example['encoder_scene_mask'], [1] * 12 + [0] * 8
  )
  weights = example['decoder_loss_weights']
  np.testing.assert_array_equal(weights, [1] * 30 + [0] * 20)
  np.testing.assert_array_equal(
    example['decoder_target_tokens'][30:], np.zeros(20)
  )


def test_dropped_style_is_masked():
  example = features(make('semantic'), clip_of(1, 3.0), 0, keep_style=[False])
  np.testing.assert_array_equal(example['encoder_caption_mask'], [0])
  assert not example['encoder_caption'].any()
  np.testing.assert_array_equal(example['encoder_scene_mask'], np.ones(20))


def test_crop_of_decoder_only_stage():
  stage = make('fine')
  codes = clip_of(0, 3.0)['spectral']
  crop = codes[10:60]
  example = features(stage, {'spectral': codes}, 10)  # at 0.4 s
  coarse = vocabularies.flatten_levels(crop[:, :4], 512, 2)
  fine = vocabularies.flatten_levels(crop[:, 4:], 512, 2 + 4 * 512)
  ids = np.concatenate([coarse, fine])
  np.testing.assert_array_equal(example['decoder_target_tokens'], ids)
  np.testing.assert_array_equal(example['decoder_input_tokens'], [0, *ids[:-1]])
  np.testing.assert_array_equal(
    example['decoder_loss_weights'], [0] * 200 + [1] * 400
  )
  # The input at the first position of the target is the prefix's last token.
  np.testing.assert_array_equal(
    example['decoder_causal_attention'], [1] * 201 + [0] * 399
  )


def test_crop_of_frames_of_tokens(rng):
  stage = make('coarse', visual=('vit_vqgan',), semantic=None)
  clip = clip_of(1, 4.0)
  frames = rng.integers(0, 8192, (4, 1024), np.int32)
  clip['vit_vqgan'] = frames
  example = features(stage, clip, 3)  # the last second, and one that is not
  ids = example['encoder_vit_vqgan']
  assert ids.shape == (2048,)
  # One block of ids for all tokens, then those of the target.
  np.testing.assert_array_equal(ids[:1024], 2 + frames[3])
  assert not ids[1024:].any()
  np.testing.assert_array_equal(
    example['encoder_vit_vqgan_mask'], [1] * 1024 + [0] * 1024
  )
  codes = vocabularies.flatten_levels(clip['spectral'][75:, :4], 512, 2 + 8192)
  np.testing.assert_array_equal(
    example['decoder_target_tokens'], np.pad(codes, (0, 100))
  )
  # The first stage of the cascade: here is the style.
  np.testing.assert_array_equal(example['encoder_caption'], clip['caption'])


def test_crop_of_all_levels():
  stage = make('coarse', visual=(), coarse_levels=None)
  clip = clip_of(0, 3.0)
  example = features(stage, clip, 10)  # at 0.4 s
  ids = example['decoder_target_tokens']
  assert ids.shape == (50 + 50 * 12,)
  np.testing.assert_array_equal(
    vocabularies.unflatten_levels(ids[50:], 12, 512, stage.target_offset),
    clip['spectral'][10:60],
  )


def test_batches_are_aligned_crops(folder):
  stage = make('coarse', style=None)
  dataset = arrays.ArrayDataset(folder, stage, batch_size=8, seed=5)
  starts = set()
  for batch in itertools.islice(dataset.iterator(), 20):
    assert batch['encoder_scene'].shape == (8, 20, SCENE.num_features)
    assert batch['decoder_target_tokens'].shape == (8, 200)
    for row in range(8):
      real = batch['encoder_scene_mask'][row].astype(bool)
      time = batch['encoder_scene'][row, real, 0]
      number, start = divmod(time[0], 1000)
      starts.add((number, start))
      assert start % 10 == 0  # the grid of 5 Hz
      np.testing.assert_array_equal(
        time, 1000 * number + start + 5 * np.arange(len(time))
      )
      semantic = batch['encoder_spectral_semantic'][row]
      semantic = semantic[semantic > 0] - 2
      np.testing.assert_array_equal(
        semantic, start + 2 * np.arange(len(semantic))
      )
      codes = vocabularies.unflatten_levels(
        batch['decoder_target_tokens'][row], 4, 512, stage.target_offset
      )[: len(semantic)]
      np.testing.assert_array_equal(codes, semantic[:, None] + np.arange(4))
  # Clip 0 of 3 s has starts 0, 0.2, … 1; clip 5 only 0, and is padded.
  assert {s for n, s in starts if n == 0} == {0, 10, 20, 30, 40, 50}
  assert {s for n, s in starts if n == 5} == {0}
  assert {s for n, s in starts if n == 4} <= set(range(0, 151, 10))
  assert {n for n, _ in starts} == set(range(6))


def test_order_follows_from_seed_and_step(folder):
  stage = make('semantic')
  new = lambda **kwargs: arrays.ArrayDataset(
    folder, stage, batch_size=4, style_dropout=0.5, **kwargs
  )
  first = list(itertools.islice(new(seed=1).iterator(0), 12))
  later = list(itertools.islice(new(seed=1).iterator(9), 3))
  for a, b in zip(first[9:], later, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  other = next(new(seed=2).iterator(0))
  assert (other['encoder_scene'] != first[0]['encoder_scene']).any()
  # An epoch shows every clip once: 12 batches of 4 are 8 epochs of 6 clips.
  seen = np.concatenate([b['encoder_scene'][:, 0, 0] // 1000 for b in first])
  epochs = seen.reshape(8, 6)
  np.testing.assert_array_equal(
    np.sort(epochs, axis=1), np.tile(np.arange(6), (8, 1))
  )
  assert len({tuple(epoch) for epoch in epochs}) > 4
  kept = np.concatenate([b['encoder_caption_mask'] for b in first])
  assert 0.3 < kept.mean() < 0.7


def test_conditions_are_dropped_at_rates_of_their_own(folder):
  dataset = arrays.ArrayDataset(
    folder,
    make('semantic'),
    batch_size=400,
    style_dropout=0.3,
    visual_dropout=0.6,
  )
  batch = dataset.batch(0)
  plain = arrays.ArrayDataset(folder, make('semantic'), batch_size=400).batch(0)
  # The style of clip 0 is zeros, which say nothing.
  told = plain['encoder_caption_mask'].any(axis=1)
  style = batch['encoder_caption_mask'].any(axis=1)[told]
  visual = batch['encoder_scene_mask'].any(axis=1)
  # Five standard deviations; three of both, which one draw would make 0.4.
  assert abs(style.mean() - 0.7) < 0.12
  assert abs(visual.mean() - 0.4) < 0.13
  assert abs((style & visual[told]).mean() - 0.28) < 0.08
  # Everything else is as it is without.
  np.testing.assert_array_equal(
    batch['decoder_target_tokens'], plain['decoder_target_tokens']
  )
  np.testing.assert_array_equal(
    batch['encoder_scene'], plain['encoder_scene'] * visual[:, None, None]
  )


@pytest.mark.parametrize('processes', [[0, 0, 1, 1], [0, 1, 1, 0]])
def test_parts_are_those_of_the_whole_batch(folder, processes):
  make_dataset = lambda shard=None: arrays.ArrayDataset(
    folder,
    make('semantic'),
    batch_size=8,
    seed=1,
    style_dropout=0.5,
    shard=shard,
  )
  whole = make_dataset().batch(5)
  for process in range(2):
    shard = hosts.make_shard(np.array(processes)[:, None], process)
    part = make_dataset(shard).batch(5)
    rows = np.flatnonzero(np.repeat(processes, 2) == process)
    assert part.keys() == whole.keys()
    for name, array in part.items():
      np.testing.assert_array_equal(array, whole[name][rows], err_msg=name)


def test_bad_folders(folder, tmp_path):
  with pytest.raises(errors.UserError) as error:
    arrays.ArrayDataset(folder, make('semantic'), 'test')
  assert str(error.value) == (
    f'{folder / "test" / "index.json"}: no such file, expected arrays of '
    'split `test`. Make them with `v2meow prepare MANIFEST --arrays`.'
  )
  with pytest.raises(errors.UserError, match='no stream `clip`, which stage'):
    arrays.ArrayDataset(folder, make('semantic', visual=('clip',)))
  path = folder / 'train' / 'index.json'
  index = json.loads(path.read_text())
  index['streams']['scene']['rate_hz'] = 4
  path.write_text(json.dumps(index))
  with pytest.raises(errors.UserError, match='with rate_hz 4, expected 10'):
    arrays.ArrayDataset(folder, make('semantic'))
  index['clips'] = []
  path.write_text(json.dumps(index))
  with pytest.raises(errors.UserError, match='no clips, expected at least one'):
    arrays.ArrayDataset(folder, make('semantic'))


@pytest.mark.parametrize(
  'stage',
  [
    make('semantic'),
    make('semantic', style=None),
    make('coarse', visual=()),
    make('coarse', visual=('scene',)),
    make('fine'),
  ],
  ids=lambda stage: '.'.join([stage.name, *(v.name for v in stage.inputs)]),
)
def test_records_give_the_same_features(stage):
  import seqio
  import tensorflow as tf

  from v2meow_jax import feature_converters
  from v2meow_jax import preprocessors

  converter = {
    stages.ENCODER_DECODER: feature_converters.EncoderDecoderFeatureConverter,
    stages.DECODER_ONLY: feature_converters.DecoderOnlyFeatureConverter,
  }[stage.architecture](stage)
  for seconds, start in ((4.0, 3), (1.2, 0), (3.0, 5)):
    clip = clip_of(1, seconds)
    record = {k: v[np.newaxis] for k, v in clip.items()}
    dataset = tf.data.Dataset.from_tensor_slices(record | {'clip_id': ['a']})
    dataset = preprocessors.select(dataset, stage=stage)
    dataset = dataset.map(
      lambda x, start=start: preprocessors.crop_at(x, stage, start)
    )
    dataset = preprocessors.flatten(dataset, stage=stage)
    dataset = seqio.utils.trim_dataset(
      dataset, stage.task_feature_lengths(), stage.task_feature_lengths()
    )
    dataset = converter(dataset, stage.task_feature_lengths())
    (expected,) = dataset.as_numpy_iterator()
    found = features(stage, clip, start)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
      assert found[name].dtype == array.dtype, name
      np.testing.assert_array_equal(found[name], array, err_msg=name)
