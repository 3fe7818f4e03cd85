import fractions
import hashlib
import os
import resource

import av
import numpy as np
import pytest

from tests.references import frames as references
from v2meow_jax import audio
from v2meow_jax import errors
from v2meow_jax import video

_SECONDS_OF_HEAVY_FILES = 1.0
# What is in ../shared/data: name, seconds, width, height, codec, has_audio, and
# whether it is light enough to be decoded in full.
_VIDEOS = {
  'video/bbb_0_30_music.webm': (29.999, 1280, 720, 'vp8', True, False),
  'video/bbb_23_44_music.mp4': (20.833, 640, 360, 'h264', True, False),
  'video/bottles_static.mp4': (39.855, 640, 360, 'h264', False, False),
  'video/claymation_music.mp4': (29.997, 480, 270, 'h264', True, False),
  'video/cockatoo.mp4': (14.0, 1280, 720, 'h264', True, False),
  'video/dance_densepose.mp4': (4.0, 512, 512, 'h264', False, True),
  'video/dance_mocap_stick.mp4': (10.08, 480, 480, 'h264', False, False),
  'video/dog_play.mp4': (9.643, 1280, 720, 'h264', True, False),
  'video/flower_timelapse.mp4': (5.005, 960, 540, 'h264', True, False),
  'video/football_juggle.mp4': (10.292, 1280, 720, 'h264', False, False),
  'video/kids_jumping.mp4': (6.667, 960, 540, 'h264', False, False),
  'video/nasa_two_streams.mp4': (13.013, 480, 270, 'h264', True, True),
  'video/person_moves.mp4': (4.0, 576, 576, 'h264', False, True),
  'video/slideshow_nature.mp4': (16.0, 640, 360, 'h264', False, False),
  'video/squats_portrait.mp4': (13.0, 720, 1280, 'h264', False, True),
  'video/still_image.mp4': (8.0, 960, 540, 'h264', False, False),
  'video/tears_of_steel_battle.webm': (70.458, 798, 332, 'vp8', True, False),
  'video_edge/anamorphic_sar2.mp4': (5.0, 1280, 360, 'h264', False, True),
  'video_edge/av1_short.mkv': (5.0, 640, 360, 'av1', False, True),
  'video_edge/gesture_noaudio.mkv': (1.933, 640, 480, 'h264', False, True),
  'video_edge/hevc_short.mp4': (1.0, 128, 128, 'hevc', False, True),
  'video_edge/nonzero_start.mp4': (0.4, 199, 112, 'h264', False, True),
  'video_edge/odd_321x241_vp9.mp4': (1.0, 321, 241, 'vp9', False, True),
  'video_edge/portrait_dog_10fps.mp4': (1.1, 320, 568, 'h264', True, True),
  'video_edge/rotated_180.mov': (0.1, 568, 320, 'h264', False, True),
  'video_edge/rotated_270.mov': (0.1, 320, 568, 'h264', False, True),
  'video_edge/rotated_90.mov': (0.1, 320, 568, 'h264', False, True),
  'video_edge/rotated_bunny_1080p.mp4': (
    1.875,
    1080,
    1920,
    'h264',
    True,
    True,
  ),
  'video_edge/rotated_nasa.mp4': (0.567, 270, 480, 'h264', False, True),
  'video_edge/rotation_none.mov': (0.1, 568, 320, 'h264', False, True),
  'video_edge/vfr_screen.mp4': (8.726, 3026, 1386, 'h264', False, True),
  # Declared lengths; what decodes is in _DAMAGED.
  'video_edge/bitflipped.mp4': (5.005, 960, 540, 'h264', True, False),
  'video_edge/corrupt_upstream.mp4': (5.0, 1280, 720, 'h264', False, False),
  'video_edge/truncated_moov_first.mp4': (5.005, 960, 540, 'h264', True, False),
}
# Seconds that decode, frames at 10 Hz, and the warning behind the path.
_DAMAGED = {
  'bitflipped.mp4': (
    5.005,
    51,
    'is damaged, 99 of its pictures do not decode in full. '
    'What decodes is used.',
  ),
  'corrupt_upstream.mp4': (
    5.0,
    50,
    'is damaged, 2 of its pictures do not decode in full. '
    'What decodes is used.',
  ),
  'truncated_moov_first.mp4': (
    2.669,
    27,
    'breaks off after 2.7 s of 5.0 s. What decodes is used.',
  ),
}
_UNUSABLE = {
  'video_edge/audio_only.mp4': (
    'holds no moving picture, expected a video. Choose a file with a '
    'moving picture.'
  ),
  'video_edge/truncated_no_moov.mp4': (
    'breaks off before its index and cannot be opened, expected a complete '
    'file. Copy or download it again.'
  ),
}
_COVER = 'music/jazz_lounge_vibe_ace.ogg'  # a cover picture and sound


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch):
  monkeypatch.setattr(errors, '_warned', set())


