"""Exported programs make what the package makes, and hold no weights.

What calls them is the code of docs/export.md, which needs JAX alone.
"""

import fractions
import json
import re
import types

import jax
from jax import export
import numpy as np
import pytest

from tests import conftest
from v2meow_jax import arrays
from v2meow_jax import bundles
from v2meow_jax import cascade
from v2meow_jax import cli
from v2meow_jax import exporting
from v2meow_jax import fingerprints
from v2meow_jax import sampling

_STAGES = ('semantic', 'coarse', 'fine')


@pytest.fixture(scope='module', autouse=True)
def quick_compiler():
  """Compiles in two thirds of the time, what is compared and the other."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


def _blocks(language):
  text = (conftest.ROOT / 'docs' / 'export.md').read_text()
  return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.M)


@pytest.fixture(scope='module')
def exported(tiny_model, tmp_path_factory):
  """What the command of docs/export.md writes of the tiny system."""
  folder = tmp_path_factory.mktemp('exports')
  (command,) = _blocks('sh')
  program, *arguments = command.split()
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setitem(bundles.MODELS, 'bundled', tiny_model)
    assert program == 'v2meow' and cli.main(arguments) == 0
  return folder / 'exported'


@pytest.fixture(scope='module')
def bundle(tiny_model):
  return bundles.load(tiny_model)


@pytest.fixture(scope='module')
def page():
  """The code of docs/export.md as a module."""
  (code,) = _blocks('python')
  assert 'v2meow_jax' not in code
  module = types.ModuleType('page')
  exec(code, module.__dict__)
  return module


@pytest.fixture(scope='module')
def parts(exported, page):
  return page.load(exported)[1]


def _runner(bundle, name):
  (model,) = [m for m in bundle.models if m.stage.name == name]
  grid_hz = cascade.common_rate(
    arrays.crop_grid_hz(other.stage) for other in bundle.models
  )
  params = bundle.params[name]
  return cascade.StageRunner(model, params, grid_hz, bundle.overlap)


def _streams(stage, rng):
  """A clip of 3 s that fills no window."""
  streams = {}
  for view in stage.inputs:
    shape = view.spec.example_shape(int(3 * (view.spec.rate_hz or 0)))
    if view.spec.is_discrete:
      streams[view.name] = rng.integers(0, view.spec.num_codes, shape, 'i4')
    else:
      streams[view.name] = rng.standard_normal(shape).astype(np.float32)
  return streams


@pytest.mark.parametrize('name', _STAGES)
def test_a_window_has_the_same_tokens(name, bundle, parts, page, rng):
  runner = _runner(bundle, name)
  stage = runner.model.stage
  times = runner.window * runner.per_unit
  made = rng.integers(
    0, stage.target.spec.num_codes, (3 * times, stage.target.num_levels), 'i4'
  )
  # It goes on from a prompt, and its inputs end before it does.
  unit = fractions.Fraction(1) / runner.grid_hz
  start = int((3 - stage.seconds) / unit) + 2
  window = cascade.Window(start, 2, runner.window - 1)
  request = runner.request(_streams(stage, rng), made, window, 2**32 - 5)
  options = sampling.Options(0.9, 100, 0.95)
  expected, scores = runner.run([request], window, cascade.Settings(options))
  first, stop = (x * runner.per_unit for x in (window.first, window.stop))
  batched = lambda group, tree: {
    f'{group}/{k}': x[None] for k, x in tree.items()
  }
  values = {
    **batched('inputs', request.inputs),
    **batched('masks', request.masks),
    'prompt': request.prompt[None],
    'seeds': [request.seed],
    'start_frame': [request.start_frame],
    **options._asdict(),
  }
  codes = page.make_window(parts[name], first, stop, **values)
  assert len(np.unique(codes)) > 5
  np.testing.assert_array_equal(codes, expected)
  if name == 'fine':
    values |= parts[name].params | {'first': first, 'stop': stop}
    made = parts[name].call('decode', values)
    np.testing.assert_array_equal(made['codes'][:, first:stop], expected)
    np.testing.assert_array_equal(made['scores'][:, first:stop], scores)


def test_the_codec_sounds_the_same(bundle, parts, page, rng):
  # Two chunks, and of the second a part.
  codes = rng.integers(0, 512, (1, 130, 8), 'i4')
  expected = np.concatenate([*bundle.codec.decode_chunks([codes])], axis=1)
  waveform = page.make_sound(parts['codec'], codes)
  assert np.ptp(expected) > 0.1
  np.testing.assert_array_equal(waveform, expected)


def test_sound_that_ends_behind_the_last_chunk(bundle, parts, page, rng):
  # The decoder is late: a full chunk takes another to be heard to its end.
  codes = rng.integers(0, 512, (1, 100, 8), 'i4')
  expected = np.concatenate([*bundle.codec.decode_chunks([codes])], axis=1)
  waveform = page.make_sound(parts['codec'], codes)
  np.testing.assert_array_equal(waveform, expected)


def _programs(manifest):
  for part in (*manifest['stages'], manifest['codec']):
    for program in part['programs'].values():
      yield part, program


_BYTES = {'f32': 4, 'i32': 4, 'ui32': 4, 'i1': 1, 'complex<f32>': 8}


def _constants(text):
  """Bytes of each constant of MLIR text that is not one number repeated."""
  found = re.findall(
    r'stablehlo\.constant dense<(["\[][^>]*)> : tensor<((?:\d+x)*)([^>]*>?)>',
    text,
  )
  for _, shape, dtype in found:
    yield int(np.prod([int(n) for n in shape.split('x')[:-1]])) * _BYTES[dtype]


def test_programs_hold_no_weights(exported):
  manifest = json.loads((exported / 'manifest.json').read_text())
  count = 0
  for part, program in _programs(manifest):
    data = (exported / program['jax_export']).read_bytes()
    text = export.deserialize(bytearray(data)).mlir_module()
    is_codec = part is manifest['codec']
    # Positions of a window; and the codec's analysis window of 1,280 samples.
    most = 8192 if is_codec else 2048
    sizes = [*_constants(text)]
    assert max(sizes, default=0) <= most, (program['jax_export'], sizes)
    count += len(sizes)
    assert 'custom_call' not in text
  assert count > 5  # the pattern finds some


def test_the_manifest_says_what_the_programs_take(exported, tiny_model):
  manifest = json.loads((exported / 'manifest.json').read_text())
  model = fingerprints.describe_model(tiny_model)
  assert manifest['model'] == {'name': 'bundled', 'sha256': model.sha256}
  assert manifest['platforms'] == ['cpu', 'cuda', 'tpu']
  assert manifest['calling_convention_version'] == 10
  assert [stage['name'] for stage in manifest['stages']] == [*_STAGES]
  assert manifest['stages'][0]['windows'] == {
    'grid_hz': 5.0,
    'length': 10,
    'overlap': 5,
    'times': 50,
  }
  assert manifest['codec']['hop'] == 640
  describe = lambda shapes: [(list(x.shape), x.dtype.name) for x in shapes]
  listed = lambda entries: [(e['shape'], e['dtype']) for e in entries]
  for _, program in _programs(manifest):
    data = (exported / program['jax_export']).read_bytes()
    found = export.deserialize(bytearray(data))
    assert found.platforms == ('cpu', 'cuda', 'tpu')
    assert listed(program['arguments']) == describe(found.in_avals)
    assert listed(program['results']) == describe(found.out_avals)
    bytecode = (exported / program['stablehlo']).read_bytes()
    assert bytecode == found.mlir_module_serialized
    version = f'StableHLO_v{manifest["stablehlo_version"]}'
    assert version.encode() in bytecode[:40]


def test_nothing_says_where_it_was_made(exported):
  for path in exported.rglob('*.*'):
    assert str(conftest.ROOT).encode() not in path.read_bytes(), path


def test_params_are_arguments(parts):
  part = parts['fine']
  zeros = {k: np.zeros_like(x) for k, x in part.params.items()}
  values = {
    a['name']: np.ones(a['shape'], a['dtype'])
    for a in part.facts['programs']['step']['arguments']
  }
  arranged = part.call('arrange', part.params)
  assert np.any(part.call('step', values | arranged)['logits'])
  arranged = part.call('arrange', zeros)
  assert not np.any(part.call('step', values | arranged)['logits'])


def _files(folder):
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_a_fault_leaves_what_was_there(
  exported, tiny_model, tmp_path, monkeypatch, capsys
):
  folder = tmp_path / 'out'
  folder.mkdir()
  (folder / 'manifest.json').write_text('{"format": "v2meow_jax.export"}')
  before = _files(tmp_path)

  def fail(*unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(exporting, 'stage_programs', fail)
  arguments = ['export', '--model', str(tiny_model), str(folder)]
  assert cli.main(arguments) == 1
  assert capsys.readouterr().err == (
    f'error: {folder}: cannot be written (No space left on device), expected '
    'a folder with space in it. Choose another.\n'
  )
  assert _files(tmp_path) == before
  assert [*tmp_path.iterdir()] == [folder]


def test_an_export_is_replaced(tiny_model, tmp_path, monkeypatch, capsys):
  folder = tmp_path / 'out'
  (folder / 'gone').mkdir(parents=True)
  (folder / 'manifest.json').write_text('{"format": "v2meow_jax.export"}')
  program = exporting.Program(
    'double',
    lambda x: {'y': 2 * x},
    {'x': jax.ShapeDtypeStruct((3,), np.float32)},
  )
  monkeypatch.setattr(exporting, 'stage_programs', lambda *_: [program])
  monkeypatch.setattr(exporting, 'codec_program', lambda *_: program)
  arguments = ['export', '--model', str(tiny_model), '--platforms', 'cpu']
  assert cli.main([*arguments, str(folder)]) == 0
  assert capsys.readouterr().out == f'{folder}\n'
  assert not (folder / 'gone').exists()
  assert [*tmp_path.iterdir()] == [folder]
  manifest = json.loads((folder / 'manifest.json').read_text())
  assert manifest['takes_platform_index'] is False
  bytecode = (folder / 'fine' / 'double.stablehlo').read_bytes()
  assert b'_platform_index' not in bytecode
  data = (folder / 'fine' / 'double.jax_export').read_bytes()
  (y,) = export.deserialize(bytearray(data)).call(np.arange(3, dtype='f4'))
  np.testing.assert_array_equal(y, [0, 2, 4])


def test_a_batch_is_in_all_shapes(bundle):
  model = bundle.models[-1]
  programs = exporting.stage_programs(model, bundle.params['fine'], 3)
  for program in programs[1:]:
    for entry in program.describe()['results']:
      rows = 3
      if 'caches/' in entry['name']:
        rows *= model.config.num_heads
      assert entry['shape'][0] == rows, entry


@pytest.mark.parametrize('content', ['', '[]', '{"format": "other"}'])
def test_another_folder_is_left_alone(content, tiny_model, tmp_path, capsys):
  (tmp_path / 'manifest.json').write_text(content)
  arguments = ['export', '--model', str(tiny_model), str(tmp_path)]
  assert cli.main(arguments) == 1
  assert capsys.readouterr().err == (
    f'error: {tmp_path}: is in use and no export, expected a new or an empty '
    'folder. Choose another.\n'
  )
  assert (tmp_path / 'manifest.json').read_text() == content
