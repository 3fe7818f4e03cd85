"""Composes a clip: attributes to note events, before any sound is made."""

from __future__ import annotations

import dataclasses

import numpy as np

from v2meow_jax.toy import arrangements
from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import harmony

STEPS_PER_BAR = 16
_STEPS_PER_BEAT = STEPS_PER_BAR // attributes_lib.BEATS_PER_BAR
# Players are not exact: deviations are normal, cut off at twice this.
_TIMING_SECONDS = 0.004
_VELOCITY_SPREAD = 4.0
_DRUM_SECONDS = 0.1
# Accents by place in the bar: first beat, third, other beats, off the beat.
_ACCENTS = {0: 1.12, 8: 1.04, 4: 1.0, 12: 1.0}
_OFF_BEAT_ACCENT = 0.84
_DRUM_VELOCITY = {'X': 118, 'x': 98, 'o': 66}
_BASS_DEGREES = {'1': 0, '3': 4, '5': 7, '8': 12}


@dataclasses.dataclass(frozen=True, order=True)
class Note:
  """One note.

  Attributes:
    start_seconds: when it starts. May be negative: the clip is a cut out of
      music that already runs, and the note is still heard.
    end_seconds: when it is let go, later than the start.
    pitch: MIDI pitch, or the General MIDI key of a drum.
    velocity: 1 to 127.
    program: General MIDI program from 0; 0 for drums.
    role: `drums`, `bass`, `chords`, `arpeggio`, `pad` or `melody`.
  """

  start_seconds: float
  end_seconds: float
  pitch: int
  velocity: int
  program: int
  role: str

  @property
  def is_drum(self) -> bool:
    return self.role == 'drums'


@dataclasses.dataclass(frozen=True)
class _Bar:
  """What the players of one bar know."""

  number: int
  in_section: int
  section: attributes_lib.Section
  chord: harmony.Chord
  next_chord: harmony.Chord
  level: arrangements.Level
  level_index: int
  voicing: tuple[int, ...]


class _Composer:
  """Collects the notes of a clip."""

  def __init__(
    self, attributes: attributes_lib.Attributes, rng: np.random.Generator
  ):
    self._attributes = attributes
    self._style = arrangements.STYLES[attributes.style]
    self._rng = rng
    self.notes: list[Note] = []

  def _seconds(self, bar: _Bar, step: float) -> float:
    """Time of a step of a bar, swung where the style swings."""
    beat, within = divmod(step, _STEPS_PER_BEAT)
    if self._style.swing and within == 2:
      within = _STEPS_PER_BEAT * 2 / 3
    beat = bar.number * attributes_lib.BEATS_PER_BAR + beat
    return self._attributes.seconds_at(beat + within / _STEPS_PER_BEAT)

  def _add(self, bar, step, end_step, pitch, velocity, program, role):
    """Adds a note with the small deviations of a player."""
    start = self._seconds(bar, step)
    end = self._seconds(bar, end_step)
    if role == 'drums':
      end = start + _DRUM_SECONDS
    late = self._rng.normal() * _TIMING_SECONDS
    late = min(max(late, -2 * _TIMING_SECONDS), 2 * _TIMING_SECONDS)
    velocity += self._rng.normal() * _VELOCITY_SPREAD
    velocity = int(min(max(round(velocity), 1), 127))
    # A little air before the next note, or repeated notes would melt.
    end = late + max(start + 0.04, end - 0.015)
    start += late
    if end > 0 and start < self._attributes.seconds:
      self.notes.append(Note(start, end, int(pitch), velocity, program, role))

  def _velocity(self, bar: _Bar, step: int, gain: float) -> float:
    """Velocity of a pitched note by energy and place in the bar."""
    base = 58 + 54 * bar.section.energy
    return base * gain * _ACCENTS.get(step, _OFF_BEAT_ACCENT)

  def play(self, bar: _Bar, motif: tuple[tuple[int, ...], ...]):
    """Adds all notes of one bar."""
    self._play_drums(bar)
    self._play_bass(bar)
    self._play_chords(bar)
    if 'arpeggio' in bar.section.layers:
      self._play_arpeggio(bar)
    if 'pad' in bar.section.layers:
      part = self._style.pad
      velocity = self._velocity(bar, 4, part.gain)
      program = part.program[bar.level_index]
      # The third once more on top: it is what makes the mode.
      third = harmony.nearest((bar.chord.tones[1],), bar.voicing[-1] + 6)
      for pitch in (*bar.voicing, third):
        self._add(bar, 0, STEPS_PER_BAR, pitch, velocity, program, 'pad')
    if 'melody' in bar.section.layers:
      self._play_melody(bar, motif)

  def _play_drums(self, bar: _Bar):
    gain = self._style.drum_gain * (0.78 + 0.25 * bar.section.energy)
    for key, pattern in bar.level.drums.items():
      for step, mark in enumerate(pattern):
        if mark in _DRUM_VELOCITY:
          velocity = _DRUM_VELOCITY[mark] * gain
          self._add(bar, step, step + 1, key, velocity, 0, 'drums')
    opens = bar.number > 0 and bar.in_section == 0
    if opens or (bar.level.crash and bar.in_section % 4 == 0):
      if bar.level.drums and bar.level_index > 0:
        velocity = 104 * gain
        self._add(bar, 0, 1, arrangements.CRASH, velocity, 0, 'drums')

  def _play_bass(self, bar: _Bar):
    part = self._style.bass
    root = harmony.nearest((bar.chord.root,), part.centre)
    lead = harmony.nearest((bar.next_chord.root,), part.centre) + 2
    lead = harmony.nearest(bar.chord.scale, lead)
    third = harmony.nearest((bar.chord.tones[1],), root + 3.5)
    for step, end, mark in _read(bar.level.bass):
      if mark == 'l':
        pitch = lead
      elif mark == '3':
        pitch = third
      else:
        pitch = root + _BASS_DEGREES[mark]
      velocity = self._velocity(bar, step, part.gain)
      program = part.program[bar.level_index]
      self._add(bar, step, end, pitch, velocity, program, 'bass')

  def _play_chords(self, bar: _Bar):
    part = self._style.chords
    program = part.program[bar.level_index]
    for step, end, mark in _read(bar.level.chords):
      velocity = self._velocity(bar, step, part.gain)
      velocity *= 1.1 if mark == 'X' else 1.0
      for pitch in bar.voicing:
        self._add(bar, step, end, pitch, velocity, program, 'chords')

  def _play_arpeggio(self, bar: _Bar):
    part = self._style.arpeggio
    pitches = sorted(
      harmony.nearest((tone,), part.centre) for tone in bar.chord.tones[:3]
    )
    program = part.program[bar.level_index]
    for step, end, mark in _read(bar.level.arpeggio):
      velocity = self._velocity(bar, step, part.gain)
      pitch = pitches[int(mark)]
      self._add(bar, step, end, pitch, velocity, program, 'arpeggio')

  def _play_melody(self, bar: _Bar, motif: tuple[tuple[int, ...], ...]):
    """Repeats the motif over the chord of the bar; every fourth bar ends."""
    part = self._style.melody
    rhythm = bar.level.melody[bar.in_section % 2]
    contour = motif[bar.in_section % 2]
    program = part.program[bar.level_index]
    pitch = harmony.nearest(bar.chord.tones[:3], part.centre)
    for place, (step, end, _) in enumerate(_read(rhythm)):
      pitch = harmony.scale_step(
        bar.chord.scale, pitch, contour[place % len(contour)]
      )
      # Strong places carry tones of the chord; between them the scale walks.
      if step % 4 == 0:
        pitch = harmony.nearest(bar.chord.tones[:3], pitch)
      if abs(pitch - part.centre) > 9:
        pitch = harmony.nearest(bar.chord.tones[:3], part.centre)
      velocity = self._velocity(bar, step, part.gain) * 1.05
      self._add(bar, step, end, pitch, velocity, program, 'melody')


