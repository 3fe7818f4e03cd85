"""The command `v2meow evaluate`, on sounds with known answers."""

import csv
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax import audio
from v2meow_jax import cli
from v2meow_jax import errors
from v2meow_jax import evaluate
from v2meow_jax import evaluation_clips
from v2meow_jax import reports
from v2meow_jax import weights
from v2meow_jax.codecs import soundstream
from v2meow_jax.metrics import descriptors

_TEMPI = (80, 95, 100, 118, 126, 140)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
  """No line of progress, however slow the machine."""
  monkeypatch.setattr(evaluate, '_LOG_SECONDS', float('inf'))


def _write(path: pathlib.Path, sound: np.ndarray) -> None:
  audio.write_wav(str(path), sound, signals.RATE_HZ)


def _piece(number: int) -> np.ndarray:
  mode = 'major' if number % 2 else 'minor'
  chords = signals.chords(number, mode, 0.5, 2)
  track = signals.click_track(
    _TEMPI[number], len(chords) / signals.RATE_HZ, first=0.1
  )
  return 0.7 * chords + (0.2 + 0.1 * number) * track[: len(chords)]


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  """A manifest of six sounds with attributes, its folder."""
  folder = tmp_path_factory.mktemp('clips')
  with open(folder / 'MANIFEST.csv', 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['clip_id', 'file', 'split', 'attributes'])
    for number, tempo_bpm in enumerate(_TEMPI):
      _write(folder / f'clip{number}.wav', _piece(number))
      attributes = {
        'tempo_bpm': tempo_bpm,
        'mode': 'major' if number % 2 else 'minor',
        'energy': number / 5,
      }
      writer.writerow(
        [f'clip{number}', f'clip{number}.wav', 'test', json.dumps(attributes)]
      )
  return folder


def _tables(text: str) -> list[list[list[str]]]:
  """Cells of all Markdown tables; fails where a table is not one."""
  tables, rows = [], []
  for line in [*text.splitlines(), '']:
    if line.startswith('|'):
      assert line.endswith('|')
      rows.append([cell.strip() for cell in line[1:-1].split('|')])
    elif rows:
      assert all(len(row) == len(rows[0]) for row in rows)
      assert all(set(cell) == {'-'} for cell in rows[1])
      tables.append([rows[0], *rows[2:]])
      rows = []
  return tables


def _is_png(path: pathlib.Path) -> bool:
  return path.read_bytes().startswith(b'\x89PNG')


def test_adherence_of_given_music(clips, tmp_path, capsys):
  status = cli.main(
    [
      'evaluate',
      'adherence',
      *('--manifest', str(clips / 'MANIFEST.csv')),
      *('--generated', str(clips)),
      *('--draws', '200', '--out', str(tmp_path)),
    ]
  )
  captured = capsys.readouterr()
  assert (status, captured.err) == (0, '')
  assert (tmp_path / 'report.md').read_text() == captured.out
  follows, quality = _tables(captured.out)
  assert follows[0] == [
    'measure', 'generated', 'shuffled videos', 'apart', 'real music'
  ]  # fmt: skip
  rows = {row[0]: row[1:] for row in follows[1:]}
  right = '1.00 [1.00, 1.00]'
  for label in (
    'tempo within 4 % (share of clips)',
    'major or minor right (share of clips)',
  ):
    assert rows[label][0] == rows[label][3] == right
  # Six clips have 80 and 95 BPM and so on: no other clip's tempo is right.
  assert rows['tempo within 4 % (share of clips)'][1:3] == [
    '0.00 [0.00, 0.00]', 'yes'
  ]  # fmt: skip
  assert [row[-1] for row in quality[1:]] == ['yes'] * 7 + ['not judged']
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['adherence']['generated'] == report['adherence']['real']
  assert [row['clip_id'] for row in report['clips']] == [
    f'clip{n}' for n in range(6)
  ]
  heard = [row['generated']['tempo_bpm'] for row in report['clips']]
  np.testing.assert_allclose(heard, _TEMPI, rtol=0.01)
  assert report['failures'] == {}
  assert _is_png(tmp_path / 'adherence.png')
  assert _is_png(tmp_path / 'music.png')


def test_second_run_analyses_nothing(clips, tmp_path, capsys, monkeypatch):
  arguments = [
    'adherence',
    *('--manifest', str(clips / 'MANIFEST.csv')),
    *('--generated', str(clips)),
    *('--draws', '100', '--out', str(tmp_path)),
  ]
  assert evaluate.main(arguments) == 0
  first = capsys.readouterr().out
  monkeypatch.setattr(
    descriptors, 'describe', lambda *_: pytest.fail('analysed again')
  )
  assert evaluate.main(arguments) == 0
  assert capsys.readouterr().out == first


