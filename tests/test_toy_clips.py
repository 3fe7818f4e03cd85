"""Whole clips of the toy dataset, and the command that writes them."""

import json

import av
import numpy as np
import pytest
import soundfile

from v2meow_jax import manifests
from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import clips
from v2meow_jax.toy import command
from v2meow_jax.toy import soundfont


def _make(index: int = 1, seconds: float = 2.0, **options) -> clips.Clip:
  return clips.make_clip(0, index, seconds, 'numpy', **options)


def _run(folder, *options: str) -> int:
  return command.main(
    [f'--out={folder}', '--renderer=numpy', '--processes=1', *options]
  )


def _read_mp4(path) -> tuple[np.ndarray, float, np.ndarray]:
  """Frames, seconds of picture and samples of an mp4."""
  with av.open(str(path)) as file:
    stream = file.streams.video[0]
    seconds = float(stream.duration * stream.time_base)
    assert stream.codec_context.name == 'h264'
    assert file.streams.audio[0].codec_context.name == 'aac'
    frames = [f.to_ndarray(format='rgb24') for f in file.decode(video=0)]
  with av.open(str(path)) as file:
    sound = [f.to_ndarray()[0] for f in file.decode(audio=0)]
  return np.array(frames), seconds, np.concatenate(sound)


def test_clip():
  clip = _make()
  assert clip.clip_id == 'toy_000001'
  assert clip.attributes == attributes_lib.sample(0, 1, 2.0)
  assert clip.waveform.shape == (32000,)
  assert clip.waveform.dtype == np.float32
  assert clip.frames.shape == (20, 54, 96, 3)
  again = _make()
  np.testing.assert_array_equal(clip.waveform, again.waveform)
  np.testing.assert_array_equal(clip.frames, again.frames)
  assert clip.notes == again.notes
  assert clip.caption == again.caption


def test_sound_does_not_depend_on_the_picture():
  without = _make(frame_size=None)
  assert without.frames.shape == (0, 0, 0, 3)
  np.testing.assert_array_equal(without.waveform, _make().waveform)


def test_mp4_holds_the_clip(tmp_path):
  clip = _make(seconds=2.5, frame_rate_hz=24, frame_size=(90, 160))
  path = tmp_path / 'clip.mp4'
  clips.write_clip(clip, path)
  frames, seconds, sound = _read_mp4(path)
  assert seconds == pytest.approx(2.5, abs=1e-3)
  assert frames.shape == (60, 90, 160, 3)
  # Measured 2.3: colours at half the resolution, and quantisation.
  assert np.abs(frames.astype(float) - clip.frames).mean() < 6
  assert len(sound) / clips.SAMPLE_RATE_HZ == pytest.approx(2.5, abs=0.07)
  # Picture and sound start together: no delay of the encoder is left.
  length = min(len(sound), len(clip.waveform))
  lags = range(-1500, 1501, 50)
  fits = [
    np.dot(np.roll(sound[:length], lag), clip.waveform[:length]) for lag in lags
  ]
  assert abs(lags[int(np.argmax(fits))]) <= 50
  clips.write_clip(clip, tmp_path / 'again.mp4')
  again, _, sound_again = _read_mp4(tmp_path / 'again.mp4')
  np.testing.assert_array_equal(sound_again, sound)
  # x264 does not promise equal bytes; measured up to 1.3 from run to run.
  assert np.abs(frames.astype(float) - again).mean() < 3


def test_wav_holds_the_sound(tmp_path):
  clip = _make(frame_size=None)
  clips.write_clip(clip, tmp_path / 'clip.wav')
  sound, rate_hz = soundfile.read(tmp_path / 'clip.wav', dtype='float32')
  assert rate_hz == 16000
  assert soundfile.info(tmp_path / 'clip.wav').subtype == 'PCM_16'
  np.testing.assert_allclose(sound, clip.waveform, atol=1.01 / 32768)