def _read(path, rate_hz=10, size=(64, 64), **kwargs):
  reader = video.FrameReader(path, rate_hz, size, **kwargs)
  return np.concatenate(list(reader)), reader


# Nearly lossless, and out of order: two pictures rest on a later one.
_ENCODER = {
  'crf': '4',
  'g': '10',
  'bf': '2',
  'b_strategy': '0',
  'sc_threshold': '0',
}


def _write(
  path, images, times=None, unit='1/25', codec='libx264', fmt=None, **options
):
  """Writes pictures at given times, in units of a clock, as H.264."""
  options = options or _ENCODER
  with av.open(str(path), 'w', format=fmt) as target:
    rate = fractions.Fraction(unit)
    height, width = images.shape[1:3]
    track = target.add_stream(
      codec,
      rate=25,
      width=width,
      height=height,
      pix_fmt='yuv444p',
      time_base=rate,
    )
    track.options = options
    for k, image in enumerate(images):
      frame = av.VideoFrame.from_ndarray(image, 'rgb24')
      frame = frame.reformat(format='yuv444p')
      frame.pts = k if times is None else times[k]
      frame.time_base = rate
      target.mux(track.encode(frame))
    target.mux(track.encode(None))
  return str(path)


def _grey(levels, size=(32, 48)):
  """Pictures whose mean tells their level, uint8 `[time, height, width, 3]`."""
  texture = np.random.default_rng(0).integers(-10, 11, (1, *size, 1))
  texture -= round(texture.mean())
  levels = np.array(levels)[:, None, None, None]
  return (levels + texture + np.zeros(3)).clip(0, 255).astype(np.uint8)


def _levels(frames):
  return frames.mean(axis=(1, 2, 3))


def _packets(path, count=None):
  """Digests of the packets of the main picture."""
  with av.open(path) as source:
    stream = source.streams.best('video')
    packets = [p for p in source.demux(stream) if p.size and not p.is_corrupt]
    return [hashlib.sha256(bytes(p)).hexdigest() for p in packets][:count]


def _times(path):
  """When the file itself says that each picture is shown, in seconds."""
  with av.open(path) as source:
    return [frame.time for frame in source.decode(video=0)]


def _noise(seconds, rate=16000):
  rng = np.random.default_rng(0)
  noise = rng.standard_normal(round(seconds * rate)).astype(np.float32)
  return np.convolve(0.1 * noise, np.ones(4) / 2, 'same').astype(np.float32)


def test_tables_name_every_shared_file(shared_data):
  found = {
    f'{folder}/{path.name}'
    for folder in ('video', 'video_edge')
    for path in (shared_data / folder).iterdir()
  }
  assert found == set(_VIDEOS) | set(_UNUSABLE)


@pytest.mark.parametrize('name', _VIDEOS)
def test_probe_of_shared_files(shared_data, name):
  seconds, width, height, codec, has_audio, _ = _VIDEOS[name]
  info = video.probe(shared_data / name)
  assert info.seconds == pytest.approx(seconds, abs=5e-4)
  assert (info.width, info.height) == (width, height)
  assert (info.codec, info.has_audio) == (codec, has_audio)


@pytest.mark.parametrize(
  'name', [n for n in _VIDEOS if os.path.basename(n) not in _DAMAGED]
)
def test_frames_of_shared_files(shared_data, name, capsys):
  seconds, *_, is_light = _VIDEOS[name]
  end = None if is_light else _SECONDS_OF_HEAVY_FILES
  frames, reader = _read(shared_data / name, end_seconds=end)
  seconds = end or seconds
  assert reader.seconds == pytest.approx(seconds, abs=5e-4)
  assert len(frames) == np.ceil(round(seconds, 3) * 10)
  assert frames.dtype == np.uint8
  assert frames.shape[1:] == (64, 64, 3)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name', _DAMAGED)
