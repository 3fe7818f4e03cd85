"""Video files: pictures at an exact rate, and pictures with music.

Frames are uint8 `[time, height, width, 3]`, RGB, as shown: rotation metadata is
applied. Frame k is what the screen shows k / rate_hz seconds after the first
picture, whatever the file's own rate, and however that varies.
"""

import collections
from collections.abc import Iterator
import dataclasses
import os

import av
from av.video import reformatter
import numpy as np

from v2meow_jax import errors
from v2meow_jax import files
from v2meow_jax import packets

# Averages all pixels that fall into one, and does the same on every machine.
_SCALING = (
  reformatter.Interpolation.AREA
  | reformatter.Interpolation.ACCURATE_RND
  | reformatter.Interpolation.BITEXACT
)
# A codec may show pictures before it meets the damaged one that they rest on:
# no codec reorders more than this many.
_MAX_REORDERING = 16
# A file that ends this much before what it declares has broken off.
_BREAK_SECONDS = 0.2
# Containers whose header tells the length, and not a guess from the bit rate.
_DECLARING_FORMATS = ('mov', 'matroska', 'avi')
_STILL_FORMATS = ('image2', '_pipe')
_UNDECODABLE = (
  '{path}: not one of its pictures decodes, expected a video that plays. '
  'Copy or download it again.'
)


