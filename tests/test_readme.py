"""README.md: its commands run as written, its links and pictures are there."""

import glob
import re
import shlex

import pytest

from tests import conftest
from tests import toy
from v2meow_jax import bundles
from v2meow_jax import cli

TEXT = (conftest.ROOT / 'README.md').read_text()


def _blocks(language: str) -> list[str]:
  return re.findall(rf'^```{language}\n(.*?)^```', TEXT, re.DOTALL | re.M)


def _commands(program: str) -> list[list[str]]:
  lines = '\n'.join(_blocks('sh')).replace('\\\n', ' ').splitlines()
  lines = [shlex.split(line, comments=True) for line in lines]
  return [line[1:] for line in lines if line and line[0] == program]


@pytest.fixture
def work(tmp_path, monkeypatch, tiny_model):
  """A folder with a video, and a tiny system as the bundled model."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(bundles.MODELS, 'bundled', tiny_model)
  toy.make_video(tmp_path / 'clip.mp4', 5.2)
  (tmp_path / 'videos').mkdir()
  toy.make_video(tmp_path / 'videos' / 'other.mp4', 1.2)
  return tmp_path


@pytest.mark.parametrize(
  'arguments',
  [c for c in _commands('v2meow') if c[0] == 'generate'],
  ids=' '.join,
)
def test_generate_runs_as_written(arguments, work, capsys):
  if '--from' in arguments:  # the piece of the first command
    assert cli.main(['generate', 'clip.mp4']) == 0
  expanded = [
    part for word in arguments for part in sorted(glob.glob(word)) or [word]
  ]
  try:
    status = cli.main(expanded)
  except SystemExit as stop:  # --help
    status = stop.code
  assert status in (0, None)
  out = capsys.readouterr().out
  if '--help' in arguments:
    assert out.startswith('usage: v2meow generate')
  else:
    written = out.splitlines()
    assert written and all((work / path).is_file() for path in written)


def test_python_runs_as_written(work):
  (code,) = _blocks('python')
  exec(code, {})
  assert (work / 'clip_with_music.mp4').is_file()


def test_scripts_links_and_pictures_are_there():
  scripts = [words[0] for words in _commands('bash')]
  assert 'launch/quickstart.sh' in scripts and 'launch/test.sh' in scripts
  links = re.findall(r'\]\((?!https?://|#)([^)#]+)\)', TEXT)
  assert 'LICENSE' in links
  for path in scripts + links:
    assert (conftest.ROOT / path).is_file(), path


def test_commands_of_v2meow_exist():
  for name in {words[0] for words in _commands('v2meow')}:
    with pytest.raises(SystemExit) as stop:
      cli.main([name, '--help'])
    assert not stop.value.code
