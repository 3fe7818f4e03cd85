import dataclasses

import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax.metrics import descriptors
from v2meow_jax.metrics import music


def _clips(make, count=12):
  return [
    descriptors.describe(make(np.random.default_rng(i)), 16000)
    for i in range(count)
  ]


def _piece(rng):
  """Chords over clicks."""
  chords = signals.chords(
    int(rng.integers(12)), rng.choice(['major', 'minor']), 0.6
  )
  seconds = len(chords) / signals.RATE_HZ
  track = signals.click_track(rng.uniform(80, 140), seconds)
  return chords + rng.uniform(0.3, 1) * track[: len(chords)]


def _noise(rng):
  return signals.noise(7, int(rng.integers(1000)))


@pytest.fixture(scope='module')
def real():
  return _clips(_piece)


@pytest.fixture(scope='module')
def noise():
  return _clips(_noise, 7)


def _compare(real, generated):
  metric = music.MusicQuality()
  for kind, clips in (('real', real), ('generated', generated)):
    for number, clip in enumerate(clips):
      metric.update(f'{number}', kind, clip)
  return metric.result()


def test_real_music_is_like_itself(real):
  result = _compare(real, real)
  assert result['num_real'] == result['num_generated'] == 12
  for row in result['quantities'].values():
    assert row['is_inside']
    # The ends are quantiles of 12 clips: one lies outside at either side.
    assert row['share_inside'] >= 10 / 12
    assert row['generated'] == row['real']


def test_noise_is_not_music(real, noise):
  rows = _compare(real, noise)['quantities']
  for name in (
    'spectral_flatness_db', 'pulse_clarity', 'key_clarity', 'onset_rate_hz'
  ):  # fmt: skip
    assert not rows[name]['is_inside'], name
    assert rows[name]['share_inside'] == 0, name
  flatness = rows['spectral_flatness_db']
  assert flatness['generated']['median'] > flatness['real']['high'] + 5
  keys = rows['key_clarity']
  # Measured 0.71 and 0.84: a few seconds of noise have some key by chance.
  assert keys['generated']['high'] < keys['real']['low'] - 0.05


def test_spread_is_the_quantiles(real):
  row = _compare(real, real)['quantities']['onset_rate_hz']
  values = [clip.onset_rate_hz for clip in real]
  low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
  assert row['real'] == {'median': median, 'low': low, 'high': high}


def test_half_of_the_clips_outside_is_flagged(real, noise):
  mixed = real[:5] + noise
  rows = _compare(real, mixed)['quantities']
  assert not rows['key_clarity']['is_inside']
  assert rows['key_clarity']['share_inside'] <= 5 / 12


def test_median_inside_is_not_enough(real):
  rates = [0.0] * 5 + [real[0].onset_rate_hz] + [50.0] * 5
  generated = [
    dataclasses.replace(real[0], onset_rate_hz=rate) for rate in rates
  ]
  row = _compare(real, generated)['quantities']['onset_rate_hz']
  assert row['real']['low'] <= row['generated']['median']
  assert row['generated']['median'] <= row['real']['high']
  assert row['share_inside'] == pytest.approx(1 / 11)
  assert not row['is_inside']


def test_merge(real):
  parts = music.MusicQuality(), music.MusicQuality()
  for number, clip in enumerate(real):
    for kind in ('real', 'generated'):
      parts[number % 2].update(f'{number}', kind, clip)
  parts[0].merge(parts[1])
  assert parts[0].result() == _compare(real, real)
  with pytest.raises(ValueError, match='Clip `1` comes twice'):
    parts[0].merge(parts[1])


def test_errors(real):
  metric = music.MusicQuality()
  metric.update('a', 'real', real[0])
  with pytest.raises(ValueError) as error:
    metric.result()
  assert str(error.value) == (
    '1 real clips, expected at least 5 for a spread. Add clips.'
  )
  with pytest.raises(ValueError) as error:
    metric.update('b', 'fake', real[0])
  assert str(error.value) == (
    'Kind of clip `b` is `fake`, expected one of real, generated.'
  )
