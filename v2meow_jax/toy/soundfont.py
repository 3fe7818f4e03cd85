"""Renders notes with FluidSynth and a General MIDI soundfont.

The library is called directly. What it gives for a clip depends on the clip
only, and is the same every time on one machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import os
import pathlib

import numpy as np
import scipy.signal

from v2meow_jax import errors
from v2meow_jax.toy import effects
from v2meow_jax.toy import music

SAMPLE_RATE_HZ = 16000
# FluidSynth does not filter the samples it reads faster than recorded: at
# 16 kHz cymbals would fold down. So it renders at twice the rate.
_OVERSAMPLING = 2
_PATHS = (
  '/usr/share/sounds/sf2/FluidR3_GM.sf2',
  '/usr/share/sounds/sf2/default-GM.sf2',
  '/usr/share/soundfonts/FluidR3_GM.sf2',
  '/usr/share/soundfonts/default.sf2',
)
_INSTALL = (
  'Install them (Debian: apt-get install fluidsynth fluid-soundfont-gm) or '
  'use the renderer `numpy`.'
)
_DRUM_CHANNEL = 9
_CHANNELS = tuple(c for c in range(16) if c != _DRUM_CHANNEL)
_GAIN = 0.35
_SETTINGS = (
  (b'synth.dynamic-sample-loading', 1),
  (b'synth.polyphony', 256),
  # Both renderers share a room of their own.
  (b'synth.reverb.active', 0),
  (b'synth.chorus.active', 0),
)
# Notes ring on after they are let go; a note that ended earlier is not heard.
_LEAD_IN_SECONDS = 4.0


class SoundfontRenderer:
  """Notes to sound with the timbres of a soundfont."""

  def __init__(self, soundfont: str | None = None):
    """Loads the soundfont.

    Args:
      soundfont: its path; None looks where systems install it.

    Raises:
      errors.UserError: FluidSynth or the soundfont is missing or unreadable.
    """
    self._path = _find_soundfont(soundfont)
    self._library = _load_library()
    with self._synthesiser():
      pass

  @contextlib.contextmanager
  def _synthesiser(self):
    """A synthesiser with the soundfont, for one clip.

    One that has played before still rings, and sounds a little different:
    every clip gets its own. Samples are loaded when they are first played, so
    that this costs little.
    """
    library = self._library
    settings = library.new_fluid_settings()
    rate = SAMPLE_RATE_HZ * _OVERSAMPLING
    library.fluid_settings_setnum(settings, b'synth.sample-rate', float(rate))
    library.fluid_settings_setnum(settings, b'synth.gain', _GAIN)
    for name, value in _SETTINGS:
      library.fluid_settings_setint(settings, name, value)
    synth = library.new_fluid_synth(settings)
    try:
      loaded = library.fluid_synth_sfload(synth, os.fsencode(self._path), 1)
      if loaded < 0:
        raise errors.UserError(
          f'{self._path}: FluidSynth cannot read this soundfont, expected an '
          f'SF2 or SF3 file with the General MIDI programs. {_INSTALL}'
        )
      yield synth
    finally:
      library.delete_fluid_synth(synth)
      library.delete_fluid_settings(settings)

  def __call__(self, notes: list[music.Note], seconds: float) -> np.ndarray:
    """Renders notes.

    Args:
      notes: the notes.
      seconds: length of the result; what rings on after it is cut off.

    Returns:
      float32 `[samples]` at 16 kHz, not normalised.

    Raises:
      ValueError: more than 15 different programs.
    """
    programs = sorted({note.program for note in notes if not note.is_drum})
    if len(programs) > len(_CHANNELS):
      raise ValueError(
        f'{len(programs)} programs in one clip, expected at most '
        f'{len(_CHANNELS)}: General MIDI has 16 channels. Use fewer.'
      )
    channels = dict(zip(programs, _CHANNELS, strict=False))
    lead = min([0.0, *(note.start_seconds for note in notes)])
    lead = max(lead, -_LEAD_IN_SECONDS)
    num_lead = round(-lead * SAMPLE_RATE_HZ) * _OVERSAMPLING
    num_samples = round(seconds * SAMPLE_RATE_HZ) * _OVERSAMPLING
    sound = np.zeros((2, num_lead + num_samples), np.float32)
    left, right = (channel.ctypes.data for channel in sound)
    library = self._library
    with self._synthesiser() as synth:

      def write(start: int, end: int):
        library.fluid_synth_write_float(
          synth, end - start, left, start, 1, right, start, 1
        )

      for program, channel in channels.items():
        library.fluid_synth_program_change(synth, channel, program)
      done = 0
      for sample, is_on, event in _events(notes, channels, num_lead):
        if sample >= sound.shape[1]:
          break
        if sample > done:
          write(done, sample)
          done = sample
        if is_on:
          library.fluid_synth_noteon(synth, *event)
        else:
          library.fluid_synth_noteoff(synth, *event)
      write(done, sound.shape[1])
    dry = sound[:, num_lead:].mean(0)
    dry = scipy.signal.resample_poly(dry, 1, _OVERSAMPLING)
    return effects.add_room(dry.astype(np.float32), SAMPLE_RATE_HZ)


def _events(
  notes: list[music.Note], channels: dict[int, int], num_lead: int
) -> list[tuple[int, bool, tuple[int, ...]]]:
  """Notes on and off in order: sample, whether on, arguments."""
  rate = SAMPLE_RATE_HZ * _OVERSAMPLING
  events = []
  for note in notes:
    channel = _DRUM_CHANNEL if note.is_drum else channels[note.program]
    start = max(0, round(note.start_seconds * rate) + num_lead)
    end = round(note.end_seconds * rate) + num_lead
    events.append((start, True, (channel, note.pitch, note.velocity)))
    events.append((end, False, (channel, note.pitch)))
  # At the same sample a note is let go before it is struck again.
  return sorted(events)


@functools.cache
def shared_renderer(soundfont: str | None = None) -> SoundfontRenderer:
  """The one renderer of this process for a soundfont."""
  return SoundfontRenderer(soundfont)


def check(soundfont: str | None = None):
  """Looks whether FluidSynth and a soundfont are there.

  Args:
    soundfont: path of the soundfont; None looks where systems install it.

  Raises:
    errors.UserError: one of them is missing; says what to install.
  """
  _find_soundfont(soundfont)
  _load_library()


def _find_soundfont(soundfont: str | None) -> str:
  if soundfont is not None:
    if not pathlib.Path(soundfont).is_file():
      raise errors.UserError(
        f'{soundfont}: no such soundfont, expected an SF2 file. {_INSTALL}'
      )
    return soundfont
  for path in _PATHS:
    if pathlib.Path(path).is_file():
      return path
  raise errors.UserError(
    f'No General MIDI soundfont in {", ".join(_PATHS)}, expected one of '
    f'these or --soundfont PATH. {_INSTALL}'
  )


@functools.cache
def _load_library() -> ctypes.CDLL:
  """libfluidsynth with the types of the functions that are called here."""
  name = ctypes.util.find_library('fluidsynth')
  if name is None:
    raise errors.UserError(
      'FluidSynth is missing, expected the library libfluidsynth on this '
      f'machine. {_INSTALL}'
    )
  library = ctypes.CDLL(name)
  pointer, integer = ctypes.c_void_p, ctypes.c_int
  text, number = ctypes.c_char_p, ctypes.c_double
  signatures = {
    'new_fluid_settings': (pointer, []),
    'new_fluid_synth': (pointer, [pointer]),
    'fluid_settings_setnum': (integer, [pointer, text, number]),
    'fluid_settings_setint': (integer, [pointer, text, integer]),
    'fluid_synth_sfload': (integer, [pointer, text, integer]),
    'delete_fluid_synth': (None, [pointer]),
    'delete_fluid_settings': (None, [pointer]),
    'fluid_synth_program_change': (integer, [pointer, integer, integer]),
    'fluid_synth_noteon': (integer, [pointer] + [integer] * 3),
    'fluid_synth_noteoff': (integer, [pointer, integer, integer]),
    'fluid_synth_write_float': (
      integer,
      [pointer, integer] + [pointer, integer, integer] * 2,
    ),
  }
  for function, (result, arguments) in signatures.items():
    getattr(library, function).restype = result
    getattr(library, function).argtypes = arguments
  return library
