"""Texts between texts, in a space of unit vectors."""

import math

import numpy as np
import pytest

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax.embedders import base


class _Space(base.Embedder):
  """Each text is the unit vector at its angle in degrees."""

  spec = streams.StreamSpec('angle', None, num_features=2)

  def embed_text(self, texts, allow_unknown=False):
    angles = np.radians([float(text) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype('f4')


def _angle(*texts):
  vector = _Space().mix_texts(texts)
  assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
  return math.degrees(math.atan2(vector[1], vector[0]))


def test_unit_vectors_stay_unit_vectors():
  assert _angle(('30', 2.0)) == pytest.approx(30)
  assert _angle(('0', 1.0), ('90', 1.0)) == pytest.approx(45)
  expected = math.degrees(math.atan2(0.25, 0.75))
  assert _angle(('0', 3.0), ('90', 1.0)) == pytest.approx(expected)
  assert _angle(('0', 0.75), ('90', 0.25)) == pytest.approx(expected)


@pytest.mark.parametrize(
  'weights, listed',
  [((0, 0), '0, 0'), ((1, -0.5), '1, -0.5'), ((math.nan, 1), 'nan, 1')],
)
def test_weights_that_say_nothing(weights, listed):
  with pytest.raises(errors.UserError) as e:
    _Space().mix_texts(list(zip(('0', '90'), weights)))
  assert str(e.value) == (
    f'The weights of the texts are {listed}, expected 0 or more and not all '
    '0. Say what the music should be unlike with --negative_text.'
  )


def test_texts_that_cancel_each_other():
  with pytest.raises(errors.UserError) as e:
    _Space().mix_texts([('0', 1.0), ('180', 1.0)])
  assert str(e.value) == (
    'The texts `0`, `180` cancel each other, expected some that can be heard '
    'together. Change their weights.'
  )