def test_clips_without_music_are_reported(clips, tmp_path, capsys):
  generated = tmp_path / 'generated'
  generated.mkdir()
  for number in range(5):
    _write(generated / f'clip{number}.wav', _piece(number))
  status = evaluate.main(
    [
      'adherence',
      *('--manifest', str(clips / 'MANIFEST.csv')),
      *('--generated', str(generated)),
      *('--draws', '100', '--out', str(tmp_path / 'report')),
    ]
  )
  captured = capsys.readouterr()
  assert status == 1
  assert captured.out.startswith('5 held-out clips; ')
  assert captured.err == (
    f'error: clip `clip5`: {generated}: 0 files of this clip, expected one, '
    'clip5.wav. Generate it, or leave the clip out.\n'
  )


def test_music_is_found_by_clip_id(clips, tmp_path):
  clip = evaluation_clips.from_manifest(clips / 'MANIFEST.csv', 'test')[1]
  for name in ('clip1.v2meow.wav', 'clip10.wav', 'clip0.clip1.wav'):
    (tmp_path / name).touch()
  find = evaluation_clips.Finder(tmp_path)
  assert find(clip) == tmp_path / 'clip1.v2meow.wav'
  (tmp_path / 'clip1.wav').touch()
  with pytest.raises(errors.UserError, match='2 files of this clip'):
    evaluation_clips.Finder(tmp_path)(clip)


class _Generator:
  """Makes noise that depends on the seed, and counts."""

  def __init__(self):
    self.calls = []

  def generate(self, path, seed, duration):
    self.calls.append((pathlib.Path(path).name, seed, duration))
    sound = signals.noise(2, seed)
    write = lambda to: _write(pathlib.Path(to), sound)
    return types.SimpleNamespace(write=write)


@pytest.fixture
def generator(tmp_path, monkeypatch):
  """A model in `tmp_path / 'model'` and what stands for it."""
  from v2meow_jax import generate

  made = _Generator()
  monkeypatch.setattr(generate, 'load', lambda name: made)
  (tmp_path / 'model').mkdir()
  (tmp_path / 'model' / 'bundle.gin').write_text('# a model')
  (tmp_path / 'model' / 'coarse.safetensors').write_bytes(b'weights')
  return made


def test_composer_generates_each_video_model_and_seed_once(
  clips, tmp_path, generator
):
  clip, other = evaluation_clips.from_manifest(clips / 'MANIFEST.csv', 'test')[
    :2
  ]
  model, folder = str(tmp_path / 'model'), tmp_path / 'generated'
  compose = evaluation_clips.Composer(model, folder, seed=0)
  path = compose(clip)
  assert path.parent == folder
  assert path.name.startswith('clip0.')
  sound, _ = evaluation_clips.read_sound(path)
  np.testing.assert_allclose(sound, signals.noise(2, 0), atol=1e-4)
  assert compose(clip) == path
  assert evaluation_clips.Composer(model, folder, seed=0)(clip) == path
  assert len(generator.calls) == 1
  assert compose(other) != path
  assert evaluation_clips.Composer(model, folder, seed=1)(clip) != path
  (tmp_path / 'model' / 'coarse.safetensors').write_bytes(b'other weights')
  assert evaluation_clips.Composer(model, folder, seed=0)(clip) != path
  assert generator.calls == [
    ('clip0.wav', 0, None),
    ('clip1.wav', 0, None),
    ('clip0.wav', 1, None),
    ('clip0.wav', 0, None),
  ]


def test_adherence_makes_toy_clips_and_their_music(
  tmp_path, capsys, generator, monkeypatch
):
  arguments = [
    'adherence',
    *('--model', str(tmp_path / 'model')),
    *('--renderer', 'numpy', '--seconds', '4', '--clips', '5'),
    *('--draws', '100', '--out', str(tmp_path / 'report')),
  ]
  assert evaluate.main(arguments) == 0
  follows, quality = _tables(capsys.readouterr().out)
  rows = {row[0]: row[1:] for row in follows[1:]}
  # Noise with the same seed for each video: it follows none.
  assert rows['energy, rank correlation'][2] == '**no**'
  assert rows["onsets at the video's beats (standard deviations)"][2] == (
    '**no**'
  )
  flatness = quality[1]
  assert flatness[0] == 'spectral flatness (dB)'
  assert flatness[3:] == ['0%', '**no**']
  report = json.loads((tmp_path / 'report' / 'report.json').read_text())
  assert [row['clip_id'] for row in report['clips']] == [
    f'toy_{20 * n + 19:06d}' for n in range(5)
  ]
  # The second run finds clips, music and descriptions.
  from v2meow_jax.toy import clips as toy_clips

  monkeypatch.setattr(
    toy_clips, 'make_clip', lambda **_: pytest.fail('made again')
  )
  assert evaluate.main(arguments) == 0
  assert len(generator.calls) == 5


