"""Sidecars: JSON beside each output, from which the piece is made again.

  v2meow_sidecar   number of this schema
  inputs           all that a piece follows from: model, video, controls
  outputs          what was made: seconds, SHA-256 of tokens and files
  machine          what computed it, and its versions
  run              date and timings

Two runs of one piece on one machine differ in `run` alone. Paths are relative
to the sidecar, so that a folder may be moved with all in it.

A sidecar may come from anywhere. Nothing of it is trusted: sizes and types are
checked, files that it names are only read, and compared with their SHA-256. A
model is never looked for where a sidecar says, because its gin file can import
any code.
"""

from collections.abc import Mapping
import dataclasses
import datetime
import json
import os
import pathlib
from typing import Any

import v2meow_jax
from v2meow_jax import controls as controls_lib
from v2meow_jax import errors
from v2meow_jax import files
from v2meow_jax import fingerprints
from v2meow_jax import schemas

SCHEMA = 1
SUFFIX = '.json'
_MARK = 'v2meow_sidecar'
_MOST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Inputs:
  """All that a piece follows from.

  Attributes:
    model: the model.
    video: the video.
    controls: how it shall be made.
    prompt_audio: the file of `controls.prompt_audio`, or None.
  """

  model: fingerprints.Model
  video: fingerprints.File
  controls: controls_lib.Controls
  prompt_audio: fingerprints.File | None = None

  def make_same(self, other: 'Inputs') -> bool:
    """Whether `other` makes the same piece, wherever its files are."""
    return self._key() == other._key()

  def _key(self) -> tuple:
    return (
      self.model.sha256,
      self.video.sha256,
      self.prompt_audio and self.prompt_audio.sha256,
      dataclasses.replace(self.controls, prompt_audio=None),
    )


@dataclasses.dataclass(frozen=True)
class Sidecar:
  """What is noted beside a piece.

  Attributes:
    inputs: what it follows from.
    seconds: length of the piece.
    tokens: SHA-256 of each discrete stream by name, see `fingerprints`.
    scores: by name, where pieces were compared.
    outputs: the files that were written, beside the sidecar.
    machine: what computed it, see `fingerprints`.
    timings: seconds of each phase by name.
  """

  inputs: Inputs
  seconds: float
  tokens: Mapping[str, str]
  scores: Mapping[str, float]
  outputs: tuple[fingerprints.File, ...]
  machine: Mapping[str, Any]
  timings: Mapping[str, float]

  def is_current(self, inputs: Inputs) -> bool:
    """Whether what `inputs` make is there: made from them, and unchanged."""
    return self.inputs.make_same(inputs) and all(
      output.is_found() for output in self.outputs
    )

  @property
  def kind(self) -> str | None:
    """Which files were written: 'mp4', 'wav' or 'both'; None if none."""
    kinds = {
      'wav' if output.path.endswith('.wav') else 'mp4'
      for output in self.outputs
    }
    return 'both' if len(kinds) > 1 else min(kinds, default=None)


# Schema.

_SHA256 = schemas.matching('[0-9a-f]{64}', '64 hexadecimal digits')
# What is printed holds no codes that a terminal would obey.
_CODES = r'\x00-\x1f\x7f-\x9f'
_NAME = schemas.matching(rf'[^/\\{_CODES}]{{1,255}}', 'the name of a file')
_PATH = schemas.matching(rf'[^{_CODES}]{{1,4096}}', 'a path')
_WORD = schemas.matching(rf'[^{_CODES}]{{0,200}}', 'a short text')
_SEED = schemas.whole(0, 2**32 - 1)
_FILE = {'path': _PATH, 'bytes': schemas.whole(), 'sha256': _SHA256}
_POSITIVE = schemas.Leaf(
  'a number above 0', lambda x: schemas.number(0).accepts(x) and x > 0
)
_SHARE = schemas.Leaf(
  'a number above 0 and at most 1',
  lambda x: schemas.number(0, 1).accepts(x) and x > 0,
)


