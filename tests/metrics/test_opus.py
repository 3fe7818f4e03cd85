import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax import errors
from v2meow_jax.metrics import opus


def test_round_trip_is_aligned_and_as_near_as_its_bit_rate():
  sound = signals.chords(0, 'major', 0.5, 4)
  snr_db = []
  for kilobits in (8, 48):
    decoded, used = opus.round_trip(sound, 16000, kilobits)
    assert decoded.shape == sound.shape and decoded.dtype == np.float32
    assert used == pytest.approx(kilobits, rel=0.35)
    error = np.mean((decoded - sound) ** 2)
    snr_db.append(10 * np.log10(np.mean(sound**2) / error))
  assert snr_db[1] > snr_db[0] + 3
  assert snr_db[1] > 10  # one sample of delay would undo that


def test_a_rate_that_opus_does_not_take():
  sound = np.zeros(16000, np.float32)
  with pytest.raises(errors.UserError) as error:
    opus.round_trip(sound, 11025, 16)
  assert str(error.value).startswith('Opus at 16 kbit/s and 11025 Hz: ')
  assert str(error.value).endswith('Choose another bit rate.')
