"""docs/audio.md: each command is one that its program takes."""

import re
import shlex

import gin
import pytest

from tests import conftest
from v2meow_jax import configs
from v2meow_jax import evaluate
from v2meow_jax import train

PATH = conftest.ROOT / 'docs' / 'audio.md'
# What a command configures, by its program.
ROOTS = {
  'v2meow_jax.train': 'train.train',
  'v2meow_jax.codecs.fit_quantizer': 'fit_quantizer.fit_quantizer',
}


def commands() -> list[list[str]]:
  """Words of each command, without `python -m` in front."""
  blocks = re.findall(r'^```sh\n(.*?)^```', PATH.read_text(), re.S | re.M)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  words = [shlex.split(line) for line in lines if line.strip()]
  return [w[2:] if w[:2] == ['python', '-m'] else w for w in words]


@pytest.fixture(autouse=True)
def clear():
  yield
  gin.clear_config()


def test_trainings_are_set():
  found = [c for c in commands() if c[0] in ROOTS]
  assert {program for program, *_ in found} == set(ROOTS)
  for program, *rest in found:
    arguments = train.parse_arguments(rest)
    configs.parse(
      arguments.gin_file, arguments.gin_bindings, root=ROOTS[program]
    )


def test_evaluations_are_understood():
  found = [c[2:] for c in commands() if c[:2] == ['v2meow', 'evaluate']]
  assert found
  for command, *rest in found:
    evaluate._parser(command).parse_args(rest)


def test_pictures_are_there():
  pictures = re.findall(r'!\[.*?\]\((.*?)\)', PATH.read_text())
  assert pictures
  for name in pictures:
    assert (PATH.parent / name).stat().st_size < 300_000
