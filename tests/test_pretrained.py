"""Published weights: found, verified, converted, and all that does not fit."""

import hashlib
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from v2meow_jax import cli
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weight_files
from v2meow_jax import weights

WIDTH = 4


def _convert(files):
  arrays = weight_files.read(files['model.safetensors|model.npz'])
  width = weight_files.read_json(files['config.json'])['hidden']
  table = {
    'dense/kernel': ('linear.weight', np.transpose),
    'dense/scale': (('linear.g', 'linear.v'), np.multiply),
  }
  params = weights.translate(
    arrays, table, ignore=[r'step', r'old\..*'], what='`tiny`'
  )
  return weights.add_config({'params': params}, {'width': width})


def _expected(config):
  shape = lambda *size: jax.ShapeDtypeStruct(size, 'float32')
  kernel = shape(3, config['width'])
  return {'params': {'dense': {'kernel': kernel, 'scale': shape(2)}}}


ROW = pretrained.Checkpoint(
  name='tiny',
  summary='two arrays',
  licence='MIT',
  files=('config.json', 'model.safetensors|model.npz'),
  convert=_convert,
  expected=_expected,
  repository='somebody/tiny',
)


@pytest.fixture(autouse=True)
def rows(monkeypatch, tmp_path):
  monkeypatch.setattr(pretrained, 'checkpoints', lambda: {'tiny': ROW})
  monkeypatch.setenv(pretrained.VARIABLE, str(tmp_path / 'cache'))


@pytest.fixture
def folder(tmp_path, rng):
  folder = tmp_path / 'files'
  _write(folder, _arrays(rng))
  return folder


def _arrays(rng):
  return {
    'linear.weight': rng.standard_normal((WIDTH, 3)).astype('f4'),
    'linear.g': np.array([2.0, 3.0], 'f4'),
    'linear.v': np.array([0.5, 1.0], 'f4'),
    'step': np.array(9),
    'old.bias': np.zeros(1, 'f4'),
  }


def _write(folder, arrays):
  folder.mkdir(exist_ok=True, parents=True)
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  (folder / 'config.json').write_text(f'{{"hidden": {WIDTH}}}')


def test_load_converts_checks_and_keeps_the_config(folder):
  params = pretrained.load('tiny', folder)
  arrays = safetensors.numpy.load_file(folder / 'model.safetensors')
  dense = params['params']['dense']
  np.testing.assert_array_equal(dense['kernel'], arrays['linear.weight'].T)
  np.testing.assert_array_equal(dense['scale'], [1.0, 3.0])
  assert weights.read_config(params) == {'width': WIDTH, 'source': 'tiny'}


def test_everything_that_does_not_fit_is_listed(folder, rng):
  arrays = _arrays(rng)
  del arrays['linear.g']
  arrays['linear.extra'] = np.zeros((5, 6), 'f4')
  _write(folder, arrays)
  with pytest.raises(errors.UserError) as error:
    pretrained.load('tiny', folder)
  assert str(error.value) == (
    'Weights of `tiny` do not fit: missing `linear.g` (for `dense/scale`); '
    'unexpected `linear.extra` of shape (5, 6). Use the checkpoint that this '
    'converter is for.'
  )
  arrays = _arrays(rng)
  arrays['linear.weight'] = np.zeros((WIDTH, 7), 'f4')
  _write(folder, arrays)
  with pytest.raises(
    errors.UserError,
    match=r'`params/dense/kernel` has shape \(7, 4\), expected \(3, 4\)',
  ):
    pretrained.load('tiny', folder)


