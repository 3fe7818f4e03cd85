import dataclasses

import librosa
import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax.metrics import descriptors


def test_flatness_of_noise_and_of_a_tone():
  noise = descriptors.describe(signals.noise(5), 16000)
  tone = descriptors.describe(signals.tone(5), 16000)
  # The expected log of a chi-squared spectrum: exp(-0.577) = -2.51 dB.
  assert noise.spectral_flatness_db == pytest.approx(-2.51, abs=0.1)
  assert tone.spectral_flatness_db < -50
  assert noise.spectral_centroid_hz == pytest.approx(4000, rel=0.05)
  assert tone.spectral_centroid_hz == pytest.approx(440, rel=0.02)


def test_percussiveness_orders_clicks_and_tones():
  clicks = descriptors.describe(signals.click_track(120), 16000)
  tone = descriptors.describe(signals.tone(5), 16000)
  assert clicks.percussiveness > 0.5 > 0.05 > tone.percussiveness


def test_onset_rate_is_that_of_the_clicks():
  description = descriptors.describe(signals.click_track(120), 16000)
  assert description.onset_rate_hz == pytest.approx(2.0, abs=0.11)


def test_level_and_rate_change_nothing():
  sound = signals.chords(2, 'minor') + signals.click_track(100, 8.4)
  one = descriptors.describe(sound, 16000)
  quiet = descriptors.describe(0.1 * sound, 16000)
  resampled = descriptors.describe(
    librosa.resample(sound, orig_sr=16000, target_sr=44100), 44100
  )
  for other in (quiet, resampled):
    assert other.tempo_bpm == pytest.approx(one.tempo_bpm, rel=1e-6)
    assert other.tonic == one.tonic == 2
    assert other.mode_score == pytest.approx(one.mode_score, abs=0.01)
    assert other.pulse_clarity == pytest.approx(one.pulse_clarity, abs=0.01)
    assert other.onset_rate_hz == one.onset_rate_hz
    assert other.loudness_range_lu == pytest.approx(
      one.loudness_range_lu, abs=0.05
    )
  assert quiet.loudness_lufs == pytest.approx(one.loudness_lufs - 20, abs=0.01)


def test_clipping_is_that_of_the_file_and_not_of_the_resampled_sound():
  sound = np.clip(3 * signals.tone(2, 100.0, 1.0), -1, 1)
  share = np.mean(np.abs(sound) >= 0.999)
  wide = np.repeat(sound, 3)  # the same at 48 kHz
  assert descriptors.describe(wide, 48000).clipping_share == pytest.approx(
    share, abs=1e-3
  )


def test_silence_is_described_without_a_warning():
  description = descriptors.describe(np.zeros(32000, np.float32), 16000)
  values = dataclasses.asdict(description)
  assert np.isfinite([v for v in values.values() if np.ndim(v) == 0]).all()
  assert description.silence_share == 1.0
  assert description.onset_rate_hz == description.key_clarity == 0.0


def test_save_and_load(tmp_path):
  one = descriptors.describe(signals.chords(0, 'major'), 16000)
  one.save(tmp_path / 'description.npz')
  other = descriptors.Description.load(tmp_path / 'description.npz')
  np.testing.assert_array_equal(one.onset_envelope, other.onset_envelope)
  values = [dataclasses.asdict(d) for d in (one, other)]
  for value in values:
    del value['onset_envelope']
  assert values[0] == values[1]


@pytest.mark.parametrize(
  'sound, message',
  [
    (
      np.zeros((16000, 2)),
      'Waveform of shape [16000, 2] at 16000 Hz, expected [samples] of at '
      'least 1 s. Mix to mono, or leave the clip out.',
    ),
    (
      np.zeros(15999),
      'Waveform of shape [15999] at 16000 Hz, expected [samples] of at least '
      '1 s. Mix to mono, or leave the clip out.',
    ),
    (
      np.full(16000, np.nan),
      '16000 samples are NaN or infinite, expected numbers. Make the clip '
      'again.',
    ),
  ],
)
def test_errors(sound, message):
  with pytest.raises(ValueError) as error:
    descriptors.describe(sound, 16000)
  assert str(error.value) == message