def test_damaged_files_give_what_decodes_and_one_warning(
  shared_data, name, capsys
):
  seconds, count, warning = _DAMAGED[name]
  path = shared_data / 'video_edge' / name
  frames, reader = _read(path)
  assert reader.seconds == pytest.approx(seconds, abs=5e-4)
  assert len(frames) == count
  assert capsys.readouterr().err == f'warning: {path}: {warning}\n'
  # Decoders with several threads conceal damage differently in every run.
  again, _ = _read(path)
  np.testing.assert_array_equal(frames, again)


@pytest.mark.parametrize('name', [*_UNUSABLE, _COVER])
def test_unusable_shared_files(shared_data, name):
  path = shared_data / name
  expected = _UNUSABLE.get(name, _UNUSABLE['video_edge/audio_only.mp4'])
  with pytest.raises(errors.UserError) as e:
    video.FrameReader(path, 10, (64, 64))
  assert str(e.value) == f'{path}: {expected}'


@pytest.mark.parametrize(
  'content, message',
  [
    (None, 'no such file, expected a media file. Check the path.'),
    ('folder', 'is a folder, expected a media file. Name a file in it.'),
    (
      b'',
      'is empty (0 bytes), expected a media file. Copy or download it again.',
    ),
    (
      b'Dear reader, this is a text. ' * 100,
      'is no media file, expected MP4, MOV, WebM, Matroska or another '
      'format that FFmpeg reads. Check that it plays.',
    ),
    (
      b'\0\0\0\x20ftypisom' + b'\0' * 500,
      'breaks off before its index and cannot be opened, expected a '
      'complete file. Copy or download it again.',
    ),
    (
      'still',
      'holds a still picture, expected a video. Choose a file with a '
      'moving picture.',
    ),
  ],
)
def test_unusable_files(tmp_path, content, message):
  path = tmp_path / 'clip: 100% sure.mp4'
  if content == 'folder':
    path.mkdir()
  elif content == 'still':
    frame = av.VideoFrame.from_ndarray(_grey([10])[0], 'rgb24')
    frame.save(str(tmp_path / 'a.png'))
    os.rename(tmp_path / 'a.png', path)
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError) as e:
    video.probe(path)
  assert str(e.value) == f'{path}: {message}'


def test_unreadable_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.mp4'
  path.write_bytes(b'x')

  def refuse(*args, **kwargs):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr('builtins.open', refuse)
  with pytest.raises(errors.UserError) as e:
    video.probe(path)
  assert str(e.value) == (
    f'{path}: cannot be read (Permission denied), expected a media file. '
    'Check its permissions.'
  )


def test_nothing_decodes(tmp_path):
  path = _write(tmp_path / 'a.mkv', _grey([10, 20, 30]))
  data = bytearray((tmp_path / 'a.mkv').read_bytes())
  with av.open(path) as source:
    payloads = [bytes(p) for p in source.demux() if p.size]
  for payload in payloads:
    at = data.index(payload)
    data[at : at + len(payload)] = b'\xff' * len(payload)
  (tmp_path / 'b.mkv').write_bytes(data)
  with pytest.raises(errors.UserError) as e:
    video.probe(tmp_path / 'b.mkv')
  assert str(e.value) == (
    f'{tmp_path}/b.mkv: not one of its pictures decodes, expected a video '
    'that plays. Copy or download it again.'
  )


@pytest.mark.parametrize('suffix', ['.mkv', '.mp4'])
@pytest.mark.parametrize('start', [0, 1, 8333])
@pytest.mark.parametrize('rate_hz', [10, 1, 29.97])
def test_frames_are_what_the_screen_shows(
  tmp_path, rng, suffix, start, rate_hz
):
  # A variable rate: from 4 ms to 700 ms, on a clock of milliseconds.
  gaps = rng.choice([4, 33, 40, 100, 101, 700], 40)
  times = np.concatenate([[0], np.cumsum(gaps)])
  levels = 5 * np.arange(len(times)) + 20
  path = _write(
    tmp_path / f'a{suffix}', _grey(levels), (times + start).tolist(), '1/1000'
  )
  frames, reader = _read(path, rate_hz, (8, 8))
  expected = references.shown(times / 1000, reader.seconds, rate_hz)
  np.testing.assert_allclose(_levels(frames), levels[expected], atol=1)
  assert reader.seconds >= times[-1] / 1000
  assert reader.info.start_seconds == pytest.approx(start / 1000, abs=1e-3)
  # A part of it, with a seek.
  part, reader = _read(
    path, rate_hz, (8, 8), start_seconds=1.3, end_seconds=3.2
  )
  expected = references.shown(times / 1000, np.inf, rate_hz, 1.3, 3.2)
  np.testing.assert_allclose(_levels(part), levels[expected], atol=1)
  assert reader.seconds == 3.2


