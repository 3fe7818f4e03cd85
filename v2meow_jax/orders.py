"""What `v2meow generate` is asked for, checked before anything is made."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from v2meow_jax import bundles
from v2meow_jax import controls as controls_lib
from v2meow_jax import errors
from v2meow_jax import fingerprints
from v2meow_jax import inputs
from v2meow_jax import outputs
from v2meow_jax import sidecars


@dataclasses.dataclass(frozen=True)
class Origin:
  """A sidecar whose piece is made again.

  Attributes:
    path: of the sidecar.
    sidecar: what is in it.
  """

  path: str
  sidecar: sidecars.Sidecar


@dataclasses.dataclass(frozen=True)
class Order:
  """What to make.

  Attributes:
    pieces: those of one video one after the other.
    model: name or folder.
    controls: of all pieces, but for the seed.
    with_sidecars: whether to write them.
    skip_existing: whether to leave out what is there.
    origin: what the piece is compared with, or None.
    fingerprint: of the model, where it is known already.
  """

  pieces: Sequence[outputs.Piece]
  model: str
  controls: controls_lib.Controls
  with_sidecars: bool = True
  skip_existing: bool = False
  origin: Origin | None = None
  fingerprint: fingerprints.Model | None = None


def make(
  videos: Sequence[str],
  out: str | None = None,
  format: str | None = None,
  model: str = 'bundled',
  samples: int = 1,
  origin: str | None = None,
  no_sidecar: bool = False,
  skip_existing: bool = False,
  shard: tuple[int, int] = (0, 1),
  given: frozenset[str] = frozenset(),
  **options,
) -> Order:
  """Makes an order of what the command line says.

  Args:
    videos: paths of video files and of folders of them.
    out: file or folder to write; None for the working folder.
    format: 'mp4', 'wav' or 'both'; None for what `out` says.
    model: name or folder of a model.
    samples: pieces for each video, with seeds from that of the options on.
    origin: sidecar of a piece to make again, or None.
    no_sidecar: write no sidecars.
    skip_existing: make no piece that is there, see `Sidecar.is_current`.
    shard: (index, count): take every count-th video, from the index-th on.
    given: names of the arguments that change what `origin` says.
    **options: fields of `controls.Controls`.

  Raises:
    UserError: what is wrong concerns all videos.
  """
  controls = controls_lib.Controls(**options)
  fingerprint = None
  if origin:
    origin = Origin(origin, sidecars.read(origin))
    model, fingerprint = _find_model(
      origin, model if 'model' in given else None
    )
    videos = videos or [_find_video(origin)]
    changes = {name: options[name] for name in given & {*options}}
    controls = _change(origin, changes)
    if format is None and (out is None or outputs.is_folder(out)):
      format = origin.sidecar.kind
  else:
    videos = inputs.find_videos(videos)
  if controls.seed + samples > controls_lib.SEEDS:
    raise errors.UserError(
      f'{samples} seeds from {controls.seed} on go beyond '
      f'{controls_lib.SEEDS - 1}, expected smaller ones. Choose others with '
      '--seed and --samples.'
    )
  seeds = range(controls.seed, controls.seed + samples)
  pieces = outputs.plan(videos, seeds, out, format)
  # The names of all are checked, so that processes do not meet in one.
  index, count = shard
  own = {*videos[index::count]}
  pieces = [piece for piece in pieces if piece.video in own]
  bundles.find(model)
  if not no_sidecar:
    outputs.check_sidecars(pieces)
  return Order(
    pieces,
    model,
    controls,
    not no_sidecar,
    skip_existing,
    origin,
    fingerprint,
  )


def _find_model(
  origin: Origin, model: str | None
) -> tuple[str, fingerprints.Model]:
  """Returns name or folder of the model of a sidecar, and what it is.

  Args:
    origin: the sidecar.
    model: where to look; None for the models that have a name.

  Raises:
    UserError: it is not there, or it is another.
  """
  noted = origin.sidecar.inputs.model
  if model is None and noted.name not in bundles.MODELS:
    raise errors.UserError(
      f'{origin.path}: was made with model `{noted.name}`, which is not one of '
      f'{", ".join(bundles.MODELS)}, expected --model. Name its folder.'
    )
  model = model or noted.name
  found = fingerprints.describe_model(model)
  if found.sha256 != noted.sha256:
    changed = sorted(
      name
      for name in {*found.files, *noted.files}
      if found.files.get(name) != noted.files.get(name)
    )
    raise errors.UserError(
      f'{origin.path}: was made with another model than `{model}` '
      f'({", ".join(changed)} differs), expected the same files. Name their '
      'folder with --model.'
    )
  return model, found


def _find_video(origin: Origin) -> str:
  """Returns where the video of a sidecar is; UserError if it is not there."""
  path = origin.sidecar.inputs.video.path
  if not os.path.isfile(path):
    raise errors.UserError(
      f'{origin.path}: its video is not at {path}, expected it there. Name '
      'its place as VIDEO.'
    )
  return path


def _change(
  origin: Origin, changes: Mapping[str, Any]
) -> controls_lib.Controls:
  """Returns the controls of a sidecar, but for some."""
  prompt = origin.sidecar.inputs.prompt_audio
  if prompt and 'prompt_audio' not in changes and not prompt.is_found():
    raise errors.UserError(
      f'{origin.path}: its prompt is not at {prompt.path}, expected '
      f'{prompt.bytes} bytes with SHA-256 {prompt.sha256} there. Name its '
      'place with --prompt_audio.'
    )
  return dataclasses.replace(origin.sidecar.inputs.controls, **changes)
