"""Level: loudness and its range, clipping, silence.

Loudness is that of ITU-R BS.1770-4 (`loudness.measure`), its range that
of EBU Tech 3342.
"""

import numpy as np
import scipy.signal

from v2meow_jax import loudness

# What a clip without any sound has: the absolute gate of BS.1770.
SILENCE_LUFS = -70.0
_SHORT_TERM_SECONDS, _SHORT_TERM_HOP_SECONDS = 3.0, 0.1
_RELATIVE_GATE_LU = -20.0
_LOW, _HIGH = 0.10, 0.95
_FULL_SCALE = 0.999
_CLIPPED_RUN = 3
_SILENT_BLOCK_SECONDS = 0.05
_SILENT_DB = -60.0


def _block_powers(
  waveform: np.ndarray, sample_rate_hz: int, seconds: float, hop_seconds: float
) -> np.ndarray:
  """Mean power of overlapping blocks; one block if the clip is shorter."""
  size = min(round(seconds * sample_rate_hz), len(waveform))
  hop = round(hop_seconds * sample_rate_hz)
  total = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=float))])
  starts = np.arange(0, len(waveform) - size + 1, hop)
  return np.maximum(total[starts + size] - total[starts], 0.0) / size


def integrated(waveform: np.ndarray, sample_rate_hz: int) -> float:
  """Integrated loudness of float32 `[samples]` in LUFS, at least -70."""
  return max(SILENCE_LUFS, loudness.measure(waveform, sample_rate_hz))


def loudness_range(waveform: np.ndarray, sample_rate_hz: int) -> float:
  """Measures how much the loudness varies (EBU Tech 3342).

  Args:
    waveform: float32 `[samples]`.
    sample_rate_hz: its rate.

  Returns:
    LU: the distance of the 10 % and 95 % quantiles of the loudness of 3 s
    each, of what is not silent; 0 for a clip of 3 s and less.
  """
  weighted = scipy.signal.sosfilt(
    loudness.k_weighting(sample_rate_hz), waveform
  )
  powers = _block_powers(
    weighted, sample_rate_hz, _SHORT_TERM_SECONDS, _SHORT_TERM_HOP_SECONDS
  )
  levels = -0.691 + 10 * np.log10(np.maximum(powers, 1e-12))
  heard = levels > SILENCE_LUFS
  if not heard.any():
    return 0.0
  gate = -0.691 + 10 * np.log10(powers[heard].mean()) + _RELATIVE_GATE_LU
  low, high = np.quantile(levels[heard & (levels > gate)], (_LOW, _HIGH))
  return float(high - low)


def clipping_share(waveform: np.ndarray) -> float:
  """Share of samples, 0 to 1, in runs of three or more at full scale.

  Args:
    waveform: float32 `[samples]` as in the file: resampling hides clipping.
  """
  clipped = np.concatenate([[False], np.abs(waveform) >= _FULL_SCALE, [False]])
  edges = np.flatnonzero(clipped[1:] != clipped[:-1])
  lengths = edges[1::2] - edges[::2]
  return float(lengths[lengths >= _CLIPPED_RUN].sum() / len(waveform))


def silence_share(waveform: np.ndarray, sample_rate_hz: int) -> float:
  """Share of blocks of 50 ms, 0 to 1, with a level below -60 dB of full scale.

  Args:
    waveform: float32 `[samples]`.
    sample_rate_hz: its rate.
  """
  powers = _block_powers(
    waveform, sample_rate_hz, _SILENT_BLOCK_SECONDS, _SILENT_BLOCK_SECONDS
  )
  return float(np.mean(powers < 10 ** (_SILENT_DB / 10)))
