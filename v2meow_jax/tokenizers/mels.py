"""Log mel spectra that published conformers hear, in NumPy.

Blocks of frames at a time, so that what is held at once does not grow with the
clip; only the mels do, which are less than the samples.
"""

from collections.abc import Callable
import functools

import numpy as np
import scipy  # loads its parts where they are used: a second in all

Array = np.ndarray

_BLOCK = 2000  # frames whose spectra are held at once


@functools.lru_cache
def filters(
  num_bins: int,
  num_mels: int,
  low_hz: float,
  high_hz: float,
  sample_rate_hz: float,
  in_mels: bool,
) -> Array:
  """Triangular filters whose edges are evenly apart on the HTK mel scale.

  Args:
    num_bins: bins of the spectrum, those of 0 Hz and half the rate included.
    num_mels: filters.
    low_hz: lower edge of the first one.
    high_hz: upper edge of the last one.
    sample_rate_hz: of the waveform.
    in_mels: whether the sides are straight over mels, as Kaldi has them, or
      over Hz, as in torchaudio and in librosa with `htk`.

  Returns:
    float32 `[bins, mels]`, each of height 1 at its centre.
  """
  to_mel = lambda hz: 2595 * np.log10(1 + np.asarray(hz) / 700)
  to_hz = lambda mel: 700 * (10 ** (mel / 2595) - 1)
  edges = np.linspace(to_mel(low_hz), to_mel(high_hz), num_mels + 2)
  bins = np.linspace(0, sample_rate_hz / 2, num_bins)
  if in_mels:
    bins = to_mel(bins)
  else:
    edges = to_hz(edges)
  up = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
  down = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
  return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def frame_blocks(
  waveform: Array, window: int, hop: int, transform: Callable[[Array], Array]
) -> Array:
  """Transforms all frames that lie within a waveform, block by block.

  Args:
    waveform: float32 `[samples]`.
    window: samples of a frame.
    hop: samples between frames.
    transform: from `[frames, window]` to `[frames, features]`.

  Returns:
    float32 `[frames, features]`, frames = (samples - window) / hop + 1, rounded
    down.
  """
  frames = np.lib.stride_tricks.sliding_window_view(waveform, window)[::hop]
  blocks = [
    transform(frames[i : i + _BLOCK]) for i in range(0, len(frames), _BLOCK)
  ]
  return np.concatenate(blocks).astype(np.float32)


def power(frames: Array, size: int) -> Array:
  """Power spectrum of windowed frames, `[frames, size / 2 + 1]`."""
  spectrum = scipy.fft.rfft(frames, size, axis=1)
  return spectrum.real**2 + spectrum.imag**2
