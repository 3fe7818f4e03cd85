"""Where the picture, the sound and the words of a clip come from.

Two kinds of source, one road behind them: part of a media file, and a clip of
the toy dataset that is made when it is asked for.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib

import cv2
import numpy as np

from v2meow_jax import audio
from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax.toy import attributes as toy_attributes
from v2meow_jax.toy import captions
from v2meow_jax.toy import clips
from v2meow_jax.visual import base as visual_base

Array = np.ndarray

_RMS = 0.1
_PEAK = 0.9
_SILENCE_RMS = 1e-4


@dataclasses.dataclass(frozen=True)
class FileSource:
  """A clip of a manifest: part of a media file.

  Attributes:
    clip: the row of the manifest.
  """

  clip: manifests.Clip

  @property
  def clip_id(self) -> str:
    return self.clip.clip_id

  @property
  def split(self) -> str:
    return self.clip.split

  @property
  def caption(self) -> str:
    return self.clip.caption

  @property
  def attributes(self) -> str:
    return self.clip.attributes

  def key(self) -> str:
    """What the streams follow from: the file's content and the cut.

    Raises:
      UserError: the file cannot be read, or is not what the manifest says.
    """
    try:
      with open(self.clip.file, 'rb') as f:
        digest = hashlib.file_digest(f, 'sha256').hexdigest()
    except OSError as e:
      raise errors.UserError(
        f'{self.clip.file}: cannot be read ({e.strerror}), expected a media '
        'file. Check the path.'
      ) from e
    if self.clip.sha256 and digest != self.clip.sha256:
      raise errors.UserError(
        f'{self.clip.file}: sha256 is {digest}, expected '
        f'{self.clip.sha256}. Download it again or correct the manifest.'
      )
    cut = (self.clip.start_seconds, self.clip.end_seconds)
    return f'{digest} {cut[0]} {cut[1]}'

  def picture(self, extractor: visual_base.Extractor) -> tuple[Array, float]:
    """Returns a visual stream and the seconds of picture it covers."""
    return visual_base.extract_video(
      extractor,
      str(self.clip.file),
      self.clip.start_seconds,
      self.clip.end_seconds,
    )

  def sound(self, sample_rate_hz: int) -> Array:
    """Returns the sound at `_RMS`: float32 `[samples]`, mono."""
    waveform = audio.read_mono(
      str(self.clip.file),
      sample_rate_hz,
      self.clip.start_seconds,
      self.clip.end_seconds,
    )
    return _level(waveform)


def _level(waveform: Array) -> Array:
  """Brings sound to one level; silence stays as it is.

  Codecs and tokenizers hear everything at the level of the toy clips, and
  generation sets its own in the end.
  """
  rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
  if rms < _SILENCE_RMS:
    return waveform
  gain = min(_RMS / rms, _PEAK / float(np.abs(waveform).max()))
  return (waveform * gain).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ToySource:
  """A clip of the toy dataset.

  Attributes:
    index: number of the clip.
    seed: seed of the dataset.
    seconds: length.
    renderer: 'fluidsynth' or 'numpy'.
  """

  index: int
  seed: int = 0
  seconds: float = 16.0
  renderer: str = 'fluidsynth'

  @property
  def clip_id(self) -> str:
    return clips.clip_id(self.index)

  @property
  def split(self) -> str:
    return toy_attributes.split(self.index)

  @property
  def caption(self) -> str:
    return captions.write_caption(self._sample())

  @property
  def attributes(self) -> str:
    return json.dumps(self._sample().to_dict())

  def _sample(self) -> toy_attributes.Attributes:
    return toy_attributes.sample(self.seed, self.index, self.seconds)

  def key(self) -> str:
    """What the streams follow from: the numbers above and the toy's code."""
    return (
      f'toy {self.seed} {self.index} {self.seconds} {self.renderer} '
      f'{_toy_version()}'
    )

  def picture(self, extractor: visual_base.Extractor) -> tuple[Array, float]:
    """Returns a visual stream and the seconds of picture it covers."""
    clip = _make_clip(self)
    frames, rate_hz = clip.frames, clip.frame_rate_hz
    # What the screen shows at the times that the extractor asks for.
    times = np.arange(round(self.seconds * extractor.frame_rate_hz))
    shown = (times * rate_hz / extractor.frame_rate_hz + 1e-6).astype(int)
    height, width = extractor.frame_size
    resized = [
      cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA)
      for f in frames[shown]
    ]
    return extractor(np.stack(resized)), self.seconds

  def sound(self, sample_rate_hz: int) -> Array:
    """Returns the sound: float32 `[samples]`, mono, RMS 0.1.

    Raises:
      ValueError: a rate that the toy is not made at.
    """
    if sample_rate_hz != clips.SAMPLE_RATE_HZ:
      raise ValueError(
        f'{sample_rate_hz} Hz, expected {clips.SAMPLE_RATE_HZ} Hz, at which '
        'the toy dataset is made. Choose other streams.'
      )
    return _make_clip(self).waveform


# Picture and sound of a clip are asked for one after the other.
@functools.lru_cache(maxsize=1)
def _make_clip(source: ToySource) -> clips.Clip:
  return clips.make_clip(
    source.seed, source.index, source.seconds, source.renderer
  )


@functools.cache
def _toy_version() -> str:
  """Digest of the code that makes the toy."""
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(clips.__file__).parent.glob('*.py')):
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]
