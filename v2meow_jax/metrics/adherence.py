"""Adherence: does the music follow the video's tempo, mode and energy?

What the video is about is known; what the music does is heard by analysis of
the waveform. The same music held against other videos is the control, and the
real music of the videos the ceiling: it shows what analysis gets wrong.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np
import scipy.stats

from v2meow_jax.metrics import base
from v2meow_jax.metrics import descriptors
from v2meow_jax.metrics import intervals
from v2meow_jax.metrics import rhythm

MODES = ('major', 'minor')
# A tempo within 4 % is right, as in the tempo estimation task of MIREX.
TEMPO_TOLERANCE = 0.04
# Centre and spread of each part of energy over real music (150 training clips
# of the toy dataset): fixed, so that a clip's energy depends on no other clip.
_ENERGY_PARTS = {
  'onset_density': (0.82, 0.37),
  'onset_rise': (1.00, 0.13),
  'centroid': (10.38, 0.40),
  'percussiveness': (0.389, 0.032),
}


@dataclasses.dataclass(frozen=True)
class Attributes:
  """What is known of a video.

  Attributes:
    tempo_bpm: beats per minute.
    mode: 'major' or 'minor'.
    energy: 0 to 1.
    beat_seconds: times of the beats; none if they are not known.
  """

  tempo_bpm: float
  mode: str
  energy: float
  beat_seconds: tuple[float, ...] = ()


def parse_attributes(values: Mapping) -> Attributes:
  """Reads the attributes of a clip of a manifest.

  Args:
    values: the JSON object with `tempo_bpm`, `mode` and `energy`. Beats are
      known where `seconds` (length of the clip) and `start_beat` (beats since
      the first of a bar where the clip starts) are, too.

  Returns:
    The attributes.

  Raises:
    ValueError: one is missing or out of its range.
  """
  missing = [
    name for name in ('tempo_bpm', 'mode', 'energy') if name not in values
  ]
  if missing:
    raise ValueError(
      f'no attribute {", ".join(missing)}, expected tempo_bpm, mode and '
      'energy. Add it to the column `attributes` of the manifest.'
    )
  if values['mode'] not in MODES:
    raise ValueError(
      f'mode is `{values["mode"]}`, expected {" or ".join(MODES)}.'
    )
  tempo, energy = values['tempo_bpm'], values['energy']
  if not (_is_number(tempo) and tempo > 0):
    raise ValueError(f'tempo_bpm is {tempo}, expected a number above 0.')
  if not (_is_number(energy) and 0 <= energy <= 1):
    raise ValueError(f'energy is {energy}, expected a number from 0 to 1.')
  beats = ()
  if 'start_beat' in values and 'seconds' in values:
    first = math.ceil(values['start_beat'] - 1e-9) - values['start_beat']
    beats = np.arange(first * 60 / tempo, values['seconds'], 60 / tempo)
  return Attributes(tempo, values['mode'], energy, tuple(map(float, beats)))


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)


def energy_parts(clip: descriptors.Description) -> dict[str, float]:
  """Returns the parts of what makes music sound energetic, each about 0 +- 1.

  Level is none of them: every clip is played at the same loudness. Notes are
  counted per beat, so that a fast tempo alone is no energy.
  """
  onsets_per_beat = clip.onset_rate_hz * 60 / clip.tempo_bpm
  values = {
    'onset_density': math.log2(onsets_per_beat + 0.25),
    'onset_rise': clip.onset_rise_db,
    'centroid': math.log2(max(clip.spectral_centroid_hz, 20.0)),
    'percussiveness': clip.percussiveness,
  }
  return {
    name: (values[name] - centre) / spread
    for name, (centre, spread) in _ENERGY_PARTS.items()
  }


def energy(clip: descriptors.Description) -> float:
  """Energy as it is heard: the mean of `energy_parts`, without unit."""
  return float(np.mean(list(energy_parts(clip).values())))


@dataclasses.dataclass(frozen=True)
class Measure:
  """One measure of adherence.

  Attributes:
    name: its name.
    label: what a table calls it.
    digits: decimals in a table.
    higher_is_better: or lower.
    is_part: whether it only explains another one.
  """

  name: str
  label: str
  digits: int = 2
  higher_is_better: bool = True
  is_part: bool = False


MEASURES = (
  Measure('tempo_accuracy', 'tempo within 4 % (share of clips)'),
  Measure('tempo_error', 'tempo error (mean, %)', 1, higher_is_better=False),
  Measure('tempo_correlation', 'tempo, circular correlation of octaves'),
  Measure('mode_accuracy', 'major or minor right (share of clips)'),
  Measure('mode_separation', 'major scored above minor (share of pairs)'),
  Measure('energy_correlation', 'energy, rank correlation'),
  *(
    Measure(f'energy_{part}', f'- {label}', is_part=True)
    for part, label in (
      ('onset_density', 'note onsets per beat'),
      ('onset_rise', 'rise of the spectrum'),
      ('centroid', 'spectral centroid'),
      ('percussiveness', 'percussiveness'),
    )
  ),
  Measure(
    'beat_alignment', "onsets at the video's beats (standard deviations)"
  ),
  Measure('beat_contrast', '- less those half a beat later', is_part=True),
)


class Adherence(base.Metric):
  """Music against what is known of the videos it was made for."""

  def __init__(self):
    self._table = base.ClipTable()

  def update(
    self,
    clip_id: str,
    description: descriptors.Description,
    attributes: Attributes,
  ) -> None:
    """Adds a clip.

    Args:
      clip_id: unique name.
      description: what was heard in its music.
      attributes: what is known of its video.

    Raises:
      ValueError: the same clip twice.
    """
    self._table.add(clip_id, (description, attributes))

  def merge(self, other: 'Adherence') -> None:
    self._table.merge(other._table)

  def result(self, num_draws: int = 2000, seed: int = 0) -> dict:
    """Computes all measures.

    Args:
      num_draws: draws of the bootstrap, and shuffles of the control.
      seed: of both.

    Returns:
      `num_clips`, and `measures`: by name `label`, `digits`,
      `higher_is_better`, `is_part`; `value`, `low` and `high`, the measure with
      its 95 % interval; `shuffled`, the same of the music against other
      videos; `p_value`, the share of shuffles that are as good; and
      `is_apart`: better than shuffled, and the intervals do not touch. A
      measure that the attributes do not allow is left out.

    Raises:
      ValueError: fewer than three clips.
    """
    clips = self._table.sorted_rows()
    intervals.check_count(len(clips))
    statistics = _statistics(*zip(*clips, strict=True))
    return {
      'num_clips': len(clips),
      'measures': {
        measure.name: _result(
          measure, statistics[measure.name], len(clips), num_draws, seed
        )
        for measure in MEASURES
        if measure.name in statistics
      },
    }


def _result(
  measure: Measure,
  statistic: intervals.Statistic,
  num_clips: int,
  num_draws: int,
  seed: int,
) -> dict:
  rng = np.random.default_rng(seed)
  own = intervals.bootstrap(statistic, num_clips, num_draws, rng)
  other, shuffles = intervals.shuffled(statistic, num_clips, num_draws, rng)
  if measure.higher_is_better:
    is_apart = own.low > other.high
    as_good = np.sum(shuffles >= own.value)
  else:
    is_apart = own.high < other.low
    as_good = np.sum(shuffles <= own.value)
  return {
    **dataclasses.asdict(measure),
    **dataclasses.asdict(own),
    'shuffled': dataclasses.asdict(other),
    'p_value': float((1 + as_good) / (1 + num_draws)),
    'is_apart': bool(is_apart),
  }


def _statistics(
  heard: Sequence[descriptors.Description], known: Sequence[Attributes]
) -> dict[str, intervals.Statistic]:
  """Makes the statistic of each measure that the attributes allow."""
  tempo = np.array([clip.tempo_bpm for clip in heard])
  true_tempo = np.array([video.tempo_bpm for video in known])
  mode = np.array([clip.mode_score for clip in heard])
  is_major = np.array([video.mode == 'major' for video in known])
  true_energy = np.array([video.energy for video in known])
  error = lambda i, j: rhythm.octave_error(tempo[i], true_tempo[j])
  statistics = {
    'tempo_accuracy': lambda i, j: np.mean(
      error(i, j) < math.log2(1 + TEMPO_TOLERANCE), axis=-1
    ),
    'tempo_error': lambda i, j: np.mean(100 * (2 ** error(i, j) - 1), axis=-1),
    'tempo_correlation': lambda i, j: _circular_correlation(
      2 * np.pi * np.log2(tempo)[i], 2 * np.pi * np.log2(true_tempo)[j]
    ),
    # No telling is half right.
    'mode_accuracy': lambda i, j: np.mean(
      0.5 + 0.5 * np.sign(mode[i]) * np.where(is_major[j], 1, -1), axis=-1
    ),
    'mode_separation': lambda i, j: _separation(mode[i], is_major[j]),
  }
  parts = [energy_parts(clip) for clip in heard]
  energies = {'correlation': np.array([energy(clip) for clip in heard])}
  energies |= {
    name: np.array([part[name] for part in parts]) for name in _ENERGY_PARTS
  }
  for name, values in energies.items():
    statistics[f'energy_{name}'] = lambda i, j, values=values: (
      _rank_correlation(values[i], true_energy[j])
    )
  if all(video.beat_seconds for video in known):
    on_beat = _beat_scores(heard, known, 0.0)
    contrast = on_beat - _beat_scores(heard, known, 0.5)
    statistics['beat_alignment'] = lambda i, j: on_beat[i, j].mean(axis=-1)
    statistics['beat_contrast'] = lambda i, j: contrast[i, j].mean(axis=-1)
  return statistics


def _beat_scores(
  heard: Sequence[descriptors.Description],
  known: Sequence[Attributes],
  shift_beats: float,
) -> np.ndarray:
  """Mean onset strength of each music at the beats of each video.

  Args:
    heard: descriptions of the music, n.
    known: attributes of the videos, n.
    shift_beats: how much later to look, in beats of the video.

  Returns:
    float64 `[n, n]`, music x video, in standard deviations (see
    `rhythm.beat_profile`).
  """
  scores = np.zeros((len(heard), len(known)))
  profiles = [rhythm.beat_profile(clip.onset_envelope) for clip in heard]
  for j, video in enumerate(known):
    shift = shift_beats * 60 / video.tempo_bpm
    times = np.round((np.array(video.beat_seconds) + shift) * rhythm.RATE_HZ)
    for i, profile in enumerate(profiles):
      within = times[times < len(profile)].astype(int)
      scores[i, j] = profile[within].mean() if within.size else 0.0
  return scores


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Pearson correlation over the last axis; NaN where one is constant."""
  x = x - x.mean(axis=-1, keepdims=True)
  y = y - y.mean(axis=-1, keepdims=True)
  scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
  covariance = (x * y).sum(axis=-1)
  return np.divide(
    covariance, scale, out=np.full_like(scale, np.nan), where=scale > 1e-12
  )


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Spearman correlation over the last axis."""
  return _correlation(
    scipy.stats.rankdata(x, axis=-1), scipy.stats.rankdata(y, axis=-1)
  )


def _circular_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Correlation of angles over the last axis.

  That of Fisher and Lee, "A correlation coefficient for circular data" (1983):
  the sines of the differences of all pairs. It has no edge at which an octave
  starts again and no mean that angles all around would not have.
  """
  sums = lambda z: np.abs(np.exp(2j * z).sum(axis=-1)) ** 2
  both = np.abs(np.exp(1j * (x - y)).sum(axis=-1)) ** 2
  mirrored = np.abs(np.exp(1j * (x + y)).sum(axis=-1)) ** 2
  count = x.shape[-1] ** 2
  scale = np.sqrt(np.maximum((count - sums(x)) * (count - sums(y)), 0.0))
  return np.divide(
    both - mirrored, scale, out=np.full_like(scale, np.nan), where=scale > 1e-9
  )


def _separation(score: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
  """Share of pairs of clips that are in order: the area under the ROC curve."""
  ranks = scipy.stats.rankdata(score, axis=-1)
  num_positive = is_positive.sum(axis=-1)
  num_negative = is_positive.shape[-1] - num_positive
  pairs = (num_positive * num_negative).astype(np.float64)
  above = (ranks * is_positive).sum(axis=-1)
  above = above - num_positive * (num_positive + 1) / 2
  return np.divide(
    above, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0
  )