def test_chunks_do_not_change_the_frames(tmp_path):
  path = _write(tmp_path / 'a.mp4', _grey(np.arange(0, 200, 4)))
  whole, _ = _read(path)
  chunks = list(video.FrameReader(path, 10, (64, 64), chunk=3))
  assert [len(c) for c in chunks] == [3] * 6 + [2]
  np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_one_picture(tmp_path):
  frames, reader = _read(_write(tmp_path / 'a.mp4', _grey([77])))
  np.testing.assert_allclose(_levels(frames), [77], atol=1)
  assert reader.seconds == pytest.approx(0.04, abs=1e-3)


def test_duplicate_and_missing_times(tmp_path):
  # Raw H.264 says nothing about times: they follow from the rate of pictures.
  levels = np.arange(20, 220, 4)
  path = _write(tmp_path / 'a.h264', _grey(levels), fmt='h264')
  frames, reader = _read(path, 25, (8, 8))
  np.testing.assert_allclose(_levels(frames), levels, atol=1)
  assert reader.seconds == pytest.approx(2.0)
  # Muxed, each picture has its place, though the file stores them out of order.
  out = video.mux(path, _noise(2), 16000, tmp_path / 'b.mp4')
  frames, _ = _read(out, 25, (8, 8))
  np.testing.assert_allclose(_levels(frames), levels, atol=1)
  np.testing.assert_allclose(_times(out), np.arange(50) / 25, atol=1e-4)


def test_a_start_behind_the_end(tmp_path):
  path = _write(tmp_path / 'a.mp4', _grey([10, 20, 30]))
  with pytest.raises(errors.UserError) as e:
    _read(path, start_seconds=5.0)
  assert str(e.value) == (
    f'{path}: ends after 0.12 s, expected a picture at 5 s. Choose an '
    'earlier start.'
  )
  with pytest.raises(ValueError) as e:
    video.FrameReader(path, 10, (8, 8), start_seconds=2, end_seconds=1)
  assert str(e.value) == (
    f'{path}: asked for 2 to 1 s, expected an end behind a start of at least '
    '0. Swap or change them.'
  )
  with pytest.raises(ValueError) as e:
    video.FrameReader(path, 10, (8, 8), fit='fill')
  assert str(e.value) == (
    'Unknown fit `fill`, expected `stretch` or `cover`. Choose one.'
  )


def _quarters():
  """A picture with four colours: red, green over blue, white."""
  image = np.zeros((1, 64, 96, 3), np.uint8)
  image[0, :32, :48] = 255, 0, 0
  image[0, :32, 48:] = 0, 255, 0
  image[0, 32:, :48] = 0, 0, 255
  image[0, 32:, 48:] = 255, 255, 255
  return image


