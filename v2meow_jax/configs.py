"""gin files: where they are, how they are parsed, what is not set.

A configuration is one file from each folder of `gin/`, in the order of
`gin/README.md`, then single bindings. Choices live there and nowhere else.
"""

from collections.abc import Sequence
import contextlib
import logging
import pathlib
import re
import tokenize
import traceback
from typing import Any

import gin
from gin import config

from v2meow_jax import errors


def folder() -> pathlib.Path:
  """Returns the folder of gin files: of the checkout, or of the wheel."""
  package = pathlib.Path(__file__).resolve().parent
  for parent in (package.parent, package):
    # Any folder may be called `gin` (gin-config's own is); ours has `sizes`.
    if (parent / 'gin' / 'sizes').is_dir():
      return parent / 'gin'
  raise errors.UserError(
    f'No folder of gin files beside or inside {package}, expected `gin/`. '
    'Install the package again, or work in a whole checkout.'
  )


def parse(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  root: str | None = None,
) -> None:
  """Parses gin files, then bindings; later ones win. Replaces what was there.

  Args:
    files: paths, absolute or relative to the working folder, to one of
      `search_paths`, to `gin/` or to the folder that holds it.
    bindings: lines such as `TRAIN_STEPS = 100`.
    search_paths: further folders to look for files in.
    root: the configurable that will be called, such as `train.train`. Checks
      that all it refers to is set, and lets nothing change it later.

  Raises:
    UserError: a file is missing, a line cannot be parsed, a name is unknown,
      or a macro is used that nothing sets.
  """
  own = folder()
  places = [pathlib.Path(), *map(pathlib.Path, search_paths), own, own.parent]
  paths = [_find(file, places) for file in files]
  gin.clear_config()
  for place in map(str, places):
    # gin only ever adds. Its own list is asked, because `bundles` restores it.
    if place not in gin.config._LOCATION_PREFIXES:
      gin.add_config_file_search_path(place)  # for `include`
  try:
    with _without_search_log():
      gin.parse_config_files_and_bindings(
        paths, list(bindings), finalize_config=False
      )
  except (
    OSError,
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    AttributeError,
    ImportError,
  ) as e:
    raise errors.UserError(f'Cannot use the gin files: {_one_line(e)}') from e
  if root is not None:
    _check_macros(root)


def _check_macros(root: str) -> None:
  unset = unset_macros(root)
  if unset:
    flags = ' '.join(f'--gin.{name}=…' for name in unset)
    raise errors.UserError(
      f'Not set in the gin files: {", ".join(unset)}. Expected the file of '
      f'gin/ that provides each (see gin/README.md), or {flags}'
    )
  try:
    gin.finalize()  # also looks at what `root` does not depend on
  except ValueError as e:
    message = _one_line(e).split(' in config string')[0]  # all of it follows
    raise errors.UserError(f'Cannot use the gin files: {message}.') from e


@contextlib.contextmanager
def _without_search_log():
  """Keeps quiet about each place where an included file is not.

  gin logs them as errors, and sets up logging in order to do so.
  """
  root = logging.getLogger()
  drop = lambda record: record.module != 'resource_reader'
  handler = logging.NullHandler()
  root.addFilter(drop)
  root.addHandler(handler)
  try:
    yield
  finally:
    root.removeFilter(drop)
    root.removeHandler(handler)


def _find(file: str, places: Sequence[pathlib.Path]) -> str:
  for place in places:
    if (place / file).is_file():
      return str(place / file)
  raise errors.UserError(
    f'{file}: no such gin file, expected a path that exists or one inside '
    f'{places[-2]}. See gin/README.md for what there is.'
  )


def unset_macros(root: str) -> list[str]:
  """Returns the macros without a value that `root` depends on, sorted.

  Raises:
    UserError: no file binds `root`.
  """
  try:
    bindings = gin.get_bindings(root, resolve_references=False)
  except ValueError:  # it is not even known
    bindings = {}
  if not bindings:
    raise errors.UserError(
      f'No gin file says what `{root}` is to do. Add a file of gin/runs, '
      'such as --gin_file=runs/train.gin.'
    )
  unset, seen, todo = set(), set(), [bindings]
  while todo:
    for reference in _references(todo.pop()):
      key = reference.config_key
      if key in seen:
        continue
      seen.add(key)
      scope, selector = key
      bindings = gin.get_bindings(
        f'{scope}/{selector}' if scope else selector,
        resolve_references=False,
      )
      if selector == 'gin.macro' and not _has_value(bindings):
        unset.add(scope)
      todo.append(bindings)
  return sorted(unset)


def _has_value(bindings: dict) -> bool:
  return 'value' in bindings and repr(bindings['value']) != '%gin.REQUIRED'


def _references(value: Any) -> list:
  """All gin references inside a value of a binding."""
  if isinstance(value, config.ConfigurableReference):
    return [value] if value.selector != 'gin.constant' else []
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, list | tuple | set):
    return [reference for item in value for reference in _references(item)]
  return []


def one_line(error: Exception) -> str | None:
  """Returns what to print for an error that is the user's to mend, or None.

  That is a UserError, a ValueError that this package raises, a package that is
  not installed, and a file that cannot be read or written. gin appends lines
  about the call; they are left out.
  """
  if isinstance(error, errors.UserError):
    return str(error).splitlines()[0]
  if isinstance(error, ModuleNotFoundError):
    # gin hides `error.name`, and appends lines that hold other names.
    found = re.search(r"No module named '(\w+)", str(error))
    package = found[1] if found else str(error).splitlines()[0]
    return (
      f'Package `{package}` is not installed, expected all that training '
      "needs. Install it, or everything with pip install 'v2meow_jax[train]'."
    )
  if isinstance(error, ValueError) and error.__traceback__:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = pathlib.Path(__file__).parent
    if pathlib.Path(frame.f_code.co_filename).is_relative_to(package):
      return str(error).splitlines()[0]
  if isinstance(error, OSError):
    text = ' '.join(str(error).splitlines()[:1])
    return f'{text}. Check the path, its permissions and the space left.'
  return None


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())
