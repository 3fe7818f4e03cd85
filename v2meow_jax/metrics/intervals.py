"""How sure a number is: bootstrap over clips, shuffled pairs as control.

A statistic is a function of two integer arrays `[draws, clips]`, the clips
whose music is heard and the clips whose video it is held against, to float
`[draws]`. Its value is that of every clip against its own video.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]

CONFIDENCE = 0.95
_MIN_CLIPS = 3
# Draws that are computed together, so that memory stays small.
_BATCH = 250


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number and the interval that holds it in 95 % of all repetitions.

  Attributes:
    value: the number.
    low: lower end.
    high: upper end.
  """

  value: float
  low: float
  high: float


def _evaluate(
  statistic: Statistic, music: np.ndarray, video: np.ndarray
) -> np.ndarray:
  """Statistic of many draws; NaN where it is not defined."""
  batches = range(0, len(music), _BATCH)
  return np.concatenate(
    [statistic(music[b : b + _BATCH], video[b : b + _BATCH]) for b in batches]
  )


def _estimate(value: float, draws: np.ndarray) -> Estimate:
  draws = draws[~np.isnan(draws)]
  if not draws.size:
    return Estimate(float(value), float('nan'), float('nan'))
  tail = (1 - CONFIDENCE) / 2
  low, high = np.quantile(draws, (tail, 1 - tail))
  return Estimate(float(value), float(low), float(high))


def check_count(num_clips: int) -> None:
  """Raises ValueError if there are too few clips for an interval."""
  if num_clips < _MIN_CLIPS:
    raise ValueError(
      f'{num_clips} clips, expected at least {_MIN_CLIPS}. Add clips: 95 % '
      'intervals are narrow from about 100 on.'
    )


def bootstrap(
  statistic: Statistic,
  num_clips: int,
  num_draws: int,
  rng: np.random.Generator,
) -> Estimate:
  """Draws clips with replacement (percentile bootstrap, Efron 1979).

  Args:
    statistic: what is measured.
    num_clips: number of clips.
    num_draws: number of draws.
    rng: source of the draws.

  Returns:
    The statistic of the clips, each against its own video.

  Raises:
    ValueError: too few clips.
  """
  check_count(num_clips)
  own = np.arange(num_clips)[np.newaxis]
  drawn = rng.integers(num_clips, size=(num_draws, num_clips))
  return _estimate(statistic(own, own)[0], _evaluate(statistic, drawn, drawn))


def shuffled(
  statistic: Statistic,
  num_clips: int,
  num_draws: int,
  rng: np.random.Generator,
) -> tuple[Estimate, np.ndarray]:
  """Holds the music of clips against the videos of other clips.

  Each shuffle pairs every clip with another one, at random and no clip with
  itself.

  Args:
    statistic: what is measured.
    num_clips: number of clips.
    num_draws: number of shuffles.
    rng: source of the shuffles.

  Returns:
    The mean of the statistic over shuffles, with the interval that holds 95 %
    of them (what a model that does not see its video gets with as many clips),
    and the statistic of each shuffle, float `[draws]`.

  Raises:
    ValueError: too few clips.
  """
  check_count(num_clips)
  # Everyone takes the next one in a random circle.
  circles = rng.permuted(np.tile(np.arange(num_clips), (num_draws, 1)), axis=1)
  partners = np.empty_like(circles)
  np.put_along_axis(partners, circles, np.roll(circles, -1, axis=1), axis=1)
  own = np.broadcast_to(np.arange(num_clips), partners.shape)
  shuffles = _evaluate(statistic, own, partners)
  defined = shuffles[~np.isnan(shuffles)]
  mean = defined.mean() if defined.size else np.nan
  return _estimate(mean, shuffles), shuffles
