"""Loudness: measured as the standard says, and set while sound is made."""

import numpy as np
import pytest

from tests.references import loudness as references
from v2meow_jax import loudness


def _sine(dbfs, seconds, rate=48000, hz=997.0):
  time = np.arange(round(seconds * rate)) / rate
  return (10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def _stereo(*parts):
  mono = np.concatenate(parts)
  return np.stack([mono, mono], axis=1)


def _bursts(rate=16000, seconds=6):
  """Decaying notes, every fourth one three times as loud."""
  rng = np.random.default_rng(0)
  samples = np.zeros(seconds * rate, np.float32)
  decay = np.exp(-np.arange(rate) / (0.08 * rate))
  for start in range(0, len(samples), rate // 2):
    note = decay * _sine(0, 1, rate, rng.uniform(100, 2000))
    note *= 1 if start % (2 * rate) else 3
    samples[start : start + rate] += note[: len(samples) - start]
  return 0.05 * samples


def test_k_weighting_is_the_standard_s_at_48_khz():
  shelf, high_pass = loudness.k_weighting(48000)
  b0, b1, b2, a1, a2 = references.SHELF
  np.testing.assert_allclose(shelf, [b0, b1, b2, 1, a1, a2], atol=1e-12)
  b0, b1, b2, a1, a2 = references.HIGH_PASS
  np.testing.assert_allclose(high_pass, [b0, b1, b2, 1, a1, a2], atol=1e-12)


@pytest.mark.parametrize(
  'rate, tolerance', [(48000, 0.01), (44100, 0.01), (16000, 0.05)]
)
def test_loudness_of_a_sine(rate, tolerance):
  # BS.1770: 0 dBFS at 997 Hz in one channel is -3.01 LUFS, -20 dBFS so -23.01.
  measured = loudness.measure(_sine(-20, 4, rate), rate)
  assert measured == pytest.approx(-23.01, abs=tolerance)
  both = loudness.measure(_stereo(_sine(-20, 4, rate)), rate)
  assert both == pytest.approx(-20.0, abs=tolerance)


@pytest.mark.parametrize(
  'levels, expected',
  [
    # EBU Tech 3341, cases 1 to 5, ten times shorter but for the pauses.
    ([(-23, 2)], -23.0),
    ([(-33, 2)], -33.0),
    ([(-36, 2), (-23, 12), (-36, 2)], -23.0),
    ([(-72, 2), (-36, 2), (-23, 12), (-36, 2), (-72, 2)], -23.0),
    ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
  ],
)
def test_loudness_of_the_ebu_s_cases(levels, expected):
  samples = _stereo(*(_sine(db, s, 16000, 1000) for db, s in levels))
  assert loudness.measure(samples, 16000) == pytest.approx(expected, abs=0.1)


def test_loudness_matches_the_slow_reference(rng):
  swell = np.geomspace(0.001, 0.5, 60000)[:, None]
  samples = (swell * rng.standard_normal((60000, 2))).astype(np.float32)
  expected = references.measure(samples.T.tolist())
  assert loudness.measure(samples, 48000) == pytest.approx(expected, abs=1e-6)


def test_loudness_does_not_depend_on_chunks(rng, monkeypatch):
  samples = rng.standard_normal(50000).astype(np.float32)
  whole = loudness.measure(samples, 16000)
  monkeypatch.setattr(loudness, '_CHUNK', 2000)
  assert loudness.measure(samples, 16000) == pytest.approx(whole, abs=1e-9)


def test_loudness_of_little_and_of_nothing():
  assert loudness.measure(np.zeros(16000), 16000) == -np.inf
  assert loudness.measure(np.zeros(0), 16000) == -np.inf
  short = loudness.measure(_sine(-20, 0.2), 48000)
  assert short == pytest.approx(-23.0, abs=0.5)


def _level(samples, sizes=(None,), rate=16000, **options):
  """The sound of a leveler that gets pieces of these sizes in turn."""
  leveler = loudness.Leveler(rate, **options)
  given, start, turn = [], 0, 0
  while start < len(samples):
    size = sizes[turn % len(sizes)] or len(samples)
    given.append(leveler.push(samples[start : start + size]))
    start, turn = start + size, turn + 1
  given.append(leveler.finish())
  return np.concatenate(given)


def test_short_sound_gets_one_gain():
  samples = _bursts(seconds=4)
  result = _level(samples, target_lufs=-23)
  assert result.dtype == np.float32
  assert result.shape == samples.shape
  assert loudness.measure(result, 16000) == pytest.approx(-23, abs=0.01)
  # No limiting at this loudness.
  gain = result.max() / samples.max()
  np.testing.assert_allclose(result, gain * samples, atol=1e-6)


def test_the_gain_of_long_sound_settles():
  quiet, loud = 0.1 * _bursts(seconds=20), _bursts(seconds=20)
  result = _level(np.concatenate([quiet, loud, quiet]), target_lufs=-23)
  part = lambda a, b: loudness.measure(result[a * 16000 : b * 16000], 16000)
  # At first it knows the quiet part only, then it holds what is loud.
  assert part(0, 10) == pytest.approx(-23, abs=0.2)
  assert part(30, 40) == pytest.approx(-23, abs=0.8)
  assert part(50, 60) < -40
  # 4 s before the loud part its gain has begun to fall, and never jumps.
  leveler = loudness.Leveler(16000, -23)
  leveler.push(np.concatenate([quiet, loud]))
  leveler.finish()
  decibels = 20 * np.log10(leveler.gains)
  assert decibels[150] - decibels[199] > 10
  assert np.abs(np.diff(decibels)).max() < 6.5  # where a gate takes it up


@pytest.mark.parametrize('sizes', [(700,), (64000,), (1, 1599, 1600, 40000)])
def test_pieces_change_nothing(sizes):
  samples = _bursts(seconds=12)[:-777]
  whole = _level(samples)
  np.testing.assert_allclose(_level(samples, sizes), whole, atol=1e-6)


def test_sound_comes_out_after_four_seconds_and_a_half():
  leveler = loudness.Leveler(16000)
  assert len(leveler.push(_bursts(seconds=4))) == 0
  assert len(leveler.push(_bursts(seconds=1))) > 0


def test_peaks_stay_below_full_scale():
  samples = _bursts()
  result = _level(samples)
  unlimited = loudness.measure(samples, 16000)
  peak = np.abs(samples).max() * 10 ** ((-16 - unlimited) / 20)
  assert peak > 1.2  # without the limiter it would clip
  assert np.abs(result).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
  assert np.abs(result).max() <= 10 ** (-1 / 20) + 1e-6
  # What the limiter takes is not made good: -17.3.
  assert loudness.measure(result, 16000) == pytest.approx(-16, abs=1.5)
  # It turns down and does not cut off: no harmonics of a loud sine.
  sine = _sine(-1, 1, 16000, 1000)
  quiet = 1e-3 * sine
  loud = _level(np.concatenate([quiet, sine, quiet]), target_lufs=0)
  spectrum = np.abs(np.fft.rfft(loud[18000:30000] * np.hanning(12000)))
  assert spectrum[2250] < 1e-4 * spectrum[750]


def test_the_limiter_turns_slowly_and_enough(rng):
  samples = rng.uniform(-0.5, 0.5, 3000)
  samples[[700, 1500, 1520]] = 2.0, -3.0, 2.5
  gain = loudness.limit(samples, 0.9, 100)
  assert (gain * np.abs(samples)).max() <= 0.9 + 1e-9
  assert np.abs(np.diff(gain)).max() < 0.7 / 200 + 1e-9
  np.testing.assert_allclose(gain[2000:], 1)
  assert gain[1500] == pytest.approx(0.3, abs=1e-6)


def test_silence_stays_silence():
  silence = np.zeros(100000, np.float32)
  np.testing.assert_array_equal(_level(silence, (30000,)), silence)
  assert len(_level(silence[:0])) == 0
