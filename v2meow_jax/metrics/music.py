"""Music quality: do generated clips measure like real music?"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from v2meow_jax.metrics import base
from v2meow_jax.metrics import descriptors

# The spread of the real clips.
SPREAD = (0.05, 0.95)
_MIN_CLIPS = 5
# A quarter more clips may lie outside than of real clips do.
_MIN_SHARE_INSIDE = 0.65


@dataclasses.dataclass(frozen=True)
class Quantity:
  """One of the quantities that are compared.

  Attributes:
    name: attribute of `descriptors.Description`.
    label: what a table calls it.
    unit: its unit, or ''.
    digits: decimals in a table.
    is_judged: whether it should lie within the spread of real clips. What the
      last step of generation sets on purpose is stated only.
  """

  name: str
  label: str
  unit: str
  digits: int
  is_judged: bool = True


QUANTITIES = (
  Quantity('spectral_flatness_db', 'spectral flatness', 'dB', 1),
  Quantity('pulse_clarity', 'pulse clarity', '', 2),
  Quantity('key_clarity', 'key clarity', '', 2),
  Quantity('onset_rate_hz', 'note onsets', '/s', 2),
  Quantity('loudness_range_lu', 'loudness range', 'LU', 1),
  Quantity('clipping_share', 'clipped samples', '', 4),
  Quantity('silence_share', 'silence', '', 3),
  Quantity('loudness_lufs', 'loudness', 'LUFS', 1, is_judged=False),
)


class MusicQuality(base.Metric):
  """Compares the descriptions of generated and of real clips.

  The clips need not be pairs, nor of the same number.
  """

  def __init__(self):
    self._tables = {'real': base.ClipTable(), 'generated': base.ClipTable()}

  def update(
    self, clip_id: str, kind: str, description: descriptors.Description
  ) -> None:
    """Adds a clip.

    Args:
      clip_id: unique among its kind.
      kind: 'real' or 'generated'.
      description: what was heard in it.

    Raises:
      ValueError: another kind, or the same clip twice.
    """
    if kind not in self._tables:
      raise ValueError(
        f'Kind of clip `{clip_id}` is `{kind}`, expected one of '
        f'{", ".join(self._tables)}.'
      )
    self._tables[kind].add(clip_id, description)

  def merge(self, other: 'MusicQuality') -> None:
    for kind, table in self._tables.items():
      table.merge(other._tables[kind])

  def result(self) -> dict:
    """Compares median and spread of each of `QUANTITIES`.

    Returns:
      `num_real`, `num_generated`, and `quantities`: by name `label`, `unit`,
      `digits`, `is_judged`; `real` and `generated`, each with `median`, `low`
      and `high` (5 % and 95 % quantiles); `share_inside`, the share of
      generated clips in the spread of the real ones, 0.9 where both are the
      same; and `is_inside`: the median lies in it and so do 65 % of the clips.

    Raises:
      ValueError: fewer than five clips of a kind.
    """
    rows = {kind: table.sorted_rows() for kind, table in self._tables.items()}
    for kind, clips in rows.items():
      if len(clips) < _MIN_CLIPS:
        raise ValueError(
          f'{len(clips)} {kind} clips, expected at least {_MIN_CLIPS} for a '
          'spread. Add clips.'
        )
    return {
      'num_real': len(rows['real']),
      'num_generated': len(rows['generated']),
      'quantities': {
        quantity.name: _compare(quantity, rows['real'], rows['generated'])
        for quantity in QUANTITIES
      },
    }


def _compare(
  quantity: Quantity,
  real: Sequence[descriptors.Description],
  generated: Sequence[descriptors.Description],
) -> dict:
  values = [
    np.array([getattr(clip, quantity.name) for clip in clips], np.float64)
    for clips in (real, generated)
  ]
  summaries = []
  for array in values:
    low, median, high = np.quantile(array, (SPREAD[0], 0.5, SPREAD[1]))
    summaries.append({'median': median, 'low': low, 'high': high})
  spread, made = summaries
  inside = (values[1] >= spread['low']) & (values[1] <= spread['high'])
  share = float(inside.mean())
  return {
    **dataclasses.asdict(quantity),
    'real': {key: float(value) for key, value in spread.items()},
    'generated': {key: float(value) for key, value in made.items()},
    'share_inside': share,
    'is_inside': bool(
      spread['low'] <= made['median'] <= spread['high']
      and share >= _MIN_SHARE_INSIDE
    ),
  }
