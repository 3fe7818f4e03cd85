"""Cutting a clip into windows."""

import numpy as np
import pytest

from v2meow_jax import waveforms


@pytest.mark.parametrize(
  'num_samples, window, hop, starts',
  [
    (1, 10, 10, [0]),
    (10, 10, 10, [0]),
    (19, 10, 10, [0]),  # what is no whole window is left out
    (20, 10, 10, [0, 10]),
    (25, 10, 5, [0, 5, 10, 15]),
    (25, 10, 2.5, [0, 2, 5, 8, 10, 12, 15]),
    (16, 10, 10 / 3, [0, 3]),
  ],
)
def test_windows(num_samples, window, hop, starts):
  waveform = np.arange(1, num_samples + 1, dtype=np.float32)
  found = waveforms.cut(waveform, window, hop)
  padded = np.pad(waveform, (0, window))
  expected = [padded[start : start + window] for start in starts]
  np.testing.assert_array_equal(found, expected)
