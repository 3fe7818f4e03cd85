import dataclasses

import numpy as np
import pytest
import scipy.stats

from tests.metrics import signals
from v2meow_jax.metrics import adherence
from v2meow_jax.metrics import descriptors
from v2meow_jax.metrics import rhythm

_SILENCE = descriptors.describe(np.zeros(32000, np.float32), 16000)


def _envelope(beat_seconds, seconds=10.0):
  envelope = np.zeros(round(seconds * rhythm.RATE_HZ), np.float32)
  envelope[(np.array(beat_seconds) * rhythm.RATE_HZ).astype(int)] = 10.0
  return envelope


def _videos(count, rng):
  return [
    adherence.parse_attributes(
      {
        'tempo_bpm': 75 * 2 ** rng.uniform(),
        'mode': rng.choice(adherence.MODES),
        'energy': rng.uniform(),
        'seconds': 10.0,
        'start_beat': rng.uniform(0, 4),
      }
    )
    for _ in range(count)
  ]


def _heard(video, rng, errors=0.0):
  """What analysis would hear in music that follows a video, or does not."""
  energy = video.energy + errors * rng.standard_normal()
  sign = 1 if video.mode == 'major' else -1
  return dataclasses.replace(
    _SILENCE,
    tempo_bpm=float(
      75 * 2 ** ((np.log2(video.tempo_bpm / 75) + errors * rng.uniform()) % 1)
    ),
    mode_score=float(sign + 3 * errors * rng.standard_normal()),
    onset_rate_hz=float(np.exp(energy) * video.tempo_bpm / 60),
    onset_rise_db=float(energy),
    spectral_centroid_hz=float(1000 * 2**energy),
    percussiveness=float(energy),
    onset_envelope=_envelope(video.beat_seconds),
  )


def _metric(videos, heard):
  metric = adherence.Adherence()
  for number, (video, music) in enumerate(zip(videos, heard, strict=True)):
    metric.update(f'clip{number:03d}', music, video)
  return metric


def test_music_that_follows_is_apart_from_shuffled_videos(rng):
  videos = _videos(60, rng)
  result = _metric(videos, [_heard(v, rng) for v in videos]).result(500)
  measures = result['measures']
  assert list(measures) == [measure.name for measure in adherence.MEASURES]
  assert result['num_clips'] == 60
  for name, best in {
    'tempo_accuracy': 1.0,
    'tempo_error': 0.0,
    'tempo_correlation': 1.0,
    'mode_accuracy': 1.0,
    'mode_separation': 1.0,
    'energy_correlation': 1.0,
  }.items():
    assert measures[name]['value'] == pytest.approx(best, abs=1e-3), name
    assert measures[name]['is_apart'], name
    assert measures[name]['p_value'] == pytest.approx(1 / 501)
  assert measures['beat_alignment']['is_apart']
  assert measures['beat_contrast']['value'] > 1.0


def test_shuffled_videos_are_near_chance(rng):
  videos = _videos(100, rng)
  result = _metric(videos, [_heard(v, rng) for v in videos]).result(500)
  chance = {
    # Twice 4 % of an octave.
    'tempo_accuracy': 2 * np.log2(1.04),
    'tempo_correlation': 0.0,
    'mode_accuracy': 0.5,
    'mode_separation': 0.5,
    'energy_correlation': 0.0,
    'beat_alignment': 0.0,
    'beat_contrast': 0.0,
  }
  for name, value in chance.items():
    shuffled = result['measures'][name]['shuffled']
    assert shuffled['value'] == pytest.approx(value, abs=0.03), name
    assert shuffled['low'] < value < shuffled['high'], name
  # Errors of up to half an octave, all as likely: mean of 2^x - 1.
  assert result['measures']['tempo_error']['shuffled'][
    'value'
  ] == pytest.approx(100 * (2 * (2**0.5 - 1) / np.log(2) - 1), abs=1.5)


def test_music_that_does_not_follow_is_not_apart(rng):
  videos = _videos(80, rng)
  others = _videos(80, rng)
  result = _metric(videos, [_heard(v, rng) for v in others]).result(500)
  apart = [n for n, row in result['measures'].items() if row['is_apart']]
  assert not apart


def test_more_errors_less_adherence(rng):
  videos = _videos(60, rng)
  values = [
    _metric(videos, [_heard(v, rng, errors) for v in videos]).result(200)[
      'measures'
    ]
    for errors in (0.0, 0.2, 1.0)
  ]
  for measure in adherence.MEASURES:
    if measure.name.startswith('beat'):
      continue  # the beats stay where they are
    falling = [row[measure.name]['value'] for row in values]
    if not measure.higher_is_better:
      falling = falling[::-1]
    assert falling[0] > falling[1] > falling[2], measure.name


