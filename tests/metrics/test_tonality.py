import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax.metrics import tonality


@pytest.mark.parametrize('mode', ['major', 'minor'])
@pytest.mark.parametrize('tonic', range(0, 12, 2))
def test_key_of_cadences(tonic, mode):
  classes = tonality.pitch_classes(signals.chords(tonic, mode))
  found, clarity, mode_score = tonality.key(classes)
  assert found == tonic
  assert (mode_score > 0.1) == (mode == 'major')
  assert abs(mode_score) > 0.1
  assert clarity > 0.8


def test_clarity_of_noise_is_far_below_that_of_chords():
  noise = tonality.key(tonality.pitch_classes(signals.noise(8)))[1]
  chords = tonality.key(tonality.pitch_classes(signals.chords(0, 'major')))[1]
  assert noise < 0.6 < 0.85 < chords  # measured 0.47 and 0.95


def test_drums_change_the_mode_little():
  chords = signals.chords(9, 'minor')
  seconds = len(chords) / signals.RATE_HZ
  drums = signals.click_track(120, seconds)[: len(chords)]
  alone = tonality.key(tonality.pitch_classes(chords))[2]
  together = tonality.key(tonality.pitch_classes(chords + drums))[2]
  assert together == pytest.approx(alone, abs=0.1)


def test_pitch_classes_of_a_note():
  classes = tonality.pitch_classes(signals.tone(3, 440.0))
  assert classes.argmax() == 9
  # The weights of what an A may be an overtone of: F and D.
  np.testing.assert_allclose(
    classes[[9, 5, 2, 0]], [1, 0.2, 0.33, 0], atol=0.02
  )


def test_pitch_classes_of_silence():
  np.testing.assert_array_equal(
    tonality.pitch_classes(np.zeros(32000, np.float32)), np.zeros(12)
  )


def test_key_scores_of_a_profile_are_one():
  profile = np.roll(tonality.MINOR, 4)
  scores = tonality.key_scores(profile)
  assert scores[1, 4] == pytest.approx(1)
  assert tonality.key(profile)[0] == 4
  assert tonality.key(profile)[2] < 0
  # Krumhansl (1990): the profiles of C major and A minor correlate by 0.651.
  assert tonality.key_scores(np.array(tonality.MAJOR))[1, 9] == pytest.approx(
    0.651, abs=0.002
  )


def test_no_telling():
  assert tonality.key(np.ones(12)) == (0, 0.0, 0.0)
