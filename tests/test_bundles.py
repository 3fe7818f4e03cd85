"""Bundles: what is written is what is read, and mistakes are named."""

import pathlib

import gin
import ml_dtypes
import numpy as np
import pytest
import tree

from tests import toy
from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import generate
from v2meow_jax import pictures
from v2meow_jax import quantization
from v2meow_jax import stages
from v2meow_jax import weights


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Files, weights and folder of a tiny bundle with text."""
  folder = tmp_path_factory.mktemp('bundles')
  files = toy.gin_files(folder, 'caption')
  with bundles.read_recipe(files) as recipe:
    params = toy.parts(recipe)
  path, card = folder / 'bundle', '# Toy\nfor tests'
  return files, params, bundles.save(path, files, params, card=card)


def test_round_trip(made):
  files, params, folder = made
  bundle = bundles.load(folder)
  assert sorted(path.name for path in folder.iterdir()) == [
    'CARD.md',
    'bundle.gin',
    'coarse.safetensors',
    'codec.safetensors',
    'fine.safetensors',
    'semantic.safetensors',
    'tokenizer.safetensors',
  ]
  for name in stages.NAMES:
    expected = tree.map_structure(
      lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params[name]
    )
    tree.map_structure(
      np.testing.assert_array_equal, dict(bundle.params[name]), expected
    )
  with bundles.read_recipe(files) as recipe:
    for ours, theirs in zip(bundle.models, recipe.models, strict=True):
      assert ours.stage == theirs.stage
      assert ours.config == theirs.config
  assert bundle.codec.spec.name == 'spectrogram'
  assert bundle.codec.network.config == toy.CODEC
  assert bundle.style.spec.name == 'caption'
  assert bundle.tokenizer.spec.name == 'spectral_semantic'
  for name, value in params['tokenizer'].items():
    # Its tokens shall stay what they were: no bfloat16.
    np.testing.assert_array_equal(bundle.tokenizer.params[name], value)
  assert [extractor.spec.name for extractor in bundle.visual] == ['scene']
  assert bundle.overlap == 0.5


# The bindings of gin/README.md for a cascade without a semantic stage, and for
# one without a fine stage.
def test_system_of_one_stage(tmp_path):
  files = toy.gin_files(tmp_path, 'caption')
  bindings = toy.NO_SEMANTIC + toy.NO_FINE
  with bundles.read_recipe(files, bindings) as recipe:
    params = toy.parts(recipe)
  assert set(params) == {'coarse', 'codec'}
  folder = bundles.save(tmp_path / 'one', files, params, bindings)
  bundle = bundles.load(folder)
  (model,) = bundle.models
  assert [view.name for view in model.stage.inputs] == ['scene', 'caption']
  assert model.stage.target.num_levels == 8
  generator = generate.Generator(bundle)
  features = np.zeros((30, 64), np.float32)
  compose = lambda features, **options: (
    generator.compose(
      pictures.Picture('', {'scene': features}, 3.0, False), **options
    ).tokens
  )
  tokens = compose(features)
  assert {name: x.shape for name, x in tokens.items()} == {
    'spectrogram': (75, 8)
  }
  for other in (compose(features, text='drums'), compose(features + 1)):
    assert (other['spectrogram'] != tokens['spectrogram']).any()


@pytest.mark.parametrize('missing', ['semantic', 'fine'])
def test_system_without_a_stage(tmp_path, missing):
  files = toy.gin_files(tmp_path)
  bindings = {'semantic': toy.NO_SEMANTIC, 'fine': toy.NO_FINE}[missing]
  with bundles.read_recipe(files, bindings) as recipe:
    names = [model.stage.name for model in recipe.models]
    assert names == [name for name in stages.NAMES if name != missing]
    assert _message(recipe.model, missing) == (
      f'The system has no stage `{missing}`, expected one of '
      f'{", ".join(names)}. Leave it out, or bind bundles.Recipe.{missing}.'
    )


@pytest.mark.parametrize('binding', [toy.NO_FINE[0], toy.NO_FINE[1]])
def test_every_level_is_made_once(tmp_path, binding):
  files = toy.gin_files(tmp_path)
  with pytest.raises(
    errors.UserError, match='^The stages make levels 0, 1, 2, 3'
  ):
    with bundles.read_recipe(files, [binding]):
      pass


@pytest.mark.parametrize(
  'visual, stream',
  [
    ('clip', 'clip'),
    ('i3d_flow', 'i3d_flow'),
    ('vit_vqgan', 'vit_vqgan'),
    ('clip_i3d_flow', 'clip'),
    ('vit_vqgan_i3d_flow', 'vit_vqgan'),
  ],
)
def test_streams_without_an_extractor(tmp_path, visual, stream):
  files = [*toy.gin_files(tmp_path), f'visual/{visual}.gin']
  assert _message(bundles.save, tmp_path / 'new', files, {}) == (
    f'Stage `semantic` needs stream `{stream}`, expected an extractor for it '
    'or a stage that makes it. Add it to bundles.Recipe.visual, or use a file '
    'of gin/visual whose EXTRACTORS make it.'
  )


def test_what_gin_binds_for_one_stage_is_kept(made, tmp_path):
  files, params, _ = made
  binding = 'coarse/StageModel.temperature = 0.25'
  folder = bundles.save(tmp_path / 'cool', files, params, [binding])
  temperatures = [m.options.temperature for m in bundles.load(folder).models]
  assert temperatures == [1.0, 0.25, 0.4]


def test_gin_file_names_only_what_is_used(made, tmp_path):
  files, params, folder = made
  unused = ['bundles.Recipe.tokenizer = None']
  other = bundles.save(tmp_path / 'other', files, params, unused)
  for path, count in ((folder, 1), (other, 0)):
    lines = (path / bundles.GIN).read_text().splitlines()
    imported = [line for line in lines if line.startswith('from ')]
    assert 'from v2meow_jax import network' in imported
    assert len([line for line in imported if 'tokenizer' in line]) == count
  assert bundles.load(other).tokenizer is None


def test_bundle_without_a_tokenizer(made, tmp_path):
  files, params, _ = made
  params = {k: v for k, v in params.items() if k != 'tokenizer'}
  folder = bundles.save(tmp_path / 'deaf', files, params)
  assert bundles.load(folder).tokenizer is None


def test_tokenizer_of_other_tokens_is_not_written(made, tmp_path):
  files, params, _ = made
  wrong = {'tokenizer': {'centres': np.ones((2, 3), np.float32)}}
  message = _message(bundles.save, tmp_path / 'new', files, params | wrong)
  assert message.startswith(
    'Part `tokenizer`: Clusters of tokenizer `spectral_semantic` are '
  )
  assert len(message.splitlines()) == 1  # gin appends more
  binding = ["SEMANTIC = 'w2v_bert'"]
  assert _message(bundles.save, tmp_path / 'new', files, params, binding) == (
    'Part `tokenizer`: makes stream `spectral_semantic`, expected `w2v_bert` '
    'of stage `semantic`. Choose another file of gin/tokenizers.'
  )
  assert [*tmp_path.iterdir()] == []


def test_card_lists_the_parts(made):
  card = (made[2] / bundles.CARD).read_text()
  assert card.startswith('# Toy\nfor tests\n\n## Parts\n')
  count = sum(x.size for x in tree.flatten(made[1]['semantic']))
  size = (made[2] / 'semantic.safetensors').stat().st_size
  assert (
    f'| semantic | scene + caption to spectral_semantic, 2 s | '
    f'{count / 1e6:.2f} M | {size / 1e6:.2f} MB |'
  ) in card


def test_two_bundles_and_the_callers_gin_do_not_meet(made, tmp_path):
  other = toy.make_bundle(tmp_path / 'other', seed=1)
  gin.clear_config()
  gin.parse_config('callers/macro.value = 3\nOURS = 5')
  try:
    first, second = bundles.load(made[2]), bundles.load(other)
    assert first.style is not None
    assert second.style is None
    assert len(first.models[0].stage.inputs) == 2
    assert len(second.models[0].stage.inputs) == 1
    assert gin.query_parameter('OURS/gin.macro.value') == 5
    assert gin.query_parameter('callers/gin.macro.value') == 3
    assert 'spectrogram' not in gin.config_str()
    assert not gin.config_is_locked()
  finally:
    gin.clear_config()


def test_callers_gin_survives_an_error(tmp_path):
  gin.clear_config()
  gin.parse_config('OURS = 5')
  try:
    with pytest.raises(errors.UserError):
      with bundles.read_recipe([tmp_path / 'missing.gin']):
        pass
    assert gin.query_parameter('OURS/gin.macro.value') == 5
  finally:
    gin.clear_config()


def _message(function, *args, **kwargs) -> str:
  with pytest.raises(errors.UserError) as caught:
    function(*args, **kwargs)
  return str(caught.value)


def test_unknown_model(tmp_path, monkeypatch):
  assert _message(bundles.load, 'nightingale') == (
    'Unknown model `nightingale`, expected bundled or the folder of a model. '
    'Check the name.'
  )
  assert _message(bundles.load, tmp_path) == (
    f'{tmp_path}: no model, expected a folder with bundle.gin in it. Make one '
    'with `python -m v2meow_jax.bundles pack`.'
  )
  monkeypatch.setitem(bundles.MODELS, 'bundled', tmp_path / 'gone')
  assert _message(bundles.load) == (
    f'Model `bundled` is not complete: {tmp_path / "gone" / "bundle.gin"} is '
    'missing. Install v2meow_jax again.'
  )


def test_bundle_without_a_part_is_not_written(made, tmp_path):
  files, params, _ = made
  params = {k: v for k, v in params.items() if k != 'coarse'}
  assert _message(bundles.save, tmp_path / 'new', files, params) == (
    'No weights of coarse, expected those of semantic, coarse, fine, codec. '
    'Name a checkpoint for each.'
  )
  assert not (tmp_path / 'new').exists()


def test_weights_of_another_network_are_not_written(made, tmp_path):
  files, params, _ = made
  wrong = weights.unflatten(weights.flatten(params['fine']))
  wrong['decoder']['logits_dense']['kernel'] = np.zeros((16, 3), np.float32)
  del wrong['decoder']['decoder_norm']
  message = _message(
    bundles.save, tmp_path / 'new', files, params | {'fine': wrong}
  )
  assert message.startswith(
    'Part `fine`: Weights do not fit the model: missing '
    '`decoder/decoder_norm/scale`'
  )
  assert '`decoder/logits_dense/kernel` has shape (16, 3)' in message
  assert [*tmp_path.iterdir()] == []


def test_system_that_lacks_an_extractor(made, tmp_path):
  files, params, _ = made
  with pytest.raises(
    errors.UserError, match='^Stage `semantic` needs stream `scene'
  ):
    bundles.save(tmp_path / 'new', files, params, ['EXTRACTORS = ()'])


def test_folder_in_use_is_left_alone(made, tmp_path):
  (tmp_path / 'precious').write_text('keep')
  assert _message(bundles.save, tmp_path, *made[:2]) == (
    f'{tmp_path}: is in use and no model, expected a new or an empty folder. '
    'Choose another.'
  )
  assert (tmp_path / 'precious').read_text() == 'keep'


def test_bundle_is_replaced_by_a_new_one(made, tmp_path):
  files, params, _ = made
  folder = bundles.save(tmp_path / 'new', files, params, dtype='float32')
  large = (folder / 'fine.safetensors').stat().st_size
  bundles.save(folder, files, params)
  assert (folder / 'fine.safetensors').stat().st_size < 0.6 * large
  assert [path.name for path in tmp_path.iterdir()] == ['new']


def test_int8_is_half_the_size_and_near(made, tmp_path):
  files, params, half = made
  folder = bundles.save(tmp_path / 'new', files, params, dtype='int8')
  size = lambda path: (path / 'coarse.safetensors').stat().st_size
  assert size(folder) < 0.6 * size(half)
  assert (folder / 'codec.safetensors').stat().st_size == (
    half / 'codec.safetensors'
  ).stat().st_size
  loaded = bundles.load(folder).params['coarse']
  for ours, original in zip(
    tree.flatten(dict(loaded)), tree.flatten(params['coarse']), strict=True
  ):
    assert ours.dtype == np.float32
    if original.ndim == 1:
      np.testing.assert_array_equal(ours, original)
    else:
      # Half a step of the largest weight of the column.
      largest = np.abs(original).max(axis=0)
      assert (np.abs(ours - original) <= largest / 254 * 1.001).all()


def test_quantization_of_nothing_and_of_integers():
  params = {'a': {'zeros': np.zeros((2, 3), np.float32)}, 'n': np.arange(3)}
  again = quantization.dequantize(quantization.quantize(params))
  np.testing.assert_array_equal(again['a']['zeros'], np.zeros((2, 3)))
  np.testing.assert_array_equal(again['n'], np.arange(3))


def test_pack_command(made, tmp_path, capsys):
  files, params, folder = made
  arguments = ['pack', '--out', str(tmp_path / 'packed')]
  for file in files:
    arguments += ['--gin_file', file]
  for part in params:
    arguments += [f'--{part}', str(folder / f'{part}.safetensors')]
  assert bundles.main(arguments) == 0
  assert capsys.readouterr().out == f'{tmp_path / "packed"}\n'
  packed = bundles.load(tmp_path / 'packed')
  original = bundles.load(folder)
  tree.map_structure(
    np.testing.assert_array_equal,
    packed.params['coarse'],
    original.params['coarse'],
  )
  assert (
    (tmp_path / 'packed' / bundles.CARD)
    .read_text()
    .startswith('# Model packed\n')
  )
  arguments[2] = str(pathlib.Path(folder).parent)
  assert bundles.main(arguments) == 1
  assert 'is in use and no model' in capsys.readouterr().err
