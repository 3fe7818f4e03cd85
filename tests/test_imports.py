"""Generating needs neither TensorFlow nor anything else that training needs."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests import conftest
from tests import toy

_FORBIDDEN = (
  'clu',
  'seqio',
  'tensorflow',
  'tensorflow_datasets',
  't5x',
  'torch',
  'torchvision',
)
_CHECK = f"""
import sys
loaded = [name for name in {_FORBIDDEN} if name in sys.modules]
assert not loaded, loaded
"""


def _run(code: str, **kwargs) -> str:
  environment = os.environ | {'PYTHONPATH': str(conftest.ROOT)}
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    env=environment,
    **kwargs,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_package_imports_nothing_else():
  _run(
    'import sys\n'
    'before = {*sys.modules}\n'
    'import v2meow_jax\n'
    'assert {*sys.modules} - before == {"v2meow_jax"}\n'
  )


def _light_modules() -> list[str]:
  """All modules but those that train, prepare or evaluate."""
  package = conftest.ROOT / 'v2meow_jax'
  heavy = (
    'dataset_builder',
    'feature_converters',
    'preprocessors',
    't5x_batches',
    'tasks',
  )
  return [
    '.'.join(path.relative_to(conftest.ROOT).with_suffix('').parts)
    for path in sorted(package.rglob('*.py'))
    if path.stem not in ('__init__', *heavy)
  ]


def test_modules_load_none_of_what_training_needs():
  modules = _light_modules()
  assert 'v2meow_jax.codecs.spectral' in modules
  lines = [f'import {module}' for module in modules]
  _run('\n'.join(lines) + _CHECK)


@pytest.mark.parametrize('kind', ['mp4', 'wav'])
def test_generating_loads_none_of_what_training_needs(
  kind, tiny_model, tmp_path
):
  toy.make_video(tmp_path / 'clip.mp4', seconds=1.0)
  out = _run(
    'from v2meow_jax import cli\n'
    f'assert cli.main(["generate", "clip.mp4", "--model", "{tiny_model}", '
    f'"--text", "calm piano", "--format", "{kind}"]) == 0\n'
    + _CHECK
    # A second of each run.
    + 'assert "scipy.signal" not in sys.modules\n',
    cwd=tmp_path,
  )
  assert out == f'clip.v2meow.{kind}\n'
  assert pathlib.Path(tmp_path / f'clip.v2meow.{kind}').stat().st_size > 1000
