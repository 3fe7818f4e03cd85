"""What a user may choose of a piece of music."""

import pytest

from v2meow_jax import controls


@pytest.mark.parametrize(
  ('given', 'kept'),
  [
    (None, ()),
    ('calm piano', (('calm piano', 1.0),)),
    ('calm piano:0.5', (('calm piano', 0.5),)),
    ('at 12:30', (('at 12', 30.0),)),
    ('note: calm', (('note: calm', 1.0),)),
    (['calm', 'fast:2'], (('calm', 1.0), ('fast', 2.0))),
    ([['calm', 3]], (('calm', 3.0),)),
  ],
)
def test_texts_and_their_weights(given, kept):
  assert controls.Controls(text=given).text == kept
  # What is kept is kept again.
  assert controls.Controls(text=kept).text == kept


def test_lists_become_tuples():
  made = controls.Controls(top_k=[1, 2, 3], replace=[[1.0, 2.0, 3]])
  assert made == controls.Controls(top_k=(1, 2, 3), replace=((1.0, 2.0, 3),))
  assert hash(made)
