"""The comparison with others says who is missing and counts right."""

import json
import sys

import pytest

from tests import missing
from tests import side_by_side


@pytest.mark.parametrize(
  'arguments, package, message',
  [
    (['train'], 't5x', 'docs/t5x.md says how to set it up.'),
    (['decode', '--rival', 'gpt2'], 'torch', 'pip install torch.'),
  ],
)
def test_who_is_missing_is_left_out(
  monkeypatch, capsys, arguments, package, message
):
  monkeypatch.setattr(sys, 'meta_path', missing.meta_path(package))
  monkeypatch.delitem(sys.modules, package, raising=False)
  assert side_by_side.main(arguments) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert f'package `{package}` is not installed; {message}' in said.err


def test_both_run_in_turn_and_the_first_round_does_not_count(
  monkeypatch, capsys
):
  now = 0.0
  order = []

  def run(name, first, then):
    def call():
      nonlocal now
      now += then if name in order else first
      order.append(name)

    return call

  monkeypatch.setattr(side_by_side.time, 'perf_counter', lambda: now)
  monkeypatch.setattr(side_by_side.time, 'process_time', lambda: now / 2)
  ours, other = run('ours', 9, 0.5), run('other', 50, 1.0)
  side_by_side.report({'steps': 250}, ours, 'other', other, 2)
  assert order == ['ours', 'other'] * 3
  assert json.loads(capsys.readouterr().out) == {
    'steps': 250,
    'rival': 'other',
    'rounds': 2,
    'ours_wall_ms': 2.0,
    'other_wall_ms': 4.0,
    'times_as_fast_wall': 2.0,
    'ours_cpu_ms': 1.0,
    'other_cpu_ms': 2.0,
    'times_as_fast_cpu': 2.0,
  }
