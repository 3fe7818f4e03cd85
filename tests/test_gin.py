"""Every gin file is parsed, finalised and built."""

import itertools
import pathlib
import re

import gin
import jax
import pytest
import seqio

from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import streams

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIN = ROOT / 'gin'


def names(folder):
  """Names of the files of a folder, without their ending."""
  return sorted(path.stem for path in (GIN / folder).glob('*.gin'))


# gin/codecs holds codecs, and beside them the phases of their training.
CODECS = [n for n in names('codecs') if not n.startswith(('train_', 'fit_'))]
# Of others there are weights, and no NETWORK to train.
TRAINED_CODECS = [
  n for n in CODECS if '\nNETWORK = ' in (GIN / f'codecs/{n}.gin').read_text()
]
CODEC_TRAINING = [n for n in names('codecs') if n.startswith('train_')]
TOKENIZERS = [n for n in names('tokenizers') if not n.startswith('train_')]
STYLES = [n for n in names('style') if not n.startswith('train_')]
# gin/datasets holds datasets, and beside them the roads of their batches.
ROADS = ['arrays', 'records']
DATASETS = [n for n in names('datasets') if n not in ROADS]
BINDINGS = ["MODEL_DIR = '/nowhere'", "ARRAYS = '/nowhere'"]


@pytest.fixture(autouse=True)
def clear():
  yield
  gin.clear_config()


def recipe(
  stage,
  size='tiny',
  visual='scene',
  codec='spectrogram',
  tokenizer='spectral',
  style='none',
  dataset='toy',
  road='arrays',
):
  """The files of gin/README.md, in their order."""
  return [
    f'sizes/{size}.gin',
    f'visual/{visual}.gin',
    f'codecs/{codec}.gin',
    f'tokenizers/{tokenizer}.gin',
    f'style/{style}.gin',
    f'datasets/{dataset}.gin',
    f'datasets/{road}.gin',
    f'stages/{stage}.gin',
    'runs/train.gin',
  ]


def build(values):
  """Builds a model of what `train.train` gets; returns its parameters."""
  model = values['model']
  shapes = model.feature_shapes(values['batch_size'])
  variables = jax.eval_shape(
    lambda key: model.get_initial_variables(rng=key, input_shapes=shapes),
    jax.random.PRNGKey(0),
  )
  jax.eval_shape(values['optimizer'].init, variables['params'])
  return variables['params']


@pytest.mark.parametrize('stage', names('stages'))
def test_every_combination_is_built(stage):
  """Of what test_variants.py, which has the other axes, leaves fixed."""
  built = set()
  for codec, tokenizer, dataset in itertools.product(
    CODECS, TOKENIZERS, DATASETS
  ):
    files = recipe(stage, codec=codec, tokenizer=tokenizer, dataset=dataset)
    configs.parse(files, BINDINGS, root='train.train')
    values = gin.get_bindings('train.train')
    made = values['model'].stage
    kind = stage.split('_')[0]
    assert made.name == ('coarse' if kind == 'direct' else kind)
    if made not in built:  # many choices are none of this stage's
      built.add(made)
      # No parameter depends on the seconds.
      second = [*BINDINGS, 'stages.make.seconds = 1.0']
      configs.parse(files, second, root='train.train')
      params = build(gin.get_bindings('train.train'))
      assert params['decoder']['logits_dense']['kernel'].shape[-1] == (
        made.target.num_levels * made.target.spec.num_codes
      )


@pytest.mark.parametrize('size', names('sizes'))
@pytest.mark.parametrize('stage', ['semantic', 'fine'])  # both architectures
def test_every_size_is_built(stage, size):
  configs.parse(recipe(stage, size), BINDINGS, root='train.train')
  config = gin.get_bindings('train.train')['model'].config
  assert config.num_layers >= 1
  # All layers are alike: one of each is enough to see that they can be made.
  layers = ('num_encoder_layers', 'num_decoder_layers', 'num_layers')
  bindings = [f'network.Config.{name} = 1' for name in layers]
  configs.parse(recipe(stage, size), BINDINGS + bindings, root='train.train')
  params = build(gin.get_bindings('train.train'))
  assert params['decoder']['logits_dense']['kernel'].shape[0] == (
    config.embed_dim
  )
  mlp = params['decoder']['layers_0']['mlp']
  assert mlp['wo']['kernel'].shape == (config.mlp_dim, config.embed_dim)


