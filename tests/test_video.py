import os

import av
import numpy as np
import pytest

from tests import videos
from tests.references import frames as references
from v2meow_jax import errors
from v2meow_jax import muxing
from v2meow_jax import video


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch):
  monkeypatch.setattr(errors, '_warned', set())


def test_tables_name_every_shared_file(shared_data):
  found = {
    f'{folder}/{path.name}'
    for folder in ('video', 'video_edge')
    for path in (shared_data / folder).iterdir()
  }
  assert found == set(videos.VIDEOS) | set(videos.UNUSABLE)


@pytest.mark.parametrize('name', videos.VIDEOS)
def test_probe_of_shared_files(shared_data, name):
  seconds, width, height, codec, has_audio, _ = videos.VIDEOS[name]
  info = video.probe(shared_data / name)
  assert info.seconds == pytest.approx(seconds, abs=5e-4)
  assert (info.width, info.height) == (width, height)
  assert (info.codec, info.has_audio) == (codec, has_audio)


@pytest.mark.parametrize(
  'name',
  [n for n in videos.VIDEOS if os.path.basename(n) not in videos.DAMAGED],
)
def test_frames_of_shared_files(shared_data, name, capsys):
  seconds, *_, is_light = videos.VIDEOS[name]
  end = None if is_light else videos.SECONDS_OF_HEAVY_FILES
  frames, reader = videos.read(shared_data / name, end_seconds=end)
  seconds = end or seconds
  assert reader.seconds == pytest.approx(seconds, abs=5e-4)
  assert len(frames) == np.ceil(round(seconds, 3) * 10)
  assert frames.dtype == np.uint8
  assert frames.shape[1:] == (64, 64, 3)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name', videos.DAMAGED)
def test_damaged_files_give_what_decodes_and_one_warning(
  shared_data, name, capsys
):
  seconds, count, warning = videos.DAMAGED[name]
  path = shared_data / 'video_edge' / name
  frames, reader = videos.read(path)
  assert reader.seconds == pytest.approx(seconds, abs=5e-4)
  assert len(frames) == count
  assert capsys.readouterr().err == f'warning: {path}: {warning}\n'
  # Decoders with several threads conceal damage differently in every run.
  again, _ = videos.read(path)
  np.testing.assert_array_equal(frames, again)


@pytest.mark.parametrize('name', [*videos.UNUSABLE, videos.COVER])
def test_unusable_shared_files(shared_data, name):
  path = shared_data / name
  expected = videos.UNUSABLE.get(
    name, videos.UNUSABLE['video_edge/audio_only.mp4']
  )
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
    frame = av.VideoFrame.from_ndarray(videos.grey([10])[0], 'rgb24')
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
  path = videos.write(tmp_path / 'a.mkv', videos.grey([10, 20, 30]))
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
  path = videos.write(
    tmp_path / f'a{suffix}',
    videos.grey(levels),
    (times + start).tolist(),
    '1/1000',
  )
  frames, reader = videos.read(path, rate_hz, (8, 8))
  expected = references.shown(times / 1000, reader.seconds, rate_hz)
  np.testing.assert_allclose(videos.levels(frames), levels[expected], atol=1)
  assert reader.seconds >= times[-1] / 1000
  assert reader.info.start_seconds == pytest.approx(start / 1000, abs=1e-3)
  # A part of it, with a seek.
  part, reader = videos.read(
    path, rate_hz, (8, 8), start_seconds=1.3, end_seconds=3.2
  )
  expected = references.shown(times / 1000, np.inf, rate_hz, 1.3, 3.2)
  np.testing.assert_allclose(videos.levels(part), levels[expected], atol=1)
  assert reader.seconds == 3.2


def test_chunks_do_not_change_the_frames(tmp_path):
  path = videos.write(tmp_path / 'a.mp4', videos.grey(np.arange(0, 200, 4)))
  whole, _ = videos.read(path)
  chunks = list(video.FrameReader(path, 10, (64, 64), chunk=3))
  assert [len(c) for c in chunks] == [3] * 6 + [2]
  np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_one_picture(tmp_path):
  frames, reader = videos.read(
    videos.write(tmp_path / 'a.mp4', videos.grey([77]))
  )
  np.testing.assert_allclose(videos.levels(frames), [77], atol=1)
  assert reader.seconds == pytest.approx(0.04, abs=1e-3)


def test_duplicate_and_missing_times(tmp_path):
  # Raw H.264 says nothing about times: they follow from the rate of pictures.
  levels = np.arange(20, 220, 4)
  path = videos.write(tmp_path / 'a.h264', videos.grey(levels), fmt='h264')
  frames, reader = videos.read(path, 25, (8, 8))
  np.testing.assert_allclose(videos.levels(frames), levels, atol=1)
  assert reader.seconds == pytest.approx(2.0)
  # Muxed, each picture has its place, though the file stores them out of order.
  out = muxing.mux(path, videos.noise(2), 16000, tmp_path / 'b.mp4')
  frames, _ = videos.read(out, 25, (8, 8))
  np.testing.assert_allclose(videos.levels(frames), levels, atol=1)
  np.testing.assert_allclose(videos.times(out), np.arange(50) / 25, atol=1e-4)


def test_a_start_behind_the_end(tmp_path):
  path = videos.write(tmp_path / 'a.mp4', videos.grey([10, 20, 30]))
  with pytest.raises(errors.UserError) as e:
    videos.read(path, start_seconds=5.0)
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
  frames, reader = videos.read(path, size=shown.shape[:2])
  np.testing.assert_allclose(frames[0], shown, atol=12)
  assert (reader.info.height, reader.info.width) == (
    (96, 64) if degrees % 180 else (64, 96)
  )
  # The copy is shown the same way.
  copy = muxing.mux(path, videos.noise(1), 16000, tmp_path / 'b.mp4')
  copied, reader = videos.read(copy, size=shown.shape[:2])
  np.testing.assert_array_equal(copied, frames)


def test_cover_cuts_evenly(tmp_path):
  images = np.full((2, 40, 120, 3), 50, np.uint8)
  images[:, :, 40:80] = 200  # the middle third is what a square shows
  path = videos.write(tmp_path / 'a.mp4', images)
  frames, _ = videos.read(path, size=(40, 40), fit='cover')
  np.testing.assert_allclose(frames[:, :, 2:-2], 200, atol=2)
  stretched, _ = videos.read(path, size=(40, 40))
  np.testing.assert_allclose(stretched[:, :, :12], 50, atol=2)
