"""Frames of a long waveform, block by block, in NumPy.

Blocks of frames at a time, so that what is held at once does not grow with the
clip; only the mels do, which are less than the samples.
"""

from collections.abc import Callable

import numpy as np
import scipy  # loads its parts where they are used: a second in all

Array = np.ndarray

_BLOCK = 2000  # frames whose spectra are held at once


def blocks(
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
  made = [
    transform(frames[i : i + _BLOCK]) for i in range(0, len(frames), _BLOCK)
  ]
  return np.concatenate(made).astype(np.float32)


def power(frames: Array, size: int) -> Array:
  """Power spectrum of windowed frames, `[frames, size / 2 + 1]`."""
  spectrum = scipy.fft.rfft(frames, size, axis=1)
  return spectrum.real**2 + spectrum.imag**2