@pytest.mark.parametrize('device', names('devices'))
def test_every_kind_of_device_gives_the_same_parameters(device):
  files = recipe('semantic')
  files.insert(1, f'devices/{device}.gin')
  bindings = [
    *BINDINGS,
    'stages.make.seconds = 1.0',
    'network.Config.num_encoder_layers = 2',
  ]
  configs.parse(recipe('semantic'), bindings, root='train.train')
  expected = build(gin.get_bindings('train.train'))
  configs.parse(files, bindings, root='train.train')
  values = gin.get_bindings('train.train')
  assert build(values) == expected  # shapes, names and float32
  model = values['model']
  assert model.config.dtype == 'bfloat16'
  batch = {
    name: jax.ShapeDtypeStruct(shape, 'float32' if len(shape) == 3 else 'int32')
    for name, shape in model.feature_shapes(2).items()
  }
  key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
  loss = jax.make_jaxpr(model.loss_fn)(expected, batch, key)
  for name in ('bf16', 'scan[', 'remat'):
    assert name in str(loss), name


@pytest.mark.parametrize('road', ROADS)
@pytest.mark.parametrize('dataset', DATASETS)
def test_every_dataset_gives_batches(dataset, road):
  files = recipe('semantic', dataset=dataset, road=road)
  configs.parse(files, BINDINGS, root='train.train')
  made = gin.get_bindings('train.train')['batches']
  if road == 'arrays':  # it is asked for the split, and looks for its files
    with pytest.raises(errors.UserError, match='/nowhere/train/index.json'):
      made(split='train', batch_size=2, seed=0)
  else:
    made(split='train', batch_size=2, seed=0)
    task = gin.query_parameter('DATASET/macro.value').split(':')[0]
    assert f'{task}.semantic.scene.spectral_semantic.drop_10' in (
      seqio.TaskRegistry.names()
    )


@pytest.mark.parametrize('training', CODEC_TRAINING)
@pytest.mark.parametrize('codec', TRAINED_CODECS)
def test_every_codec_training_is_set(codec, training):
  files = [f'codecs/{codec}.gin', 'runs/train.gin', f'codecs/{training}.gin']
  bindings = [*BINDINGS[:1], "CODEC_WEIGHTS = '/nowhere'"]
  with pytest.raises(errors.UserError, match='gin files: MANIFESTS. Expect'):
    configs.parse(files, bindings, root='train.train')
  configs.parse(
    files, [*bindings, "MANIFESTS = ('/nowhere.csv',)"], root='train.train'
  )


@pytest.mark.parametrize('style', STYLES)
def test_every_style_is_a_stream_and_its_embedder(style):
  configs.parse([f'style/{style}.gin', 'runs/prepare.gin'])
  name = gin.query_parameter('STYLE/macro.value')
  embedder = gin.query_parameter('EMBEDDER/macro.value')
  if name is None:
    assert embedder is None
    return
  spec = streams.get(name)
  assert not spec.is_timed
  assert embedder.configurable.wrapped.spec is spec


def test_mulan_training_is_set():
  files = ['style/mulan.gin', 'runs/train.gin', 'style/train_mulan.gin']
  with pytest.raises(
    errors.UserError, match='gin files: MANIFESTS, VOCABULARY'
  ):
    configs.parse(files, BINDINGS[:1], root='train.train')
  bindings = ["MANIFESTS = ('/no.csv',)", "VOCABULARY = '/no.txt'"]
  bindings = [*BINDINGS[:1], *bindings]
  configs.parse(files, bindings, root='train.train')
  assert gin.query_parameter('TRAIN_STEPS/macro.value') == 100000
  files.append('style/train_mulan_small.gin')
  configs.parse(files, bindings, root='train.train')
  assert gin.query_parameter('TRAIN_STEPS/macro.value') == 600


