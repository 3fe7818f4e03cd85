"""Manifests: which part of which file is a clip of a dataset.

A CSV file with a header. Column `file` is needed, relative to the manifest's
own folder or absolute; the others may be missing or empty:

==============  ===========================================================
`clip_id`       name of the clip, unique; the file's name without suffix
`start_seconds` where the clip starts in the file; 0
`end_seconds`   where it ends; the end of the file
`split`         `train`, `validation` or `test`; `train`
`caption`       what the music is, in words; none
`sha256`        of the whole file; checked before the clip is used
`attributes`    a JSON object with anything else that is known; `{}`
==============  ===========================================================
"""

import csv
import dataclasses
import json
import math
import pathlib

from v2meow_jax import errors

SPLITS = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Clip:
  """One row of a manifest.

  Attributes:
    clip_id: name of the clip.
    file: path of the media file.
    start_seconds: where it starts in the file.
    end_seconds: where it ends, or None for the end of the file.
    split: one of `SPLITS`.
    caption: what the music is, in words, or ''.
    sha256: of the file, or ''.
    attributes: a JSON object as text.
  """

  clip_id: str
  file: pathlib.Path
  start_seconds: float = 0.0
  end_seconds: float | None = None
  split: str = 'train'
  caption: str = ''
  sha256: str = ''
  attributes: str = '{}'


def _seconds(row: dict[str, str], column: str, default: float | None):
  text = (row.get(column) or '').strip()
  if not text:
    return default
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not (math.isfinite(value) and value >= 0):
    raise ValueError(
      f'{column} is `{text}`, expected seconds of at least 0. Correct it or '
      'leave it empty.'
    )
  return value


def _clip(row: dict[str, str], folder: pathlib.Path) -> Clip:
  """Reads one row; ValueError says what is wrong with it."""
  text = lambda column: (row.get(column) or '').strip()
  if not text('file'):
    raise ValueError('no `file`, expected the path of a media file. Add it.')
  file = folder / text('file')
  start = _seconds(row, 'start_seconds', 0.0)
  end = _seconds(row, 'end_seconds', None)
  if end is not None and end <= start:
    raise ValueError(
      f'end_seconds is {end:g} and start_seconds is {start:g}, expected an '
      'end after the start. Correct one of them.'
    )
  split = text('split') or 'train'
  if split not in SPLITS:
    raise ValueError(
      f'split is `{split}`, expected one of {", ".join(SPLITS)}. Rename it.'
    )
  attributes = text('attributes') or '{}'
  try:
    is_object = isinstance(json.loads(attributes), dict)
  except json.JSONDecodeError:
    is_object = False
  if not is_object:
    raise ValueError(
      f'attributes is `{attributes[:40]}`, expected a JSON object. Correct '
      'it or leave it empty.'
    )
  return Clip(
    clip_id=text('clip_id') or file.stem,
    file=file,
    start_seconds=start,
    end_seconds=end,
    split=split,
    caption=text('caption'),
    sha256=text('sha256').lower(),
    attributes=attributes,
  )


def read(path: str | pathlib.Path) -> list[Clip]:
  """Reads a manifest; see the module for its columns.

  Args:
    path: the CSV file, UTF-8.

  Returns:
    The clips in order.

  Raises:
    UserError: the file cannot be read, holds no clip, or a row is wrong; all
      wrong rows are listed.
  """
  path = pathlib.Path(path)
  try:
    with open(path, newline='', encoding='utf-8-sig') as f:
      reader = csv.DictReader(f)
      columns = reader.fieldnames or []
      rows = [(reader.line_num, row) for row in reader]
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise errors.UserError(
      f'{path}: cannot be read ({e}), expected a CSV file with a header. '
      'Give the path of a manifest.'
    ) from e
  if 'file' not in columns:
    raise errors.UserError(
      f'{path}: columns are {", ".join(map(str, columns)) or "none"}, '
      'expected `file` among them. Add a header (data/README.md).'
    )
  clips, wrong, lines = [], [], {}
  for line, row in rows:
    try:
      clip = _clip(row, path.parent)
      if clip.clip_id in lines:
        raise ValueError(
          f'clip_id `{clip.clip_id}` is also on line '
          f'{lines[clip.clip_id]}, expected unique names. Rename one.'
        )
      lines[clip.clip_id] = line
      clips.append(clip)
    except ValueError as e:
      wrong.append(f'line {line}: {e}')
  if wrong:
    raise errors.UserError(f'{path}: ' + ' '.join(wrong))
  if not clips:
    raise errors.UserError(
      f'{path}: no clips, expected one row per clip below the header.'
    )
  return clips
