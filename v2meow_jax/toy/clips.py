"""Clips: attributes, caption, notes, sound and picture of one index."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
import soundfile

from v2meow_jax import files
from v2meow_jax import muxing
from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import captions
from v2meow_jax.toy import effects
from v2meow_jax.toy import music
from v2meow_jax.toy import scene
from v2meow_jax.toy import soundfont as soundfont_lib
from v2meow_jax.toy import synth

RENDERERS = ('fluidsynth', 'numpy')
SAMPLE_RATE_HZ = 16000
FRAME_RATE_HZ = 10.0
FRAME_SIZE = (54, 96)
SUFFIXES = ('.mp4', '.wav')


@dataclasses.dataclass(frozen=True)
class Clip:
  """A paired clip.

  Attributes:
    attributes: what picture, music and caption share.
    caption: the music in words.
    notes: the music as notes, in order of their start.
    waveform: float32 `[samples]` at 16 kHz, RMS 0.1, peak below 1.
    frames: uint8 `[time, height, width, 3]`, RGB; `[0, 0, 0, 3]` if the clip
      was made without a picture.
    frame_rate_hz: frames a second.
  """

  attributes: attributes_lib.Attributes
  caption: str
  notes: list[music.Note]
  waveform: np.ndarray
  frames: np.ndarray
  frame_rate_hz: float

  @property
  def clip_id(self) -> str:
    return clip_id(self.attributes.index)


def clip_id(index: int) -> str:
  """Name of a clip: `toy_000012`."""
  return f'toy_{index:06d}'


def make_clip(
  seed: int,
  index: int,
  seconds: float = 16.0,
  renderer: str = 'fluidsynth',
  frame_rate_hz: float = FRAME_RATE_HZ,
  frame_size: tuple[int, int] | None = FRAME_SIZE,
  soundfont: str | None = None,
) -> Clip:
  """Makes a clip; the same arguments give the same clip.

  Args:
    seed: seed of the dataset, not negative.
    index: number of the clip, not negative.
    seconds: length.
    renderer: `fluidsynth` or `numpy`.
    frame_rate_hz: frames a second.
    frame_size: height and width of a frame in pixels; None for no picture.
    soundfont: path of the soundfont of FluidSynth; None looks for it.

  Returns:
    The clip.

  Raises:
    ValueError: an unknown renderer, a negative seed or index, or no length.
    errors.UserError: FluidSynth or its soundfont is missing.
  """
  attributes = attributes_lib.sample(seed, index, seconds)
  notes = music.compose(attributes)
  frames = np.zeros((0, 0, 0, 3), np.uint8)
  if frame_size is not None:
    frames = scene.draw(attributes, frame_rate_hz, frame_size)
  return Clip(
    attributes=attributes,
    caption=captions.write_caption(attributes),
    notes=notes,
    waveform=render(notes, seconds, renderer, soundfont),
    frames=frames,
    frame_rate_hz=frame_rate_hz,
  )


def render(
  notes: list[music.Note],
  seconds: float,
  renderer: str,
  soundfont: str | None = None,
) -> np.ndarray:
  """Renders notes at the level that all clips have.

  Args:
    notes: the notes.
    seconds: length of the sound.
    renderer: `fluidsynth` or `numpy`.
    soundfont: path of the soundfont of FluidSynth; None looks for it.

  Returns:
    float32 `[samples]` at 16 kHz.

  Raises:
    ValueError: an unknown renderer.
    errors.UserError: FluidSynth or its soundfont is missing.
  """
  if renderer == 'fluidsynth':
    sound = soundfont_lib.shared_renderer(soundfont)(notes, seconds)
  elif renderer == 'numpy':
    sound = synth.render(notes, seconds)
  else:
    raise ValueError(
      f'Unknown renderer `{renderer}`, expected one of '
      f'{", ".join(RENDERERS)}. Choose one of these.'
    )
  return effects.normalise(sound)


def write_clip(clip: Clip, path: str | os.PathLike):
  """Writes a clip to a file, whole or not at all.

  Args:
    clip: the clip.
    path: the file: `.wav` holds the sound, 16 bits at 16 kHz; `.mp4` holds
      picture and sound, H.264 and AAC.

  Raises:
    ValueError: another suffix, or an `.mp4` of a clip without a picture.
    errors.UserError: the file cannot be written.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in SUFFIXES:
    raise ValueError(
      f'{path}: suffix `{suffix}`, expected one of {", ".join(SUFFIXES)}. '
      'Choose one of these.'
    )
  if suffix == '.mp4' and not len(clip.frames):
    raise ValueError(
      f'{path}: the clip has no picture, expected one in an MP4. Make the '
      'clip with a `frame_size`, or write a .wav.'
    )
  path = os.fspath(path)
  if suffix == '.mp4':
    muxing.write_frames(
      path, clip.frames, clip.frame_rate_hz, clip.waveform, SAMPLE_RATE_HZ
    )
    return
  with files.replace(path) as temporary:
    soundfile.write(
      temporary, clip.waveform, SAMPLE_RATE_HZ, 'PCM_16', format='WAV'
    )
