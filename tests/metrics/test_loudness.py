import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax.metrics import loudness


def test_integrated_loudness_of_the_reference_tone():
  # BS.1770: a 0 dB 997 Hz sine in one channel reads -3.01 LUFS.
  tone = signals.tone(5, 997.0, 1.0)
  assert loudness.integrated(tone, 16000) == pytest.approx(-3.01, abs=0.05)


def test_integrated_loudness_of_silence():
  assert loudness.integrated(np.zeros(80000, np.float32), 16000) == -70.0


def test_loudness_range_of_ebu_test_signals():
  # EBU Tech 3342, minimum requirements, cases 1 and 2: tones at two levels.
  def two(first_db, second_db):
    parts = [
      signals.tone(20, 1000.0, 10 ** (db / 20)) for db in (first_db, second_db)
    ]
    return loudness.loudness_range(np.concatenate(parts), 16000)

  assert two(-20, -30) == pytest.approx(10, abs=1)
  assert two(-20, -15) == pytest.approx(5, abs=1)


def test_loudness_range_is_from_the_10_to_the_95_percent_quantile():
  # Even from -30 to -10 dB in 60 s; the windows of 3 s see 57 s of it.
  level = 10 ** (np.linspace(-30, -10, 60 * 16000) / 20)
  sound = (level * signals.tone(60, 1000.0, 1.0)).astype(np.float32)
  expected = 20 * (57 / 60) * (0.95 - 0.10)
  assert loudness.loudness_range(sound, 16000) == pytest.approx(
    expected, abs=0.1
  )


def test_loudness_range_of_steady_short_and_silent_sound():
  assert loudness.loudness_range(signals.tone(10), 16000) < 0.01
  assert loudness.loudness_range(signals.noise(2), 16000) == 0.0
  assert loudness.loudness_range(np.zeros(80000, np.float32), 16000) == 0.0


def test_clipping_share_counts_runs_at_full_scale():
  sound = np.zeros(1000, np.float32)
  sound[10:15] = 1.0
  sound[100:103] = -1.0
  sound[200:202] = 1.0  # a peak, no run
  assert loudness.clipping_share(sound) == pytest.approx(8 / 1000)
  assert loudness.clipping_share(0.99 * sound) == 0.0


def test_silence_share():
  sound = np.concatenate([signals.noise(3), np.zeros(16000, np.float32)])
  assert loudness.silence_share(sound, 16000) == pytest.approx(0.25)
  assert loudness.silence_share(signals.noise(2, level=1e-4), 16000) == 1.0