@pytest.mark.parametrize(
  'path', sorted(GIN.rglob('*.gin')), ids=lambda path: path.stem
)
def test_every_file_has_a_header_and_stands_alone(path):
  text = path.read_text()
  header = re.match(r'(# .*\n|#\n)+', text)[0]
  assert header.startswith(f'# {path.relative_to(ROOT)}: ')
  assert 'Provides' in header or 'Needs' in header
  if 'import' in text:
    assert 'from __gin__ import dynamic_registration' in text
  if path.parent.name != 't5x':  # test_t5x.py looks at those
    configs.parse([str(path)])  # its own imports are all it needs


def test_paths_of_both_kinds():
  for path in ('sizes/tiny.gin', 'gin/sizes/tiny.gin', GIN / 'sizes/tiny.gin'):
    configs.parse([str(path)])
    assert 'network.Config' in gin.config_str()


def test_search_paths_come_first(tmp_path):
  (tmp_path / 'sizes').mkdir()
  (tmp_path / 'sizes' / 'tiny.gin').write_text('MINE = 1\n')
  configs.parse(['sizes/tiny.gin'], search_paths=[str(tmp_path)])
  assert gin.query_parameter('MINE/macro.value') == 1


def test_later_files_and_bindings_win():
  files = recipe('semantic')
  configs.parse(files, [*BINDINGS, 'BATCH_SIZE = 3'], root='train.train')
  assert gin.get_bindings('train.train')['batch_size'] == 3


def test_what_is_not_set_is_named():
  with pytest.raises(errors.UserError) as error:
    configs.parse(recipe('fine'), root='train.train')
  assert str(error.value) == (
    'Not set in the gin files: ARRAYS, MODEL_DIR. Expected the file of gin/ '
    'that provides each (see gin/README.md), or --gin.ARRAYS=… '
    '--gin.MODEL_DIR=…'
  )
  files = [f for f in recipe('fine') if not f.startswith('codecs')]
  with pytest.raises(errors.UserError, match='the gin files: ACOUSTIC. Expe'):
    configs.parse(files, BINDINGS, root='train.train')
  # What the run does not use may stay unset.
  files = [f for f in recipe('fine') if not f.startswith('tokenizers')]
  configs.parse(files, BINDINGS, root='train.train')
  with pytest.raises(errors.UserError) as error:
    configs.parse(recipe('fine')[:-1], BINDINGS, root='train.train')
  assert str(error.value) == (
    'No gin file says what `train.train` is to do. Add a file of gin/runs, '
    'such as --gin_file=runs/train.gin.'
  )


def test_mistakes_are_one_line():
  for files, bindings, message in (
    (['sizes/none.gin'], [], 'sizes/none.gin: no such gin file, expected a'),
    (recipe('fine'), ['nothing.x = 1'], 'No configurable matching'),
    (recipe('fine'), ['train.what = 1'], "a parameter named 'what'"),
    (recipe('fine'), ['X = ('], 'Cannot use the gin files: '),
  ):
    with pytest.raises(errors.UserError) as error:
      configs.parse(files, bindings, root='train.train')
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_readme_shows_the_recipe():
  text = (GIN / 'README.md').read_text()
  blocks = re.findall(r'```sh\n(.*?)```', text, re.DOTALL)
  shown = [re.findall(r'--gin_file=(\S+)', block) for block in blocks]
  assert shown[0] == recipe('semantic', style='caption')
  for files in shown:
    configs.parse(files)
  folders = {path.name for path in GIN.iterdir() if path.is_dir()}
  assert set(re.findall(r'^\| `(\w+)/` \|', text, re.MULTILINE)) == folders