def test_toy_clips_are_of_the_test_split_and_whole(tmp_path):
  from v2meow_jax.toy import attributes

  make = evaluation_clips.ToyClips(tmp_path, 2.0, 'numpy')
  indices = make.indices(7)
  assert len(indices) == 7
  assert {attributes.split(index) for index in indices} == {'test'}
  clip = make(indices[0])
  from v2meow_jax import video

  assert video.probe(str(clip.video)).seconds == pytest.approx(2.0, abs=0.1)
  sound, rate_hz = evaluation_clips.read_sound(clip.sound)
  assert len(sound) == 2 * rate_hz == 32000
  known = attributes.sample(0, indices[0], 2.0)
  assert clip.attributes.tempo_bpm == known.tempo_bpm
  np.testing.assert_allclose(
    clip.attributes.beat_seconds, known.beat_seconds(), atol=1e-6
  )


@pytest.mark.parametrize('command', [['music'], []])
def test_music_of_two_folders(command, clips, tmp_path, capsys):
  generated = tmp_path / 'generated'
  generated.mkdir()
  for number in range(5):
    _write(generated / f'{number}.wav', signals.noise(4, number))
  (generated / 'notes.txt').write_text('no sound')
  status = evaluate.main(
    [
      *command,
      *('--generated', str(generated), '--reference', str(clips)),
      *('--out', str(tmp_path / 'report')),
    ]
  )
  out = capsys.readouterr().out
  assert status == 0
  assert out.startswith('5 generated and 6 real clips.\n')
  (table,) = _tables(out)
  assert table[1][0] == 'spectral flatness (dB)'
  assert table[1][2].startswith('-2.5 (')
  assert table[1][-1] == '**no**'
  report = json.loads((tmp_path / 'report' / 'report.json').read_text())
  assert report['music']['num_generated'] == 5
  assert _is_png(tmp_path / 'report' / 'music.png')


def test_bad_file_is_skipped_and_reported(clips, tmp_path, capsys):
  generated = tmp_path / 'generated'
  generated.mkdir()
  for number in range(5):
    _write(generated / f'{number}.wav', signals.noise(2, number))
  _write(generated / 'short.wav', signals.noise(0.5))
  status = evaluate.main(
    [
      *('--generated', str(generated), '--reference', str(clips)),
      *('--seconds', '2', '--out', str(tmp_path / 'report')),
    ]
  )
  captured = capsys.readouterr()
  assert status == 1
  assert captured.out.startswith('5 generated and 6 real clips.\n')
  assert captured.err == (
    f'error: clip `short`: {generated / "short.wav"}: Waveform of shape [8000] '
    'at 16000 Hz, expected [samples] of at least 1 s. Mix to mono, or leave '
    'the clip out.\n'
  )


class _Codec:
  """Rounds samples to 4 bits a level; more levels, finer."""

  sample_rate_hz = 16000
  spec = types.SimpleNamespace(
    name='rounding', num_levels=3, num_codes=16, rate_hz=16000.0
  )

  def encode(self, waveform):
    rest, codes = waveform, []
    for level in range(3):
      step = 16.0 ** -(level + 1)
      codes.append(np.round(rest / step / 2))
      rest = rest - 2 * step * codes[-1]
    return np.stack(codes, axis=-1)

  def decode(self, codes):
    steps = 2 * 16.0 ** -np.arange(1, codes.shape[-1] + 1)
    return jnp.asarray(codes @ steps, jnp.float32)


