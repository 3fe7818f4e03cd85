import os
import resource
import wave

import av
import numpy as np
import pytest

from tests.references import loudness as references
from v2meow_jax import audio
from v2meow_jax import errors
from v2meow_jax import muxing


def _sine(dbfs, seconds, rate=48000, hz=997.0):
  time = np.arange(round(seconds * rate)) / rate
  return (10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def _stereo(*parts):
  mono = np.concatenate(parts)
  return np.stack([mono, mono], axis=1)


def _bursts(rate=16000, seconds=6):
  """Decaying notes, every fourth one three times as loud."""
  rng = np.random.default_rng(0)
  samples = np.zeros(seconds * rate, np.float32)
  decay = np.exp(-np.arange(rate) / (0.08 * rate))
  for start in range(0, len(samples), rate // 2):
    note = decay * _sine(0, 1, rate, rng.uniform(100, 2000))
    note *= 1 if start % (2 * rate) else 3
    samples[start : start + rate] += note[: len(samples) - start]
  return 0.05 * samples


def test_k_weighting_is_the_standard_s_at_48_khz():
  shelf, high_pass = audio.k_weighting(48000)
  b0, b1, b2, a1, a2 = references.SHELF
  np.testing.assert_allclose(shelf, [b0, b1, b2, 1, a1, a2], atol=1e-12)
  b0, b1, b2, a1, a2 = references.HIGH_PASS
  np.testing.assert_allclose(high_pass, [b0, b1, b2, 1, a1, a2], atol=1e-12)


@pytest.mark.parametrize(
  'rate, tolerance', [(48000, 0.01), (44100, 0.01), (16000, 0.05)]
)
def test_loudness_of_a_sine(rate, tolerance):
  # BS.1770: 0 dBFS at 997 Hz in one channel is -3.01 LUFS, -20 dBFS so -23.01.
  measured = audio.measure_loudness(_sine(-20, 4, rate), rate)
  assert measured == pytest.approx(-23.01, abs=tolerance)
  both = audio.measure_loudness(_stereo(_sine(-20, 4, rate)), rate)
  assert both == pytest.approx(-20.0, abs=tolerance)


@pytest.mark.parametrize(
  'levels, expected',
  [
    # EBU Tech 3341, cases 1 to 5, ten times shorter but for the pauses.
    ([(-23, 2)], -23.0),
    ([(-33, 2)], -33.0),
    ([(-36, 2), (-23, 12), (-36, 2)], -23.0),
    ([(-72, 2), (-36, 2), (-23, 12), (-36, 2), (-72, 2)], -23.0),
    ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
  ],
)
def test_loudness_of_the_ebu_s_cases(levels, expected):
  samples = _stereo(*(_sine(db, s, 16000, 1000) for db, s in levels))
  assert audio.measure_loudness(samples, 16000) == pytest.approx(
    expected, abs=0.1
  )


def test_loudness_matches_the_slow_reference(rng):
  swell = np.geomspace(0.001, 0.5, 60000)[:, None]
  samples = (swell * rng.standard_normal((60000, 2))).astype(np.float32)
  expected = references.measure(samples.T.tolist())
  assert audio.measure_loudness(samples, 48000) == pytest.approx(
    expected, abs=1e-6
  )


def test_loudness_does_not_depend_on_chunks(rng, monkeypatch):
  samples = rng.standard_normal(50000).astype(np.float32)
  whole = audio.measure_loudness(samples, 16000)
  monkeypatch.setattr(audio, '_CHUNK', 2000)
  assert audio.measure_loudness(samples, 16000) == pytest.approx(
    whole, abs=1e-9
  )


def test_loudness_of_little_and_of_nothing():
  assert audio.measure_loudness(np.zeros(16000), 16000) == -np.inf
  assert audio.measure_loudness(np.zeros(0), 16000) == -np.inf
  short = audio.measure_loudness(_sine(-20, 0.2), 48000)
  assert short == pytest.approx(-23.0, abs=0.5)


@pytest.mark.parametrize('make', [_bursts, lambda: _stereo(_bursts())])
def test_normalize_loudness(make):
  samples = make()
  result = audio.normalize_loudness(samples, 16000, -23)
  assert result.dtype == np.float32
  assert result.shape == samples.shape
  assert audio.measure_loudness(result, 16000) == pytest.approx(-23, abs=0.1)
  # No limiting at this loudness: one gain for all.
  gain = result.max() / samples.max()
  np.testing.assert_allclose(result, gain * samples, atol=1e-6)


def test_peaks_stay_below_full_scale():
  samples = _bursts()
  result = audio.normalize_loudness(samples, 16000)
  unlimited = audio.measure_loudness(samples, 16000)
  peak = np.abs(samples).max() * 10 ** ((-16 - unlimited) / 20)
  assert peak > 1.2  # without the limiter it would clip
  assert np.abs(result).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
  assert np.abs(result).max() <= 10 ** (-1 / 20) + 1e-6
  assert audio.measure_loudness(result, 16000) == pytest.approx(-16, abs=0.3)
  # It turns down and does not cut off: no harmonics of a loud sine.
  sine = _sine(-1, 1, 16000, 1000)
  quiet = 1e-3 * sine
  loud = audio.normalize_loudness(
    np.concatenate([quiet, sine, quiet]), 16000, 0
  )
  spectrum = np.abs(np.fft.rfft(loud[18000:30000] * np.hanning(12000)))
  assert spectrum[2250] < 1e-4 * spectrum[750]


def test_the_limiter_turns_slowly_and_enough(rng):
  samples = rng.uniform(-0.5, 0.5, (3000, 2))
  samples[[700, 1500, 1520], [0, 1, 0]] = 2.0, -3.0, 2.5
  gain = audio._limit(samples, 0.9, 100)
  assert (gain[:, None] * np.abs(samples)).max() <= 0.9 + 1e-9
  assert np.abs(np.diff(gain)).max() < 0.7 / 200 + 1e-9
  np.testing.assert_allclose(gain[2000:], 1)
  assert gain[1500] == pytest.approx(0.3, abs=1e-6)


def test_normalizing_by_chunks_leaves_no_seam(monkeypatch):
  samples = _bursts()
  whole = audio.normalize_loudness(samples, 16000)
  monkeypatch.setattr(audio, '_CHUNK', 3000)
  np.testing.assert_allclose(
    audio.normalize_loudness(samples, 16000), whole, atol=1e-6
  )


def test_silence_stays_silence():
  silence = np.zeros(20000, np.float32)
  np.testing.assert_array_equal(
    audio.normalize_loudness(silence, 16000), silence
  )


def test_waveform(rng):
  samples = rng.uniform(-0.5, 0.5, (4410, 2)).astype(np.float32)
  waveform = audio.Waveform(samples, 44100)
  assert waveform.seconds == 0.1
  assert waveform.peak == np.abs(samples).max()
  np.testing.assert_allclose(
    waveform.to_mono().samples[:, 0], samples.mean(1), atol=1e-7
  )
  assert waveform.measure_loudness() == audio.measure_loudness(samples, 44100)
  louder = waveform.normalize_loudness()
  np.testing.assert_array_equal(
    louder.samples, audio.normalize_loudness(samples, 44100)
  )
  assert louder.sample_rate_hz == 44100


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
