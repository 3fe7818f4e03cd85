"""Each benchmark prints one line of JSON with what the README states."""

import json

import pytest

from tests import toy
from v2meow_jax import benchmark
from v2meow_jax import generate


def test_decode_counts_steps_and_tokens(code_folder, capsys):
  arguments = 'decode --size tiny --batch 2 --steps 10 --stage semantic'
  assert benchmark.main(arguments.split()) == 0
  said = capsys.readouterr().out
  assert said.count('\n') == 1
  line = json.loads(said)
  assert line['benchmark'] == 'decode'
  assert (line['size'], line['stage']) == ('tiny', 'semantic')
  assert (line['batch'], line['steps']) == (2, 10)
  assert line['seconds_per_step'] == pytest.approx(
    line['seconds'] / 10, rel=1e-3
  )
  assert line['tokens_per_second'] == pytest.approx(
    20 / line['seconds'], rel=1e-3
  )
  # Ten tokens at 25 Hz of two clips.
  assert line['real_time_factor'] == pytest.approx(
    line['seconds'] / 0.8, rel=1e-3
  )
  assert line['compile_seconds'] > line['seconds']
  assert 50 < line['peak_memory_mb'] < 8000
  assert line['cores'] >= 1


def test_generate_measures_every_phase(tiny_model, tmp_path, capsys):
  clip = toy.make_video(tmp_path / 'clip.mp4', seconds=3.0)
  arguments = ['generate', '--video', clip, '--model', tiny_model]
  assert benchmark.main([*map(str, arguments)]) == 0
  line = json.loads(capsys.readouterr().out)
  assert line['benchmark'] == 'generate'
  assert line['video'] == 'clip.mp4'
  assert line['music_seconds'] == 3.0
  # 3 s at 25 Hz: one semantic token and 8 levels.
  assert line['tokens'] == 75 * 9
  assert list(line['phase_seconds']) == [*generate.PHASES]
  assert sum(line['phase_seconds'].values()) <= line['seconds']
  assert line['real_time_factor'] == pytest.approx(
    line['seconds'] / 3, rel=1e-3
  )
  # Two windows of 2 s, of which the second goes on from the first's half;
  # three of 1 s at once.
  steps = {
    name: line['phase_seconds'][name] / seconds
    for name, seconds in line['seconds_per_step'].items()
  }
  assert steps == pytest.approx(
    {'semantic': 75, 'coarse': 300, 'fine': 100}, rel=0.01
  )


def test_mistakes_are_one_line(capsys):
  assert benchmark.main(['decode', '--size', 'vast']) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err.startswith('error: Unknown size `vast`, expected one of base')
  assert said.err.endswith('Choose one with --size.\n')
  with pytest.raises(SystemExit, match='^2$'):
    benchmark.main(['decode', '--size', 'tiny', '--steps', '0'])
  assert 'expected 1 or more' in capsys.readouterr().err


def test_every_size_is_known():
  folder = benchmark.configs.folder() / 'sizes'
  for size in ('tiny', 'small', 'base'):
    assert (folder / f'{size}.gin').is_file()
    assert benchmark._read_size(size).num_layers >= 1
