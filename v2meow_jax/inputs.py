"""Which videos to work on: files, and all that lie in folders."""

from collections.abc import Sequence
import os

from v2meow_jax import errors
from v2meow_jax import outputs

# Of containers that hold a moving picture.
SUFFIXES = (
  '.3gp',
  '.avi',
  '.flv',
  '.m2ts',
  '.m4v',
  '.mkv',
  '.mov',
  '.mp4',
  '.mpeg',
  '.mpg',
  '.mts',
  '.ogv',
  '.ts',
  '.webm',
  '.wmv',
)


def find_videos(paths: Sequence[str]) -> list[str]:
  """Replaces each folder by the videos directly in it, sorted by name.

  Hidden files are left out, and so are outputs of an earlier run, whose names
  hold `.v2meow.`.

  Args:
    paths: files and folders. What is no folder is taken as it is.

  Returns:
    Paths of files, each once.

  Raises:
    UserError: a folder cannot be read or holds no videos.
  """
  videos = []
  for path in paths:
    videos += _list_folder(path) if os.path.isdir(path) else [path]
  return list(dict.fromkeys(videos))


def _list_folder(folder: str) -> list[str]:
  try:
    names = sorted(os.listdir(folder))
  except OSError as error:
    raise errors.UserError(
      f'{folder}: cannot be read ({error.strerror}), expected a folder of '
      'videos. Check its permissions.'
    ) from error
  videos = [
    os.path.join(folder, name)
    for name in names
    if name.lower().endswith(SUFFIXES)
    and not name.startswith('.')
    and f'{outputs.MARK}.' not in name
    and not os.path.isdir(os.path.join(folder, name))
  ]
  if not videos:
    raise errors.UserError(
      f'{folder}: holds no videos, expected files that end with '
      f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}. Name another folder.'
    )
  return videos
