import os
import resource
import wave

import av
import numpy as np
import pytest

from v2meow_jax import audio
from v2meow_jax import errors
from v2meow_jax import muxing


def _sine(dbfs, seconds, rate=48000, hz=997.0):
  time = np.arange(round(seconds * rate)) / rate
  return (10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def test_waveform(rng):
  samples = rng.uniform(-0.5, 0.5, (4410, 2)).astype(np.float32)
  waveform = audio.Waveform(samples, 44100)
  assert waveform.seconds == 0.1
  assert waveform.peak == np.abs(samples).max()
  np.testing.assert_allclose(
    waveform.to_mono().samples[:, 0], samples.mean(1), atol=1e-7
  )


@pytest.mark.parametrize('rate', [16000, 48000])
def test_resample(rate):
  waveform = audio.Waveform(_sine(-6, 1, 44100, 1000)[:, None], 44100)
  result = waveform.resample(rate)
  assert result.samples.shape == (rate, 1)
  assert result.sample_rate_hz == rate
  inner = slice(rate // 10, -rate // 10)
  np.testing.assert_allclose(
    result.samples[inner, 0], _sine(-6, 1, rate, 1000)[inner], atol=1e-3
  )
  # What the new rate cannot hold is gone, not folded down.
  high = audio.Waveform(_sine(-6, 1, 44100, 9000)[:, None], 44100)
  if rate == 16000:
    assert np.abs(high.resample(rate).samples[inner]).max() < 1e-3


def test_write_wav(tmp_path, rng):
  samples = rng.uniform(-1.2, 1.2, (5000, 2)).astype(np.float32)
  path = str(tmp_path / 'a.wav')
  audio.write_wav(path, samples, 22050)
  with wave.open(path) as f:
    assert f.getparams()[:4] == (2, 2, 22050, 5000)
    data = np.frombuffer(f.readframes(5000), '<i2').reshape(-1, 2)
  clipped = np.clip(samples, -1, 1)
  assert np.abs(data / 32767 - clipped).max() <= 0.501 / 32767
  # The same bytes however it comes.
  chunks = (samples[k : k + 777] for k in range(0, 5000, 777))
  audio.write_wav(str(tmp_path / 'b.wav'), chunks, 22050)
  assert (tmp_path / 'b.wav').read_bytes() == (tmp_path / 'a.wav').read_bytes()
  back = audio.read(path)
  assert back.sample_rate_hz == 22050
  np.testing.assert_allclose(back.samples, clipped, atol=1e-4)
  mono = samples[:, 0]
  audio.write_wav(path, mono, 22050)
  with wave.open(path) as f:
    assert f.getparams()[:4] == (1, 2, 22050, 5000)


def test_write_wav_to_where_it_cannot(tmp_path):
  path = str(tmp_path / 'none' / 'a.wav')
  with pytest.raises(errors.UserError) as e:
    audio.write_wav(path, np.zeros(10, np.float32), 16000)
  assert str(e.value) == (
    f'{path}: cannot be written because {tmp_path}/none is no folder. Make '
    'the folder or choose another one.'
  )
  path = str(tmp_path / 'a.wav')
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
  try:
    with pytest.raises(errors.UserError) as e:
      audio.write_wav(path, np.zeros(10000, np.float32), 16000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert str(e.value) == (
    f'{path}: cannot be written (File too large). Check the permissions and '
    'the space of the folder, or choose another one.'
  )
  assert os.listdir(tmp_path) == []


def test_read_a_part(tmp_path, rng):
  samples = rng.uniform(-0.9, 0.9, (32000, 1)).astype(np.float32)
  path = str(tmp_path / 'a.wav')
  audio.write_wav(path, samples, 16000)
  part = audio.read(path, 0.5, 1.25)
  np.testing.assert_allclose(part.samples, samples[8000:20000], atol=1e-4)
  mono = audio.read_mono(path, 16000, 1.5)
  np.testing.assert_allclose(mono, samples[24000:, 0], atol=1e-4)
  assert audio.read_mono(path, 8000).shape == (16000,)
  with pytest.raises(errors.UserError) as e:
    audio.read(path, 2.5)
  assert str(e.value) == (
    f'{path}: has no sound after 2.5 s, expected some. Choose another part '
    'or leave it out.'
  )


@pytest.mark.parametrize('channels, rate', [(8, 192_000), (12, 48_000)])
def test_many_channels(tmp_path, rng, channels, rate):
  sound = rng.integers(-3000, 3000, (rate // 8, channels), np.int16)
  path = str(tmp_path / 'many.wav')
  with wave.open(path, 'wb') as file:
    file.setnchannels(channels)
    file.setsampwidth(2)
    file.setframerate(rate)
    file.writeframes(sound.tobytes())
  read = audio.read(path)
  assert read.sample_rate_hz == rate
  np.testing.assert_allclose(read.samples, sound / 2**15, atol=1e-6)
  np.testing.assert_allclose(
    audio.read_mono(path, rate), sound.mean(1) / 2**15, atol=1e-6
  )


def _write_late(path, sound_seconds, picture_seconds):
  """A video whose clicks and picture start at the given times."""
  with av.open(str(path), 'w') as target:
    picture = target.add_stream('libx264', rate=25, width=32, height=32)
    sound = target.add_stream('pcm_s16le', rate=16000, layout='mono')
    clicks = np.zeros((1, 16000), np.float32)
    clicks[0, ::1600] = 0.5
    frame = av.AudioFrame.from_ndarray(clicks, 'fltp', 'mono')
    frame.sample_rate = 16000
    frame.pts = round(sound_seconds * 16000)
    resampler = av.AudioResampler('s16', 'mono', 16000)
    for part in resampler.resample(frame):
      target.mux(sound.encode(part))
    for k in range(25):
      image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
      image.pts = k + round(picture_seconds * 25)
      target.mux(picture.encode(image))
    target.mux(picture.encode(None))
  return str(path)


@pytest.mark.parametrize('sound, picture', [(0, 0), (0, 0.2), (0.4, 0.2)])
def test_time_0_is_the_first_picture(tmp_path, sound, picture):
  path = _write_late(tmp_path / 'a.mkv', sound, picture)
  clicks = np.flatnonzero(audio.read_mono(path, 16000) > 0.25)
  first = 1600 * max(0, round((sound - picture) * 10))
  np.testing.assert_allclose(clicks[:3], first + 1600 * np.arange(3), atol=1)
  later = np.flatnonzero(audio.read_mono(path, 16000, 0.3) > 0.25)
  first = max(0, first - 4800)
  np.testing.assert_allclose(later[:3], first + 1600 * np.arange(3), atol=1)


def test_no_sound(tmp_path):
  path = str(tmp_path / 'a.mp4')
  muxing.write_frames(path, np.zeros((2, 16, 16, 3), np.uint8), 10)
  with pytest.raises(errors.UserError) as e:
    audio.read(path)
  assert str(e.value) == (
    f'{path}: has no sound, expected a file with a sound track. Choose '
    'another one or leave it out.'
  )


def test_damaged_sound(tmp_path, rng, monkeypatch, capsys):
  monkeypatch.setattr(errors, '_warned', set())
  samples = 0.1 * rng.standard_normal(32000).astype(np.float32)
  path = str(tmp_path / 'a.mp4')
  frames = np.zeros((20, 16, 16, 3), np.uint8)
  muxing.write_frames(path, frames, 10, samples, 16000)
  with av.open(path) as source:
    stream = source.streams.audio[0]
    packets = [(p.pos, p.size) for p in source.demux(stream) if p.size]
  data = bytearray((tmp_path / 'a.mp4').read_bytes())
  position, size = packets[15]
  data[position : position + size] = b'\xff' * size
  (tmp_path / 'b.mp4').write_bytes(data)
  whole, damaged = (audio.read_mono(f'{tmp_path}/{n}.mp4', 16000) for n in 'ab')
  assert capsys.readouterr().err == (
    f'warning: {tmp_path}/b.mp4: its sound is damaged. What decodes is used.\n'
  )
  # What comes behind the damage is where it was.
  assert len(damaged) == len(whole)
  np.testing.assert_allclose(damaged[20000:], whole[20000:], atol=1e-3)


@pytest.mark.parametrize(
  'name, seconds, channels, rate',
  [
    ('music/trumpet_solo_90bpm.ogg', 5.33, 2, 44100),
    ('music/pop_vocal_slow_motion_dream.mp3', 10.88, 2, 44100),
    ('music/guitar_solo.wav', 22.83, 1, 44100),
    ('video/nasa_two_streams.mp4', 13.056, 2, 16000),
    ('video_edge/audio_only.mp4', 30.0, 2, 44100),
    # The picture starts 0.083 s behind the sound.
    ('video_edge/rotated_bunny_1080p.mp4', 1.922, 6, 48000),
  ],
)
def test_shared_files(shared_data, name, seconds, channels, rate):
  waveform = audio.read(shared_data / name)
  assert waveform.samples.shape[1] == channels
  assert waveform.sample_rate_hz == rate
  assert waveform.seconds == pytest.approx(seconds, abs=0.03)
