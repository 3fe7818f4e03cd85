"""Weights that others publish: found, verified and made ours.

Each is a row of type `Checkpoint` in the module of the network it belongs to:
a module of codecs/, embedders/, tokenizers/ or visual/ that can load some has a
tuple `CHECKPOINTS`. `v2meow weights` lists, checks and converts them.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import importlib
import os
import pathlib
import pkgutil
from typing import Any

from v2meow_jax import errors
from v2meow_jax import weights

VARIABLE = 'V2MEOW_WEIGHTS'
# Key of a config under which converted weights say where they come from.
SOURCE = weights.SOURCE
_PACKAGES = ('codecs', 'embedders', 'tokenizers', 'visual')
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Weights that somebody publishes, and the way to ours.

  Attributes:
    name: what a user calls them, such as 'dac_16khz'.
    summary: what they are, in a few words.
    licence: of the weights.
    files: names of the files, all needed; `a|b` where either will do, the
      first that there is. One with folders in its name lies in these.
    convert: `convert({name: path})` returns our parameters, with `add_config`
      where the network has dimensions that the checkpoint decides; names as in
      `files`.
    expected: `expected(config)` returns a nested dict of what has a `shape`:
      the parameters of the network; `config` is what `read_config` finds, {}
      where there is none.
    repository: where the Hugging Face hub has them; None where it has not, and
      `origin` says where to look.
    origin: address of a page for a person.
    revision: of the repository.
    sha256: of files by name, where they are known.
  """

  name: str
  summary: str
  licence: str
  files: tuple[str, ...]
  convert: Callable[[Mapping[str, pathlib.Path]], dict]
  expected: Callable[[Mapping[str, Any]], Mapping]
  repository: str | None = None
  origin: str = ''
  revision: str = 'main'
  sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)


def checkpoints() -> dict[str, Checkpoint]:
  """Returns all rows of type `Checkpoint`, by name."""
  found = {}
  for package in _PACKAGES:
    folder = importlib.import_module(f'v2meow_jax.{package}')
    for info in pkgutil.iter_modules(folder.__path__):
      module = importlib.import_module(f'{folder.__name__}.{info.name}')
      for row in getattr(module, 'CHECKPOINTS', ()):
        if row.name in found:
          raise ValueError(
            f'Two checkpoints `{row.name}`, expected one. Rename that of '
            f'{module.__name__}.'
          )
        found[row.name] = row
  return found


def get_checkpoint(name: str) -> Checkpoint:
  """Returns the row `name`.

  Raises:
    UserError: there is no such row.
  """
  rows = checkpoints()
  if name not in rows:
    raise errors.UserError(
      f'Unknown weights `{name}`, expected one of {", ".join(sorted(rows))}. '
      'See `v2meow weights list`.'
    )
  return rows[name]


def cache_folder() -> pathlib.Path:
  """Where downloaded weights lie.

  `$V2MEOW_WEIGHTS`, or `v2meow/weights` in the user's cache folder.
  """
  setting = os.environ.get(VARIABLE)
  if setting:
    return pathlib.Path(setting)
  caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(caches) / 'v2meow' / 'weights'


def find(
  checkpoint: Checkpoint,
  path: str | os.PathLike | None = None,
  download: bool = False,
) -> dict[str, pathlib.Path]:
  """Finds the files of published weights.

  Args:
    checkpoint: which.
    path: folder that holds them, or the file where it is but one; the cache
      folder by default.
    download: whether to fetch what is missing there from the Hugging Face hub
      into the cache folder. Nothing is ever fetched unasked.

  Returns:
    Paths by the names in `checkpoint.files`.

  Raises:
    UserError: files are missing, or cannot be fetched.
  """
  if path is not None and pathlib.Path(path).is_file():
    if len(checkpoint.files) == 1:
      return {checkpoint.files[0]: pathlib.Path(path)}
    raise errors.UserError(
      f'{path}: is one file, expected the folder of {_list(checkpoint)} of '
      f'weights `{checkpoint.name}`. Name the folder.'
    )
  folder = cache_folder() / checkpoint.name
  if path is not None:
    folder = pathlib.Path(path)
  found, missing = {}, []
  for name in checkpoint.files:
    paths = [folder / choice for choice in name.split('|')]
    there = [p for p in paths if p.is_file()]
    if there:
      found[name] = there[0]
    else:
      missing.append(name)
  if missing and download and path is None:
    return found | {n: _fetch(checkpoint, n, folder) for n in missing}
  if missing:
    raise errors.UserError(
      f'{folder}: {" and ".join(missing)} of weights `{checkpoint.name}` '
      f'missing, expected {_list(checkpoint)}. {_where(checkpoint)}'
    )
  return found


