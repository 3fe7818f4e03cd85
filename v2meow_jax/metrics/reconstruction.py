"""Reconstruction: how near a codec comes to the sound it encoded."""

from collections.abc import Mapping
import dataclasses

import jax
import numpy as np

from v2meow_jax.codecs import losses
from v2meow_jax.metrics import base
from v2meow_jax.metrics import intervals

MEASURES = {
  'si_sdr_db': 'SI-SDR (dB)',
  'snr_db': 'SNR (dB)',
  'spectral_distance': 'spectral distance',
}


@jax.jit
def _measure(reference: jax.Array, estimate: jax.Array) -> dict:
  return {
    'si_sdr_db': losses.si_sdr_db(reference, estimate),
    'snr_db': losses.snr_db(reference, estimate),
    'spectral_distance': losses.spectral_distance(reference, estimate),
  }


class Reconstruction(base.Metric):
  """Distance of decoded from original waveforms, for each way to code them."""

  def __init__(self):
    self._table = base.ClipTable()

  def update(
    self,
    clip_id: str,
    reference: np.ndarray,
    estimates: Mapping[str, np.ndarray],
  ) -> None:
    """Adds a clip.

    Args:
      clip_id: unique name.
      reference: float32 `[samples]` at 16 kHz.
      estimates: the same decoded, by how it was coded, such as the number
        of levels; as long or longer.

    Raises:
      ValueError: a waveform is too short or holds NaN, it was coded in other
        ways than the clips before, or the clip comes twice.
    """
    for row in self._table.rows.values():
      if list(row) != list(estimates):
        raise ValueError(
          f'Clip `{clip_id}` is coded as {", ".join(estimates)}, expected '
          f'{", ".join(row)} as the clips before. Code all clips alike.'
        )
    row = {}
    for name, estimate in estimates.items():
      estimate = estimate[: len(reference)]
      if len(estimate) < len(reference) or not np.isfinite(estimate).all():
        raise ValueError(
          f'Clip `{clip_id}`: {len(estimate)} decoded samples of '
          f'{len(reference)}, expected as many numbers. Check the codec.'
        )
      values = _measure(reference[np.newaxis], estimate[np.newaxis])
      row[name] = {key: float(value[0]) for key, value in values.items()}
    self._table.add(clip_id, row)

  def merge(self, other: 'Reconstruction') -> None:
    self._table.merge(other._table)

  def result(self, num_draws: int = 2000, seed: int = 0) -> dict:
    """Averages over clips.

    Args:
      num_draws: draws of the bootstrap.
      seed: of the bootstrap.

    Returns:
      `num_clips`, and `codings`: by name each of `MEASURES` with its mean
      `value` and 95 % interval `low` to `high`.

    Raises:
      ValueError: fewer than three clips.
    """
    rows = self._table.sorted_rows()
    intervals.check_count(len(rows))
    codings = {}
    for coding in rows[0]:
      codings[coding] = {}
      for name in MEASURES:
        values = np.array([row[coding][name] for row in rows])
        mean = lambda i, _, values=values: values[i].mean(axis=-1)
        estimate = intervals.bootstrap(
          mean, len(rows), num_draws, np.random.default_rng(seed)
        )
        codings[coding][name] = dataclasses.asdict(estimate)
    return {'num_clips': len(rows), 'codings': codings}
