"""Tasks: names, registration once, batches from TFRecords, T5X's demands."""

import numpy as np
import pytest
import seqio

from tests import fake_sources
from tests.test_preprocessors import bundled
from v2meow_jax import dataset_builder
from v2meow_jax import extraction
from v2meow_jax import prepare
from v2meow_jax import stages
from v2meow_jax import tasks
from v2meow_jax import weights


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A TFDS dataset `fakes` of clips whose values are their times."""
  folder = tmp_path_factory.mktemp('data')
  (folder / 'fake.gin').write_text(fake_sources.GIN)
  weights.save_params(folder / 'sound.safetensors', {'a': np.zeros(1)})
  plan = extraction.Plan(
    fake_sources.STREAMS,
    (str(folder / 'fake.gin'),),
    tokenizer=str(folder / 'sound.safetensors'),
  )
  clips = [
    fake_sources.Source(f'{split}_{i}', split, seconds=6.0 + i)
    for split, count in (('train', 5), ('validation', 2))
    for i in range(count)
  ]
  assert prepare.make_parts(clips, plan, folder / 'parts') == {}
  made = dataset_builder.write('fakes', clips, plan, folder, folder / 'parts')
  assert made == folder / 'fakes' / '1.0.0'
  return folder


def _stage(seconds=2.0, style='caption'):
  return stages.make('semantic', visual=('clip',), style=style, seconds=seconds)


def test_names_are_spelt_out():
  name = lambda stage, dataset='toy:1.0.0': tasks.task_name(dataset, stage)
  assert name(bundled('semantic')) == (
    'toy.semantic.scene.caption.spectral_semantic'
  )
  assert name(bundled('fine')) == 'toy.fine.spectral_0_3.spectral_4_11'
  assert name(bundled('coarse'), 'toy/numpy:1.0.0') == (
    'toy_numpy.coarse.scene.spectral_semantic.spectral_0_3'
  )


def test_batches_from_records(data_dir):
  stage = _stage()
  name = tasks.register('fakes:1.0.0', stage, data_dir=str(data_dir))
  assert name == 'fakes.semantic.clip.caption.w2v_bert'
  ds = seqio.get_mixture_or_task(name).get_dataset(
    stage.task_feature_lengths(), 'train', shuffle=True, seed=3
  )
  examples = list(ds.as_numpy_iterator())
  assert sorted(e['id_pretokenized'] for e in examples) == [
    f'train_{i}'.encode() for i in range(5)
  ]
  for example in examples:
    seconds = example['clip'][0, 0]
    np.testing.assert_array_equal(
      example['targets'], 2 + 25 * seconds + np.arange(50)
    )
    np.testing.assert_array_equal(example['caption'], np.full(32, 10))
    assert example['clip'].shape == (2, 768)


def test_the_seed_decides_the_crops(data_dir):
  stage = _stage()
  name = tasks.register('fakes:1.0.0', stage, data_dir=str(data_dir))

  def starts(seed):
    ds = seqio.get_mixture_or_task(name).get_dataset(
      stage.task_feature_lengths(), 'train', shuffle=False, seed=seed
    )
    return [int(e['targets'][0]) for e in ds.repeat(3).as_numpy_iterator()]

  assert starts(1) == starts(1)
  assert starts(1) != starts(2)


def test_a_task_is_registered_once(data_dir):
  stage = _stage(style=None)
  register = lambda stage, **kwargs: tasks.register(
    'fakes:1.0.0', stage, data_dir=str(data_dir), **kwargs
  )
  assert register(stage) == register(_stage(style=None))
  with pytest.raises(ValueError, match='is registered with .* Use one of them'):
    register(_stage(seconds=4.0, style=None))


def test_style_dropout_reaches_the_model_as_a_mask(data_dir):
  from v2meow_jax import feature_converters

  stage = _stage()
  name = tasks.register(
    'fakes:1.0.0', stage, data_dir=str(data_dir), style_dropout=0.5
  )
  assert name == 'fakes.semantic.clip.caption.w2v_bert.drop_50'
  lengths = stage.task_feature_lengths()
  ds = seqio.get_mixture_or_task(name).get_dataset(
    lengths, 'train', shuffle=False, num_epochs=20, seed=0
  )
  converter = feature_converters.EncoderDecoderFeatureConverter(stage)
  masks = [
    int(e['encoder_caption_mask'][0])
    for e in converter(ds, lengths).as_numpy_iterator()
  ]
  assert len(masks) == 100
  assert 30 <= sum(masks) <= 70


def test_vocabulary_compares_by_size_and_has_no_end():
  vocabulary = tasks.TokenVocabulary(100)
  assert vocabulary == tasks.TokenVocabulary(100)
  assert vocabulary != tasks.TokenVocabulary(101)
  assert vocabulary != seqio.PassThroughVocabulary(100)
  assert hash(vocabulary) == hash(tasks.TokenVocabulary(100))
  assert vocabulary.vocab_size == 100
  assert vocabulary.eos_id is None
  # T5X looks for the first vocabulary that is no PassThroughVocabulary.
  assert not isinstance(vocabulary, seqio.PassThroughVocabulary)
  ids = [5, 1, 7, 99]
  assert vocabulary.decode(ids) == ids
  np.testing.assert_array_equal(
    vocabulary.decode_tf(np.array([ids], np.int32)), [ids]
  )


def test_gin_registers_a_task(data_dir):
  import gin

  from v2meow_jax import configs

  configs.parse(
    [],
    [
      'from __gin__ import dynamic_registration',
      'from v2meow_jax import stages',
      'from v2meow_jax import tasks',
      "stages.make.name = 'semantic'",
      "stages.make.visual = ('clip',)",
      'stages.make.seconds = 3.0',
      "tasks.register.dataset = 'fakes:1.0.0'",
      'tasks.register.stage = @stages.make()',
      f"tasks.register.data_dir = '{data_dir}'",
      'tasks.register.style_dropout = 0.25',
    ],
  )
  assert gin.get_configurable(tasks.register)() == (
    'fakes.semantic.clip.w2v_bert.drop_25'
  )
