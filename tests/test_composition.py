"""Pieces through all stages, made by threads in any order."""

import threading

import jax
import numpy as np
import pytest

from tests import fake_stages
from v2meow_jax import cascade
from v2meow_jax import composition
from v2meow_jax import sampling
from v2meow_jax import scheduler
from v2meow_jax import stages

SETTINGS = cascade.Settings(sampling.Options(1.0, 0, 1.0))
SPEC = fake_stages.stage('semantic').inputs[0].spec


def _runners(rows=1, devices=None):
  return [
    fake_stages.runner(name, rows=rows, devices=devices)
    for name in stages.NAMES
  ]


def _piece(runners, seed=0, **options):
  return composition.Composition(
    runners, [SETTINGS] * 3, seed, [SPEC], {}, **options
  )


def _finished(runners, piece, units, parts=1, calls=1):
  """Feeds a clip in parts while it is made; its tokens."""
  running = scheduler.Scheduler(runners, calls_per_device=calls)
  features = fake_stages.scene(units * 2)
  with running.running(piece):
    for part in np.array_split(features, parts):
      running.update(lambda part=part: piece.feed('scene', part))
    running.update(lambda: piece.finish(units / 5))
    running.wait(piece, lambda: piece.is_done)
  return piece.tokens


@pytest.mark.parametrize('units', [3, 10, 11, 18, 26])
def test_a_long_clip_goes_on_from_its_own_tokens(units):
  runners = _runners()
  tokens = _finished(runners, _piece(runners, 3), units)
  # Five positions a unit, counted up without a seam.
  count = np.arange(units * 5)
  np.testing.assert_array_equal(
    tokens['spectral_semantic'][:, 0], 30000 + count
  )
  coarse = tokens['spectral'][:, :4]
  np.testing.assert_array_equal(coarse, np.stack([30000 + count] * 4, 1))
  # Fine windows stand alone: each begins with the sum of four coarse levels,
  # but for the last, which ends with the clip and goes on.
  whole = units // 5 * 5
  for start in range(0, whole, 5):
    part = tokens['spectral'][start * 5 : start * 5 + 25, 4:]
    begin = 4 * (30000 + start * 5) + 30000
    np.testing.assert_array_equal(part[:, 0], begin + np.arange(25))
  assert tokens['spectral'].shape == (units * 5, 12)
  assert tokens['spectral'].dtype == np.int32


@pytest.mark.parametrize('parts', [7, 52])
def test_what_comes_in_parts_makes_the_same(parts):
  runners = _runners()
  whole = _finished(runners, _piece(runners), 26)
  found = _finished(runners, _piece(runners), 26, parts, calls=3)
  jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_sound_can_begin_before_the_picture_ends():
  runners = _runners()
  piece = _piece(runners)
  running = scheduler.Scheduler(runners)
  with running.running(piece):
    running.update(lambda: piece.feed('scene', fake_stages.scene(20)))
    # The last frame may be the last of the clip: a unit less is sure.
    assert not piece.made
    running.update(lambda: piece.feed('scene', fake_stages.scene(1)))
    running.wait(piece, lambda: piece.made == 10)
  assert not piece.is_done


def test_pieces_share_calls_and_change_nothing_of_each_other():
  alone = {}
  for seed, units in enumerate((26, 11, 26, 3)):
    runners = _runners(rows=3)
    alone[seed] = _finished(runners, _piece(runners, seed), units)
  runners = _runners(rows=3)
  running = scheduler.Scheduler(runners, calls_per_device=2)
  pieces = [_piece(runners, seed) for seed in alone]
  rows = []
  run = runners[0].run
  runners[0].run = lambda requests, *rest: (
    rows.append(len(requests)) or run(requests, *rest)
  )

  def make(piece, units):
    with running.running(piece):
      running.update(
        lambda: (
          piece.feed('scene', fake_stages.scene(units * 2)),
          piece.finish(units / 5),
        )
      )
      running.wait(piece, lambda: piece.is_done)

  with running.lock:  # all begin at once
    threads = [
      threading.Thread(target=make, args=(piece, units))
      for piece, units in zip(pieces, (26, 11, 26, 3), strict=True)
    ]
    for thread in threads:
      thread.start()
  for thread in threads:
    thread.join()
  for piece, expected in zip(pieces, alone.values(), strict=True):
    jax.tree.map(np.testing.assert_array_equal, piece.tokens, expected)
  # Every number of rows has the same shape.
  assert {shape[0] for shape in runners[0].model.shapes} == {3}


def test_a_part_is_made_anew_and_the_rest_stays():
  runners = _runners()
  before = {
    name: codes.copy()
    for name, codes in _finished(runners, _piece(runners, 1), 26).items()
  }
  piece = _piece(runners, 2, tokens=before, start=12, until=17)
  after = _finished(runners, piece, 26)
  span = slice(12 * 5, 17 * 5)
  for name, codes in after.items():
    kept = np.ones(len(codes), bool)
    kept[span] = False
    np.testing.assert_array_equal(codes[kept], before[name][kept])
  # Fine windows do not see their past where they begin: another seed is heard.
  assert (after['spectral'][span] != before['spectral'][span]).any()


def test_a_piece_goes_on_from_what_is_given():
  runners = _runners()
  given = {
    'spectral_semantic': np.arange(70, 100, dtype='i4')[:, None],
    'spectral': np.repeat(np.arange(5, 35, dtype='i4')[:, None], 12, 1),
  }
  tokens = _finished(runners, _piece(runners, tokens=given, start=6), 26)
  np.testing.assert_array_equal(
    tokens['spectral_semantic'][:, 0], 70 + np.arange(130)
  )
  np.testing.assert_array_equal(tokens['spectral'][:, 0], 5 + np.arange(130))


def test_an_error_reaches_who_waits():
  runners = _runners()
  piece = _piece(runners)

  def fail(*unused):
    raise ZeroDivisionError

  runners[1].run = fail
  with pytest.raises(ZeroDivisionError):
    _finished(runners, piece, 12)


def test_an_abandoned_piece_is_made_no_further():
  runners = _runners()
  running = scheduler.Scheduler(runners)
  piece = _piece(runners)
  with running.running(piece):
    pass
  running.update(lambda: piece.feed('scene', fake_stages.scene(100)))
  assert piece.error is not None
  assert not runners[0].model.shapes
