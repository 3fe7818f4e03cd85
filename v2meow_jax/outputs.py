"""Where generated files go: which name each piece gets, before any is made."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import tempfile

from v2meow_jax import errors
from v2meow_jax import sidecars

VIDEO_SUFFIXES = ('.mp4', '.mkv')
SUFFIXES = (*VIDEO_SUFFIXES, '.wav')
MARK = '.v2meow'  # in the names of outputs


@dataclasses.dataclass(frozen=True)
class Piece:
  """One piece of music to make.

  Attributes:
    video: the video it is for.
    seed: of the piece.
    paths: files to write.
  """

  video: str
  seed: int
  paths: tuple[pathlib.Path, ...]

  @property
  def sidecar(self) -> pathlib.Path:
    """The JSON file beside them."""
    return self.paths[0].with_suffix('.json')


def is_folder(out: str) -> bool:
  """Whether `--out` names a folder: there is one, or it looks like one."""
  return (
    os.path.isdir(out) or out.endswith(os.sep) or not pathlib.Path(out).suffix
  )


def plan(
  videos: Sequence[str],
  seeds: Sequence[int],
  out: str | None = None,
  kind: str | None = None,
) -> list[Piece]:
  """Names the files of all pieces.

  Args:
    videos: paths of the videos.
    seeds: of the pieces of each video; more than one stand in the names.
    out: file or folder; None for the working folder.
    kind: 'mp4', 'wav' or 'both'; None for what `out` says, else 'mp4'.

  Returns:
    The pieces: all of the first video, then all of the next.

  Raises:
    UserError: `out` is neither a file that can be written nor a folder, one
      file for several videos, of another kind than asked for, or a video; or
      two pieces would get the same name.
  """
  to_file = out is not None and not is_folder(out)
  if to_file:
    suffix = pathlib.Path(out).suffix.lower()
    _check_file(out, suffix, kind, len(videos))
    kind = kind or suffix.removeprefix('.')
  suffixes = {
    'mp4': ['.mp4'],
    'mkv': ['.mkv'],
    'wav': ['.wav'],
    'both': ['.mp4', '.wav'],
  }[kind or 'mp4']
  if to_file and kind == 'both' and suffix == '.mkv':
    suffixes = ['.mkv', '.wav']
  pieces, owners = [], {}
  for video in dict.fromkeys(videos):
    if to_file:
      stem = pathlib.Path(out).with_suffix('')
    else:
      stem = pathlib.Path(out or '.') / (pathlib.Path(video).stem + MARK)
    for seed in seeds:
      mark = f'.seed{seed}' if len(seeds) > 1 else ''
      paths = [pathlib.Path(f'{stem}{mark}{suffix}') for suffix in suffixes]
      for path in paths:
        other = owners.setdefault(path, video)
        if other != video:
          raise errors.UserError(
            f'{other} and {video} would both be written to {path}, expected '
            'videos with different names. Rename one, or give each its own '
            '--out.'
          )
      pieces.append(Piece(video, seed, tuple(paths)))
  _check_not_a_video(owners, videos)
  return pieces


def _check_file(out: str, suffix: str, kind: str | None, count: int) -> None:
  if suffix not in SUFFIXES:
    raise errors.UserError(
      f'--out is `{out}`, expected a file that ends with '
      f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or a folder. Change '
      f'`{suffix}`, or put {os.sep} behind the name of a new folder.'
    )
  if count > 1:
    raise errors.UserError(
      f'--out is the one file `{out}` for {count} videos, expected a folder. '
      'Name a folder.'
    )
  is_sound = suffix == '.wav'
  if (kind == 'mp4' and is_sound) or (kind == 'wav' and not is_sound):
    raise errors.UserError(
      f'--out is `{out}` and --format is {kind}, expected the same kind. '
      'Leave --format out, or change the name.'
    )


def _check_not_a_video(paths: Sequence, videos: Sequence[str]) -> None:
  owners = {_identity(video): video for video in videos}
  for path in paths:
    video = owners.get(_identity(path)) if os.path.exists(path) else None
    if video is not None:
      raise errors.UserError(
        f'{path}: is the VIDEO {video} itself, which is never replaced. '
        'Name another file with --out.'
      )


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
  """Which file it is, by whatever name; None where there is none."""
  try:
    found = os.stat(path)
  except (OSError, ValueError):
    return None
  return found.st_dev, found.st_ino


def check_sidecars(pieces: Sequence[Piece]) -> None:
  """Checks that no JSON of the user's own lies where a sidecar shall go.

  Raises:
    UserError: one does.
  """
  for piece in pieces:
    if os.path.lexists(piece.sidecar) and not sidecars.is_one(piece.sidecar):
      raise errors.UserError(
        f'{piece.sidecar}: is no sidecar of an earlier run and is not '
        'replaced. Name another file with --out, or write no sidecar with '
        '--no_sidecar.'
      )


def make_folders(pieces: Sequence[Piece]) -> None:
  """Makes the folders of all files, and tries to write there.

  Raises:
    UserError: a folder cannot be made or written.
  """
  for folder in dict.fromkeys(p.parent for x in pieces for p in x.paths):
    try:
      folder.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=folder):
        pass
    except OSError as error:
      raise errors.UserError(
        f'{folder}: cannot be written ({error.strerror}), expected a folder '
        'that can. Name another with --out.'
      ) from error
