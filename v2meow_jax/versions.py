"""Which versions a training ran with, saved beside its checkpoints."""

from collections.abc import Mapping, Sequence
from importlib import metadata
import json
import os
import pathlib
import platform
import subprocess

from absl import logging

import v2meow_jax
from v2meow_jax import files

# Those that can change the numbers of a training.
PACKAGES = (
  'jax',
  'jaxlib',
  'libtpu',
  'flax',
  'optax',
  'orbax-checkpoint',
  'seqio',
  'tensorflow',
  'numpy',
)
FILE = 'versions.json'
# Where there is no history: `launch/tpu_pod.sh` copies none.
_COMMIT_VARIABLE = 'V2MEOW_COMMIT'


def collect(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
  """Returns versions by name: Python, the packages that are there, and this.

  `commit` is that of the checkout, with `-dirty` where it is changed; it is
  left out where it is not known.

  Args:
    packages: those to look for.
  """
  versions = {
    'python': platform.python_version(),
    'v2meow_jax': v2meow_jax.__version__,
  }
  commit = os.environ.get(_COMMIT_VARIABLE) or _read_commit()
  if commit:
    versions['commit'] = commit
  for package in packages:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      continue
  return versions


def _read_commit() -> str | None:
  root = pathlib.Path(v2meow_jax.__file__).resolve().parent.parent
  if not (root / '.git').exists():
    return None
  # Tags are names that move; a commit is what it is.
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40']
  try:
    done = subprocess.run(
      [*command, '--exclude=*'],
      cwd=root,
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    )
  except (OSError, subprocess.SubprocessError):  # no git, or not its owner
    return None
  return done.stdout.strip() or None


def find_changes(
  before: Mapping[str, str], now: Mapping[str, str]
) -> list[str]:
  """Returns what differs, as `jax 0.9.0 -> 0.10.0`."""
  return [
    f'{name} {before.get(name, "none")} -> {now.get(name, "none")}'
    for name in sorted({*before, *now})
    if before.get(name) != now.get(name)
  ]


def save(
  model_dir: pathlib.Path, step: int, versions: Mapping[str, str] | None = None
) -> None:
  """Notes the versions that a training goes on with from `step`.

  `versions.json` is a list of `{"step", "versions"}`; it grows by one where
  something is not what it was, and that is logged.

  Args:
    model_dir: folder of the checkpoints.
    step: steps done.
    versions: of `collect` by default.

  Raises:
    UserError: the file cannot be written.
  """
  versions = dict(collect() if versions is None else versions)
  path = model_dir / FILE
  history = _read(path)
  if history:
    before = history[-1]['versions']
    changes = find_changes(before, versions)
    if not changes:
      return
    logging.warning(
      'Not the versions of step %d: %s.',
      history[-1]['step'],
      ', '.join(changes),
    )
  history.append({'step': step, 'versions': versions})
  with files.replace(str(path)) as part:
    pathlib.Path(part).write_text(json.dumps(history, indent=2) + '\n')


def _read(path: pathlib.Path) -> list:
  try:
    history = json.loads(path.read_text())
    if all({'step', 'versions'} <= entry.keys() for entry in history):
      return history
  except FileNotFoundError:
    return []
  except (OSError, ValueError, AttributeError, TypeError):
    pass
  logging.warning('%s: cannot be read; written anew.', path)
  return []
