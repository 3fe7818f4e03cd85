"""A generator without a model: what it makes follows from name and seed."""

import dataclasses
import os
import pathlib
import zlib

import numpy as np

from v2meow_jax import files

# The phases of composing, as the true one tells them.
_PHASES = ('semantic', 'coarse', 'fine', 'sound')


@dataclasses.dataclass(frozen=True)
class Picture:
  """See `pictures.Picture`."""

  path: str
  seconds: float


@dataclasses.dataclass(frozen=True)
class Music:
  """See `music.Music`."""

  tokens: dict
  generator: 'Generator'
  scores: dict = dataclasses.field(default_factory=dict)

  def write(self, path) -> str:
    path = os.fspath(path)
    self.generator.on('write', os.path.basename(path))
    with files.replace(path) as part:
      pathlib.Path(part).write_bytes(self.tokens['codes'].tobytes())
      self.generator.on('half', os.path.basename(path))
    return path


class Generator:
  """See `generate.Generator`.

  Attributes:
    events: what it was asked for, as `(what, name)`.
    rows: see there.
  """

  rows = 1

  def __init__(self, on=lambda what, name: None, version: int = 0):
    """Calls `on` with each event; another version makes other tokens."""
    self.events = []
    self._on = on
    self._version = version

  def on(self, what: str, name: str) -> None:
    self.events.append((what, name))
    self._on(what, name)

  def names(self, what: str) -> list[str]:
    return [name for event, name in self.events if event == what]

  def compile_ahead(self, controls) -> None:
    pass

  def see(self, path, duration=None, progress=lambda *what: None):
    seconds = duration or 0.3
    self.on('see', os.path.basename(path))
    progress('picture', seconds)
    return Picture(path, seconds)

  def compose(self, picture, controls, progress=lambda *what: None):
    name = os.path.basename(picture.path)
    self.on('compose', name)
    for phase in _PHASES:
      progress(phase, picture.seconds)
    seed = [controls.seed, zlib.crc32(name.encode()), self._version]
    codes = np.random.default_rng(seed).integers(0, 99, (9, 2), np.int32)
    return Music({'codes': codes}, self)
