import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax.metrics import descriptors
from v2meow_jax.metrics import rhythm


def _envelope(sound):
  return descriptors.describe(sound, signals.RATE_HZ).onset_envelope


@pytest.mark.parametrize('tempo_bpm', [77.0, 90.0, 106.1, 120.0, 133.3, 147.0])
def test_tempo_of_click_track(tempo_bpm):
  measured = rhythm.tempo(_envelope(signals.click_track(tempo_bpm)))
  assert measured == pytest.approx(tempo_bpm, rel=0.004)  # measured 0.002


@pytest.mark.parametrize('tempo_bpm, folded', [(60, 120), (200, 100)])
def test_tempo_is_folded_into_one_octave(tempo_bpm, folded):
  measured = rhythm.tempo(_envelope(signals.click_track(tempo_bpm)))
  assert measured == pytest.approx(folded, rel=0.004)


def test_tempo_of_syncopated_rhythm_is_that_of_the_bar():
  # Clave: 3 + 3 + 4 + 2 + 4 sixteenths at 110 BPM.
  starts = np.array([0, 3, 6, 10, 12])
  sixteenth = 60 / 110 / 4
  times = np.concatenate([(starts + 16 * bar) * sixteenth for bar in range(6)])
  sound = signals.clicks(times[times < 12], 12.0)
  assert rhythm.tempo(_envelope(sound)) == pytest.approx(110, rel=0.005)


def test_tempo_without_any_onset_is_the_middle():
  assert rhythm.tempo(np.zeros(1000, np.float32)) == pytest.approx(106.066)


def test_tempo_of_short_envelope():
  envelope = _envelope(signals.click_track(120, seconds=2.0))
  assert rhythm.tempo(envelope) == pytest.approx(120, rel=0.02)


def test_octave_error():
  error = rhythm.octave_error([100, 200, 50, 104, 141.42], 100)
  np.testing.assert_allclose(error, [0, 0, 0, 0.05658, 0.5], atol=1e-4)
  assert rhythm.octave_error(149, 75.5) == pytest.approx(0.0192, abs=1e-3)


def test_pulse_clarity_orders_regular_random_and_steady():
  regular = rhythm.pulse_clarity(_envelope(signals.click_track(120)))
  times = np.sort(np.random.default_rng(0).uniform(0, 10, 20))
  irregular = rhythm.pulse_clarity(_envelope(signals.clicks(times, 10.0)))
  hiss = rhythm.pulse_clarity(_envelope(signals.noise(10)))
  steady = rhythm.pulse_clarity(_envelope(signals.tone(10)))
  assert regular > 0.9  # measured 0.98
  assert irregular < 0.4  # measured 0.25
  assert hiss < 0.2  # measured 0.09
  assert steady < 0.02  # measured 1e-4


def test_pulse_clarity_ignores_a_slope_without_a_peak():
  ramp = np.linspace(0, 20, 1000, dtype=np.float32)
  assert rhythm.pulse_clarity(ramp) == 0.0


def test_onset_times_are_those_of_the_clicks():
  wanted = np.array([0.5, 0.9, 1.4, 2.6, 2.8, 4.0, 5.5])
  found = rhythm.onset_times(_envelope(signals.clicks(wanted, 6.5)))
  assert len(found) == len(wanted)
  # The window of a frame reaches 16 ms ahead.
  assert np.abs(found - wanted).max() <= 0.0201  # measured 0.01


def test_onset_times_of_silence_and_of_a_steady_tone():
  assert not len(rhythm.onset_times(_envelope(np.zeros(80000, np.float32))))
  assert len(rhythm.onset_times(_envelope(signals.tone(5)))) <= 1


def test_beat_profile_knows_beats_from_off_beats():
  tempo_bpm, first = 100, 0.25
  envelope = _envelope(signals.click_track(tempo_bpm, first=first))
  profile = rhythm.beat_profile(envelope)
  beats = np.arange(first, 9.5, 60 / tempo_bpm)
  at = lambda times: profile[np.round(times * rhythm.RATE_HZ).astype(int)]
  assert at(beats).min() > 1.0
  assert at(beats + 0.3).max() < 0.0
  assert at(beats + 0.04).min() > 1.0  # within the tolerance of 70 ms
  assert profile.mean() == pytest.approx(0, abs=1e-4)
  assert profile.std() == pytest.approx(1, abs=1e-4)
  np.testing.assert_array_equal(rhythm.beat_profile(np.ones(50)), np.zeros(50))


@pytest.mark.parametrize(
  'name', ['drums_808_120bpm.mp3', 'metronome_120bpm.ogg']
)
def test_tempo_of_real_recordings(shared_data, name):
  from v2meow_jax import audio

  sound = audio.read(str(shared_data / 'music' / name), end_seconds=10)
  description = descriptors.describe(
    sound.to_mono().samples[:, 0], sound.sample_rate_hz
  )
  assert description.tempo_bpm == pytest.approx(120, rel=0.005)
  assert description.pulse_clarity > 0.6
