"""Checksums of the files of a folder: what was damaged is never used.

The arrays of a checkpoint carry none of their own: a byte that has flipped on
the disk would come back as another number, and nobody would know.
"""

import json
import os
import pathlib
import zlib

NAME = 'checksums.json'
_CHUNK = 1 << 20


def write(folder: pathlib.Path) -> None:
  """Writes size and CRC-32 of all files in folders of `folder` to its `NAME`.

  All are on the disk when this returns, so that what is older may go. Files
  directly in `folder`, where orbax notes when it was done, do not count.
  """
  facts = {
    str(path.relative_to(folder)): _measure(path, sync=True)
    for path in sorted(folder.glob('*/**/*'))
    if path.is_file()
  }
  with open(folder / NAME, 'w') as file:
    json.dump(facts, file, indent=0)
    file.flush()
    os.fsync(file.fileno())


def are_in(folder: pathlib.Path) -> bool:
  """Whether `folder` has checksums."""
  return (folder / NAME).exists()


def find_damage(folder: pathlib.Path) -> str | None:
  """Compares the files of a folder with its checksums.

  Args:
    folder: what `write` was called with, wherever it is by now.

  Returns:
    What is wrong with the first file that differs; None where nothing is, or
    where there are no checksums.
  """
  if not are_in(folder):
    return None
  try:
    facts = json.loads((folder / NAME).read_text())
    expected = {name: (int(f[0]), int(f[1])) for name, f in facts.items()}
  except (ValueError, AttributeError, LookupError, TypeError):
    return f'{NAME} cannot be read'
  for name, (size, crc) in expected.items():
    try:
      found_size, found_crc = _measure(folder / name)
    except FileNotFoundError:
      return f'{name} is missing'
    except OSError as e:
      return f'{name} cannot be read: {e.strerror}'
    if found_size != size:
      return f'{name} has {found_size} bytes, not {size}'
    if found_crc != crc:
      return f'bytes of {name} have changed'
  return None


def _measure(path: pathlib.Path, sync: bool = False) -> tuple[int, int]:
  size = crc = 0
  with open(path, 'rb') as file:
    while chunk := file.read(_CHUNK):
      size += len(chunk)
      crc = zlib.crc32(chunk, crc)
    if sync:
      os.fsync(file.fileno())
  return size, crc
