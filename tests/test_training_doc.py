"""docs/training.md: each command is one that its program takes."""

import re
import shlex
import subprocess

import gin
import pytest

from tests import conftest
from v2meow_jax import bundles
from v2meow_jax import cli
from v2meow_jax import configs
from v2meow_jax import train

TEXT = (conftest.ROOT / 'docs' / 'training.md').read_text()
# Programs of others.
_OTHERS = {'gcloud', 'tensorboard'}


def _commands() -> list[list[str]]:
  blocks = re.findall(r'^```sh\n(.*?)^```', TEXT, re.DOTALL | re.M)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  return [words for line in lines if (words := shlex.split(line))]


@pytest.fixture(autouse=True)
def clear():
  yield
  gin.clear_config()


def _dry_run(script: str, arguments: list[str]) -> str:
  done = subprocess.run(
    ['bash', str(conftest.ROOT / script), '--dry_run', *arguments],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout
  return done.stdout


def _check_training(words: list[str]) -> None:
  """Parses a call of `train`, whose last words these are."""
  parsed = train.parse_arguments(words)
  configs.parse(parsed.gin_file, parsed.gin_bindings, root='train.train')
  if 'CODEC_WEIGHTS' in ' '.join(parsed.gin_bindings):
    listener = gin.query_parameter('LISTENER/macro.value')
    assert listener.selector == 'listening.StageListener'
    return  # it reads the weights as soon as it is made
  values = gin.get_bindings('train.train')
  stages = [f for f in parsed.gin_file if f.startswith('stages/')]
  if stages:
    name = stages[0].removeprefix('stages/').removesuffix('.gin')
    stage = values['model'].stage
    assert stage.name == name.removesuffix('_visual')
    assert values['model_dir'].endswith(f'/{name}')
    levels = {'semantic': 1, 'coarse': 4, 'fine': 8}[stage.name]
    assert stage.target.num_levels == levels
  else:
    assert values['model'].spec.name == 'soundstream'


def _check(words: list[str], capsys) -> None:
  """Checks one command; what it starts is checked in its turn."""
  match words:
    case ['bash', 'launch/tpu_pod.sh', *rest]:
      said = _dry_run('launch/tpu_pod.sh', rest)
      if '--' in rest:
        inner = rest[rest.index('--') + 1 :]
        line = shlex.split(said.splitlines()[-1])[-1]
        assert shlex.split(line)[-len(inner) :] == inner  # as it arrives
        _check(inner, capsys)
    case ['sbatch', *rest]:
      start = rest.index('launch/slurm.sbatch')
      assert all(option.startswith('--') for option in rest[:start])
      _check(['bash', *rest[start:]], capsys)
    case ['bash', 'launch/slurm.sbatch', *rest]:
      said = _dry_run('launch/slurm.sbatch', rest)
      inner = rest[rest.index('--') + 1 :]
      assert shlex.split(said)[-len(inner) :] == inner
      _check(inner, capsys)
    case ['bash', 'launch/train.sh', *rest]:
      words = shlex.split(_dry_run('launch/train.sh', rest))
      _check_training(words[words.index('v2meow_jax.train') + 1 :])
    case ['python', '-m', 'v2meow_jax.train', *rest]:
      _check_training(rest)
    case ['python', '-m', 'v2meow_jax.bundles', 'pack', *rest]:
      files = [
        b for a, b in zip(rest[:-1], rest[1:], strict=True) if a == '--gin_file'
      ]
      with bundles.read_recipe(files) as recipe:
        assert recipe.semantic.config.embed_dim == 1024
      assert bundles.main(['pack', *rest]) == 1
      # It only stops at the first weights, which are not there.
      err = capsys.readouterr().err
      assert re.match(r'error: /mnt/runs/\w+/params.safetensors: cannot', err)
    case ['v2meow', name, *_]:
      with pytest.raises(SystemExit) as stop:
        cli.main([name, '--help'])
      assert not stop.value.code
    case _:
      assert words[0] in _OTHERS, words


@pytest.mark.parametrize(
  'words', _commands(), ids=lambda words: ' '.join(words)[:40]
)
def test_command(words, capsys):
  _check(words, capsys)


def test_every_stage_of_the_paper_is_trained():
  trained = {
    words[words.index('launch/train.sh') + 1]
    for words in _commands()
    if 'launch/tpu_pod.sh' in words and 'launch/train.sh' in words
  }
  assert trained == {'semantic', 'coarse', 'coarse_visual', 'fine'}


def test_names_in_the_text_are_there():
  for kind in ('stages', 'visual'):
    for name in re.findall(rf'`({"|".join(_names(kind))})`', TEXT):
      assert (conftest.ROOT / 'gin' / kind / f'{name}.gin').is_file()
  for path in re.findall(r'\]\((?!https?://|#)([^)#]+)\)', TEXT):
    assert (conftest.ROOT / 'docs' / path).is_file(), path


def _names(kind):
  return [path.stem for path in (conftest.ROOT / 'gin' / kind).glob('*.gin')]
