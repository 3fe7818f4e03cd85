"""What a user may choose of a piece of music."""

import dataclasses

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


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'seed': -1}, 'seed is -1, expected 0 to 4294967295.'),
    ({'seed': 2**32}, 'seed is 4294967296, expected 0 to 4294967295.'),
    (
      {'text': [('calm', float('nan'))]},
      'text has weights nan, expected 0 or more and not all 0. Say what the '
      'music should be unlike with negative_text.',
    ),
    (
      {'visual_guidance': float('inf')},
      'visual_guidance is inf, expected 0 or more.',
    ),
    (
      {'replace': [(1.0,)]},
      'replace has the span (1.0,), expected start and end in seconds, and a '
      'seed or none.',
    ),
    (
      {'replace': [(-1, 3)]},
      'replace has the span -1 to 3, expected seconds from 0 on, with the end '
      'behind the start.',
    ),
    ({'best_of': 0}, 'best_of is 0, expected 1 or more.'),
  ],
)
def test_choices_out_of_their_range(given, message):
  with pytest.raises(ValueError) as e:
    controls.Controls(**given)
  assert str(e.value) == message


def test_spans_get_seeds_that_the_piece_has_not():
  made = controls.Controls(seed=2**32 - 2, replace=[(1, 2), (3, 4, 9), (1, 2)])
  assert made.spans == ((1, 2, 2**32 - 1), (3, 4, 9), (1, 2, 1))
  assert controls.Controls(**dataclasses.asdict(made)) == made


def test_lists_become_tuples():
  made = controls.Controls(top_k=[1, 2, 3], replace=[[1.0, 2.0, 3]])
  assert made == controls.Controls(top_k=(1, 2, 3), replace=((1.0, 2.0, 3),))
  assert hash(made)
