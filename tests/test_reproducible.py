"""A piece is the same alone, beside others, in any row and on any device."""

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import toy
from v2meow_jax import bundles
from v2meow_jax import fingerprints
from v2meow_jax import generate

ROWS = 4


@pytest.fixture(scope='module')
def generator(tiny_model):
  return generate.load(tiny_model, rows=ROWS)


@pytest.fixture(scope='module')
def pictures(generator, tmp_path_factory):
  """Two videos of other lengths, neither a whole number of windows."""
  folder = tmp_path_factory.mktemp('videos')
  return [
    generator.see(toy.make_video(folder / f'{i}.mp4', seconds, seed=i))
    for i, seconds in enumerate((4.3, 3.1))
  ]


def _tokens(generator, picture, seed):
  music = generator.compose(picture, seed=seed, text='calm piano')
  return fingerprints.hash_tokens(music.tokens), music.waveform


def _together(generator, pictures, seeds):
  """Pieces that are made at once, so that they share calls."""
  with concurrent.futures.ThreadPoolExecutor(len(seeds)) as pool:
    made = [
      pool.submit(_tokens, generator, pictures[seed % 2], seed)
      for seed in seeds
    ]
    return [future.result() for future in made]


@pytest.fixture(scope='module')
def alone(generator, pictures):
  return [_tokens(generator, pictures[seed % 2], seed) for seed in range(8)]


@pytest.mark.parametrize('count', [3, 8])
def test_pieces_in_a_batch_are_those_made_alone(
  generator, pictures, alone, count
):
  counts = []
  for runner in generator._runners:
    run = type(runner).run
    runner.run = lambda requests, *rest, r=runner, run=run: (
      counts.append(len(requests)) or run(r, requests, *rest)
    )
  made = _together(generator, pictures, range(count))
  for runner in generator._runners:
    del runner.run
  assert max(counts) > 1  # they did share
  for (tokens, waveform), (expected, sound) in zip(made, alone, strict=False):
    assert tokens == expected
    np.testing.assert_array_equal(waveform, sound)
  assert len({str(tokens) for tokens, _ in made}) == count


_ON_DEVICES = """
import sys
import jax
from tests import test_reproducible
from v2meow_jax import bundles, generate
assert len(jax.local_devices()) == 4
bundle = bundles.load(sys.argv[1])
used = set()
for devices in (jax.local_devices()[:1], jax.local_devices()):
  generator = generate.Generator(bundle, 4, devices)
  for runner in generator._runners:
    run = runner.run
    runner.run = lambda requests, window, settings, device=0, run=run: (
      used.add(device) or run(requests, window, settings, device)
    )
  pictures = [generator.see(path) for path in sys.argv[2:]]
  made = test_reproducible._together(generator, pictures, range(5))
  print([tokens for tokens, _ in made])
  print(len(used), file=sys.stderr)
"""


def test_pieces_on_four_devices_are_those_of_one(pictures, tmp_path):
  # A system of one stage: each device compiles for itself.
  files = toy.gin_files(tmp_path, 'caption')
  bindings = toy.NO_SEMANTIC + toy.NO_FINE
  with bundles.read_recipe(files, bindings) as recipe:
    params = toy.parts(recipe)
  folder = bundles.save(tmp_path / 'one', files, params, bindings)
  flags = os.environ.get('XLA_FLAGS', '')
  done = subprocess.run(
    [sys.executable, '-c', _ON_DEVICES, str(folder)]
    + [picture.path for picture in pictures],
    env=os.environ
    | {'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count=4'},
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  of_one, of_four = done.stdout.splitlines()
  assert of_one == of_four
  one, four = map(int, done.stderr.split()[-2:])
  assert one == 1 < four