def test_codec(clips, tmp_path, capsys, monkeypatch):
  from v2meow_jax import bundles

  bundle = types.SimpleNamespace(codec=_Codec())
  monkeypatch.setattr(bundles, 'load', lambda model: bundle)
  status = evaluate.main(
    [
      'codec',
      *('--audio', str(clips), '--clips', '3', '--seconds', '4'),
      *('--opus', '6,24', '--out', str(tmp_path)),
    ]
  )
  out = capsys.readouterr().out
  assert status == 0
  assert out.startswith(
    'Codec `rounding`, 64000 bit/s a level, on 3 held-out sounds; '
  )
  (table,) = _tables(out)
  assert table[0] == [
    '', 'SI-SDR (dB)', 'SNR (dB)', 'spectral distance'
  ]  # fmt: skip
  names = [f'{n} of 3 levels' for n in (1, 2, 3)]
  names += ['Opus, 6 kbit/s', 'Opus, 24 kbit/s']
  assert [row[0] for row in table[1:]] == names
  report = json.loads((tmp_path / 'report.json').read_text())
  codings = report['codec']['codings']
  snr_db = [codings[name]['snr_db']['value'] for name in names[:3]]
  # Each level has 4 bits: 24 dB.
  np.testing.assert_allclose(np.diff(snr_db), 24, atol=1.5)
  assert _is_png(tmp_path / 'codec.png')


def test_codec_of_a_file(clips, tmp_path, capsys):
  config = soundstream.Config(channels=1, dilations=(1,), num_features=4)
  network = soundstream.Network(config)
  key = jax.random.PRNGKey(0)
  init = lambda: network.init(key, jnp.zeros((1, 320)), mutable=['params'])
  params = jax.jit(init)()['params']
  tree = {
    'params': params,
    'quantizer': {'codebooks': jax.random.normal(key, (12, 1024, 4))},
  }
  path = tmp_path / 'codec.safetensors'
  weights.save_params(path, tree)
  arguments = [
    *('codec', '--out', tmp_path / 'out', '--codec', path),
    *('--gin_file', 'codecs/soundstream.gin', '--levels', '1,12'),
    *('--audio', clips, '--clips', '3', '--seconds', '4'),
    *('--gin', 'soundstream.Config.dilations = (1,)'),
  ]
  width = ['--gin', 'soundstream.Config.num_features = 4']
  width += ['--gin', 'soundstream.Config.channels = 1']
  assert cli.main(['evaluate', *map(str, arguments), *width]) == 0
  out = capsys.readouterr().out
  assert out.startswith('Codec `soundstream`, 500 bit/s a level, on 3 held-out')
  report = json.loads((tmp_path / 'out' / 'report.json').read_text())
  assert list(report['codec']['codings']) == [
    '1 of 12 levels',
    '12 of 12 levels',
  ]
  # Weights and gin files that do not belong together.
  status, message = _error([*arguments, *width[:2]], capsys)
  assert status == 1
  assert message.startswith(
    'error: Weights do not fit the model: `decoder/block_0_dilation_1/dilated/'
  )
  weights.save_params(path, {'params': params})
  assert _error(arguments, capsys) == (
    1,
    f'error: {path}: no codebooks, expected the weights of a whole codec. Add '
    'them with `python -m v2meow_jax.codecs.fit_quantizer`.\n',
  )
  assert _error(['codec', '--out', 'x', *arguments[5:7]], capsys) == (
    1,
    'error: --gin_file and --gin without --codec, expected the weights that '
    'they are for. Add --codec, or leave them out.\n',
  )
  assert _error(['codec', '--out', 'x', '--codec', path], capsys) == (
    1,
    'error: Not set in the gin files: CODEC. Expected the file of gin/ that '
    'provides each (see gin/README.md), or --gin.CODEC=…\n',
  )


def _error(arguments, capsys) -> tuple[int, str]:
  """Exit status and message of wrong arguments."""
  try:
    status = cli.main(['evaluate', *map(str, arguments)])
  except SystemExit as end:
    status = end.code
  captured = capsys.readouterr()
  assert captured.out == ''
  assert 'Traceback' not in captured.err
  return status, captured.err


def test_usage_errors(tmp_path, capsys):
  assert _error(['fad'], capsys) == (
    2,
    'error: unknown command `fad`, expected one of adherence, music, codec. '
    'See `v2meow evaluate --help`.\n',
  )
  assert _error(['adherence', '--out', 'x', '--clips', '2'], capsys) == (
    2,
    'error: --clips: is `2`, expected a whole number of at least 3. See '
    '`v2meow evaluate adherence --help`.\n',
  )
  assert _error(['codec', '--out', 'x', '--levels', '1,b'], capsys) == (
    2,
    'error: --levels: is `b`, expected a whole number of at least 1. See '
    '`v2meow evaluate codec --help`.\n',
  )
  status, message = _error(['--generated', tmp_path], capsys)
  assert status == 2
  assert message.startswith(
    'error: the following arguments are required: --out, --reference. '
  )


