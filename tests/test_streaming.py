"""Music to stdout while it is made."""

import io
import struct

import numpy as np
import pytest

from tests import toy
from v2meow_jax import audio
from v2meow_jax import cli
from v2meow_jax import performance


@pytest.fixture
def work(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  toy.make_video(tmp_path / 'clip.mp4', 3.1)
  return tmp_path


def _generate(model, *arguments) -> int:
  return cli.main(['generate', '--model', str(model), *arguments])


def test_stdout_is_the_file_but_for_its_length(tiny_model, work, capfdbinary):
  assert _generate(tiny_model, 'clip.mp4', '--seed', '3', '--out', '-') == 0
  said = capfdbinary.readouterr()
  assert said.err == b''
  assert _generate(tiny_model, 'clip.mp4', '--seed', '3', '--out', 'a.wav') == 0
  capfdbinary.readouterr()
  whole = (work / 'a.wav').read_bytes()
  header, samples = said.out[:44], said.out[44:]
  assert samples == whole[44:]
  assert len(samples) == 2 * round(3.1 * 16000)
  # Both lengths are unknown; all else is the header of the file.
  assert header[4:8] == header[40:44] == b'\xff' * 4
  assert header[8:40] == whole[8:40]
  assert sorted(path.name for path in work.iterdir()) == [
    'a.json',
    'a.wav',
    'clip.mp4',
  ]


def test_header_says_the_rate():
  header = audio.wav_header(16000)
  assert len(header) == 44
  assert struct.unpack('<HHII', header[20:32]) == (1, 1, 16000, 32000)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--samples', '2'], '--samples: needs the whole piece'),
    (['--best_of', '2'], '--best_of: needs the whole piece'),
    (['--replace', '1-2'], '--replace: needs the whole piece'),
    (['--format', 'mp4'], '--format: is mp4, but `--out -` is WAV'),
  ],
)
def test_what_cannot_be_streamed(tiny_model, work, capsys, arguments, message):
  with pytest.raises(SystemExit):
    _generate(tiny_model, 'clip.mp4', '--out', '-', *arguments)
  assert message in capsys.readouterr().err


def test_one_video_for_one_stdout(tiny_model, work, capfd):
  toy.make_video(work / 'other.mp4', 1.0)
  assert _generate(tiny_model, 'clip.mp4', 'other.mp4', '--out', '-') == 1
  said = capfd.readouterr()
  assert said.out == ''
  assert said.err.startswith('error: --out -: there are 2 pieces for one')


def test_no_sound_on_a_terminal(tiny_model, work, capsys, monkeypatch):
  screen = io.StringIO()
  screen.isatty = lambda: True
  monkeypatch.setattr('sys.stdout', screen)
  assert _generate(tiny_model, 'clip.mp4', '--out', '-') == 1
  assert 'stdout is a terminal' in capsys.readouterr().err
  assert screen.getvalue() == ''


def test_a_bad_video_writes_no_header(tiny_model, work, capfdbinary):
  (work / 'bad.mp4').write_bytes(b'no video')
  assert _generate(tiny_model, 'bad.mp4', '--out', '-') == 1
  said = capfdbinary.readouterr()
  assert said.out == b''
  assert said.err.startswith(b'error: bad.mp4: ')


def test_sound_of_a_long_piece_is_on_the_disk(tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  most = performance._MOST_SAMPLES_IN_MEMORY
  room = performance._make_room(most + 1)
  assert isinstance(room, np.memmap)
  room[-1] = 0.5
  assert room.shape == (most + 1,) and room[0] == 0 and room[-1] == 0.5
  # The file has no name: nothing is left, whatever ends the process.
  assert not any(tmp_path.iterdir())
  assert not isinstance(performance._make_room(most), np.memmap)
