import os
import resource

import av
import numpy as np
import pytest

from tests import videos
from v2meow_jax import audio
from v2meow_jax import errors
from v2meow_jax import muxing
from v2meow_jax import video


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch):
  monkeypatch.setattr(errors, '_warned', set())


@pytest.mark.parametrize(
  'name',
  [
    n
    for n in videos.VIDEOS
    if 'bbb_0_30' in n or videos.VIDEOS[n][0] < 6 or 'two_' in n
  ],
)
def test_mux_copies_the_picture_bit_for_bit(
  shared_data, tmp_path, name, capsys
):
  path = str(shared_data / name)
  before = video.probe(path)
  seconds = videos.DAMAGED.get(os.path.basename(name), [before.seconds])[0]
  noise = videos.noise(before.seconds + 1)
  out = muxing.mux(path, noise, 16000, str(tmp_path / 'out.mp4'))
  assert videos.packets(out) == videos.packets(path)
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
  path = videos.write(tmp_path / f'a{suffix}', videos.grey(levels))
  out = muxing.mux(path, videos.noise(2), 16000, tmp_path / 'b.mp4')
  frames, reader = videos.read(out, 25, (8, 8))
  np.testing.assert_allclose(videos.levels(frames), levels, atol=1)
  assert reader.seconds == pytest.approx(2, abs=0.05)
  np.testing.assert_allclose(videos.times(out), np.arange(50) / 25, atol=1e-3)


def test_mux_by_chunks_is_the_same(tmp_path):
  path = videos.write(tmp_path / 'a.mp4', videos.grey(range(100, 150)))
  noise = videos.noise(2)
  chunks = [noise[k : k + 1234] for k in range(0, len(noise), 1234)]
  chunks = iter([noise[:0], *chunks])
  whole = muxing.mux(path, noise, 16000, tmp_path / 'b.mp4')
  parts = muxing.mux(path, chunks, 16000, tmp_path / 'c.mp4')
  np.testing.assert_array_equal(
    audio.read_mono(whole, 16000), audio.read_mono(parts, 16000)
  )


@pytest.mark.parametrize('seconds', [0.04, 0.5, 1.13, 1.9, 2.0])
def test_mux_of_a_part(tmp_path, seconds):
  levels = np.arange(20, 220, 4)
  path = videos.write(tmp_path / 'a.mp4', videos.grey(levels))
  out = muxing.mux(path, videos.noise(2), 16000, tmp_path / 'b.mp4', seconds)
  frames, reader = videos.read(out, 25, (8, 8))
  # Two pictures out of order at most: half of that off.
  assert reader.seconds == pytest.approx(seconds, abs=0.07)
  np.testing.assert_allclose(
    videos.levels(frames), levels[: len(frames)], atol=1
  )
  assert videos.packets(out) == videos.packets(path, len(frames))


def test_a_file_that_breaks_off_without_a_sign(tmp_path, capsys):
  path = videos.write(tmp_path / 'a.mkv', videos.grey(np.arange(0, 200, 2)))
  data = (tmp_path / 'a.mkv').read_bytes()
  (tmp_path / 'b.mkv').write_bytes(data[: len(data) * 6 // 10])
  frames, reader = videos.read(tmp_path / 'b.mkv')
  assert 1 < reader.seconds < 3
  assert capsys.readouterr().err == (
    f'warning: {tmp_path}/b.mkv: breaks off after {reader.seconds:.1f} s of '
    '4.0 s. What decodes is used.\n'
  )
  whole, _ = videos.read(path)
  np.testing.assert_array_equal(frames, whole[: len(frames)])
  out = muxing.mux(
    tmp_path / 'b.mkv',
    videos.noise(4),
    16000,
    tmp_path / 'c.mp4',
    reader.seconds,
  )
  assert video.probe(out).seconds == pytest.approx(reader.seconds, abs=0.05)


def test_mux_to_where_nothing_can_be_written(tmp_path):
  path = videos.write(tmp_path / 'a.mp4', videos.grey(range(100, 150)))
  noise = videos.noise(2)
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
      muxing.mux(path, noise, 16000, out)
    assert str(e.value) == f'{out}: {message}'
  assert os.listdir(tmp_path) == ['a.mp4']


@pytest.mark.parametrize('size', [100, 20000, -20000, -1])
@pytest.mark.parametrize('suffix', ['.mp4', '.mkv'])
def test_a_full_disk_leaves_nothing(tmp_path, suffix, size):
  path = videos.write(tmp_path / 'a.mp4', videos.grey(range(100, 150)))
  out = muxing.mux(path, videos.noise(2), 16000, tmp_path / f'b{suffix}')
  size += os.path.getsize(out) if size < 0 else 0
  os.remove(out)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    with pytest.raises(errors.UserError) as e:
      muxing.mux(path, videos.noise(2), 16000, out)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert str(e.value) == (
    f'{out}: cannot be written (File too large). Check the permissions and '
    'the space of the folder, or choose another one.'
  )
  assert os.listdir(tmp_path) == ['a.mp4']


def test_an_interruption_leaves_nothing(tmp_path):
  path = videos.write(tmp_path / 'a.mp4', videos.grey(range(100, 150)))

  def chunks():
    yield videos.noise(1)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    muxing.mux(path, chunks(), 16000, tmp_path / 'b.mp4')
  assert os.listdir(tmp_path) == ['a.mp4']


def test_a_picture_that_no_container_holds(tmp_path):
  path = str(tmp_path / 'a.gif')
  with av.open(path, 'w') as target:
    track = target.add_stream('gif', rate=25, width=48, height=32)
    track.pix_fmt = 'rgb8'
    for image in videos.grey([10, 200]):
      frame = av.VideoFrame.from_ndarray(image, 'rgb24')
      target.mux(track.encode(frame.reformat(format='rgb8')))
    target.mux(track.encode(None))
  with pytest.raises(errors.UserError) as e:
    muxing.mux(path, videos.noise(1), 16000, tmp_path / 'b.mp4')
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
  muxing.write_frames(path, chunks, 12.5, videos.noise(3), 16000)
  info = video.probe(path)
  assert (info.seconds, info.rate_hz, info.has_audio) == (2.0, 12.5, True)
  assert (info.height, info.width) == (32, 48)
  back, _ = videos.read(path, 12.5, (2, 3))
  error = np.abs(back.astype(int) - small).mean(axis=(0, 1, 2))
  assert error.max() < 5  # measured 0.99
  assert audio.read(path).seconds == pytest.approx(2, abs=0.1)
  with pytest.raises(ValueError) as e:
    muxing.write_frames(path, frames[:, :31], 10)
  assert str(e.value) == (
    f'{path}: frames are [25, 31, 48, 3], expected at least one of even '
    'height and width. Cut or resize them.'
  )