def test_folder_errors(clips, tmp_path, capsys):
  missing = tmp_path / 'missing'
  arguments = ['--out', tmp_path / 'out', '--reference', clips, '--generated']
  assert _error([*arguments, missing], capsys) == (
    1,
    f'error: {missing}: no such folder, expected one with sound files. Check '
    'the path.\n',
  )
  empty = tmp_path / 'empty'
  empty.mkdir()
  status, message = _error([*arguments, empty], capsys)
  assert status == 1
  assert message.startswith(f'error: {empty}: no sound files, expected some ')
  for name in ('a.wav', 'a.mp3'):
    (empty / name).touch()
  assert _error([*arguments, empty], capsys) == (
    1,
    f'error: {empty}: a.mp3 and a.wav have one name, expected one file for '
    'each clip. Remove one of them.\n',
  )
  blocked = tmp_path / 'file'
  blocked.touch()
  status, message = _error(
    ['--out', blocked, '--reference', clips, '--generated', clips], capsys
  )
  assert status == 1
  assert 'cannot be made (Not a directory), expected a folder' in message


def test_too_few_clips(clips, tmp_path, capsys):
  few = tmp_path / 'few'
  few.mkdir()
  _write(few / 'a.wav', signals.noise(2))
  assert _error(
    ['--out', tmp_path / 'o', '--reference', clips, '--generated', few], capsys
  ) == (1, 'error: 1 generated clips, expected at least 5.\n')


def test_manifest_errors(clips, tmp_path, capsys):
  arguments = ['adherence', '--out', tmp_path / 'o', '--generated', clips]
  manifest = clips / 'MANIFEST.csv'
  assert _error(
    [*arguments, '--manifest', manifest, '--split', 'validation'], capsys
  ) == (
    1,
    f'error: {manifest}: no clips of split `validation`, expected some. Choose '
    'another with --split.\n',
  )
  wrong = tmp_path / 'wrong.csv'
  wrong.write_text(
    'file,start_seconds,split,attributes\n'
    'a.wav,0,test,"{""mode"": ""major""}"\nb.wav,2,test,\n'
  )
  assert _error([*arguments, '--manifest', wrong], capsys) == (
    1,
    f'error: {wrong}: clip `a`: no attribute tempo_bpm, energy, expected '
    'tempo_bpm, mode and energy. Add it to the column `attributes` of the '
    'manifest. clip `b`: start_seconds is 2, expected 0. Cut the file.\n',
  )


def test_unknown_model(tmp_path, capsys):
  status, message = _error(
    ['adherence', '--out', tmp_path / 'o', '--model', 'nobody'], capsys
  )
  assert status == 1
  assert message.startswith('error: Unknown model `nobody`, expected ')
  assert not (tmp_path / 'o' / 'clips').exists()


def test_missing_matplotlib(monkeypatch):
  monkeypatch.setattr(reports.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError) as error:
    evaluate.main(['--out', 'x', '--generated', 'y', '--reference', 'z'])
  assert str(error.value) == (
    'Matplotlib is missing, expected it for the plots of a report. Install it '
    'with pip install matplotlib.'
  )


@pytest.mark.parametrize('command', [[], *([c] for c in evaluate.COMMANDS)])
def test_help(command, capsys):
  try:
    status = cli.main(['evaluate', *command, '--help'])
  except SystemExit as end:
    status = end.code
  assert status == 0
  out = capsys.readouterr().out
  for name in evaluate.COMMANDS if not command else ['--out']:
    assert name in out


def test_progress_says_the_time_left(capsys, monkeypatch):
  monkeypatch.setattr(evaluate, '_LOG_SECONDS', 0.0)
  clock = iter(range(100))
  monkeypatch.setattr(evaluate.time, 'monotonic', lambda: next(clock))
  assert list(evaluate._with_progress('abc', 'music')) == ['a', 'b', 'c']
  assert capsys.readouterr().err == (
    'music: 1/3 clips, 2.0 s/clip, 4 s left\n'
    'music: 2/3 clips, 1.5 s/clip, 2 s left\n'
  )


def test_markdown_table():
  assert reports.markdown_table(('a', 'long'), [('xxxx', '1'), ('', '2')]) == (
    '| a    | long |\n| ---- | ---- |\n| xxxx | 1    |\n|      | 2    |'
  )


def test_json_has_no_nan(tmp_path):
  reports.write_json(tmp_path / 'x.json', {'a': [float('nan'), (1.5,)]})
  assert json.loads((tmp_path / 'x.json').read_text()) == {'a': [None, [1.5]]}
