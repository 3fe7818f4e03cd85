"""What a visual extractor is: pictures in, one visual stream out."""

import abc
from collections.abc import Iterable, Iterator

import numpy as np

from v2meow_jax import streams
from v2meow_jax import video


class Extractor(abc.ABC):
  """Makes a visual stream of frames.

  A subclass sets the attributes and writes `stream`. The result must not
  depend on how the frames are cut into chunks, so that a video of any length
  runs in bounded memory.

  Attributes:
    spec: row of `streams.py` that the result follows.
    frame_rate_hz: rate at which it wants frames; a whole multiple of the
      stream's rate.
    frame_size: height and width of a frame in pixels.
    fit: how a picture becomes a frame: 'stretch' or 'cover', as in
      `video.FrameReader`.
  """

  spec: streams.StreamSpec
  frame_rate_hz: float
  frame_size: tuple[int, int]
  fit: str = 'stretch'

  @abc.abstractmethod
  def stream(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Maps chunks of frames to chunks of features or tokens.

    Args:
      chunks: uint8 `[time, height, width, 3]` each, of any length, one after
        the other.

    Yields:
      float32 `[time, features]` or int32 `[time, tokens]`; the chunks need not
      match those of the frames.
    """

  def __call__(self, frames: np.ndarray) -> np.ndarray:
    """Returns the stream of one array of frames.

    Args:
      frames: uint8 `[time, height, width, 3]`.

    Returns:
      float32 `[time, features]` or int32 `[time, tokens]`.

    Raises:
      ValueError: frames of another type or shape.
    """
    return self.extract([frames])

  def extract(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the stream of frames that come in chunks.

    Args:
      chunks: uint8 `[time, height, width, 3]` each.

    Returns:
      float32 `[time, features]` or int32 `[time, tokens]`.

    Raises:
      ValueError: frames of another type or shape.
      RuntimeError: the extractor broke its promise.
    """
    width = self.spec.num_features or self.spec.num_levels
    dtype = np.int32 if self.spec.is_discrete else np.float32
    return np.concatenate([np.zeros((0, width), dtype), *self.parts(chunks)])

  def parts(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Gives the stream of frames part by part, as the frames come.

    Args, Raises: as of `extract`.

    Yields:
      float32 `[time, features]` or int32 `[time, tokens]` each.
    """
    width = self.spec.num_features or self.spec.num_levels
    dtype = np.int32 if self.spec.is_discrete else np.float32
    for part in self.stream(map(self._check_frames, chunks)):
      is_finite = np.isfinite(part).all()
      if part.dtype != dtype or part.shape[1:] != (width,) or not is_finite:
        raise RuntimeError(
          f'The extractor of stream `{self.spec.name}` gave {part.dtype} '
          f'{list(part.shape)}{"" if is_finite else " with values that are "}'
          f'{"" if is_finite else "not finite"}, expected finite '
          f'{np.dtype(dtype)} [time, {width}].'
        )
      yield part

  def _check_frames(self, frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.shape[1:] != (*self.frame_size, 3):
      raise ValueError(
        f'Stream `{self.spec.name}`: frames are {frames.dtype} '
        f'{list(frames.shape)}, expected uint8 '
        f'[time, {self.frame_size[0]}, {self.frame_size[1]}, 3]. Read them '
        'with video.FrameReader.'
      )
    return frames


def extract_video(
  extractor: Extractor,
  path: str,
  start_seconds: float = 0.0,
  end_seconds: float | None = None,
) -> tuple[np.ndarray, float]:
  """Returns the stream of a video file and how long it is.

  Args:
    extractor: makes the stream.
    path: a local video file.
    start_seconds: where to start, in seconds after the first picture.
    end_seconds: where to stop; None reads to the end.

  Returns:
    float32 `[time, features]` or int32 `[time, tokens]`, and the seconds of
    picture that it covers: fewer than the file declares where it breaks off.

  Raises:
    UserError: the file is no video that can be used.
  """
  reader = video.FrameReader(
    path,
    extractor.frame_rate_hz,
    extractor.frame_size,
    start_seconds=start_seconds,
    end_seconds=end_seconds,
    fit=extractor.fit,
  )
  features = extractor.extract(reader)
  return features, reader.seconds - start_seconds
