"""A machine with libtpu and without a TPU uses its CPU, any other its own."""

import os
import subprocess
import sys

import pytest

from tests import conftest
from v2meow_jax import platforms


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Makes a machine: what is installed, and files of a TPU."""

  def make(installed, files=()):
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.delitem(sys.modules, 'jax')
    monkeypatch.setattr(
      platforms, '_is_installed', lambda name: name in installed
    )
    for file in files:
      (tmp_path / file).touch()
    patterns = (f'{tmp_path}/accel[0-9]*', f'{tmp_path}/[0-9]*')
    monkeypatch.setattr(platforms, '_TPU_FILES', patterns)

  return make


def test_cpu_where_libtpu_finds_nothing(machine):
  machine(['libtpu'])
  platforms.settle()
  assert os.environ['JAX_PLATFORMS'] == 'cpu'


@pytest.mark.parametrize(
  'installed, files',
  [
    ([], []),  # nothing to look for
    (['libtpu'], ['accel0']),
    (['libtpu'], ['0']),
    (['libtpu', 'jax_plugins'], []),  # a GPU, perhaps
  ],
)
def test_everything_else_is_left_to_jax(installed, files, machine):
  machine(installed, files)
  platforms.settle()
  assert 'JAX_PLATFORMS' not in os.environ


def test_what_the_user_says_counts(machine, monkeypatch):
  machine(['libtpu'])
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu,cpu')
  platforms.settle()
  assert os.environ['JAX_PLATFORMS'] == 'tpu,cpu'


_START = """
import sys
{jax}
from v2meow_jax import platforms
platforms._is_installed = lambda name: name == 'libtpu'
platforms._TPU_FILES = ()
platforms.settle()
import jax
assert jax.config.jax_platforms == 'cpu', jax.config.jax_platforms
"""


@pytest.mark.parametrize('jax', ['', 'import jax'])
def test_jax_hears_of_it_before_and_after_its_import(jax):
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'}
  done = subprocess.run(
    [sys.executable, '-c', _START.format(jax=jax)],
    capture_output=True,
    text=True,
    cwd=conftest.ROOT,
    env=environment,
  )
  assert (done.returncode, done.stderr) == (0, '')
