"""What every network that hears asks of a waveform."""

import numpy as np

Array = np.ndarray


def check(waveform: Array) -> Array:
  """Checks a batch of waveforms before a network hears them.

  Args:
    waveform: `[batch, samples]`, about [-1, 1].

  Returns:
    The same as float32.

  Raises:
    ValueError: it has another rank, holds no sample or is not finite.
  """
  waveform = np.asarray(waveform, np.float32)
  if waveform.ndim != 2:
    raise ValueError(
      f'Waveform of shape {waveform.shape}, expected [batch, samples]. '
      'Mix to mono and add the batch dimension.'
    )
  if not waveform.shape[1]:
    raise ValueError(
      'Waveform of 0 samples, expected at least one. Leave the clip out.'
    )
  if not np.isfinite(waveform).all():
    raise ValueError(
      'Waveform holds NaN or infinity, expected finite samples in about '
      '[-1, 1]. Decode the file again or leave the clip out.'
    )
  return waveform


def cut(waveform: Array, window: int, hop: float) -> Array:
  """Cuts a clip into windows.

  Args:
    waveform: float32 `[samples]`. One shorter than a window is followed by
      silence; what is left behind the last whole window is left out.
    window: samples of a window.
    hop: samples from one window to the next; need not be whole.

  Returns:
    float32 `[windows, window]`, at least one.
  """
  waveform = np.pad(waveform, (0, max(0, window - len(waveform))))
  count = 1 + int((len(waveform) - window) / hop + 1e-6)
  starts = np.rint(np.arange(count) * hop).astype(int)
  starts = starts[starts <= len(waveform) - window]  # rounded beyond the end
  return np.stack([waveform[start : start + window] for start in starts])
