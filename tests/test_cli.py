"""The command line: help, usage, and what each mistake gets."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import conftest
from tests import toy
from v2meow_jax import arrays
from v2meow_jax import audio
from v2meow_jax import cli
from v2meow_jax import controls
from v2meow_jax import errors
from v2meow_jax import generate_command
from v2meow_jax import inspection
from v2meow_jax import service
from v2meow_jax import streams

COMMANDS = ('generate', 'prepare', 'train', 'evaluate', 'export', 'inspect')


@pytest.fixture
def model(tmp_path):
  """A folder that passes for a model until it is loaded."""
  folder = tmp_path / 'model'
  folder.mkdir()
  (folder / 'bundle.gin').write_text('')
  return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
  """An empty working folder."""
  folder = tmp_path / 'work'
  folder.mkdir()
  monkeypatch.chdir(folder)
  return folder


def _python(code: str, **kwargs) -> subprocess.CompletedProcess:
  environment = os.environ | {'PYTHONPATH': str(conftest.ROOT)}
  return subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    env=environment,
    **kwargs,
  )


def test_help_needs_no_numpy_and_answers_at_once():
  code = (
    'import resource, sys\n'
    'from v2meow_jax import cli\n'
    'try:\n'
    '  cli.main(["--help"])\n'
    'except SystemExit as stop:\n'
    '  assert stop.code == 0, stop.code\n'
    'heavy = {"numpy", "jax", "flax", "gin", "av", "cv2"} & {*sys.modules}\n'
    'assert not heavy, heavy\n'
    'used = resource.getrusage(resource.RUSAGE_SELF)\n'
    'assert used.ru_utime + used.ru_stime < 1, used\n'
  )
  done = _python(code)
  assert done.returncode == 0, done.stderr
  for command in COMMANDS:
    assert f'\n  {command} ' in done.stdout


@pytest.mark.parametrize('command', ['generate', 'export', 'inspect'])
def test_help_of_a_command_has_examples_and_needs_no_numpy(command):
  code = (
    'import sys\n'
    'from v2meow_jax import cli\n'
    'try:\n'
    f'  cli.main(["{command}", "--help"])\n'
    'except SystemExit as stop:\n'
    '  assert stop.code == 0, stop.code\n'
    'assert "numpy" not in sys.modules\n'
  )
  done = _python(code)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'usage: v2meow {command} ')
  assert f'examples:\n  v2meow {command} ' in done.stdout


@pytest.mark.parametrize('command', ['prepare', 'train', 'evaluate'])
def test_other_commands_read_their_own_arguments(command, capsys):
  try:
    status = cli.main([command, '--help'])
  except SystemExit as stop:
    status = stop.code
  assert status == 0
  assert f'usage: v2meow {command}' in capsys.readouterr().out


def test_no_command_shows_the_help(capsys):
  assert cli.main([]) == 0
  assert capsys.readouterr().out.startswith('usage: v2meow COMMAND')


def test_version(capsys):
  with pytest.raises(SystemExit, match='^0$'):
    cli.main(['--version'])
  assert capsys.readouterr().out == '0.1.0\n'


_USAGE = [
  (
    'compose x.mp4',
    'unknown command `compose`, expected one of generate, prepare, train, '
    'evaluate, export, weights, inspect. See `v2meow --help`.',
  ),
  (
    '--fast',
    'unrecognized arguments: --fast. See `v2meow --help`.',
  ),
  (
    'generate',
    'the following arguments are required: VIDEO. See `v2meow generate '
    '--help`.',
  ),
  (
    'generate x.mp4 --seed -1',
    '--seed: is `-1`, expected a whole number of at least 0 and at most '
    '4294967295. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --seed 1.5',
    '--seed: is `1.5`, expected a whole number of at least 0 and at most '
    '4294967295. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --seed 4294967295 --samples 2',
    '--samples: 2 seeds from 4294967295 on go beyond 4294967295, expected '
    'smaller ones. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --samples 0',
    '--samples: is `0`, expected a whole number of at least 1. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --duration 0',
    '--duration: is `0`, expected a number above 0. See `v2meow generate '
    '--help`.',
  ),
  (
    'generate x.mp4 --duration inf',
    '--duration: is `inf`, expected a number above 0. See `v2meow generate '
    '--help`.',
  ),
  (
    'generate x.mp4 --temperature 1,2',
    '--temperature: is `1,2`, expected 3 numbers separated by commas, for the '
    'stages semantic, coarse and fine. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --temperature 1,1,hot',
    '--temperature: is `hot`, expected a number of at least 0. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --temperature 1,1,nan',
    '--temperature: is `nan`, expected a number of at least 0. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --top_k 1,2',
    '--top_k: is `1,2`, expected 1 or 3 numbers separated by commas, for the '
    'stages semantic, coarse and fine. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --top_p 0',
    '--top_p: is `0`, expected a number above 0 and at most 1. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --seed 4294967290 --best_of 3 --samples 2 --text=a:0',
    '--text has weights 0, expected 0 or more and not all 0. Say what the '
    'music should be unlike with negative_text. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --seed 4294967291 --best_of 3 --samples 2',
    '--samples: 6 seeds from 4294967291 on go beyond 4294967295, expected '
    'smaller ones. See `v2meow generate --help`.',
  ),
  (
    'export',
    'the following arguments are required: OUT_DIR. See `v2meow export '
    '--help`.',
  ),
  (
    'export out --platforms cpu,metal',
    '--platforms: is `cpu,metal`, expected some of cpu, cuda, rocm, tpu, each '
    'once, separated by commas. See `v2meow export --help`.',
  ),
  (
    'export out --platforms cpu,cpu',
    '--platforms: is `cpu,cpu`, expected some of cpu, cuda, rocm, tpu, each '
    'once, separated by commas. See `v2meow export --help`.',
  ),
  (
    'export out --batch 0',
    '--batch: is `0`, expected a whole number of at least 1. See `v2meow '
    'export --help`.',
  ),
  (
    'generate x.mp4 --best_of 0',
    '--best_of: is `0`, expected a whole number of at least 1. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --text calm:1 --text fast:-0.5',
    '--text has weights 1, -0.5, expected 0 or more and not all 0. Say what '
    'the music should be unlike with negative_text. See `v2meow generate '
    '--help`.',
  ),
  (
    'generate x.mp4 --negative_text drums',
    '--negative_text changes nothing where style_guidance is 1, expected more, '
    'as 3. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --style_guidance 2',
    '--style_guidance is 2 but there is no text, expected 1, or a text or '
    'negative_text. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --visual_guidance -1',
    '--visual_guidance: is `-1`, expected a number of at least 0. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --style_guidance much',
    '--style_guidance: is `much`, expected a number of at least 0. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --replace 12',
    '--replace: is `12`, expected START-END in seconds, as 12.0-20.0, or with '
    'a seed, as 12-20:7. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --replace 1-2:-7',
    '--replace: is `1-2:-7`, expected START-END in seconds, as 12.0-20.0, or '
    'with a seed, as 12-20:7. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --replace 0-1 --replace 20-12.5:3',
    '--replace has the span 20 to 12.5, expected seconds from 0 on, with the '
    'end behind the start. See `v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --replace 1-2:4294967296',
    '--replace has the seed 4294967296, expected 0 to 4294967295. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --format mp3',
    "--format: invalid choice: 'mp3' (choose from 'mp4', 'wav', 'both'). See "
    '`v2meow generate --help`.',
  ),
  (
    'generate a.mp4 b.mp4 --from a.json',
    '--from: 2 videos for one sidecar, expected one or none. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --skip_existing --no_sidecar',
    '--skip_existing: reads sidecars, expected it without --no_sidecar. See '
    '`v2meow generate --help`.',
  ),
  (
    'generate x.mp4 --shard 2/2',
    '--shard: is `2/2`, expected I/N with I from 0 to N - 1. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --shard one',
    '--shard: is `one`, expected I/N with I from 0 to N - 1. See `v2meow '
    'generate --help`.',
  ),
  (
    'generate x.mp4 --sed 3',
    'unrecognized arguments: --sed 3. See `v2meow generate --help`.',
  ),
  (
    'inspect',
    'the following arguments are required: WHAT. See `v2meow inspect --help`.',
  ),
]


@pytest.mark.parametrize('line, message', _USAGE, ids=[x for x, _ in _USAGE])
def test_wrong_usage_is_one_line_and_status_2(line, message, work, capsys):
  with pytest.raises(SystemExit, match='^2$'):
    cli.main(line.split())
  said = capsys.readouterr()
  assert said.out == ''
  # Later versions of Python write choices without quotes.
  assert said.err.replace("'", '') == f'error: {message}\n'.replace("'", '')
  assert not [*work.iterdir()]


_CHOICES = [
  ([], {}),
  (['--text', 'calm piano'], {'text': (('calm piano', 1.0),)}),
  (
    ['--text', 'calm piano:0.7', '--text', 'strings:.3'],
    {'text': (('calm piano', 0.7), ('strings', 0.3))},
  ),
  (
    ['--negative_text', 'drums: loud', '--style_guidance', '3'],
    {'negative_text': 'drums: loud', 'style_guidance': 3.0},
  ),
  (['--visual_guidance', '0'], {'visual_guidance': 0.0}),
  (['--best_of', '4', '--seed', '9'], {'best_of': 4, 'seed': 9}),
  (['--prompt_audio', 'intro.wav'], {'prompt_audio': 'intro.wav'}),
  (
    ['--replace', '12.0-20.0', '--replace', '.5-7:3'],
    {'replace': ((12.0, 20.0, None), (0.5, 7.0, 3))},
  ),
  (['--top_k', '5'], {'top_k': (5, 5, 5)}),
]


@pytest.mark.parametrize('arguments, expected', _CHOICES)
def test_options_are_the_fields_of_controls(arguments, expected, monkeypatch):
  seen = {}
  monkeypatch.setattr(service, 'run', lambda **options: seen.update(options))
  cli.main(['generate', 'x.mp4', *arguments])
  names = {field.name for field in dataclasses.fields(controls.Controls)}
  seen = {name: value for name, value in seen.items() if name in names}
  assert controls.Controls(**seen) == controls.Controls(**expected)


def test_each_choice_has_an_option():
  names = {field.name for field in dataclasses.fields(controls.Controls)}
  tested = {name for _, expected in _CHOICES for name in expected}
  assert names - tested == {'temperature', 'top_p', 'duration'}
  assert names <= {*vars(generate_command.parse(['x.mp4']))}


def _generate(*arguments) -> int:
  return cli.main(['generate', *map(str, arguments)])


_MANY = 'MP4, MOV, WebM, Matroska or another format that FFmpeg reads'


@pytest.mark.parametrize(
  'name, content, message',
  [
    (
      'missing.mp4',
      None,
      'no such file, expected a media file. Check the path.',
    ),
    (
      'empty.mp4',
      b'',
      'is empty (0 bytes), expected a media file. Copy or download it again.',
    ),
    (
      'notes.mp4',
      b'not a video at all, only words ' * 20,
      f'is no media file, expected {_MANY}. Check that it plays.',
    ),
    (
      'cut.mp4',
      b'\0\0\0\x18ftypmp42' + bytes(100),
      'breaks off before its index and cannot be opened, expected a complete '
      'file. Copy or download it again.',
    ),
  ],
)
def test_unusable_file(name, content, message, work, model, capsys):
  if content is not None:
    (work / name).write_bytes(content)
  before = {*work.iterdir()}
  assert _generate(name, '--model', model) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err == f'error: {name}: {message}\n'
  assert {*work.iterdir()} == before


def test_folder_without_videos(work, model, capsys):
  (work / 'clips').mkdir()
  assert _generate('clips', '--model', model) == 1
  assert capsys.readouterr().err == (
    'error: clips: holds no videos, expected files that end with .3gp, .avi, '
    '.flv, .m2ts, .m4v, .mkv, .mov, .mp4, .mpeg, .mpg, .mts, .ogv, .ts, .webm '
    'or .wmv. Name another folder.\n'
  )


def test_sound_without_picture(work, model, capsys):
  audio.write_wav('song.wav', np.zeros(1600, np.float32), 16000)
  assert _generate('song.wav', '--model', model, '--out', 'x.wav') == 1
  said = capsys.readouterr().err
  assert said.startswith('error: song.wav: ')
  assert said.count('\n') == 1
  assert [x.name for x in work.iterdir()] == ['song.wav']


def test_all_bad_files_are_listed(work, model, capsys):
  assert _generate('a.mp4', 'b.mp4', '--model', model) == 1
  assert capsys.readouterr().err == (
    'error: a.mp4: no such file, expected a media file. Check the path.\n'
    'error: b.mp4: no such file, expected a media file. Check the path.\n'
    'error: 2 of 2 pieces failed, 0 were made\n'
  )


_OUTPUTS = [
  (
    ['clip.mp4', '--model', 'nightingale'],
    'Unknown model `nightingale`, expected bundled or the folder of a model. '
    'Check the name.',
  ),
  (
    ['clip.mp4', '--model', '.'],
    '.: no model, expected a folder with bundle.gin in it. Make one with '
    '`python -m v2meow_jax.bundles pack`.',
  ),
  (
    ['clip.mp4', '--out', 'music.mp3'],
    '--out is `music.mp3`, expected a file that ends with .mp4, .mkv or .wav, '
    'or a folder. Change `.mp3`, or put / behind the name of a new folder.',
  ),
  (
    ['clip.mp4', 'other.mp4', '--out', 'music.wav'],
    '--out is the one file `music.wav` for 2 videos, expected a folder. Name a '
    'folder.',
  ),
  (
    ['clip.mp4', '--out', 'music.wav', '--format', 'mp4'],
    '--out is `music.wav` and --format is mp4, expected the same kind. Leave '
    '--format out, or change the name.',
  ),
  (
    ['clip.mp4', '--out', 'clip.mp4'],
    'clip.mp4: is the VIDEO clip.mp4 itself, which is never replaced. Name '
    'another file with --out.',
  ),
  (
    ['clip.mp4', 'more/clip.mov'],
    'clip.mp4 and more/clip.mov would both be written to clip.v2meow.mp4, '
    'expected videos with different names. Rename one, or give each its own '
    '--out.',
  ),
  (
    ['clip.mp4', '--out', 'song.wav'],
    'song.json: is no sidecar of an earlier run and is not replaced. Name '
    'another file with --out, or write no sidecar with --no_sidecar.',
  ),
  (
    ['clip.mp4', '--from', 'song.json'],
    'song.json: is no sidecar, expected what `v2meow generate` writes beside '
    'its outputs. Name another file.',
  ),
  (
    ['clip.mp4', '--out', 'notes/new/'],
    'notes/new: cannot be written (Not a directory), expected a folder that '
    'can. Name another with --out.',
  ),
]


@pytest.mark.parametrize('arguments, message', _OUTPUTS)
def test_wrong_output_or_model(arguments, message, work, model, capsys):
  toy.make_video(work / 'clip.mp4', seconds=0.3)
  (work / 'notes').write_text('a file')
  (work / 'song.json').write_text('{"title": "mine"}')
  before = sorted(work.rglob('*'))
  # A second --model is the one that counts.
  assert _generate('--model', model, *arguments) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err == f'error: {message}\n'
  assert sorted(work.rglob('*')) == before


def test_folder_that_cannot_be_written(work, model, capsys):
  if os.geteuid() == 0:
    pytest.skip('missing: a user whom permissions stop (this is root)')
  toy.make_video(work / 'clip.mp4', seconds=0.3)
  (work / 'locked').mkdir(mode=0o500)
  assert _generate('clip.mp4', '--model', model, '--out', 'locked') == 1
  assert capsys.readouterr().err == (
    'error: locked: cannot be written (Permission denied), expected a folder '
    'that can. Name another with --out.\n'
  )


def _raise(error):
  def run(**unused):
    raise error

  return run


def test_stopped_by_the_user(monkeypatch, capsys):
  monkeypatch.setattr(service, 'run', _raise(KeyboardInterrupt()))
  assert _generate('clip.mp4') == 130
  assert capsys.readouterr().err == 'stopped\n'


@pytest.mark.parametrize(
  'error, message',
  [
    (errors.UserError('clip: is odd. Even it.'), 'clip: is odd. Even it.'),
    (
      OSError(28, 'No space left on device'),
      '[Errno 28] No space left on device. Check the path, its permissions and '
      'the space left.',
    ),
    (
      ModuleNotFoundError("No module named 'seqio'"),
      "No module named 'seqio', expected all that this command needs. Install "
      "it, or everything with pip install 'v2meow_jax[train]'.",
    ),
    (
      TypeError('two\nlines'),
      'TypeError: two lines. This is a fault of the program: please report it, '
      'with what V2MEOW_DEBUG=1 shows.',
    ),
  ],
)
def test_no_traceback_but_for_debugging(error, message, monkeypatch, capsys):
  monkeypatch.setattr(service, 'run', _raise(error))
  assert _generate('clip.mp4') == 1
  assert capsys.readouterr().err == f'error: {message}\n'
  monkeypatch.setenv('V2MEOW_DEBUG', '1')
  with pytest.raises(type(error)):
    _generate('clip.mp4')


def test_inspect_streams(capsys):
  assert cli.main(['inspect', 'streams']) == 0
  rows = capsys.readouterr().out.splitlines()
  assert rows[0].split() == ['stream', 'rate', 'holds', 'audio']
  assert 'soundstream        50 Hz          12 x 1024 codes    16000 Hz' in rows
  assert 'clip               1 Hz           768 features' in rows


def test_inspect_stages_of_the_paper(capsys):
  assert cli.main(['inspect', 'stages']) == 0
  text = capsys.readouterr().out
  assert (
    'coarse: decoder_only, windows of 10 s, 5122 token ids (0 padding, 1 end)'
    in text
  )
  assert (
    'target  soundstream  4 to 11  400 Hz  1200       4098 to 12289' in text
  )


def test_inspect_arrays(tmp_path, capsys, rng):
  specs = [streams.get('clip'), streams.get('w2v_bert')]
  with arrays.ArrayWriter(tmp_path, 'train', specs) as writer:
    for i in range(3):
      clip = {
        'clip': rng.random((2, 768), np.float32),
        'w2v_bert': rng.integers(0, 1024, (50, 1)),
      }
      writer.add(f'clip_{i}', clip, 2.0)
  assert cli.main(['inspect', 'records', str(tmp_path), '--count', '2']) == 0
  text = capsys.readouterr().out
  assert 'clip_1 (2.00 s)\n' in text
  assert 'clip_2' not in text
  assert 'float32 [2, 768]' in text
  assert 'int32 [50, 1]' in text


def test_inspect_records(tmp_path, capsys, rng):
  import tensorflow_datasets as tfds

  from v2meow_jax import dataset_builder

  clip = {
    'clip_id': 'dance',
    'text': 'fast drums',
    'seconds': 2.5,
    'attributes': '{}',
    'clip': rng.random((2, 768), np.float32),
    'w2v_bert': rng.integers(0, 1024, (62, 1), np.int32),
  }
  features = dataset_builder.features(['clip', 'w2v_bert'])
  tfds.dataset_builders.store_as_tfds_dataset(
    name='dances',
    version='1.0.0',
    features=features,
    split_datasets={'train': [('dance', clip)]},
    data_dir=tmp_path,
    disable_shuffling=True,
  )
  capsys.readouterr()  # TFDS speaks while it writes
  assert cli.main(['inspect', 'records', str(tmp_path)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'dance'
  rows = [line.split() for line in lines[1:]]
  assert ['seconds', 'float32', '2.5'] in rows
  assert ['text', 'text', 'fast', 'drums'] in rows
  assert ['w2v_bert', 'int32', '[62,', '1]'] == rows[-1][:4]
  arguments = ['inspect', 'records', str(tmp_path), '--split', 'test']
  assert cli.main(arguments) == 1
  assert capsys.readouterr().err == (
    f'error: {tmp_path}: no split `test`, expected one of train. Choose one '
    'with --split.\n'
  )


def test_inspect_says_what_is_missing(tmp_path, capsys):
  assert cli.main(['inspect', 'records', str(tmp_path / 'no')]) == 1
  assert capsys.readouterr().err == (
    f'error: {tmp_path / "no"}: no such folder, expected a dataset. Make one '
    'with `v2meow prepare`.\n'
  )
  assert cli.main(['inspect', 'records', str(tmp_path)]) == 1
  assert capsys.readouterr().err == (
    f'error: {tmp_path}: no dataset with split `train`, expected the folder '
    'that `v2meow prepare` wrote. Check the path and --split.\n'
  )


def test_table_aligns_columns():
  table = inspection._table(('a', 'long'), [(1, 2), ('three', 4)])
  assert table == 'a      long\n1      2\nthree  4'
