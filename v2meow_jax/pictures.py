"""What the stages see of a video: the features of its picture."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import os

import numpy as np

from v2meow_jax import errors
from v2meow_jax import video
from v2meow_jax.visual import base

# Music ends with the picture. A picture lasts this much longer at most where
# the user asks for more than there is.
TOLERANCE_SECONDS = 0.1

# Called with a phase and the seconds of music that are through it.
Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Picture:
  """What the stages see of a video.

  Attributes:
    path: the video.
    features: float32 `[time, features]` of each visual stream by name.
    seconds: length of the picture that music is made for.
    is_cut: whether the video goes on behind it.
  """

  path: str
  features: Mapping[str, np.ndarray]
  seconds: float
  is_cut: bool


def see(
  path: str | os.PathLike,
  extractors: Sequence[base.Extractor],
  duration: float | None,
  progress: Progress,
) -> Picture:
  """Reads a picture, once for each visual stream.

  Args:
    path: a local video file.
    extractors: of the visual streams.
    duration: seconds to read; None for all.
    progress: is told what is done.

  Raises:
    UserError: the file is no video that can be used, or too short.
  """
  check_duration(path, duration)
  features = {}
  for extractor in extractors:
    parts = []
    seconds = look(path, extractor, duration, progress, parts.append)
    features[extractor.spec.name] = np.concatenate(parts)
  return Picture(os.fspath(path), features, seconds, duration is not None)


def check_duration(path: str | os.PathLike, duration: float | None) -> float:
  """The seconds of a video; UserError where they are fewer than asked for."""
  declared = video.probe(path).seconds
  if duration is not None and duration > declared + TOLERANCE_SECONDS:
    raise errors.UserError(
      f'{os.fspath(path)}: lasts {declared:.2f} s, expected at least the '
      f'duration of {duration:g} s that was asked for. Make it shorter or '
      'leave it out.'
    )
  return declared


def look(
  path: str | os.PathLike,
  extractor: base.Extractor,
  duration: float | None,
  progress: Progress,
  take: Callable[[np.ndarray], None],
) -> float:
  """Gives one visual stream to `take`, part by part.

  Args:
    path: a local video file.
    extractor: of the stream.
    duration: seconds to read; None for all.
    progress: is told what is done.
    take: gets float32 `[time, features]` or int32 `[time, tokens]`.

  Returns:
    Seconds of picture.
  """
  rate_hz = extractor.frame_rate_hz
  reader = video.FrameReader(
    os.fspath(path),
    rate_hz,
    extractor.frame_size,
    end_seconds=duration,
    fit=extractor.fit,
  )
  for part in extractor.parts(_reported(reader, rate_hz, progress)):
    take(part)
  return reader.seconds


def _reported(
  chunks: Iterable[np.ndarray], rate_hz: float, progress: Progress
) -> Iterator[np.ndarray]:
  """Passes chunks of frames on and reports their seconds."""
  num_frames = 0
  for chunk in chunks:
    yield chunk
    num_frames += len(chunk)
    progress('picture', num_frames / rate_hz)