def test_truncated_file_is_one_line(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(errors.UserError, match='expected a safetensors file'):
    pretrained.load('tiny', folder)


def test_find_takes_the_cache_and_never_downloads_unasked(tmp_path, rng):
  with pytest.raises(errors.UserError) as error:
    pretrained.find(ROW)
  assert str(error.value) == (
    f'{tmp_path / "cache" / "tiny"}: config.json and model.safetensors|'
    'model.npz of weights `tiny` missing, expected config.json, '
    'model.safetensors|model.npz. Run `v2meow weights convert tiny '
    '--download`, or name their folder with --path.'
  )
  _write(tmp_path / 'cache' / 'tiny', _arrays(rng))
  paths = pretrained.find(ROW)
  assert [p.name for p in paths.values()] == [
    'config.json',
    'model.safetensors',
  ]
  with pytest.raises(
    errors.UserError, match='is one file, expected the folder'
  ):
    pretrained.find(ROW, paths['config.json'])


def test_download_fetches_what_is_missing(tmp_path, rng, monkeypatch):
  source, asked = tmp_path / 'hub', []
  _write(source, _arrays(rng))
  hub = types.ModuleType('huggingface_hub')
  hub.errors = types.ModuleType('huggingface_hub.errors')
  hub.errors.EntryNotFoundError = type('EntryNotFoundError', (Exception,), {})

  def download(repository, name, revision, local_dir):
    asked.append((repository, name, revision))
    if not (source / name).is_file():
      raise hub.errors.EntryNotFoundError(name)
    local_dir.mkdir(parents=True, exist_ok=True)
    (local_dir / name).write_bytes((source / name).read_bytes())
    return str(local_dir / name)

  hub.hf_hub_download = download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  monkeypatch.setitem(sys.modules, 'huggingface_hub.errors', hub.errors)
  (source / 'model.safetensors').rename(source / 'other')
  with pytest.raises(
    errors.UserError, match='has no model.safetensors|model.n'
  ):
    pretrained.load('tiny', download=True)
  (source / 'other').rename(source / 'model.safetensors')
  asked.clear()
  assert 'params' in pretrained.load('tiny', download=True)
  # The config is there from the first time.
  assert asked == [('somebody/tiny', 'model.safetensors', 'main')]
  hub.hf_hub_download = None  # what is there is not fetched again
  assert 'params' in pretrained.load('tiny', download=True)


def test_another_file_than_the_published_one(folder, monkeypatch):
  path = folder / 'model.safetensors'
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  known = lambda sha256: pretrained.Checkpoint(
    **{**vars(ROW), 'sha256': {path.name: sha256}}
  )
  paths = pretrained.find(ROW, folder)
  assert pretrained.verify(known(digest), paths)[path.name] == digest
  with pytest.raises(
    errors.UserError, match=f'SHA-256 is {digest}, expected 0'
  ):
    pretrained.verify(known('0' * 64), paths)


def test_commands(folder, tmp_path, capsys):
  assert cli.main(['weights', 'list']) == 0
  header, row = capsys.readouterr().out.splitlines()
  assert header.split() == ['name', 'licence', 'here', 'from', 'what']
  assert row.split() == ['tiny', 'MIT', 'no', 'somebody/tiny', 'two', 'arrays']
  out = tmp_path / 'tiny.safetensors'
  given = ['tiny', f'--path={folder}']
  assert cli.main(['weights', 'check', *given]) == 0
  said = capsys.readouterr().out
  assert 'model.safetensors: SHA-256' in said
  assert said.endswith('tiny: 14 parameters, all fit\n')
  assert cli.main(['weights', 'convert', *given, f'--out={out}']) == 0
  assert capsys.readouterr().out == f'{out}\n'
  assert cli.main(['weights', 'check', str(out)]) == 0
  assert capsys.readouterr().out == f'{out}: tiny, 14 parameters, all fit\n'
  # What was converted and then damaged is found out.
  params = weights.load_params(out)
  del params['params']['dense']['scale']
  weights.save_params(out, params)
  assert cli.main(['weights', 'check', str(out)]) == 1
  assert 'missing `params/dense/scale`' in capsys.readouterr().err
  weights.save_params(out, weights.without_config(params))
  assert cli.main(['weights', 'check', str(out)]) == 1
  assert 'does not say which weights it holds' in capsys.readouterr().err
  assert cli.main(['weights', 'check', 'huge']) == 1
  assert 'Unknown weights `huge`, expected one of tiny.' in (
    capsys.readouterr().err
  )


def test_weights_say_the_dimensions_of_their_network():
  import dataclasses

  @dataclasses.dataclass(frozen=True)
  class Config:
    width: int = 8
    strides: tuple = (2,)

  tree = weights.add_config({}, {'strides': [2, 4], 'source': 'tiny'})
  assert weights.configure(Config(), tree) == Config(8, (2, 4))
  assert weights.configure(Config(3), {}) == Config(3)
  with pytest.raises(
    errors.UserError, match='holds depth, expected some of st'
  ):
    weights.configure(Config(), weights.add_config({}, {'depth': 1}))
