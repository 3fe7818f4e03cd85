"""Preparing data: parts, restart, bad clips, crashes, arrays, real media."""

import dataclasses
import inspect
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import fake_sources
from tests import toy
from v2meow_jax import errors
from v2meow_jax import extraction
from v2meow_jax import manifests
from v2meow_jax import prepare
from v2meow_jax import sources
from v2meow_jax import weights
from v2meow_jax.codecs import rvq

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def plan(tmp_path):
  gin_file = tmp_path / 'fake.gin'
  gin_file.write_text(fake_sources.GIN)
  weights.save_params(tmp_path / 'sound.safetensors', {'a': np.zeros(1)})
  return extraction.Plan(
    fake_sources.STREAMS,
    (str(gin_file),),
    tokenizer=str(tmp_path / 'sound.safetensors'),
  )


def _log(tmp_path):
  """What was made, by clip; empties the log."""
  made = {p.name: p.read_text().split() for p in (tmp_path / 'log').iterdir()}
  for path in (tmp_path / 'log').iterdir():
    path.unlink()
  return made


@pytest.fixture
def clips(tmp_path):
  (tmp_path / 'log').mkdir()
  make = lambda i, split: fake_sources.Source(
      f'clip {i}/ü', split, seconds=2.0 + i, log=str(tmp_path / 'log'),
      content=str(i),
  )  # fmt: skip
  return [make(0, 'train'), make(1, 'validation'), make(2, 'train')]


# `/` cannot be in a file name, so the log could not be written.
@pytest.fixture
def simple(clips):
  return [
    dataclasses.replace(c, clip_id=f'clip_{i}') for i, c in enumerate(clips)
  ]


def test_parts_hold_all_streams_cut_to_the_same_seconds(tmp_path, plan, simple):
  assert prepare.make_parts(simple, plan, tmp_path / 'parts') == {}
  part = extraction.read_part(tmp_path / 'parts', 'clip_2')
  assert part.seconds == 4.0
  assert set(part.arrays) == set(fake_sources.STREAMS)
  assert part.arrays['clip'].shape == (4, 768)
  # The sound lasts longer and is cut.
  np.testing.assert_array_equal(part.arrays['w2v_bert'][:, 0], np.arange(100))
  np.testing.assert_array_equal(part.arrays['caption'], np.full(32, 10))
  assert part.arrays['w2v_bert'].dtype == np.int32
  assert part.arrays['clip'].dtype == np.float32


def test_names_that_no_file_can_have(tmp_path, plan):
  clip = fake_sources.Source('a/b ü', content='x')
  assert prepare.make_parts([clip], plan, tmp_path / 'parts') == {}
  assert extraction.read_part(tmp_path / 'parts', 'a/b ü').seconds == 4.0
  assert [p.name for p in (tmp_path / 'parts').iterdir()] == [
    'a%2Fb%20%C3%BC.npz'
  ]


def test_a_second_run_makes_only_what_has_changed(tmp_path, plan, simple):
  run = lambda clips, plan: prepare.make_parts(clips, plan, tmp_path / 'parts')
  run(simple, plan)
  assert _log(tmp_path) == {f'clip_{i}': ['picture', 'sound'] for i in range(3)}
  run(simple, plan)
  assert _log(tmp_path) == {}
  # Another file under the same name.
  replace = dataclasses.replace
  run([replace(simple[0], content='new'), *simple[1:]], plan)
  assert _log(tmp_path) == {'clip_0': ['picture', 'sound']}
  # Other words: neither picture nor sound.
  spoken = [replace(simple[0], content='new', caption='x'), *simple[1:]]
  run(spoken, plan)
  assert _log(tmp_path) == {}
  part = extraction.read_part(tmp_path / 'parts', 'clip_0')
  np.testing.assert_array_equal(part.arrays['caption'], np.ones(32))
  # Other weights: the sound of all.
  weights.save_params(tmp_path / 'sound.safetensors', {'a': np.ones(1)})
  run(spoken, plan)
  assert _log(tmp_path) == {f'clip_{i}': ['sound'] for i in range(3)}
  # Fewer streams: those that stay are kept.
  fewer = dataclasses.replace(plan, stream_names=('clip',))
  run(spoken, fewer)
  part = extraction.read_part(tmp_path / 'parts', 'clip_0')
  assert 'clip' in part.arrays
  assert _log(tmp_path) == {}


def test_a_broken_part_is_made_again(tmp_path, plan, simple):
  prepare.make_parts(simple, plan, tmp_path / 'parts')
  _log(tmp_path)
  path = extraction.part_path(tmp_path / 'parts', 'clip_1')
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(errors.UserError, match='missing or broken'):
    extraction.read_part(tmp_path / 'parts', 'clip_1')
  prepare.make_parts(simple, plan, tmp_path / 'parts')
  assert _log(tmp_path) == {'clip_1': ['picture', 'sound']}


