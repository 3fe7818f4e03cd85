"""Writes clips of the toy dataset to files.

  python -m v2meow_jax.toy --out DIR --num 20

DIR gets one file per clip and `MANIFEST.csv`, which lists the clips of this
call (manifests.py has the columns). Clips whose file is there are not made
again, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import csv
import hashlib
import json
import multiprocessing
import os
import pathlib
import sys

import cv2
import tqdm

from v2meow_jax import errors
from v2meow_jax import files
from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import captions
from v2meow_jax.toy import clips
from v2meow_jax.toy import soundfont as soundfont_lib

_MANIFEST = 'MANIFEST.csv'
_SETTINGS = 'SETTINGS.json'
_COLUMNS = (
  'clip_id',
  'file',
  'start_seconds',
  'end_seconds',
  'split',
  'caption',
  'sha256',
  'attributes',
)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 0, or 1 after a line that says what is wrong."""
  arguments = _parse(argv)
  try:
    print(write_clips(arguments))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


def write_clips(arguments: argparse.Namespace) -> pathlib.Path:
  """Writes the clips that are not there yet, and the manifest.

  Args:
    arguments: of the command line.

  Returns:
    Path of the manifest.

  Raises:
    errors.UserError: the folder cannot be written or holds clips of other
      settings; FluidSynth is missing.
  """
  folder = pathlib.Path(arguments.out)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'{folder}: cannot be made ({error.strerror}), expected a folder that '
      'can be written. Choose another one with --out.'
    ) from error
  settings = {
    'seed': arguments.seed,
    'seconds': arguments.seconds,
    'renderer': arguments.renderer,
  }
  if not arguments.audio_only:
    settings['frame_rate_hz'] = arguments.frame_rate
    settings['frame_size'] = list(arguments.size)
  _check_settings(folder, settings)
  if arguments.renderer == 'fluidsynth':
    soundfont_lib.check(arguments.soundfont)
  indices = range(arguments.first, arguments.first + arguments.num)
  jobs = [(arguments, index) for index in indices]
  rows = []
  with tqdm.tqdm(total=len(jobs), unit='clip', disable=None) as bar:
    for row in _map(_write_one, jobs, arguments.processes):
      rows.append(row)
      bar.update()
  path = folder / _MANIFEST
  with files.replace(os.fspath(path)) as temporary:
    with open(temporary, 'w', newline='', encoding='utf-8') as file:
      writer = csv.DictWriter(file, _COLUMNS)
      writer.writeheader()
      writer.writerows(rows)
  return path


def _write_one(job: tuple[argparse.Namespace, int]) -> dict:
  """Writes one clip if its file is missing; returns its row."""
  arguments, index = job
  suffix = '.wav' if arguments.audio_only else '.mp4'
  path = pathlib.Path(arguments.out) / (clips.clip_id(index) + suffix)
  if not path.exists():
    clip = clips.make_clip(
      arguments.seed,
      index,
      arguments.seconds,
      arguments.renderer,
      arguments.frame_rate,
      None if arguments.audio_only else arguments.size,
      arguments.soundfont,
    )
    clips.write_clip(clip, path)
  attributes = attributes_lib.sample(arguments.seed, index, arguments.seconds)
  details = {**attributes.to_dict(), 'renderer': arguments.renderer}
  return {
    'clip_id': clips.clip_id(index),
    'file': path.name,
    'start_seconds': 0,
    'end_seconds': arguments.seconds,
    'split': attributes_lib.split(index),
    'caption': captions.write_caption(attributes),
    'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
    'attributes': json.dumps(details),
  }


def _map(function, jobs: list, processes: int):
  """Results in order, of one process or of several."""
  if processes == 1:
    yield from map(function, jobs)
    return
  # Forking would copy the threads of the libraries in an undefined state.
  context = multiprocessing.get_context('spawn')
  # The clips are what runs in parallel, not the pictures within one.
  with context.Pool(processes, cv2.setNumThreads, (1,)) as pool:
    yield from pool.imap(function, jobs)


def _check_settings(folder: pathlib.Path, settings: dict):
  """Refuses to mix clips of different settings in one folder."""
  path = folder / _SETTINGS
  if path.exists():
    found = json.loads(path.read_text())
    if found != settings:
      raise errors.UserError(
        f'{folder}: holds clips made with {json.dumps(found)}, expected '
        f'{json.dumps(settings)}. Choose another folder or the same settings.'
      )
    return
  with files.replace(os.fspath(path)) as temporary:
    pathlib.Path(temporary).write_text(json.dumps(settings) + '\n')


def _size(text: str) -> tuple[int, int]:
  """Reads `54x96`, height and width."""
  height, width = (int(part) for part in text.split('x'))
  if min(height, width) < 16 or height % 2 or width % 2:
    raise argparse.ArgumentTypeError(
      f'{text}, expected even numbers of at least 16'
    )
  return height, width


def _at_least(kind, least):
  """A type of an argument: a number of at least `least`."""

  def read(text: str):
    value = kind(text)
    if not value >= least:
      raise argparse.ArgumentTypeError(f'{text}, expected at least {least}')
    return value

  return read


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m v2meow_jax.toy',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--out', required=True, metavar='DIR', help='folder of the clips')
  add('--num', required=True, type=_at_least(int, 1), help='how many clips')
  add(
    '--first',
    type=_at_least(int, 0),
    default=0,
    help='number of the first one (default: 0)',
  )
  add(
    '--seconds',
    type=_at_least(float, 0.1),
    default=16.0,
    help='length of a clip (default: 16)',
  )
  add(
    '--seed',
    type=_at_least(int, 0),
    default=0,
    help='of the dataset (default: 0)',
  )
  add(
    '--renderer',
    choices=clips.RENDERERS,
    default='fluidsynth',
    help='what plays the notes (default: fluidsynth)',
  )
  add(
    '--soundfont',
    metavar='FILE',
    help='General MIDI soundfont of FluidSynth (default: looks for one)',
  )
  add(
    '--audio-only',
    action='store_true',
    help='write sound without a picture, as .wav',
  )
  add(
    '--frame-rate',
    type=_at_least(float, 1),
    default=clips.FRAME_RATE_HZ,
    metavar='HZ',
    help='frames a second (default: 10)',
  )
  add(
    '--size',
    type=_size,
    default=clips.FRAME_SIZE,
    metavar='HxW',
    help='height and width of a frame (default: 54x96)',
  )
  add(
    '--processes',
    type=_at_least(int, 1),
    default=os.cpu_count() or 1,
    help='clips made at the same time (default: one per core)',
  )
  return parser.parse_args(argv)
