"""Scales, chord loops and voice leading of the toy music."""

from __future__ import annotations

import dataclasses

import numpy as np

_PITCH_CLASS = {'C': 0, 'D': 2, 'E': 4, 'F': 5, 'G': 7, 'A': 9, 'B': 11}
_SCALE = {'major': (0, 2, 4, 5, 7, 9, 11), 'minor': (0, 2, 3, 5, 7, 8, 10)}
# One chord a bar, as degrees of the scale from 0. The tonic chord opens every
# loop and the dominant leads back to it, so that the relative key is no rival.
_LOOPS = {
  'major': ((0, 3, 4, 0), (0, 3, 0, 4), (0, 5, 4, 0), (0, 4, 3, 0)),
  'minor': ((0, 5, 3, 4), (0, 3, 5, 0), (0, 5, 4, 0), (0, 5, 0, 4)),
}
_DOMINANT = 4
_TONIC = 0


@dataclasses.dataclass(frozen=True)
class Chord:
  """A chord and the scale that goes with it, as pitch classes 0..11.

  Attributes:
    root: pitch class of the root.
    tones: pitch classes of the chord, root first.
    scale: pitch classes of the scale in ascending order from the tonic.
  """

  root: int
  tones: tuple[int, ...]
  scale: tuple[int, ...]


def tonic_pitch_class(tonic: str) -> int:
  """Pitch class 0..11 of a key note, 0 = C."""
  return _PITCH_CLASS[tonic]


def chord_at(
  tonic: str,
  mode: str,
  loop: int,
  bar: int,
  sevenths: bool = False,
  leading_tone: bool = False,
) -> Chord:
  """The chord of a bar.

  Args:
    tonic: name of the key note.
    mode: `major` or `minor`.
    loop: which of the four chord loops.
    bar: bar within the section.
    sevenths: adds the seventh to all chords but the tonic one, which gets a
      sixth in major (its major seventh would sound the relative key).
    leading_tone: whether the dominant of a minor key is major (harmonic
      minor) or minor, as in most popular music.

  Returns:
    The chord.
  """
  degrees = _LOOPS[mode][loop]
  degree = degrees[bar % len(degrees)]
  scale = list(_SCALE[mode])
  if mode == 'minor' and degree == _DOMINANT and leading_tone:
    scale[6] = 11
  steps = [0, 2, 4]
  if sevenths:
    if degree != _TONIC:
      steps.append(6)
    elif mode == 'major':
      steps.append(5)
  key = _PITCH_CLASS[tonic]
  classes = tuple((key + step) % 12 for step in scale)
  tones = tuple(classes[(degree + step) % 7] for step in steps)
  return Chord(tones[0], tones, classes)


def nearest(classes: tuple[int, ...], pitch: float) -> int:
  """The pitch nearest to `pitch` whose pitch class is one of `classes`."""
  around = np.arange(int(pitch) - 7, int(pitch) + 8)
  allowed = around[np.isin(around % 12, classes)]
  return int(allowed[np.argmin(np.abs(allowed - pitch - 1e-3))])


def lead_voices(
  tones: tuple[int, ...], previous: tuple[int, ...] | None, centre: int
) -> tuple[int, ...]:
  """Voices a chord close to the chord before it.

  Args:
    tones: pitch classes of the chord.
    previous: pitches of the chord before, or None.
    centre: pitch around which the voices stay.

  Returns:
    Ascending pitches, one per tone, in the inversion that moves least.
  """
  candidates = []
  for inversion in range(len(tones)):
    rotated = tones[inversion:] + tones[:inversion]
    for base in range(centre - 14, centre + 3):
      if base % 12 != rotated[0]:
        continue
      voicing = [base]
      for tone in rotated[1:]:
        voicing.append(voicing[-1] + 1 + (tone - voicing[-1] - 1) % 12)
      candidates.append(tuple(voicing))

  def cost(voicing):
    drift = abs(np.mean(voicing) - centre)
    if previous is None:
      return drift
    shared = min(len(voicing), len(previous))
    moves = np.abs(np.subtract(voicing[:shared], previous[:shared])).sum()
    return moves + 0.6 * drift

  return min(candidates, key=cost)


def scale_step(scale: tuple[int, ...], pitch: int, steps: int) -> int:
  """Moves a pitch of a scale by a number of its steps, up or down."""
  pitches = [p for p in range(24, 109) if p % 12 in scale]
  position = int(np.argmin(np.abs(np.subtract(pitches, pitch))))
  return pitches[min(max(position + steps, 0), len(pitches) - 1)]
