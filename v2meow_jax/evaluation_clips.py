"""The clips of an evaluation: videos that no model has seen, and their music.

Everything that takes long is kept in the folder of the report and found again
by its content: what the toy generator drew, what a model made of a video, what
analysis heard in a waveform. A run that was stopped goes on where it was.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib

import numpy as np

from v2meow_jax import audio
from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import files
from v2meow_jax import manifests
from v2meow_jax.metrics import adherence
from v2meow_jax.metrics import descriptors

SUFFIXES = (
  '.wav', '.flac', '.ogg', '.opus', '.mp3', '.m4a', '.mp4', '.mkv', '.webm'
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video whose attributes are known, with its real music.

  Attributes:
    clip_id: its name.
    video: the file with the picture.
    sound: the file with the real music.
    seconds: how much of both is used, from their start; None for all.
    attributes: what is known of the video.
  """

  clip_id: str
  video: pathlib.Path
  sound: pathlib.Path
  seconds: float | None
  attributes: adherence.Attributes


def from_manifest(path: str | os.PathLike, split: str) -> list[Clip]:
  """Reads the clips of one split of a manifest.

  Args:
    path: the CSV file; its column `attributes` holds tempo, mode and energy,
      see `adherence.parse_attributes`.
    split: which of its rows.

  Returns:
    The clips.

  Raises:
    UserError: the manifest is wrong, has no such rows, or they lack attributes;
      all such rows are listed.
  """
  rows = [row for row in manifests.read(path) if row.split == split]
  if not rows:
    raise errors.UserError(
      f'{path}: no clips of split `{split}`, expected some. Choose another '
      'with --split.'
    )
  clips, wrong = [], []
  for row in rows:
    try:
      if row.start_seconds:
        raise ValueError(
          f'start_seconds is {row.start_seconds:g}, expected 0. Cut the file.'
        )
      attributes = adherence.parse_attributes(json.loads(row.attributes))
    except ValueError as error:
      wrong.append(f'clip `{row.clip_id}`: {error}')
      continue
    clips.append(
      Clip(row.clip_id, row.file, row.file, row.end_seconds, attributes)
    )
  if wrong:
    raise errors.UserError(f'{path}: ' + ' '.join(wrong))
  return clips