@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
@pytest.mark.parametrize('flip', [False, True])
def test_rotation(tmp_path, degrees, flip):
  coded = _quarters()
  path = str(tmp_path / 'a.mp4')
  with av.open(path, 'w') as target:
    track = target.add_stream('libx264', rate=25, width=96, height=64)
    track.pix_fmt = 'yuv444p'
    track.set_display_rotation(degrees, hflip=flip)
    frame = av.VideoFrame.from_ndarray(coded[0], 'rgb24')
    target.mux(track.encode(frame.reformat(format='yuv444p')))
    target.mux(track.encode(None))
  shown = coded[0, 8::16, 8::16]  # [4, 6, 3]
  shown = np.rot90(shown, degrees // 90)
  shown = shown[:, ::-1] if flip else shown
  frames, reader = _read(path, size=shown.shape[:2])
  np.testing.assert_allclose(frames[0], shown, atol=12)
  assert (reader.info.height, reader.info.width) == (
    (96, 64) if degrees % 180 else (64, 96)
  )
  # The copy is shown the same way.
  copy = video.mux(path, _noise(1), 16000, tmp_path / 'b.mp4')
  copied, reader = _read(copy, size=shown.shape[:2])
  np.testing.assert_array_equal(copied, frames)


def test_cover_cuts_evenly(tmp_path):
  images = np.full((2, 40, 120, 3), 50, np.uint8)
  images[:, :, 40:80] = 200  # the middle third is what a square shows
  path = _write(tmp_path / 'a.mp4', images)
  frames, _ = _read(path, size=(40, 40), fit='cover')
  np.testing.assert_allclose(frames[:, :, 2:-2], 200, atol=2)
  stretched, _ = _read(path, size=(40, 40))
  np.testing.assert_allclose(stretched[:, :, :12], 50, atol=2)


@pytest.mark.parametrize(
  'name',
  [n for n in _VIDEOS if 'bbb_0_30' in n or _VIDEOS[n][0] < 6 or 'two_' in n],
)
def test_mux_copies_the_picture_bit_for_bit(
  shared_data, tmp_path, name, capsys
):
  path = str(shared_data / name)
  before = video.probe(path)
  seconds = _DAMAGED.get(os.path.basename(name), [before.seconds])[0]
  noise = _noise(before.seconds + 1)
  out = video.mux(path, noise, 16000, str(tmp_path / 'out.mp4'))
  assert _packets(out) == _packets(path)
  after = video.probe(out)
  assert after.seconds == pytest.approx(seconds, abs=5e-3)
  same = ('width', 'height', 'codec', 'orientation')
  for field in same:
    assert getattr(after, field) == getattr(before, field)
  with av.open(out) as result:
    assert [s.type for s in result.streams] == ['video', 'audio']
    assert result.streams.audio[0].codec_context.name == 'aac'
    assert result.duration / 1e6 == pytest.approx(seconds, abs=0.1)
  # The sound starts with the picture and is as long.
  sound = audio.read_mono(out, 16000)
  assert len(sound) / 16000 == pytest.approx(seconds, abs=0.1)
  if seconds > 0.5:
    size = min(len(sound), len(noise)) - 1000
    lags = range(-70, 71)
    match = [np.dot(sound[500 + k : size + k], noise[500:size]) for k in lags]
    assert lags[np.argmax(match)] == 0
  warning = ''
  if before.codec == 'vp8':
    warning = (
      f'warning: {path}: its picture is vp8, which MP4 cannot hold. Written '
      f'as Matroska: {tmp_path}/out.mkv\n'
    )
  assert out == str(tmp_path / ('out.mkv' if warning else 'out.mp4'))
  assert capsys.readouterr().err == warning
  assert os.listdir(tmp_path) == [os.path.basename(out)]


@pytest.mark.parametrize('suffix', ['.ts', '.mkv', '.avi'])
def test_mux_from_other_containers(tmp_path, suffix):
  levels = np.arange(20, 220, 4)
  path = _write(tmp_path / f'a{suffix}', _grey(levels))
  out = video.mux(path, _noise(2), 16000, tmp_path / 'b.mp4')
  frames, reader = _read(out, 25, (8, 8))
  np.testing.assert_allclose(_levels(frames), levels, atol=1)
  assert reader.seconds == pytest.approx(2, abs=0.05)
  np.testing.assert_allclose(_times(out), np.arange(50) / 25, atol=1e-3)


def test_mux_by_chunks_is_the_same(tmp_path):
  path = _write(tmp_path / 'a.mp4', _grey(range(100, 150)))
  noise = _noise(2)
  chunks = [noise[k : k + 1234] for k in range(0, len(noise), 1234)]
  chunks = iter([noise[:0], *chunks])
  whole = video.mux(path, noise, 16000, tmp_path / 'b.mp4')
  parts = video.mux(path, chunks, 16000, tmp_path / 'c.mp4')
  np.testing.assert_array_equal(
    audio.read_mono(whole, 16000), audio.read_mono(parts, 16000)
  )


@pytest.mark.parametrize('seconds', [0.04, 0.5, 1.13, 1.9, 2.0])
def test_mux_of_a_part(tmp_path, seconds):
  levels = np.arange(20, 220, 4)
  path = _write(tmp_path / 'a.mp4', _grey(levels))
  out = video.mux(path, _noise(2), 16000, tmp_path / 'b.mp4', seconds)
  frames, reader = _read(out, 25, (8, 8))
  # Two pictures out of order at most: half of that off.
  assert reader.seconds == pytest.approx(seconds, abs=0.07)
  np.testing.assert_allclose(_levels(frames), levels[: len(frames)], atol=1)
  assert _packets(out) == _packets(path, len(frames))


def test_a_file_that_breaks_off_without_a_sign(tmp_path, capsys):
  path = _write(tmp_path / 'a.mkv', _grey(np.arange(0, 200, 2)))
  data = (tmp_path / 'a.mkv').read_bytes()
  (tmp_path / 'b.mkv').write_bytes(data[: len(data) * 6 // 10])
  frames, reader = _read(tmp_path / 'b.mkv')
  assert 1 < reader.seconds < 3
  assert capsys.readouterr().err == (
    f'warning: {tmp_path}/b.mkv: breaks off after {reader.seconds:.1f} s of '
    '4.0 s. What decodes is used.\n'
  )
  whole, _ = _read(path)
  np.testing.assert_array_equal(frames, whole[: len(frames)])
  out = video.mux(
    tmp_path / 'b.mkv', _noise(4), 16000, tmp_path / 'c.mp4', reader.seconds
  )
  assert video.probe(out).seconds == pytest.approx(reader.seconds, abs=0.05)


def test_mux_to_where_nothing_can_be_written(tmp_path):
  path = _write(tmp_path / 'a.mp4', _grey(range(100, 150)))
  noise = _noise(2)
  for out, message in (
    (
      tmp_path,
      'is a folder, expected the name of a file to write. Add a file name '
      'to it.',
    ),
    (
      tmp_path / 'none' / 'b.mp4',
      f'cannot be written because {tmp_path}/none is no folder. Make the '
      'folder or choose another one.',
    ),
    (
      tmp_path / 'a.mp4',
      'is the video itself, expected another file. Choose another name.',
    ),
    (
      '/proc/b.mp4',
      'cannot be written (No such file or directory). Check the '
      'permissions and the space of the folder, or choose another one.',
    ),
  ):
    with pytest.raises(errors.UserError) as e:
      video.mux(path, noise, 16000, out)
    assert str(e.value) == f'{out}: {message}'
  assert os.listdir(tmp_path) == ['a.mp4']


@pytest.mark.parametrize('size', [100, 20000, -20000, -1])
@pytest.mark.parametrize('suffix', ['.mp4', '.mkv'])
def test_a_full_disk_leaves_nothing(tmp_path, suffix, size):
  path = _write(tmp_path / 'a.mp4', _grey(range(100, 150)))
  out = video.mux(path, _noise(2), 16000, tmp_path / f'b{suffix}')
  size += os.path.getsize(out) if size < 0 else 0
  os.remove(out)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    with pytest.raises(errors.UserError) as e:
      video.mux(path, _noise(2), 16000, out)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert str(e.value) == (
    f'{out}: cannot be written (File too large). Check the permissions and '
    'the space of the folder, or choose another one.'
  )
  assert os.listdir(tmp_path) == ['a.mp4']


def test_an_interruption_leaves_nothing(tmp_path):
  path = _write(tmp_path / 'a.mp4', _grey(range(100, 150)))

  def chunks():
    yield _noise(1)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    video.mux(path, chunks(), 16000, tmp_path / 'b.mp4')
  assert os.listdir(tmp_path) == ['a.mp4']


def test_a_picture_that_no_container_holds(tmp_path):
  path = str(tmp_path / 'a.gif')
  with av.open(path, 'w') as target:
    track = target.add_stream('gif', rate=25, width=48, height=32)
    track.pix_fmt = 'rgb8'
    for image in _grey([10, 200]):
      frame = av.VideoFrame.from_ndarray(image, 'rgb24')
      target.mux(track.encode(frame.reformat(format='rgb8')))
    target.mux(track.encode(None))
  with pytest.raises(errors.UserError) as e:
    video.mux(path, _noise(1), 16000, tmp_path / 'b.mp4')
  assert str(e.value) == (
    f'{path}: its picture is gif, expected one that MP4 or Matroska holds. '
    'Convert it to H.264 first.'
  )


def test_write_frames(tmp_path, rng):
  levels = rng.integers(30, 220, (25, 2, 3, 1))
  small = np.concatenate([levels, levels // 2, 0 * levels], -1)  # orange
  frames = small.repeat(16, 1).repeat(16, 2).astype(np.uint8)
  path = str(tmp_path / 'a.mp4')
  chunks = iter([frames[:7], frames[7:]])
  video.write_frames(path, chunks, 12.5, _noise(3), 16000)
  info = video.probe(path)
  assert (info.seconds, info.rate_hz, info.has_audio) == (2.0, 12.5, True)
  assert (info.height, info.width) == (32, 48)
  back, _ = _read(path, 12.5, (2, 3))
  error = np.abs(back.astype(int) - small).mean(axis=(0, 1, 2))
  assert error.max() < 5  # measured 0.99
  assert audio.read(path).seconds == pytest.approx(2, abs=0.1)
  with pytest.raises(ValueError) as e:
    video.write_frames(path, frames[:, :31], 10)
  assert str(e.value) == (
    f'{path}: frames are [25, 31, 48, 3], expected at least one of even '
    'height and width. Cut or resize them.'
  )
