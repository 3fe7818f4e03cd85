"""Writes video files: a picture with new sound, or frames as a video."""

from collections.abc import Iterable
import fractions
import io
import itertools
import math
import os

import av
import numpy as np

from v2meow_jax import errors
from v2meow_jax import files
from v2meow_jax import packets
from v2meow_jax import video


def mux(
  video_path: str,
  waveform: np.ndarray | Iterable[np.ndarray],
  sample_rate_hz: int,
  out_path: str,
  seconds: float | None = None,
) -> str:
  """Writes the picture of a video with new sound.

  The packets of the picture are copied bit for bit, with its rotation and the
  shape of its pixels; all other streams are left out. The sound becomes an AAC
  track that starts with the picture. MP4, unless the name ends with .mkv or MP4
  cannot hold the codec of the picture: then Matroska, which a warning says.

  Args:
    video_path: where the picture comes from.
    waveform: float32 `[samples]`, or an iterable of such arrays, one after the
      other; what is longer than the picture is left out.
    sample_rate_hz: samples a second.
    out_path: where to; a file there is replaced when the new one is whole.
    seconds: how much of the picture; None for all that is whole. Cut where it
      needs no later picture, which may be some pictures off.

  Returns:
    The path that was written: `out_path`, or the same ending with .mkv.

  Raises:
    UserError: the video cannot be used, the result cannot be written, it would
      replace the video, or no container holds its codec.
  """
  info = video.probe(video_path)
  timeline = video.read_timeline(info)
  count = timeline.find_cut(seconds)
  length = float(timeline.ends[:count].max(initial=0))
  out_path, kind = _choose_container(info, os.fspath(out_path))
  if os.path.exists(out_path) and os.path.samefile(out_path, info.path):
    raise errors.UserError(
      f'{out_path}: is the video itself, expected another file. Choose '
      'another name.'
    )
  options = {'movflags': '+faststart'} if kind == 'mp4' else {}
  with files.replace(out_path) as temporary:
    try:
      with (
        files.open_media(info.path) as source,
        av.open(temporary, 'w', format=kind, options=options) as target,
      ):
        picture = source.streams[info.stream_index]
        track = target.add_stream_from_template(picture, opaque=True)
        if picture.sample_aspect_ratio:
          track.codec_context.sample_aspect_ratio = picture.sample_aspect_ratio
        if kind == 'mp4' and picture.codec_context.codec_tag == 'hvc1':
          track.codec_context.codec_tag = 'hvc1'  # Apple plays no other
        sound = packets.SoundTrack(target, waveform, sample_rate_hz)
        copies = packets.read_packets(source, picture)
        copies = (p for p in copies if p.stream is picture and p.size)
        for i, packet in enumerate(itertools.islice(copies, count)):
          # A second ahead, so that players find both in one place.
          sound.write(min(math.ceil(timeline.starts[i]) + 1, length))
          packet.pts = int(timeline.pts[i])
          packet.dts = int(timeline.dts[i])
          packet.stream = track
          target.mux_one(packet)
        sound.write(length)
        sound.finish()
    except OSError:
      raise
    except av.FFmpegError as e:
      raise errors.UserError(
        f'{info.path}: its picture cannot be copied to {kind} '
        f'({e.strerror}), expected time stamps and headers that are whole. '
        'Convert it to MP4 with another program first.'
      ) from e
  return out_path


def write_frames(
  path: str,
  frames: np.ndarray | Iterable[np.ndarray],
  rate_hz: float,
  waveform: np.ndarray | Iterable[np.ndarray] | None = None,
  sample_rate_hz: int = 0,
) -> None:
  """Writes frames as an H.264 video in MP4, with sound as AAC where given.

  Args:
    path: where to; a file there is replaced when the new one is whole.
    frames: uint8 `[time, height, width, 3]` of even height and width, or an
      iterable of such arrays, one after the other.
    rate_hz: frames a second.
    waveform: float32 `[samples]`, or an iterable of such arrays; None writes no
      sound. What is longer than the picture is left out.
    sample_rate_hz: samples a second.

  Raises:
    UserError: the file cannot be written.
    ValueError: odd height or width, or no frames.
  """
  chunks = iter([frames] if isinstance(frames, np.ndarray) else frames)
  first = next(chunks, np.zeros((0, 0, 0, 3)))
  height, width = first.shape[1:3]
  if not first.size or height % 2 or width % 2:
    raise ValueError(
      f'{path}: frames are {list(first.shape)}, expected at least one of '
      'even height and width. Cut or resize them.'
    )
  rate = fractions.Fraction(rate_hz).limit_denominator(1001)
  with (
    files.replace(path) as temporary,
    av.open(temporary, 'w', format='mp4') as target,
  ):
    track = target.add_stream(
      'libx264', rate=rate, width=width, height=height, pix_fmt='yuv420p'
    )
    track.options = {'crf': '18', 'preset': 'veryfast'}
    sound = None
    if waveform is not None:
      sound = packets.SoundTrack(target, waveform, sample_rate_hz)
    count = 0
    for chunk in itertools.chain([first], chunks):
      for frame in chunk:
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), 'rgb24')
        target.mux(track.encode(image))
        count += 1
        if sound:
          sound.write(count // rate_hz)
    target.mux(track.encode(None))
    if sound:
      sound.write(count / rate_hz)
      sound.finish()


def _choose_container(info: video.VideoInfo, out_path: str) -> tuple[str, str]:
  """Returns the path to write and the format that holds the picture."""
  stem, suffix = os.path.splitext(out_path)
  if suffix.lower() == '.mkv':
    return out_path, 'matroska'
  with files.open_media(info.path) as source:
    for kind in ('mp4', 'matroska'):
      with av.open(io.BytesIO(), 'w', format=kind) as trial:
        try:
          trial.add_stream_from_template(
            source.streams[info.stream_index], opaque=True
          )
        except ValueError:
          continue
      if kind == 'mp4':
        return out_path, kind
      errors.warn(
        f'{info.path}: its picture is {info.codec}, which MP4 cannot hold. '
        f'Written as Matroska: {stem}.mkv'
      )
      return f'{stem}.mkv', kind
  raise errors.UserError(
    f'{info.path}: its picture is {info.codec}, expected one that MP4 or '
    'Matroska holds. Convert it to H.264 first.'
  )