class _DamageError(Exception):
  """A picture does not decode, or not in full."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """What a video file declares about its picture.

  Attributes:
    path: the file.
    seconds: length of the picture, not of the sound. A file that breaks off
      declares more than it holds.
    rate_hz: pictures a second, on average.
    width: pixels across as shown: square ones, after rotation.
    height: pixels down as shown, after rotation.
    codec: name of the picture's codec: 'h264', 'vp9', ...
    has_audio: whether there is a sound track.
    start_seconds: time stamp of the first picture.
    stream_index: place of the picture among the streams of the file.
    orientation: `(a, b, c, d)`, each -1, 0 or 1: the coded pixel (x, y) is
      shown at (a x + c y, b x + d y).
  """

  path: str
  seconds: float
  rate_hz: float
  width: int
  height: int
  codec: str
  has_audio: bool
  start_seconds: float
  stream_index: int
  orientation: tuple[int, int, int, int]


def probe(path: str) -> VideoInfo:
  """Returns what a video file declares about its picture.

  Args:
    path: a local video file.

  Returns:
    The facts about the file's main moving picture; cover art is none.

  Raises:
    UserError: the file cannot be opened, holds no moving picture, or none of
      its pictures decodes.
  """
  path = os.fspath(path)
  with files.open_media(path) as container:
    stream = _find_picture(container, path)
    image = _first_image(container, stream)
    if image is None:
      raise errors.UserError(_UNDECODABLE.format(path=path))
    orientation = _orientation(image)
    width, height = image.width, image.height
    if stream.sample_aspect_ratio:
      width = max(1, round(width * stream.sample_aspect_ratio))
    if not orientation[0]:
      width, height = height, width
    start = image.pts
    if start is None:
      start = stream.start_time or 0
    info = VideoInfo(
      path=path,
      seconds=_declared_seconds(stream),
      rate_hz=float(stream.average_rate or stream.guessed_rate or 25),
      width=width,
      height=height,
      codec=stream.codec_context.codec.canonical_name,
      has_audio=bool(container.streams.audio),
      start_seconds=float(start * stream.time_base),
      stream_index=stream.index,
      orientation=orientation,
    )
  if not info.seconds:
    seconds = float(read_timeline(info).ends.max(initial=0))
    info = dataclasses.replace(info, seconds=seconds)
  return info


class FrameReader:
  """Iterable over the frames of a video at an exact rate, in bounded memory.

  Gives uint8 `[time, height, width, 3]` of at most `chunk` frames. Frame k is
  the picture shown `start_seconds + k / rate_hz` after the first picture; a
  picture is shown from its time stamp to the next one's. There are as many
  frames as such times before the end, and at least one.

  Attributes:
    info: what the file declares.
    seconds: end of the last picture that decodes, in seconds after the first
      picture and at most `end_seconds`: there is music for that long. Known
      when the iteration is over.
    num_damaged: pictures that do not decode, or not in full.
  """

  def __init__(
    self,
    path: str,
    rate_hz: float,
    size: tuple[int, int],
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    fit: str = 'stretch',
    chunk: int = 128,
  ):
    """Looks at the file; the iteration decodes it.

    Args:
      path: a local video file.
      rate_hz: frames a second.
      size: height and width of a frame in pixels.
      start_seconds: time of frame 0, in seconds after the first picture.
      end_seconds: where to stop, in seconds after the first picture; None
        reads to the end.
      fit: 'stretch' resizes the whole picture to `size`; 'cover' keeps the
        proportions as shown and cuts off evenly what stands over.
      chunk: most frames in one array.

    Raises:
      UserError: as `probe`.
      ValueError: an unknown `fit`, or an end that is not behind the start.
    """
    if fit not in ('stretch', 'cover'):
      raise ValueError(
        f'Unknown fit `{fit}`, expected `stretch` or `cover`. Choose one.'
      )
    if end_seconds is not None and not 0 <= start_seconds < end_seconds:
      raise ValueError(
        f'{path}: asked for {start_seconds:g} to {end_seconds:g} s, expected '
        'an end behind a start of at least 0. Swap or change them.'
      )
    self.info = probe(path)
    self.seconds = 0.0
    self.num_damaged = 0
    self._rate_hz = rate_hz
    self._size = size
    self._start = start_seconds
    self._end = np.inf if end_seconds is None else end_seconds
    self._fit = fit
    self._chunk = chunk
    self._scaler = reformatter.VideoReformatter()
    self._breaks_off = False

  def __iter__(self) -> Iterator[np.ndarray]:
    chunk = []
    for frame in self._frames():
      chunk.append(frame)
      if len(chunk) == self._chunk:
        yield np.stack(chunk)
        chunk = []
    if chunk:
      yield np.stack(chunk)
    if self._breaks_off:
      errors.warn(
        f'{self.info.path}: breaks off after {self.seconds:.1f} s of '
        f'{self.info.seconds:.1f} s. What decodes is used.'
      )
    elif self.num_damaged:
      errors.warn(
        f'{self.info.path}: is damaged, {self.num_damaged} of its pictures '
        'do not decode in full. What decodes is used.'
      )

  def _frames(self) -> Iterator[np.ndarray]:
    """Yields the frames: the same on every machine, whatever the damage."""
    num_given = 0
    held = collections.deque()
    try:
      for index, frame in self._select('AUTO', 0):
        held.append((index, frame))
        while held[0][0] < index - _MAX_REORDERING:
          yield held.popleft()[1]
          num_given += 1
    except _DamageError:
      # What several threads make of damage differs between runs; what one
      # makes does not. The frames given so far cannot rest on the damage.
      for _, frame in self._select('NONE', num_given):
        yield frame
    else:
      for _, frame in held:
        yield frame

  def _select(
    self, threads: str, first: int
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields frames from number `first` on, each with its picture's number."""
    number = first
    shown = None
    for index, (start, end, image) in enumerate(self._decode(threads)):
      if shown is not None:
        frame = None
        while self._time(number) < min(start, self._end):
          frame = self._convert(shown) if frame is None else frame
          yield index - 1, frame
          number += 1
      shown = image
      self.seconds = min(end, self._end)
      if start >= self._end:
        break
    if shown is None:
      raise errors.UserError(_UNDECODABLE.format(path=self.info.path))
    if self.seconds <= self._start:
      raise errors.UserError(
        f'{self.info.path}: ends after {self.seconds:.2f} s, expected a '
        f'picture at {self._start:g} s. Choose an earlier start.'
      )
    frame = None
    while not number or self._time(number) < self.seconds:
      frame = self._convert(shown) if frame is None else frame
      yield index, frame
      number += 1

  def _time(self, number: int) -> float:
    """Seconds of frame `number`, less what a clock of milliseconds rounds."""
    return self._start + number / self._rate_hz + 0.0005

  def _decode(
    self, threads: str
  ) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Yields (start, end, picture) in seconds after the first picture."""
    info = self.info
    self.num_damaged, self._breaks_off = 0, False
    step = 1 / info.rate_hz
    start = -np.inf
    reached = 0.0  # end of the last packet of any stream, sound included

    def note_damage():
      if threads != 'NONE':
        raise _DamageError
      self.num_damaged += 1

    with files.open_media(info.path) as container:
      stream = container.streams[info.stream_index]
      stream.thread_type = threads
      unit = float(stream.time_base)
      if self._start > 0:
        time = int((info.start_seconds + self._start) / unit)
        container.seek(time, stream=stream)
      for packet in packets.read_packets(container, stream, note_damage):
        if packet.pts is not None:
          end = (packet.pts + (packet.duration or 0)) * packet.time_base
          reached = max(reached, float(end))
        if packet.stream.index != info.stream_index:
          continue
        for image in packets.decode_packet(packet, note_damage):
          time = start + step
          if image.pts is not None:
            time = image.pts * unit - info.start_seconds
          if time < start:  # a clock that jumps back goes on where it was
            time = start + step
          start = max(time, 0.0)
          end = start + (float(image.duration * unit) or step)
          # Behind a seek, pictures may rest on some that were never read.
          if image.is_corrupt and end > self._start:
            note_damage()
          yield start, end, image
          if start >= self._end:
            return
      if container.format.name.startswith(_DECLARING_FORMATS):
        declared = (container.duration or 0) / av.time_base
        reached -= (container.start_time or 0) / av.time_base
        self._breaks_off = reached < declared - _BREAK_SECONDS
      if self.num_damaged:
        missing = info.seconds - self.seconds
        self._breaks_off |= missing > _BREAK_SECONDS

  def _convert(self, image: av.VideoFrame) -> np.ndarray:
    """Returns uint8 `[height, width, 3]` of the size asked for, upright."""
    height, width = self._size
    if self._fit == 'cover':
      scale = max(height / self.info.height, width / self.info.width)
      height = max(height, round(self.info.height * scale))
      width = max(width, round(self.info.width * scale))
    a, b, c, d = self.info.orientation
    coded = (width, height) if a else (height, width)
    array = self._scaler.reformat(
      image, *coded, 'rgb24', interpolation=_SCALING, threads=1
    ).to_ndarray()
    if not a:
      array = array.swapaxes(0, 1)
    if a + c < 0:
      array = array[:, ::-1]
    if b + d < 0:
      array = array[::-1]
    top = (height - self._size[0]) // 2
    left = (width - self._size[1]) // 2
    return array[top : top + self._size[0], left : left + self._size[1]]


def _find_picture(container, path: str) -> av.VideoStream:
  """Returns the picture of a video, and says where there is none."""
  picture = files.find_picture(container)
  is_still = any(f in container.format.name for f in _STILL_FORMATS)
  if picture is None or is_still:
    kind = 'no moving picture' if picture is None else 'a still picture'
    raise errors.UserError(
      f'{path}: holds {kind}, expected a video. Choose a file with a moving '
      'picture.'
    )
  if picture.codec_context is None:
    raise errors.UserError(
      f'{path}: its picture is in a format that is not known here, expected '
      'one that FFmpeg decodes, as H.264. Convert the file.'
    )
  return picture


def _first_image(container, stream) -> av.VideoFrame | None:
  for packet in packets.read_packets(container, stream):
    if packet.stream.index == stream.index:
      for image in packets.decode_packet(packet):
        return image
  return None


def _orientation(image: av.VideoFrame) -> tuple[int, int, int, int]:
  """Rounds the display matrix to quarter turns and mirrorings."""
  for data in image.side_data:
    if data.type.name == 'DISPLAYMATRIX':
      a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
      if abs(a) >= abs(b):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
      return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0
  return 1, 0, 0, 1


def read_timeline(info: VideoInfo) -> packets.Timeline:
  return packets.read_timeline(
    info.path, info.stream_index, info.rate_hz, info.start_seconds
  )


def _declared_seconds(stream: av.VideoStream) -> float:
  """Returns the length in the header of the picture, 0 where there is none."""
  if stream.duration:
    return float(stream.duration * stream.time_base)
  try:  # Matroska: '00:01:02.345000000'
    hours, minutes, seconds = stream.metadata.get('DURATION', '').split(':')
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
  except ValueError:
    return 0.0
