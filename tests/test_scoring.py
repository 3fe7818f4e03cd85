"""Scores weigh stages alike and do not depend on how tokens arrive."""

import math

import numpy as np
import pytest

from v2meow_jax import scoring


def test_stages_weigh_alike_however_many_tokens_they_make(rng):
  semantic = rng.uniform(-3, 0, (50, 1)).astype('f4')
  coarse = rng.uniform(-9, -5, (50, 4)).astype('f4')
  score = scoring.Likelihood()
  for start in range(0, 50, 7):  # in windows, as they are made
    score.add('semantic', semantic[start : start + 7])
  score.add('coarse', coarse)
  score.add('fine', np.zeros((0, 4), 'f4'))  # all was given
  assert score.parts() == pytest.approx(
    {'semantic': semantic.mean(), 'coarse': coarse.mean()}, rel=1e-6
  )
  expected = (semantic.mean() + coarse.mean()) / 2
  assert score.result() == pytest.approx(expected, rel=1e-6)


def test_detail_does_not_decide():
  score = scoring.Likelihood()
  score.add('coarse', np.full((5, 4), -2.0, 'f4'))
  score.add('fine', np.full((5, 4), -6.0, 'f4'))
  assert score.parts() == {'coarse': -2.0, 'fine': -6.0}
  assert score.result() == -2.0


def test_long_pieces_are_summed_exactly():
  score = scoring.Likelihood()
  for _ in range(100):
    score.add('coarse', np.full((1000, 4), -0.1, 'f4'))
  assert score.result() == pytest.approx(float(np.float32(-0.1)), rel=1e-12)


def test_the_best_is_the_first_of_the_highest():
  assert scoring.best([-3.0, -1.0, -2.0, -1.0]) == 1
  for scores in ([], [-1.0, math.nan]):
    with pytest.raises(ValueError) as e:
      scoring.best(scores)
    assert str(e.value) == (
      f'Scores are {scores}, expected one number for each piece.'
    )


def test_nothing_has_no_score():
  score = scoring.Likelihood()
  score.add('fine', np.ones((2, 4), 'f4'))
  with pytest.raises(ValueError) as e:
    score.result()
  assert str(e.value) == (
    'No tokens of the stages semantic, coarse were scored, expected those of a '
    'piece. Add them first.'
  )
