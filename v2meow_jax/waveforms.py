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
