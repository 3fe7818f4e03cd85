"""The score of a piece, for the best of several.

The stages know how likely each token is that they drew. A piece's score is the
mean log-likelihood of a token, of each stage alone and then over the stages
that decide what is played, semantic and coarse: the one with more tokens weighs
no more. The fine stage adds detail to it; so the pieces that are not kept need
no fine tokens and no sound.

Pieces of one video can be compared, whatever their seeds; not pieces of other
videos, texts or lengths.
"""

from collections.abc import Mapping, Sequence
import math

import numpy as np

# Of these the score is made.
STAGES = ('semantic', 'coarse')


class Likelihood:
  """Mean log-likelihood of the tokens of a piece, as they are made.

  Memory does not grow with the piece.
  """

  name = 'likelihood'

  def __init__(self):
    self._sums: dict[str, float] = {}
    self._counts: dict[str, int] = {}

  def add(self, stage: str, scores: np.ndarray) -> None:
    """Adds tokens.

    Args:
      stage: what made them.
      scores: `models.Decoded.scores` of these, float32 `[time, levels]`; no
        tokens that were given, and each once.
    """
    total = float(np.sum(scores, dtype=np.float64))
    self._sums[stage] = self._sums.get(stage, 0.0) + total
    self._counts[stage] = self._counts.get(stage, 0) + np.size(scores)

  def parts(self) -> Mapping[str, float]:
    """Nats per token of each stage that has made any."""
    return {
      stage: self._sums[stage] / count
      for stage, count in self._counts.items()
      if count
    }

  def result(self) -> float:
    """The score: nats per token, mean over `STAGES`; higher is better.

    Raises:
      ValueError: no tokens of these were added.
    """
    parts = [part for stage, part in self.parts().items() if stage in STAGES]
    if not parts:
      raise ValueError(
        f'No tokens of the stages {", ".join(STAGES)} were scored, expected '
        'those of a piece. Add them first.'
      )
    return float(np.mean(parts))


def best(scores: Sequence[float]) -> int:
  """Place of the highest score, the first of equal ones.

  Raises:
    ValueError: there are none, or one is no number.
  """
  if not scores or not all(map(math.isfinite, scores)):
    raise ValueError(
      f'Scores are {list(scores)}, expected one number for each piece.'
    )
  return int(np.argmax(scores))