def test_order_and_split_over_hosts_change_nothing(rng):
  videos = _videos(20, rng)
  heard = [_heard(v, rng, 0.3) for v in videos]
  whole = _metric(videos, heard).result(100)
  halves = adherence.Adherence(), adherence.Adherence()
  for number in rng.permutation(20):
    halves[number % 2].update(
      f'clip{number:03d}', heard[number], videos[number]
    )
  halves[1].merge(halves[0])
  assert halves[1].result(100) == whole


def test_clip_twice(rng):
  video = _videos(1, rng)[0]
  metric = adherence.Adherence()
  metric.update('a', _SILENCE, video)
  with pytest.raises(ValueError) as error:
    metric.update('a', _SILENCE, video)
  assert str(error.value) == (
    'Clip `a` comes twice, expected each clip once. Give the clips different '
    'names.'
  )


def test_without_known_beats_there_is_no_beat_measure(rng):
  videos = [dataclasses.replace(v, beat_seconds=()) for v in _videos(5, rng)]
  result = _metric(videos, [_SILENCE] * 5).result(100)
  assert 'beat_alignment' not in result['measures']
  # Silence says nothing about the mode: half right.
  assert result['measures']['mode_accuracy']['value'] == 0.5
  assert np.isnan(result['measures']['energy_correlation']['value'])
  assert not result['measures']['energy_correlation']['is_apart']


def test_beats_follow_from_the_start_beat():
  known = adherence.parse_attributes(
    {
      'tempo_bpm': 120,
      'mode': 'major',
      'energy': 0.5,
      'seconds': 2.0,
      'start_beat': 3.5,
    }
  )
  np.testing.assert_allclose(known.beat_seconds, [0.25, 0.75, 1.25, 1.75])


def test_beats_are_those_of_the_toy_dataset():
  from v2meow_jax.toy import attributes

  for index in range(5):
    toy = attributes.sample(0, index, 10.0)
    known = adherence.parse_attributes(toy.to_dict())
    np.testing.assert_allclose(
      known.beat_seconds, toy.beat_seconds(), atol=1e-6
    )
    assert (known.tempo_bpm, known.mode) == (toy.tempo_bpm, toy.mode)


_VALUES = {'tempo_bpm': 100, 'mode': 'major', 'energy': 0.5}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'mode': 'dorian'}, 'mode is `dorian`, expected major or minor.'),
    ({'tempo_bpm': 0}, 'tempo_bpm is 0, expected a number above 0.'),
    ({'tempo_bpm': 'fast'}, 'tempo_bpm is fast, expected a number above 0.'),
    ({'energy': 1.5}, 'energy is 1.5, expected a number from 0 to 1.'),
  ],
)
def test_wrong_attributes(change, message):
  with pytest.raises(ValueError) as error:
    adherence.parse_attributes(_VALUES | change)
  assert str(error.value) == message


def test_missing_attributes():
  with pytest.raises(ValueError) as error:
    adherence.parse_attributes({'mode': 'major'})
  assert str(error.value) == (
    'no attribute tempo_bpm, energy, expected tempo_bpm, mode and energy. Add '
    'it to the column `attributes` of the manifest.'
  )


def test_circular_correlation_is_that_of_all_pairs(rng):
  x, y = rng.uniform(0, 2 * np.pi, (2, 3, 12))
  y[0] = x[0] + 0.3 * rng.standard_normal(12)
  for row in range(3):
    one = np.sin(x[row][:, None] - x[row])
    other = np.sin(y[row][:, None] - y[row])
    expected = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    found = adherence._circular_correlation(x, y)[row]
    assert found == pytest.approx(expected, abs=1e-12)
  # A turn by any angle changes nothing: there is no edge.
  np.testing.assert_allclose(
    adherence._circular_correlation(x, y),
    adherence._circular_correlation((x + 2.5) % (2 * np.pi), y),
  )


def test_rank_correlation_is_spearman(rng):
  x, y = rng.integers(0, 6, (2, 4, 15)).astype(float)
  expected = [scipy.stats.spearmanr(a, b)[0] for a, b in zip(x, y, strict=True)]
  np.testing.assert_allclose(adherence._rank_correlation(x, y), expected)


def test_separation_is_the_share_of_pairs_in_order(rng):
  score = rng.integers(0, 5, (3, 14)).astype(float)
  positive = rng.uniform(size=(3, 14)) > 0.4
  for row in range(3):
    above = score[row][positive[row]][:, None] - score[row][~positive[row]]
    expected = np.mean((above > 0) + 0.5 * (above == 0))
    assert adherence._separation(score, positive)[row] == pytest.approx(
      expected
    )


def test_energy_rises_with_what_goes_on():
  calm = signals.chords(0, 'major', 1.0)
  seconds = len(calm) / signals.RATE_HZ
  sixteenths = np.arange(0, seconds, 0.125)
  lively = calm + 0.7 * signals.clicks(sixteenths, seconds)
  values = [
    adherence.energy(descriptors.describe(x, 16000)) for x in (calm, lively)
  ]
  assert values[1] > values[0] + 1.0
