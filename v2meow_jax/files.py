"""Files in and out: media that may be broken, results that are never partial.

`open_media` says in one line why a file cannot be used; `replace` makes a
result appear whole or not at all.
"""

from collections.abc import Iterator
import contextlib
import os
import secrets

import av

from v2meow_jax import errors

_KINDS = 'MP4, MOV, WebM, Matroska or another format that FFmpeg reads'


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


@contextlib.contextmanager
def replace(path: str) -> Iterator[str]:
  """Gives a temporary name to write to, which becomes `path` at the end.

  The file gets its name only when the block ends without an error, after its
  bytes are on the disk; otherwise nothing is left behind.

  Args:
    path: where the result goes; a file there is replaced.

  Yields:
    The temporary name, in the same folder.

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
  name = f'.{os.path.basename(path)[:100]}.{secrets.token_hex(4)}.part'
  temporary = os.path.join(folder, name)
  try:
    with open(temporary, 'wb'):
      pass
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
    with contextlib.suppress(OSError):
      os.remove(temporary)
