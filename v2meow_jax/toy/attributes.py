"""The hidden attributes that the scene, the music and the caption share."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

BEATS_PER_BAR = 4
# One octave, so that folding a measured tempo by octaves is unambiguous.
MIN_TEMPO_BPM, MAX_TEMPO_BPM = 75.0, 150.0
MODES = ('major', 'minor')
TONICS = ('C', 'D', 'F', 'G', 'A')
STYLES = ('piano', 'electronic', 'orchestra', 'rock', 'jazz')
# Seconds of music per section on average; clips of 16 s have one to three.
_SECONDS_PER_SECTION = 16.0
# Clips go to the splits by their index alone: of every 20 in a row, 18 train.
_SPLIT_PERIOD = 20
_SPLIT_OF_REMAINDER = {18: 'validation', 19: 'test'}
_SALT = {'attributes': 1, 'music': 2, 'scene': 3, 'caption': 4}


@dataclasses.dataclass(frozen=True)
class Section:
  """A run of whole bars with one energy, harmony and set of instruments.

  Attributes:
    first_bar: its first bar, counted from the bar in which the clip starts.
    num_bars: bars it lasts.
    energy: in `[0, 1]`.
    loop: which of the chord loops of the mode, an index.
    layers: optional roles that play: some of `melody`, `arpeggio`, `pad`.
  """

  first_bar: int
  num_bars: int
  energy: float
  loop: int
  layers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Attributes:
  """What a clip is about; everything in it follows from this and a seed.

  Attributes:
    seed: seed of the dataset.
    index: number of the clip in the dataset.
    seconds: length of the clip.
    tempo_bpm: beats per minute, in `[75, 150]`.
    mode: `major` or `minor`.
    tonic: name of the key note.
    energy: mean over time of the energy of the sections, in `[0, 1]`.
    style: instrument family, one of `STYLES`.
    start_beat: where in its first bar the clip starts, in beats `[0, 4)`: a
      clip is a cut out of music that already runs.
    sections: the sections, in order and without gaps.
  """

  seed: int
  index: int
  seconds: float
  tempo_bpm: float
  mode: str
  tonic: str
  energy: float
  style: str
  start_beat: float
  sections: tuple[Section, ...]

  @property
  def seconds_per_beat(self) -> float:
    return 60.0 / self.tempo_bpm

  @property
  def num_bars(self) -> int:
    """Bars that the clip touches, the broken first and last ones included."""
    last = self.sections[-1]
    return last.first_bar + last.num_bars

  def seconds_at(self, beat: float | np.ndarray) -> float | np.ndarray:
    """Seconds since the start of the clip at beats counted from bar 0."""
    return (beat - self.start_beat) * self.seconds_per_beat

  def beat_at(self, seconds: float | np.ndarray) -> float | np.ndarray:
    """Beats counted from the start of bar 0, at seconds of the clip."""
    return seconds / self.seconds_per_beat + self.start_beat

  def beat_seconds(self) -> np.ndarray:
    """Times of the beats within the clip, float64 `[beats]`, in seconds."""
    first = math.ceil(self.start_beat - 1e-9)
    beats = np.arange(first, self.num_bars * BEATS_PER_BAR)
    times = self.seconds_at(beats)
    return times[times < self.seconds]

  def section_at_bar(self, bar: int) -> Section:
    """The section that a bar belongs to; the last one after the end."""
    for section in self.sections:
      if bar < section.first_bar + section.num_bars:
        return section
    return self.sections[-1]

  def to_dict(self) -> dict:
    """Plain values, ready for JSON."""
    return dataclasses.asdict(self)


def generator(seed: int, index: int, purpose: str) -> np.random.Generator:
  """Random numbers of one clip for one purpose.

  Args:
    seed: seed of the dataset, not negative.
    index: number of the clip, not negative.
    purpose: `attributes`, `music`, `scene` or `caption`. Each has its own
      numbers, so that a change of the scene leaves the music as it was.

  Returns:
    A generator that depends on the three and on nothing else.
  """
  return np.random.default_rng([seed, index, _SALT[purpose]])


def split(index: int) -> str:
  """The split of a clip: `train` (90 %), `validation` or `test` (5 % each)."""
  return _SPLIT_OF_REMAINDER.get(index % _SPLIT_PERIOD, 'train')


def sample(seed: int, index: int, seconds: float = 16.0) -> Attributes:
  """Draws the attributes of a clip.

  Args:
    seed: seed of the dataset, not negative.
    index: number of the clip, not negative.
    seconds: length of the clip, more than 0.

  Returns:
    The attributes; tempo, mode, tonic, style and energy are independent.

  Raises:
    ValueError: a negative seed or index, or no length.
  """
  if seed < 0 or index < 0 or not seconds > 0:
    raise ValueError(
      f'clip {index} of seed {seed}, {seconds:g} s long: expected a seed and '
      'an index of at least 0 and a length of more than 0 s.'
    )
  rng = generator(seed, index, 'attributes')
  # Uniform in the logarithm: as many clips per ratio at 80 as at 140.
  tempo = math.exp(
    rng.uniform(math.log(MIN_TEMPO_BPM), math.log(MAX_TEMPO_BPM))
  )
  mode = MODES[rng.integers(len(MODES))]
  tonic = TONICS[rng.integers(len(TONICS))]
  style = STYLES[rng.integers(len(STYLES))]
  start_beat = float(rng.uniform(0, BEATS_PER_BAR))
  base_energy = float(rng.uniform(0, 1))
  bars = math.ceil((start_beat + seconds * tempo / 60) / BEATS_PER_BAR + 1e-9)
  sections = _sample_sections(rng, bars, base_energy, seconds)
  attributes = Attributes(
    seed, index, seconds, tempo, mode, tonic, 0.0, style, start_beat, sections
  )
  return dataclasses.replace(attributes, energy=_mean_energy(attributes))


def _mean_energy(attributes: Attributes) -> float:
  """Energy of the sections, weighted by their time within the clip."""
  total = 0.0
  for section in attributes.sections:
    first = section.first_bar * BEATS_PER_BAR
    last = first + section.num_bars * BEATS_PER_BAR
    start = max(0.0, attributes.seconds_at(first))
    end = min(attributes.seconds, attributes.seconds_at(last))
    total += section.energy * max(0.0, end - start)
  return total / attributes.seconds


def _sample_sections(
  rng: np.random.Generator, num_bars: int, base_energy: float, seconds: float
) -> tuple[Section, ...]:
  """Cuts the bars into sections and draws what each of them plays."""
  scale = max(1, round(seconds / _SECONDS_PER_SECTION))
  wanted = sum(
    int(rng.choice((1, 2, 3), p=(0.35, 0.45, 0.2))) for _ in range(scale)
  )
  # Sections start at even bars: phrases have two bars.
  places = np.arange(2, num_bars - 1, 2)
  count = min(wanted - 1, len(places))
  starts = [0, *sorted(rng.choice(places, count, replace=False).tolist())]
  ends = [*starts[1:], num_bars]
  sections = []
  energy = base_energy
  loop = int(rng.integers(4))
  for start, end in zip(starts, ends, strict=True):
    if start:
      # A change that is meant to be noticed: up or down by a clear step.
      step = float(rng.uniform(0.2, 0.4)) * int(rng.choice((-1, 1)))
      energy = energy + step if 0 <= energy + step <= 1 else energy - step
      if rng.uniform() < 0.6:
        loop = (loop + int(rng.integers(1, 4))) % 4
    layers = tuple(
      name
      for name, chance in (('melody', 0.8), ('arpeggio', 0.7), ('pad', 0.6))
      if rng.uniform() < chance
    )
    sections.append(Section(start, end - start, energy, loop, layers))
  return tuple(sections)