def find_sounds(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
  """Finds the sound files of a folder.

  Args:
    folder: a folder of audio or video files.

  Returns:
    Paths by name without suffix, in the order of the names.

  Raises:
    UserError: the folder is missing, holds no such file, or two of one name.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise errors.UserError(
      f'{folder}: no such folder, expected one with sound files. Check the '
      'path.'
    )
  found = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in SUFFIXES and not path.name.startswith('.'):
      if path.stem in found:
        raise errors.UserError(
          f'{folder}: {found[path.stem].name} and {path.name} have one name, '
          'expected one file for each clip. Remove one of them.'
        )
      found[path.stem] = path
  if not found:
    raise errors.UserError(
      f'{folder}: no sound files, expected some that end with '
      f'{", ".join(SUFFIXES)}. Check the path.'
    )
  return found


def read_sound(
  path: pathlib.Path, seconds: float | None = None
) -> tuple[np.ndarray, int]:
  """Reads a file as float32 `[samples]`, mono, with its own rate."""
  sound = audio.read(str(path), end_seconds=seconds)
  return sound.to_mono().samples[:, 0], sound.sample_rate_hz


def _digest(*parts: str | bytes) -> str:
  digest = hashlib.sha256()
  for part in parts:
    data = part.encode() if isinstance(part, str) else part
    digest.update(len(data).to_bytes(8, 'big') + data)
  return digest.hexdigest()[:16]


def _file_digest(path: pathlib.Path) -> str:
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise errors.UserError(
      f'{path}: cannot be read ({error.strerror}), expected a media file. '
      'Check the path.'
    ) from error


@functools.cache
def _analysis_version() -> str:
  """Digest of the code that describes waveforms."""
  folder = pathlib.Path(descriptors.__file__).parent
  names = ('descriptors', 'loudness', 'rhythm', 'tonality')
  return _digest(*((folder / f'{n}.py').read_bytes() for n in names))


class Describer:
  """Analyses sound files, each content once."""

  def __init__(self, cache: pathlib.Path):
    """Makes the folder `cache` where descriptions are kept."""
    self._cache = cache
    make_folder(cache)

  def __call__(
    self, path: pathlib.Path, seconds: float | None = None
  ) -> descriptors.Description:
    """Describes the first `seconds` of a file.

    Raises:
      UserError: it cannot be read, is too short, or holds NaN.
    """
    key = _digest(_file_digest(path), str(seconds), _analysis_version())
    cached = self._cache / f'{key}.npz'
    if cached.is_file():
      return descriptors.Description.load(cached)
    try:
      description = descriptors.describe(*read_sound(path, seconds))
    except ValueError as error:
      raise errors.UserError(f'{path}: {error}') from error
    with files.replace(str(cached)) as temporary:
      description.save(temporary)
    return description


class Finder:
  """Finds the music for clips that was generated before."""

  def __init__(self, folder: str | os.PathLike):
    """Lists the folder; UserError as `find_sounds`."""
    self._folder = folder
    self._found = find_sounds(folder)

  def __call__(self, clip: Clip) -> pathlib.Path:
    """Returns the sound file that is named by the clip's id.

    The id may be followed by a dot and anything, as in `clip.v2meow.wav`.

    Raises:
      UserError: there is none, or more than one.
    """
    names = [
      name for name in self._found if f'{name}.'.startswith(f'{clip.clip_id}.')
    ]
    if len(names) != 1:
      raise errors.UserError(
        f'{self._folder}: {len(names)} files of this clip, expected one, '
        f'{clip.clip_id}.wav. Generate it, or leave the clip out.'
      )
    return self._found[names[0]]


class Composer:
  """Generates music for clips with a model, each video and seed once.

  The model is loaded when the first clip needs it.
  """

  def __init__(self, model: str, folder: pathlib.Path, seed: int):
    """Makes the folder where waveforms are kept.

    Raises:
      UserError: there is no such model, or the folder cannot be written.
    """
    self._model = model
    self._folder = folder
    self._seed = seed
    parts = sorted(
      path
      for path in bundles.find(model).iterdir()
      if path.suffix in ('.gin', '.safetensors')
    )
    self._model_digest = _digest(
      *(part for path in parts for part in (path.name, _file_digest(path)))
    )
    make_folder(folder)

  @functools.cached_property
  def _generator(self):
    from v2meow_jax import generate  # JAX

    return generate.load(self._model)

  def __call__(self, clip: Clip) -> pathlib.Path:
    """Returns the WAV file with the music for a clip.

    Raises:
      UserError: the video cannot be used.
    """
    key = _digest(
      self._model_digest,
      _file_digest(clip.video),
      f'{clip.seconds} {self._seed}',
    )
    path = self._folder / f'{clip.clip_id}.{key}.wav'
    if not path.is_file():
      music = self._generator.generate(
        clip.video, seed=self._seed, duration=clip.seconds
      )
      music.write(path)
    return path


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder and those above it; UserError where that is impossible."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'{path}: cannot be made ({error.strerror}), expected a folder that can '
      'be written. Choose another one with --out.'
    ) from error


class ToyClips:
  """Clips of the toy dataset's test split, made when they are asked for."""

  def __init__(self, folder: pathlib.Path, seconds: float, renderer: str):
    """Makes the folder where they are kept.

    Args:
      folder: where.
      seconds: length of each clip.
      renderer: 'fluidsynth' or 'numpy'.
    """
    make_folder(folder)
    self._folder = folder
    self._seconds = seconds
    self._renderer = renderer
    code = pathlib.Path(__file__).parent / 'toy'
    self._version = _digest(
      f'{seconds} {renderer}',
      *(path.read_bytes() for path in sorted(code.glob('*.py'))),
    )

  @staticmethod
  def indices(count: int) -> list[int]:
    """Numbers of the first `count` clips of the test split."""
    from v2meow_jax.toy import attributes

    test = (i for i in itertools.count() if attributes.split(i) == 'test')
    return list(itertools.islice(test, count))

  def __call__(self, index: int, with_video: bool = True) -> Clip:
    """Makes a clip, unless it is there.

    Args:
      index: its number.
      with_video: whether its video is wanted, or its music only.

    Raises:
      UserError: the renderer is not installed, or the disk is full.
    """
    from v2meow_jax.toy import clips

    name = f'{clips.clip_id(index)}.{self._version}'
    picture = self._folder / f'{name}.mp4'
    sound = self._folder / f'{name}.wav'
    known = self._folder / f'{name}.json'
    if not (
      sound.is_file()
      and known.is_file()
      and (picture.is_file() or not with_video)
    ):
      clip = clips.make_clip(
        seed=0,
        index=index,
        seconds=self._seconds,
        renderer=self._renderer,
        frame_size=clips.FRAME_SIZE if with_video else None,
      )
      if with_video:
        clips.write_clip(clip, picture)
      clips.write_clip(clip, sound)
      with files.replace(str(known)) as temporary:
        text = json.dumps(clip.attributes.to_dict())
        pathlib.Path(temporary).write_text(text)
    return Clip(
      clips.clip_id(index),
      picture,
      sound,
      None,
      adherence.parse_attributes(json.loads(known.read_text())),
    )
