"""Packets of a file: of its picture, with their times, and of new sound.

A packet is one compressed picture, or a bit of sound, as the file holds it.
Files may break off, be damaged, or say nothing or nonsense about times; here
that is told and mended.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import fractions
import itertools

import av
import numpy as np

from v2meow_jax import files

# Containers that number packets in the order of the file, not of showing.
_UNTIMED_FORMATS = ('avi',)


def _ignore() -> None:
  pass


def read_packets(
  container: av.container.InputContainer,
  stream: av.VideoStream,
  note_damage: Callable[[], None] = _ignore,
) -> Iterator[av.Packet]:
  """Yields the whole packets of all streams, and empty ones at the end.

  Args:
    container: an open file.
    stream: the picture that matters.
    note_damage: is called where the file breaks off or a packet of the picture
      is not whole; it may raise to stop.
  """
  packets = container.demux()
  while True:
    try:
      packet = next(packets)
    except (StopIteration, av.EOFError):
      return
    except av.FFmpegError:
      note_damage()
      packet = av.Packet()  # empty: makes the decoder give what it holds back
      packet.stream = stream
      yield packet
      return
    if not packet.is_corrupt:
      yield packet
    elif packet.stream.index == stream.index:
      note_damage()


def decode_packet(
  packet: av.Packet, note_damage: Callable[[], None] = _ignore
) -> list[av.VideoFrame]:
  """Returns the pictures that a packet completes; none where it is damaged."""
  try:
    return packet.decode()
  except av.FFmpegError:
    note_damage()
    return []


@dataclasses.dataclass(frozen=True)
class Timeline:
  """When the packets of a picture are decoded and shown, in order of the file.

  Attributes:
    pts: int64 `[packets]`, when it is shown, in units of the stream's time base
      after the first picture.
    dts: int64 `[packets]`, when it is decoded; rises, and is never after `pts`.
    starts: float64 `[packets]`, when it is shown, in seconds.
    ends: float64 `[packets]`, how long it is shown, in seconds.
  """

  pts: np.ndarray
  dts: np.ndarray
  starts: np.ndarray
  ends: np.ndarray

  def find_cut(self, seconds: float | None) -> int:
    """Returns how many packets, in order of the file, last about `seconds`.

    They need no later packet, and leave no gap; so some may be missing or too
    many where pictures are stored out of order.

    Args:
      seconds: length wanted; None keeps all.
    """
    if seconds is None or not len(self.starts):
      return len(self.starts)
    latest = np.maximum.accumulate(self.starts)
    later = np.minimum.accumulate(self.starts[::-1])[::-1]
    cuts = np.flatnonzero(latest[:-1] < later[1:])
    cuts = np.append(cuts, len(self.starts) - 1)
    lengths = np.append(later, self.ends.max())[cuts + 1]
    return int(cuts[np.abs(lengths - seconds).argmin()]) + 1


def read_timeline(
  path: str, stream_index: int, rate_hz: float, start_seconds: float
) -> Timeline:
  """Returns when the whole packets of a picture are shown.

  Args:
    path: a local video file.
    stream_index: place of the picture in the file.
    rate_hz: pictures a second, where the file does not time them.
    start_seconds: time stamp of the first picture.

  Raises:
    UserError: the file cannot be opened.
  """
  rows = []
  with files.open_media(path) as container:
    stream = container.streams[stream_index]
    unit = float(stream.time_base)
    for packet in read_packets(container, stream):
      if packet.stream.index == stream_index and packet.size:
        rows.append((packet.pts, packet.dts, packet.duration or 0))
    is_timed = container.format.name not in _UNTIMED_FORMATS
  step = max(1, round(1 / rate_hz / unit))
  origin = round(start_seconds / unit)
  if is_timed and all(pts is not None for pts, _, _ in rows):
    pts = np.array([pts - origin for pts, _, _ in rows], np.int64)
  else:
    times = [k * step if r[1] is None else r[1] for k, r in enumerate(rows)]
    order = _shown_order(path, stream_index, len(rows))
    pts = np.sort(np.array(times, np.int64))[order]
    pts -= pts.min(initial=0 if not len(pts) else pts[0])
  if is_timed and all(dts is not None for _, dts, _ in rows):
    dts = np.array([dts - origin for _, dts, _ in rows], np.int64)
  else:
    dts = np.sort(pts)
    dts -= (dts - pts).max(initial=0)
  # Containers want decoding times that rise by one unit at least.
  count = np.arange(len(rows))
  dts = np.maximum.accumulate(dts - count) + count
  pts = np.maximum(pts, dts)
  lengths = np.array([length or step for _, _, length in rows], np.int64)
  return Timeline(pts, dts, pts * unit, (pts + lengths) * unit)


def _shown_order(path: str, stream_index: int, count: int) -> np.ndarray:
  """Returns int `[packets]`: the place of each in the order of showing."""
  shown = []
  numbers = itertools.count()
  with files.open_media(path) as container:
    stream = container.streams[stream_index]
    stream.codec_context.copy_opaque = True
    for packet in read_packets(container, stream):
      if packet.stream.index == stream_index:
        if packet.size:
          packet.opaque = next(numbers)
        images = decode_packet(packet)
        shown += [i.opaque for i in images if i.opaque is not None]
  places = np.arange(count)  # what is never shown stays where it is
  places[shown] = np.arange(len(shown))
  return np.argsort(np.argsort(places, kind='stable'), kind='stable')


class SoundTrack:
  """An AAC track that is written piece by piece, beside a picture."""

  def __init__(
    self,
    target: av.container.OutputContainer,
    waveform: np.ndarray | Iterable[np.ndarray],
    sample_rate_hz: int,
  ):
    """Adds the track.

    Args:
      target: the open file.
      waveform: float32 `[samples]`, or an iterable of such arrays.
      sample_rate_hz: samples a second, a rate that AAC knows.
    """
    self._target = target
    self._rate = sample_rate_hz
    self._chunks = iter(
      [waveform] if isinstance(waveform, np.ndarray) else waveform
    )
    self._rest = np.zeros(0, np.float32)
    self._position = 0
    self._track = target.add_stream('aac', rate=sample_rate_hz, layout='mono')
    # As much as AAC allows at low rates, and transparent at high ones.
    self._track.bit_rate = min(128000, 6 * sample_rate_hz)
    self._track.options = {'aac_coder': 'fast'}

  def write(self, seconds: float) -> None:
    """Writes what there is of the sound up to `seconds`."""
    end = round(seconds * self._rate)
    while self._position < end:
      if not len(self._rest):
        chunk = next(self._chunks, None)
        if chunk is None:
          return
        self._rest = chunk
        continue
      piece = self._rest[: min(end - self._position, 1 << 14)]
      self._rest = self._rest[len(piece) :]
      frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(piece, np.float32)[np.newaxis], 'fltp', 'mono'
      )
      frame.sample_rate = self._rate
      frame.pts = self._position
      frame.time_base = fractions.Fraction(1, self._rate)
      self._position += len(piece)
      self._target.mux(self._track.encode(frame))

  def finish(self) -> None:
    """Writes what the encoder holds back."""
    self._target.mux(self._track.encode(None))