def _list(checkpoint: Checkpoint) -> str:
  return ', '.join(checkpoint.files)


def _where(checkpoint: Checkpoint) -> str:
  if checkpoint.repository:
    return (
      f'Run `v2meow weights convert {checkpoint.name} --download`, or name '
      'their folder with --path.'
    )
  return f'Get them from {checkpoint.origin} and name them with --path.'


def _fetch(
  checkpoint: Checkpoint, name: str, folder: pathlib.Path
) -> pathlib.Path:
  """Downloads one file, the first of its choices that the hub has."""
  if not checkpoint.repository:
    raise errors.UserError(
      f'Weights `{checkpoint.name}` are on no hub, expected {name} in '
      f'{folder}. {_where(checkpoint)}'
    )
  try:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
  except ImportError as error:
    raise errors.UserError(
      'Downloading needs the package `huggingface_hub`. Install it with pip '
      "install 'v2meow_jax[pretrained]'."
    ) from error
  for choice in name.split('|'):
    try:
      return pathlib.Path(
        huggingface_hub.hf_hub_download(
          checkpoint.repository,
          choice,
          revision=checkpoint.revision,
          local_dir=folder,
        )
      )
    except hub_errors.EntryNotFoundError:
      continue
    except Exception as error:  # network, disk, rights: the hub has many
      text = ' '.join(str(error).split())[:200]
      raise errors.UserError(
        f'{checkpoint.repository}: {choice} cannot be downloaded ({text}), '
        'expected an answer of the Hugging Face hub. Try again later, or get '
        'the file elsewhere and name its folder with --path.'
      ) from error
  raise errors.UserError(
    f'{checkpoint.repository}: has no {name}, expected it at revision '
    f'{checkpoint.revision}. Get the file elsewhere and use --path.'
  )


def verify(
  checkpoint: Checkpoint, paths: Mapping[str, pathlib.Path]
) -> dict[str, str]:
  """Compares files with the checksums that are known.

  Args:
    checkpoint: what they should be.
    paths: as `find` returns them.

  Returns:
    SHA-256 of each file by its own name, known or not.

  Raises:
    UserError: a file is another one.
  """
  found = {}
  for path in paths.values():
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
      while chunk := file.read(_CHUNK):
        digest.update(chunk)
    found[path.name] = digest.hexdigest()
    expected = checkpoint.sha256.get(path.name)
    if expected and expected != found[path.name]:
      raise errors.UserError(
        f'{path}: SHA-256 is {found[path.name]}, expected {expected} of '
        f'weights `{checkpoint.name}`. Fetch the file again.'
      )
  return found


def check(checkpoint: Checkpoint, params: Mapping) -> dict:
  """Checks that the network has these parameters.

  Args:
    checkpoint: what they are.
    params: ours, as `convert` returns them or as they were saved.

  Returns:
    `params`, with the checkpoint's name in their config.

  Raises:
    UserError: names every missing, unexpected and misshapen parameter.
  """
  config = weights.read_config(params)
  config.pop(SOURCE, None)
  arrays = weights.without_config(params)
  weights.check_params(checkpoint.expected(config), arrays)
  return weights.add_config(arrays, config | {SOURCE: checkpoint.name})


def load(
  name: str, path: str | os.PathLike | None = None, download: bool = False
) -> dict:
  """Finds, verifies, converts and checks published weights.

  Args:
    name: of the row.
    path: see `find`.
    download: see `find`.

  Returns:
    Our parameters, as the network's class takes them.

  Raises:
    UserError: they are missing, damaged or of another network.
  """
  checkpoint = get_checkpoint(name)
  paths = find(checkpoint, path, download)
  verify(checkpoint, paths)
  return check(checkpoint, checkpoint.convert(paths))


def not_converted(path: str | os.PathLike) -> errors.UserError:
  """The error for a file that `v2meow weights convert` did not write."""
  return errors.UserError(
    f'{os.fspath(path)}: does not say which weights it holds, expected a file '
    'that `v2meow weights convert` wrote. Name the weights and use --path.'
  )
