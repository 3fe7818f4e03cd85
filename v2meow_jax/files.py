"""Files in and out: media that may be broken, results that are never partial.

`open_media` says in one line why a file cannot be used; `replace` makes a
result appear whole or not at all.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import threading

import av

from v2meow_jax import errors

_KINDS = 'MP4, MOV, WebM, Matroska or another format that FFmpeg reads'
_CHUNK = 1 << 20
_of_thread = threading.local()


def open_media(path: str) -> av.container.InputContainer:
  """Opens a local video or audio file for reading.

  Args:
    path: a local file.

  Returns:
    The open container; the caller closes it.

  Raises:
    UserError: it is missing, a folder, empty, unreadable or no media file.
  """
  path = os.fspath(path)
  if os.path.isdir(path):
    raise errors.UserError(
      f'{path}: is a folder, expected a media file. Name a file in it.'
    )
  if not os.path.isfile(path):
    raise errors.UserError(
      f'{path}: no such file, expected a media file. Check the path.'
    )
  try:
    with open(path, 'rb') as f:
      head = f.read(12)
    if not head:
      raise errors.UserError(
        f'{path}: is empty (0 bytes), expected a media file. Copy or '
        'download it again.'
      )
    # `file:` keeps FFmpeg from taking a colon in the name for a protocol.
    return av.open(f'file:{path}', metadata_errors='ignore')
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot be read ({e.strerror}), expected a media file. Check '
      'its permissions.'
    ) from e
  except av.FFmpegError as e:
    if head[4:8] == b'ftyp':
      raise errors.UserError(
        f'{path}: breaks off before its index and cannot be opened, expected '
        'a complete file. Copy or download it again.'
      ) from e
    raise errors.UserError(
      f'{path}: is no media file, expected {_KINDS}. Check that it plays.'
    ) from e


def find_picture(
  container: av.container.InputContainer,
) -> av.VideoStream | None:
  """Returns the main moving picture of a file; cover art is none.

  Args:
    container: as `open_media` gives it.
  """
  kinds = av.stream.Disposition
  covers = kinds.attached_pic | kinds.timed_thumbnails
  pictures = [s for s in container.streams.video if not s.disposition & covers]
  best = container.streams.best('video')
  return best if best in pictures else next(iter(pictures), None)


def measure(
  path: str | os.PathLike, tick: Callable[[], None] = lambda: None
) -> tuple[int, str]:
  """Returns the bytes of a file and their SHA-256, in hexadecimal digits.

  Args:
    path: of the file.
    tick: called now and then; what it raises ends the reading.

  Raises:
    UserError: it cannot be read.
  """
  size, digest = 0, hashlib.sha256()
  try:
    with open(path, 'rb') as f:
      while chunk := f.read(_CHUNK):
        size += len(chunk)
        digest.update(chunk)
        tick()
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot be read ({e.strerror}), expected a file. Check the '
      'path and its permissions.'
    ) from e
  return size, digest.hexdigest()


class Halt:
  """Ends the writing of one thread from another: nothing partial is left.

  The thread that writes does so inside `with halt:`. When `now` returns, the
  temporary files of `replace` are gone, and there will be no new ones.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._folders = set()
    self._is_now = False

  def now(self) -> None:
    """Removes what is being written; what is whole already stays."""
    with self._lock:
      self._is_now = True
      for folder in self._folders:
        self._remove(folder)

  def make(self, folder: str) -> None:
    """Makes a folder for a temporary file; without one there can be none.

    Raises:
      OSError: it cannot be made, or it is too late.
    """
    with self._lock:
      if self._is_now:
        raise InterruptedError(errno.EINTR, 'stopped')
      self._folders.add(folder)
      os.mkdir(folder)

  def remove(self, folder: str) -> None:
    """Removes what `make` made, with what is in it."""
    with self._lock:
      if folder in self._folders:
        self._folders.remove(folder)
        self._remove(folder)

  def _remove(self, folder: str) -> None:
    # Again where the thread that writes has made a file in between.
    for _ in range(10):
      shutil.rmtree(folder, ignore_errors=True)
      if not os.path.exists(folder):
        return

  def __enter__(self) -> 'Halt':
    _of_thread.halt = self
    return self

  def __exit__(self, *unused):
    del _of_thread.halt


@contextlib.contextmanager
def replace(path: str) -> Iterator[str]:
  """Gives a temporary name to write to, which becomes `path` at the end.

  The file gets its name only when the block ends without an error, after its
  bytes are on the disk; otherwise nothing is left behind.

  Args:
    path: where the result goes; a file there is replaced.

  Yields:
    A temporary name, in a hidden folder beside the result.

  Raises:
    UserError: the folder is missing or cannot be written, `path` is a folder,
      or the disk is full.
  """
  path = os.fspath(path)
  folder = os.path.dirname(path) or '.'
  if os.path.isdir(path):
    raise errors.UserError(
      f'{path}: is a folder, expected the name of a file to write. Add a '
      'file name to it.'
    )
  if not os.path.isdir(folder):
    raise errors.UserError(
      f'{path}: cannot be written because {folder} is no folder. Make the '
      'folder or choose another one.'
    )
  hidden = os.path.join(folder, f'.{secrets.token_hex(8)}.part')
  temporary = os.path.join(hidden, 'part')
  halt = getattr(_of_thread, 'halt', None) or Halt()
  try:
    halt.make(hidden)
    yield temporary
    with open(temporary, 'rb+') as f:
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot be written ({e.strerror}). Check the permissions and '
      'the space of the folder, or choose another one.'
    ) from e
  finally:
    halt.remove(hidden)