def _per_stage(kind: schemas.Leaf) -> schemas.Maybe:
  return schemas.Maybe(schemas.Row((kind,) * 3))


# A field of `controls.Controls` that a sidecar lacks is what it is by default.
_CONTROLS = {
  name: schemas.Optional(kind)
  for name, kind in {
    'seed': _SEED,
    'text': schemas.Many(schemas.Row((schemas.string(), schemas.number()))),
    'negative_text': schemas.Maybe(schemas.string()),
    'visual_guidance': schemas.number(),
    'style_guidance': schemas.number(),
    'temperature': _per_stage(schemas.number(0)),
    'top_k': _per_stage(schemas.whole(0, 2**31 - 1)),
    'top_p': _per_stage(_SHARE),
    'duration': schemas.Maybe(_POSITIVE),
    'best_of': schemas.whole(1, 10_000),
    'prompt_audio': schemas.Maybe(_FILE),
    'replace': schemas.Many(
      schemas.Row((schemas.number(0), schemas.number(0), schemas.Maybe(_SEED)))
    ),
  }.items()
}
_SIDECAR = {
  _MARK: schemas.whole(SCHEMA, SCHEMA),
  'inputs': {
    'model': {
      'name': _NAME,
      'sha256': _SHA256,
      'files': schemas.Table(_NAME, _SHA256, 20),
      'gin': schemas.string(_MOST_BYTES),
    },
    'video': _FILE,
    'controls': _CONTROLS,
  },
  'outputs': {
    'seconds': _POSITIVE,
    'tokens': schemas.Table(_WORD, _SHA256),
    'scores': schemas.Table(_WORD, schemas.number()),
    'files': schemas.Table(
      _NAME, {'bytes': schemas.whole(), 'sha256': _SHA256}
    ),
  },
  'machine': {
    'platform': _WORD,
    'device': _WORD,
    'processor': _WORD,
    'versions': schemas.Table(_WORD, _WORD),
  },
  'run': {'date': _WORD, 'timings': schemas.Table(_WORD, schemas.number(0))},
}


def write(path: str | os.PathLike, sidecar: Sidecar) -> None:
  """Writes a sidecar; it appears when it is whole.

  Raises:
    UserError: it cannot be written.
  """
  inputs = sidecar.inputs
  folder = os.path.realpath(os.path.dirname(os.fspath(path)) or '.')
  controls = dataclasses.asdict(inputs.controls)
  if inputs.prompt_audio:
    controls['prompt_audio'] = _relative(inputs.prompt_audio, folder)
  now = datetime.datetime.now(datetime.UTC)
  content = {
    _MARK: SCHEMA,
    'inputs': {
      'model': dataclasses.asdict(inputs.model),
      'video': _relative(inputs.video, folder),
      'controls': controls,
    },
    'outputs': {
      'seconds': sidecar.seconds,
      'tokens': dict(sidecar.tokens),
      'scores': {name: float(x) for name, x in sidecar.scores.items()},
      'files': {
        os.path.basename(x.path): {'bytes': x.bytes, 'sha256': x.sha256}
        for x in sidecar.outputs
      },
    },
    'machine': dict(sidecar.machine),
    'run': {
      'date': now.isoformat(timespec='seconds'),
      'timings': {name: round(x, 3) for name, x in sidecar.timings.items()},
    },
  }
  text = json.dumps(content, indent=2, allow_nan=False)
  with files.replace(os.fspath(path)) as part:
    pathlib.Path(part).write_text(text + '\n')


def _relative(file: fingerprints.File, folder: str) -> dict[str, Any]:
  """A file in a sidecar of `folder`, whose symbolic links are resolved."""
  parent, name = os.path.split(file.path)
  path = os.path.join(os.path.realpath(parent or '.'), name)
  try:
    path = os.path.relpath(path, folder)
  except ValueError:  # another drive of Windows
    pass
  return dataclasses.asdict(dataclasses.replace(file, path=path))


