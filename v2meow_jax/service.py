"""`v2meow generate`: many videos, one after the other."""

from collections.abc import Sequence
import sys

import tqdm

from v2meow_jax import bundles
from v2meow_jax import controls as controls_lib
from v2meow_jax import errors
from v2meow_jax import generate
from v2meow_jax import outputs
from v2meow_jax import video


class _Bar:
  """A progress bar for one piece; only on a terminal."""

  # About how the time is spent.
  _SHARES = (0.15, 0.1, 0.35, 0.35, 0.05)

  def __init__(self, piece: outputs.Piece, seconds: float):
    self._seconds = max(seconds, 1e-3)
    self._bar = tqdm.tqdm(
      desc=piece.paths[0].name,
      total=1.0,
      disable=not sys.stderr.isatty(),
      leave=False,
      bar_format='{desc} {percentage:3.0f} %|{bar}| {elapsed} + {remaining}',
    )

  def __call__(self, phase: str, seconds: float) -> None:
    index = generate.PHASES.index(phase)
    part = self._SHARES[index] * min(1.0, seconds / self._seconds)
    self._bar.update(sum(self._SHARES[:index]) + part - self._bar.n)

  def __enter__(self) -> '_Bar':
    return self

  def __exit__(self, *unused):
    self._bar.close()


def run(
  videos: Sequence[str],
  out: str | None = None,
  format: str | None = None,
  model: str = 'bundled',
  samples: int = 1,
  **options,
) -> int:
  """`v2meow generate`: prints the path of each file as soon as it is there.

  A video that cannot be used does not stop the others; what was wrong is said
  at the end.

  Args:
    videos: paths of video files.
    out: file or folder to write; None for the working folder.
    format: 'mp4', 'wav' or 'both'; None for what `out` says.
    model: name or folder of a model.
    samples: pieces for each video, with seeds from that of the options on.
    **options: fields of `controls.Controls`.

  Returns:
    Exit status: 1 if a video got no music.

  Raises:
    UserError: what is wrong concerns all videos.
  """
  controls = controls_lib.Controls(**options)
  seeds = range(controls.seed, controls.seed + samples)
  pieces = outputs.plan(videos, seeds, out, format)
  bundles.find(model)
  failures, seconds = {}, {}
  for path in dict.fromkeys(videos):
    try:
      seconds[path] = controls.duration or video.probe(path).seconds
    except errors.UserError as error:
      failures[path] = error
  if seconds:
    outputs.make_folders(pieces)
    generator = generate.load(model)
  picture = None
  for piece in pieces:
    path = piece.video
    if path in failures:
      continue
    generator.compile_ahead(seconds[path])
    with _Bar(piece, seconds[path]) as progress:
      try:
        if picture is None or picture.path != path:
          picture = generator.see(path, controls.duration, progress)
        music = generator.compose(picture, controls, progress, seed=piece.seed)
        written = [music.write(path) for path in piece.paths]
      except errors.UserError as error:
        failures[path] = error
        continue
    for path in written:
      print(path, flush=True)
  for error in failures.values():
    print(f'error: {error}', file=sys.stderr)
  return 1 if failures else 0