def _read(pattern: str) -> list[tuple[int, int, str]]:
  """Reads a pattern as notes: first step, step after the last, mark."""
  notes = []
  for step, mark in enumerate(pattern):
    if mark in '.-':
      continue
    end = step + 1
    while end < len(pattern) and pattern[end] == '-':
      end += 1
    notes.append((step, end, mark))
  return notes


def level_of(energy: float) -> int:
  """Level of energy 0..3, for an energy in `[0, 1]`."""
  return min(int(energy * arrangements.NUM_LEVELS), arrangements.NUM_LEVELS - 1)


def compose(attributes: attributes_lib.Attributes) -> list[Note]:
  """Composes the music of a clip.

  Args:
    attributes: what the clip is about. The same attributes give the same
      notes.

  Returns:
    The notes that sound within the clip, in order of their start. Times are
    seconds since the start of the clip and lie on sixteenths of its beat (in
    jazz on triplets) but for a few milliseconds.
  """
  rng = attributes_lib.generator(attributes.seed, attributes.index, 'music')
  # The motif: for each of its two bars, steps of the scale from note to note.
  motif = tuple(
    (0, *(int(step) for step in rng.choice((-2, -1, -1, 1, 1, 2), 7)))
    for _ in range(2)
  )
  composer = _Composer(attributes, rng)
  style = arrangements.STYLES[attributes.style]

  def chord(section, bar):
    return harmony.chord_at(
      attributes.tonic,
      attributes.mode,
      section.loop,
      bar,
      sevenths=style.sevenths,
      leading_tone=style.leading_tone,
    )

  voicing = None
  for section in attributes.sections:
    level_index = level_of(section.energy)
    for place in range(section.num_bars):
      now = chord(section, place)
      voicing = harmony.lead_voices(now.tones, voicing, style.chords.centre)
      bar = _Bar(
        section.first_bar + place,
        place,
        section,
        now,
        chord(section, place + 1),
        style.levels[level_index],
        level_index,
        voicing,
      )
      composer.play(bar, motif)
  return sorted(composer.notes)


def onset_density(notes: list[Note], seconds: float) -> float:
  """Distinct onsets a second; notes within 30 ms count as one."""
  starts = np.sort([note.start_seconds for note in notes])
  starts = starts[(starts >= 0) & (starts < seconds)]
  if not starts.size:
    return 0.0
  # Chords start together but for the deviations of the players.
  return float(1 + np.sum(np.diff(starts) > 0.03)) / seconds