def test_files_that_cannot_be_written(tmp_path):
  clip = _make(frame_size=None)
  with pytest.raises(ValueError, match='suffix `.avi`, expected one of .mp4,'):
    clips.write_clip(clip, tmp_path / 'clip.avi')
  with pytest.raises(ValueError, match='the clip has no picture, expected on'):
    clips.write_clip(clip, tmp_path / 'clip.mp4')
  assert not list(tmp_path.iterdir())


def test_command_writes_clips_and_a_manifest(tmp_path, capsys):
  folder = tmp_path / 'toy'
  options = ('--num=3', '--first=17', '--seconds=1')
  assert _run(folder, *options) == 0
  path = folder / 'MANIFEST.csv'
  assert capsys.readouterr().out == f'{path}\n'
  rows = manifests.read(path)
  assert [row.clip_id for row in rows] == [
    'toy_000017',
    'toy_000018',
    'toy_000019',
  ]
  assert [row.split for row in rows] == ['train', 'validation', 'test']
  for index, row in enumerate(rows, 17):
    clip = _make(index, 1.0)
    assert row.caption == clip.caption
    assert (row.start_seconds, row.end_seconds) == (0.0, 1.0)
    assert json.loads(row.attributes) == {
      **json.loads(json.dumps(clip.attributes.to_dict())),
      'renderer': 'numpy',
    }
    frames, _, _ = _read_mp4(row.file)
    assert frames.shape == clip.frames.shape

  # A second call makes what is missing and nothing else.
  kept = (folder / 'toy_000017.mp4').read_bytes()
  (folder / 'toy_000017.mp4').write_bytes(b'kept')
  (folder / 'toy_000019.mp4').unlink()
  assert _run(folder, *options) == 0
  assert (folder / 'toy_000017.mp4').read_bytes() == b'kept'
  assert (folder / 'toy_000019.mp4').exists()
  (folder / 'toy_000017.mp4').write_bytes(kept)
  assert _run(folder, *options) == 0
  assert manifests.read(path) == rows
  assert {p.name for p in folder.iterdir()} == {
    'MANIFEST.csv',
    'SETTINGS.json',
    *(row.file.name for row in rows),
  }


def test_command_in_processes_writes_the_same(tmp_path):
  options = ('--num=2', '--seconds=0.5', '--audio-only')
  assert _run(tmp_path / 'one', *options) == 0
  assert _run(tmp_path / 'two', *options, '--processes=2') == 0
  for name in ('toy_000000.wav', 'toy_000001.wav', 'MANIFEST.csv'):
    one = (tmp_path / 'one' / name).read_bytes()
    assert one == (tmp_path / 'two' / name).read_bytes()


def test_command_does_not_mix_settings(tmp_path, capsys):
  assert _run(tmp_path, '--num=1', '--seconds=0.5', '--audio-only') == 0
  capsys.readouterr()
  assert _run(tmp_path, '--num=1', '--seconds=1', '--audio-only') == 1
  streams = capsys.readouterr()
  assert streams.out == ''
  assert streams.err == (
    f'error: {tmp_path}: holds clips made with {{"seed": 0, "seconds": 0.5, '
    '"renderer": "numpy"}, expected {"seed": 0, "seconds": 1.0, "renderer": '
    '"numpy"}. Choose another folder or the same settings.\n'
  )


def test_command_without_fluidsynth(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(soundfont, '_PATHS', ('/no/such.sf2',))
  status = command.main([f'--out={tmp_path}', '--num=1'])
  assert status == 1
  error = capsys.readouterr().err
  assert error.startswith('error: No General MIDI soundfont in /no/such.sf2,')
  assert 'apt-get install fluidsynth fluid-soundfont-gm' in error


@pytest.mark.parametrize(
  'option, message',
  [
    ('--num=0', '0, expected at least 1'),
    ('--seconds=0', '0, expected at least 0.1'),
    ('--seed=-1', '-1, expected at least 0'),
    ('--size=15x20', '15x20, expected even numbers of at least 16'),
  ],
)
def test_bad_options(tmp_path, capsys, option, message):
  with pytest.raises(SystemExit) as error:
    _run(tmp_path, '--num=1', option)
  assert error.value.code == 2
  assert message in capsys.readouterr().err