def test_a_bad_clip_in_the_middle_is_skipped_and_named(
  tmp_path, plan, simple, capfd
):
  replace = dataclasses.replace
  clips = [simple[0], replace(simple[1], behaviour='bad'), simple[2]]
  failures = prepare.make_parts(clips, plan, tmp_path / 'parts')
  assert failures == {'clip_1': 'clip_1: is bad, expected good.'}
  assert set(_log(tmp_path)) == {'clip_0', 'clip_2'}
  assert not extraction.part_path(tmp_path / 'parts', 'clip_1').exists()
  err = capfd.readouterr().err
  assert 'skipped clip_1: clip_1: is bad, expected good.\n' in err
  assert '3/3 clips' in err


def test_processes_survive_what_a_clip_does_to_them(tmp_path, plan, simple):
  replace = dataclasses.replace
  clips = [
    replace(simple[0], behaviour='bad'),
    replace(simple[1], behaviour='kill'),
    simple[2],
  ]
  failures = prepare.make_parts(clips, plan, tmp_path / 'parts', 2)
  assert failures == {
    'clip_0': 'clip_0: is bad, expected good.',
    'clip_1': 'clip_1: takes the process down. Leave it out.',
  }
  assert extraction.read_part(tmp_path / 'parts', 'clip_2').seconds == 4.0


def test_a_run_that_was_killed_goes_on(tmp_path, plan, simple):
  replace = dataclasses.replace
  simple[2] = replace(simple[2], behaviour='kill')
  code = (
    'import sys; from tests import fake_sources; '
    'from v2meow_jax import prepare; from tests.fake_sources import Source; '
    'from v2meow_jax.extraction import Plan; '
    f'prepare.make_parts({simple!r}, {plan!r}, {str(tmp_path / "parts")!r})'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, check=False
  )
  assert result.returncode == -9, result.stderr
  assert set(_log(tmp_path)) == {'clip_0', 'clip_1'}
  (tmp_path / 'log' / 'pardon_clip_2').touch()
  assert prepare.make_parts(simple, plan, tmp_path / 'parts') == {}
  made = _log(tmp_path)
  made.pop('pardon_clip_2')
  assert made == {'clip_2': ['picture', 'sound']}
  assert len(list((tmp_path / 'parts').iterdir())) == 3  # nothing partial


def test_a_clip_shorter_than_a_position(tmp_path, plan):
  clip = fake_sources.Source('short', seconds=0.5)
  assert prepare.make_parts([clip], plan, tmp_path / 'parts') == {
    'short': (
      'Clip `short` has 0 s of picture and sound, expected at least 1 s. '
      'Leave it out.'
    )
  }


def test_an_unknown_stream(tmp_path, plan):
  bad = dataclasses.replace(plan, stream_names=('mulan',))
  with pytest.raises(errors.UserError) as e:
    prepare.make_parts([], bad, tmp_path / 'parts')
  assert str(e.value) == (
    'Nothing makes stream `mulan`, expected one of clip, w2v_bert, caption. '
    'Choose one of these or other gin files.'
  )


def test_missing_weights_are_named(tmp_path, plan):
  bad = dataclasses.replace(plan, tokenizer=None)
  with pytest.raises(errors.UserError) as e:
    prepare.make_parts([], bad, tmp_path / 'parts')
  assert str(e.value) == (
    'Nothing makes stream `w2v_bert`, expected one of clip, caption. Weights '
    'were not given for: tokenizer; pass --tokenizer PATH.'
  )


def test_an_output_folder_that_cannot_be(tmp_path, plan):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.UserError, match='cannot be made'):
    prepare.make_parts([], plan, tmp_path / 'file' / 'parts')