def is_one(path: str | os.PathLike) -> bool:
  """Whether a file is a sidecar, of any version and in any state."""
  try:
    return _MARK in _read_json(os.fspath(path))
  except errors.UserError:
    return False


def read(path: str | os.PathLike) -> Sidecar:
  """Reads a sidecar.

  Args:
    path: of the JSON file. Paths in it become those from where we are.

  Raises:
    UserError: it cannot be read, or is not what `write` writes.
  """
  path = os.fspath(path)
  content = _read_json(path)
  if _MARK not in content:
    raise errors.UserError(
      f'{path}: is no sidecar, expected what `v2meow generate` writes beside '
      'its outputs. Name another file.'
    )
  if content[_MARK] != SCHEMA:
    raise errors.UserError(
      f'{path}: is of schema {schemas.show(content[_MARK])}, expected '
      f'{SCHEMA}. {_advice(content)}'
    )
  try:
    schemas.check(_SIDECAR, content)
  except schemas.Mismatch as mismatch:
    raise errors.UserError(
      f'{path}: {mismatch}. {_advice(content)}'
    ) from mismatch
  folder = os.path.dirname(path)
  locate = lambda file: fingerprints.File(
    **(file | {'path': _join(folder, file['path'])})
  )
  inputs, outputs = content['inputs'], content['outputs']
  controls = dict(inputs['controls'])
  prompt_audio = controls.pop('prompt_audio', None)
  if prompt_audio:
    prompt_audio = locate(prompt_audio)
    controls['prompt_audio'] = prompt_audio.path
  try:
    controls = controls_lib.Controls(**controls)
  except ValueError as error:
    raise errors.UserError(f'{path}: {error} {_advice(content)}') from error
  return Sidecar(
    inputs=Inputs(
      fingerprints.Model(**inputs['model']),
      locate(inputs['video']),
      controls,
      prompt_audio,
    ),
    seconds=outputs['seconds'],
    tokens=outputs['tokens'],
    scores=outputs['scores'],
    outputs=tuple(
      locate({'path': name, **file}) for name, file in outputs['files'].items()
    ),
    machine=content['machine'],
    timings=content['run']['timings'],
  )


def _join(folder: str, path: str) -> str:
  return os.path.join(folder, path) if folder else path


def _read_json(path: str) -> dict:
  expected = 'expected a sidecar of `v2meow generate`'
  if not os.path.isfile(path):
    what = 'is a folder' if os.path.isdir(path) else 'no such file'
    raise errors.UserError(f'{path}: {what}, {expected}. Check the path.')
  try:
    with open(path, 'rb') as f:
      data = f.read(_MOST_BYTES + 1)
  except OSError as error:
    raise errors.UserError(
      f'{path}: cannot be read ({error.strerror}), {expected}. Check its '
      'permissions.'
    ) from error
  if len(data) > _MOST_BYTES:
    raise errors.UserError(
      f'{path}: has more than {_MOST_BYTES} bytes, {expected}. Name another '
      'file.'
    )
  try:
    content = json.loads(data)
  except (ValueError, RecursionError) as error:
    what = ' '.join(str(error).split())[:100]
    raise errors.UserError(
      f'{path}: is no JSON ({what}), {expected}. Name another file.'
    ) from error
  if not isinstance(content, dict):
    raise errors.UserError(
      f'{path}: holds no object, {expected}. Name another file.'
    )
  return content


def _advice(content: Mapping) -> str:
  """What to do about a sidecar that is not as expected."""
  try:
    writer = content['machine']['versions']['v2meow_jax']
    schemas.check(_WORD, writer)
  except (KeyError, TypeError, schemas.Mismatch):
    writer = v2meow_jax.__version__
  if writer != v2meow_jax.__version__:
    return (
      f'Version {writer} of v2meow_jax wrote it and this is '
      f'{v2meow_jax.__version__}: use that one.'
    )
  return 'It was changed or damaged: make the piece from its video.'
