import numpy as np
import pytest

from v2meow_jax.metrics import intervals


def _mean(values):
  return lambda music, video: values[music].mean(axis=-1)


def test_bootstrap_covers_the_truth_in_95_of_100_repetitions():
  num_repetitions, num_clips = 400, 60
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(num_repetitions):
    values = rng.exponential(1.0, num_clips)
    estimate = intervals.bootstrap(_mean(values), num_clips, 400, rng)
    covered += estimate.low <= 1.0 <= estimate.high
  # Measured 0.935; a skewed sample of 60 is covered a little too seldom.
  assert 0.91 <= covered / num_repetitions <= 0.98


def test_bootstrap_narrows_with_the_root_of_the_number_of_clips():
  rng = np.random.default_rng(0)
  widths = []
  for num_clips in (50, 200):
    values = rng.standard_normal(num_clips)
    values = (values - values.mean()) / values.std()
    estimate = intervals.bootstrap(_mean(values), num_clips, 2000, rng)
    assert estimate.value == pytest.approx(0, abs=1e-12)
    widths.append(estimate.high - estimate.low)
  # 2 * 1.96 / sqrt(n)
  np.testing.assert_allclose(widths, [0.554, 0.277], rtol=0.1)


def test_bootstrap_keeps_music_and_video_together():
  values = np.random.default_rng(0).standard_normal(20)
  same = lambda music, video: (music == video).all(axis=-1).astype(float)
  estimate = intervals.bootstrap(
    same, len(values), 100, np.random.default_rng()
  )
  assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)


def test_shuffled_pairs_no_clip_with_itself_and_every_clip_once():
  seen = []

  def statistic(music, video):
    seen.append((music, video))
    return np.zeros(len(music))

  intervals.shuffled(statistic, 7, 600, np.random.default_rng(0))
  music = np.concatenate([m for m, _ in seen])
  video = np.concatenate([v for _, v in seen])
  assert not (music == video).any()
  np.testing.assert_array_equal(np.sort(video, axis=1), np.sort(music, axis=1))
  # Every other clip is as likely: 600 shuffles, 6 partners.
  counts = np.bincount(video[:, 0], minlength=7)
  assert counts[0] == 0
  assert counts[1:].min() > 70
  assert counts[1:].max() < 130


def test_shuffled_interval_holds_95_percent_of_shuffles():
  is_major = np.arange(100) % 2 == 0
  same = lambda music, video: (is_major[music] == is_major[video]).mean(axis=-1)
  estimate, shuffles = intervals.shuffled(
    same, 100, 2000, np.random.default_rng(0)
  )
  # 49 of the 99 others have the same mode; binomial with 100 draws.
  assert estimate.value == pytest.approx(49 / 99, abs=0.005)
  assert (estimate.low, estimate.high) == (
    pytest.approx(0.40, abs=0.02),
    pytest.approx(0.60, abs=0.02),
  )
  inside = (shuffles >= estimate.low) & (shuffles <= estimate.high)
  assert inside.mean() >= 0.95


def test_undefined_draws_are_left_out():
  estimate = intervals.bootstrap(
    lambda music, _: np.where(music[:, 0] == 0, np.nan, 2.0),
    5,
    200,
    np.random.default_rng(0),
  )
  assert (estimate.low, estimate.high) == (2.0, 2.0)


def test_too_few_clips():
  with pytest.raises(ValueError) as error:
    intervals.bootstrap(_mean(np.ones(2)), 2, 10, np.random.default_rng(0))
  assert str(error.value) == (
    '2 clips, expected at least 3. Add clips: 95 % intervals are narrow from '
    'about 100 on.'
  )