# From here on: the command, on real media.


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A folder with weights of a tiny codec and of a tokenizer."""
  folder = tmp_path_factory.mktemp('model')
  rng = np.random.default_rng(0)
  weights.save_params(folder / 'codec.safetensors', toy.codec_weights())
  weights.save_params(
    folder / 'tokenizer.safetensors',
    {
      'mean': np.zeros(36, 'f4'),
      'scale': np.ones(36, 'f4'),
      'centres': rng.standard_normal((512, 36)).astype('f4'),
    },
  )
  # The tiny codec's dimensions stand behind the usual files.
  *_, short = toy.gin_files(folder)
  (folder / 'tiny.gin').write_text(
    pathlib.Path(short).read_text().split('from v2meow_jax import stages')[0]
    + 'from v2meow_jax.codecs import spectrogram\n'
    + pathlib.Path(short).read_text().split('seconds = 1.0\n')[1]
  )
  return folder


def _versions(model, gin=''):
  tiny = model / 'tiny.gin'
  if gin:
    tiny = model / 'other.gin'
    tiny.write_text(f'{(model / "tiny.gin").read_text()}\n{gin}\n')
  plan = extraction.make_plan(
    ('scene', 'spectral_semantic', 'spectrogram', 'caption'),
    model=str(model),
    gin_files=(*extraction.GIN_FILES, str(tiny)),
  )
  return extraction.extractors(plan).versions


def _differing(before, after):
  assert set(before) == set(after)
  return {name for name in before if before[name] != after[name]}


def test_streams_are_made_again_where_their_code_changes(model, monkeypatch):
  before = _versions(model)
  assert _versions(model) == before
  real = inspect.getsource
  # What the codec's own module imports only; the tokenizer does not use it.
  monkeypatch.setattr(
    inspect, 'getsource', lambda module: real(module) + '#' * (module is rvq)
  )
  assert _differing(before, _versions(model)) == {'spectrogram'}


def test_streams_are_made_again_where_the_network_changes(model):
  other = _versions(model, 'spectrogram.Config.magnitude_power = 0.5')
  assert _differing(_versions(model), other) == {'spectrogram'}


def _flags(model, out):
  files = [*extraction.GIN_FILES, str(model / 'tiny.gin')]
  return [
      *(f'--gin_file={f}' for f in files), f'--model={model}', f'--out={out}'
  ]  # fmt: skip


@pytest.fixture
def manifest(shared_data, tmp_path):
  path = tmp_path / 'real.csv'
  video = shared_data / 'video'
  path.write_text(
    'clip_id,file,start_seconds,end_seconds,split,caption\n'
    f'a,{video / "bbb_23_44_music.mp4"},1,3.2,train,happy orchestra\n'
    f'b,{video / "claymation_music.mp4"},0,2,validation,\n'
    f'bad,{ROOT / "setup.py"},,,train,\n'
  )
  return path


def test_arrays_of_real_videos(tmp_path, model, manifest, capfd):
  out = tmp_path / 'out'
  status = prepare.main([str(manifest), '--arrays', *_flags(model, out)])
  captured = capfd.readouterr()
  assert status == 1
  assert captured.out == f'{out}\n'
  assert 'error: 1 of 3 clips were skipped:\n  bad: ' in captured.err
  index = json.loads((out / 'train' / 'index.json').read_text())
  assert [c['clip_id'] for c in index['clips']] == ['a']
  assert index['clips'][0]['seconds'] == pytest.approx(2.2, abs=0.01)
  load = lambda name: np.load(out / 'train' / f'{name}.npy', allow_pickle=False)
  assert load('scene').shape == (22, 64)
  assert load('spectral_semantic').shape == (55, 1)
  assert load('spectrogram').shape == (55, 8)
  assert load('caption').shape == (1, 32)
  assert np.abs(load('scene')).sum() > 0
  assert len(np.unique(load('spectrogram'))) > 50
  index = json.loads((out / 'validation' / 'index.json').read_text())
  assert [c['clip_id'] for c in index['clips']] == ['b']


def test_a_cut_of_a_file_is_what_the_file_has_there(shared_data):
  file = shared_data / 'video' / 'bbb_23_44_music.mp4'
  clip = lambda a, b: sources.FileSource(manifests.Clip('x', file, a, b))
  whole = clip(0.0, 6.0).sound(16000)
  part = clip(2.0, 4.0).sound(16000)
  assert len(part) == 32000
  # The same but for the level, which is that of each cut.
  piece = whole[32000:64000]
  gain = (part @ piece) / (piece @ piece)
  error = part - gain * piece
  assert np.abs(error[400:-400]).max() < 0.02 * np.abs(part).max()


def test_sound_has_one_level(shared_data):
  file = shared_data / 'music' / 'guitar_solo.wav'
  waveform = sources.FileSource(manifests.Clip('x', file)).sound(16000)
  rms = np.sqrt(np.mean(waveform**2))
  assert rms == pytest.approx(0.1, rel=1e-3) or np.abs(
    waveform
  ).max() == pytest.approx(0.9, rel=1e-3)


def test_sha256_is_checked(shared_data, tmp_path):
  file = shared_data / 'music' / 'guitar_solo.wav'
  clip = manifests.Clip('x', file, sha256='0' * 64)
  with pytest.raises(errors.UserError, match='sha256 is .*, expected 0000'):
    sources.FileSource(clip).key()


def test_no_clip_can_be_used(tmp_path, model):
  manifest = tmp_path / 'm.csv'
  manifest.write_text('file\nnothing.mp4\n')
  with pytest.raises(errors.UserError, match='Not one of 1 clips could be us'):
    prepare.main([str(manifest), '--arrays', *_flags(model, tmp_path / 'out')])


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--out=x'], 'expected MANIFEST or --toy N, one of them'),
    (['m.csv', '--toy=2', '--out=x'], 'expected MANIFEST or --toy N'),
    (['m.csv', '--out=x', '--processes=0'], '--processes is 0, expected'),
  ],
)
def test_wrong_usage(argv, message, capsys):
  with pytest.raises(SystemExit) as e:
    prepare.main(argv)
  assert e.value.code == 2
  assert message in capsys.readouterr().err


def test_arrays_need_no_tensorflow(tmp_path, model, manifest):
  argv = [str(manifest), '--arrays', *_flags(model, tmp_path / 'out')]
  code = (
    'import sys\n'
    'from v2meow_jax import prepare\n'
    f'prepare.main({argv!r})\n'
    'heavy = ("tensorflow", "torch", "seqio", "tensorflow_datasets", "orbax",'
    ' "optax", "clu")\n'
    'print([m for m in heavy if m in sys.modules])'
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.splitlines()[-1] == '[]'
