"""What a piece depends on and consists of, so that it is known again."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import os
import platform
from typing import Any

import numpy as np

from v2meow_jax import bundles
from v2meow_jax import compilation_cache
from v2meow_jax import files
from v2meow_jax import versions

# Those that can change what is generated.
_PACKAGES = (
  'jax',
  'jaxlib',
  'jax-cuda12-plugin',
  'jax-cuda13-plugin',
  'libtpu',
  'flax',
  'numpy',
  'scipy',
  'av',
  'opencv-python-headless',
)


@dataclasses.dataclass(frozen=True)
class File:
  """A file as it was.

  Attributes:
    path: where it is.
    bytes: its size.
    sha256: of its bytes, in hexadecimal digits.
  """

  path: str
  bytes: int
  sha256: str

  def is_found(self) -> bool:
    """Whether the file at `path` is this one."""
    # Neither a device nor a pipe, which could be read for ever.
    return (
      os.path.isfile(self.path)
      and os.path.getsize(self.path) == self.bytes
      and files.measure(self.path) == (self.bytes, self.sha256)
    )


def describe_file(
  path: str | os.PathLike, tick: Callable[[], None] = lambda: None
) -> File:
  """Measures a file; UserError and `tick` as in `files.measure`."""
  return File(os.fspath(path), *files.measure(path, tick))


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as it was.

  Attributes:
    name: of the model, or of its folder.
    sha256: over all of `files`.
    files: SHA-256 of bundle.gin and of each part's weights, by file name.
    gin: text of bundle.gin.
  """

  name: str
  sha256: str
  files: Mapping[str, str]
  gin: str


def describe_model(name_or_dir: str | os.PathLike) -> Model:
  """Reads the files of a model once; UserError if there is none."""
  name = os.fspath(name_or_dir)
  folder = bundles.find(name)
  parts = {
    path.name: files.measure(path)[1]
    for path in sorted(folder.iterdir())
    if path.name == bundles.GIN or path.suffix == '.safetensors'
  }
  lines = ''.join(f'{digest}  {part}\n' for part, digest in parts.items())
  return Model(
    name if name in bundles.MODELS else folder.resolve().name,
    hashlib.sha256(lines.encode()).hexdigest(),
    parts,
    (folder / bundles.GIN).read_text(),
  )


def hash_tokens(tokens: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Returns SHA-256 of each stream: its shape, then its numbers.

  Args:
    tokens: int32 `[time, levels]` by name.
  """
  digests = {}
  for name in sorted(tokens):
    codes = np.ascontiguousarray(tokens[name], '<i4')
    digest = hashlib.sha256(repr(codes.shape).encode())
    digest.update(codes.data)
    digests[name] = digest.hexdigest()
  return digests


def describe_machine() -> dict[str, Any]:
  """Returns the device and all versions that results may depend on."""
  import jax

  device = jax.devices()[0]
  return {
    'platform': device.platform,
    'device': device.device_kind,
    'processor': f'{platform.machine()} {compilation_cache.processor_kind()}',
    'versions': versions.collect(_PACKAGES),
  }


def explain_change(before: Mapping, now: Mapping) -> str:
  """Says in a few words what differs between two machines."""
  flat = [
    {k: v for k, v in machine.items() if k != 'versions'} | machine['versions']
    for machine in (before, now)
  ]
  changes = versions.find_changes(*flat)
  return ', '.join(changes) or 'nothing that was noted differs'
