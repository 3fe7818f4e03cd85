"""What makes the streams of a clip, and the small file that keeps them.

gin says which objects make which streams (`Recipe`); a `Plan` adds where their
weights are. A clip's streams are one `.npz` file, which notes what each of them
follows from: the file's content, the extractor's code and its weights.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import inspect
import json
import math
import os
import pathlib
import sys
import types
from typing import Any
import urllib.parse
import zipfile

import gin
import numpy as np

from v2meow_jax import bundles
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import files
from v2meow_jax import sources
from v2meow_jax import streams
from v2meow_jax import weights

Array = np.ndarray
Source = sources.FileSource | sources.ToySource

# What the bundled model is made of. `--gin_file` replaces the list.
GIN_FILES = (
  'visual/scene.gin',
  'codecs/spectrogram.gin',
  'tokenizers/spectral.gin',
  'style/caption.gin',
  'runs/prepare.gin',
)
STREAMS = ('scene', 'caption', 'spectral_semantic', 'spectrogram')
_META = 'meta.json'


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Which objects make the streams; gin/runs/prepare.gin binds it.

  Attributes:
    visual: extractors of visual streams.
    codec: makes the codec from its weights.
    tokenizer: makes the semantic tokenizer from its weights.
    embedder: makes the style embedder from its weights, or None.
  """

  visual: Sequence[Any] = ()
  codec: Callable[[Mapping], Any] | None = None
  tokenizer: Callable[[Mapping], Any] | None = None
  embedder: Callable[[Mapping], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to make of every clip; small, so that it is sent to processes.

  Attributes:
    stream_names: the streams.
    gin_files: files that bind a `Recipe`, in order.
    codec: path of the codec's weights, or None.
    tokenizer: path of the tokenizer's weights, or None.
    embedder: path of the style embedder's weights, or None.
  """

  stream_names: tuple[str, ...]
  gin_files: tuple[str, ...] = GIN_FILES
  codec: str | None = None
  tokenizer: str | None = None
  embedder: str | None = None


@dataclasses.dataclass(frozen=True)
class Extractors:
  """The objects that make the streams, by the name of the stream.

  Attributes:
    visual: `visual.base.Extractor`s.
    audio: codecs and tokenizers.
    music: style embedders that hear; they get the clip's sound, because what
      is trained to follow it is asked with words of the same space.
    text: style embedders that only read; they get the caption.
    versions: of every stream: of the code and the weights that make it.
  """

  visual: Mapping[str, Any]
  audio: Mapping[str, Any]
  music: Mapping[str, Any]
  text: Mapping[str, Any]
  versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Part:
  """The streams of one clip.

  Attributes:
    seconds: how long the clip is: as long as both picture and sound last.
    arrays: by name of the stream, `[time, features | levels]` or
      `[features]`, all cut to `seconds`.
  """

  seconds: float
  arrays: Mapping[str, Array]


def make_plan(
  stream_names: Sequence[str],
  model: str = 'bundled',
  codec: str | None = None,
  tokenizer: str | None = None,
  gin_files: Sequence[str] = GIN_FILES,
  embedder: str | None = None,
) -> Plan:
  """Plans which streams are made of every clip.

  Args:
    stream_names: the streams.
    model: name or folder of the model whose weights are used; those that it
      has not are none.
    codec: path of other weights of the codec.
    tokenizer: path of other weights of the tokenizer.
    gin_files: files that bind a `Recipe`, in order.
    embedder: path of other weights of the style embedder.
  """
  folder = bundles.MODELS.get(model, pathlib.Path(model))

  def path(part, given):
    file = folder / f'{part}.safetensors'
    return given or (str(file) if file.is_file() else None)

  return Plan(
    tuple(stream_names),
    tuple(gin_files),
    path('codec', codec),
    path('tokenizer', tokenizer),
    path('style', embedder),
  )


def extractors(plan: Plan) -> Extractors:
  """Builds what makes the streams of a plan.

  Args:
    plan: which streams, from which gin files and weights.

  Returns:
    One object for each stream.

  Raises:
    UserError: nothing makes a stream, or its weights are missing.
  """
  configs.parse(plan.gin_files)
  recipe = gin.get_configurable(Recipe)()
  visual = {e.spec.name: e for e in recipe.visual}
  audio, music, text, missing = {}, {}, {}, []
  for part in ('codec', 'tokenizer'):
    make, path = getattr(recipe, part), getattr(plan, part)
    if make and path:
      made = make(weights.load_params(path))
      audio[made.spec.name] = made
    elif make:
      missing.append(part)
  if recipe.embedder:
    path = plan.embedder
    made = recipe.embedder(weights.load_params(path) if path else {})
    hears = made.window_seconds is not None
    (music if hears else text)[made.spec.name] = made
  known = {**visual, **audio, **music, **text}
  for name in plan.stream_names:
    streams.get(name)
    if name not in known:
      hint = (
        f' Weights were not given for: {", ".join(missing)}; pass '
        f'{", ".join(f"--{part} PATH" for part in missing)}.'
        if missing
        else ' Choose one of these or other gin files.'
      )
      raise errors.UserError(
        f'Nothing makes stream `{name}`, expected one of '
        f'{", ".join(known)}.{hint}'
      )
  pick = lambda found: {k: found[k] for k in plan.stream_names if k in found}
  return Extractors(
    pick(visual),
    pick(audio),
    pick(music),
    pick(text),
    {name: _version(known[name]) for name in plan.stream_names},
  )


def _sources(cls: type) -> list[types.ModuleType]:
  """The modules a class is made of, in a fixed order.

  Its own and those of its base classes, and what these import from the folder
  they lie in.
  """
  found = {}
  todo = [sys.modules[base.__module__] for base in cls.__mro__]
  while todo:
    module = todo.pop()
    name = module.__name__
    if name in found or not name.startswith('v2meow_jax.'):
      continue
    found[name] = module
    folder = name.rpartition('.')[0]
    todo += [
      imported
      for imported in vars(module).values()
      if inspect.ismodule(imported)
      and imported.__name__.rpartition('.')[0] == folder
    ]
  return [found[name] for name in sorted(found)]


def _version(extractor: Any) -> str:
  """Digest of the code and the weights of an extractor."""
  digest = hashlib.sha256()
  for module in _sources(type(extractor)):
    digest.update(inspect.getsource(module).encode())
  digest.update(repr(extractor.spec).encode())
  digest.update(repr(getattr(extractor, 'network', None)).encode())
  for name in ('params', 'variables'):
    flat = weights.flatten(getattr(extractor, name, {}))
    for key in sorted(flat):
      digest.update(key.encode())
      digest.update(np.ascontiguousarray(flat[key]).tobytes())
  return digest.hexdigest()[:16]


def make_part(
  source: Source, made: Extractors, have: Mapping[str, Array] | None = None
) -> Part:
  """Makes the streams of one clip.

  Args:
    source: the clip.
    made: what makes its streams.
    have: streams that are there already.

  Returns:
    The streams, cut to the seconds that have picture and sound.

  Raises:
    UserError: the clip cannot be used.
  """
  found = dict(have or {})
  seconds = math.inf
  for name, extractor in made.visual.items():
    if name not in found:
      found[name], length = source.picture(extractor)
      seconds = min(seconds, length)
  waveforms = {}
  for name, hearer in {**made.audio, **made.music}.items():
    if name in found:
      continue
    rate = hearer.spec.sample_rate_hz
    if rate not in waveforms:
      waveforms[rate] = source.sound(rate)
      seconds = min(seconds, len(waveforms[rate]) / rate)
    hear = hearer.embed_audio if name in made.music else hearer.encode
    found[name] = np.asarray(hear(waveforms[rate][np.newaxis]))[0]
  for name, embedder in made.text.items():
    if name not in found:
      found[name] = embedder.embed_text([source.caption], allow_unknown=True)[0]
  return _cut(source.clip_id, seconds, found)


def _cut(clip_id: str, seconds: float, found: Mapping[str, Array]) -> Part:
  """Cuts all streams to the seconds that all of them have."""
  specs = {name: streams.get(name) for name in found}
  for name, array in found.items():
    if specs[name].is_timed:
      seconds = min(seconds, len(array) / specs[name].rate_hz)
  arrays = {}
  for name, array in found.items():
    if specs[name].is_timed:
      length = int(seconds * specs[name].rate_hz + 1e-6)
      if not length:
        raise errors.UserError(
          f'Clip `{clip_id}` has {seconds:.3g} s of picture and sound, '
          f'expected at least {1 / specs[name].rate_hz:g} s. Leave it out.'
        )
      array = array[:length]
    arrays[name] = array
  # Captions alone have no length.
  return Part(0.0 if math.isinf(seconds) else seconds, arrays)


def part_path(folder: str | os.PathLike, clip_id: str) -> pathlib.Path:
  """Where the streams of a clip are kept."""
  return pathlib.Path(folder) / f'{urllib.parse.quote(clip_id, safe="")}.npz'


def _read(path: pathlib.Path) -> tuple[dict, dict[str, Array]]:
  """Reads a part and its keys; empty where there is none or it is broken."""
  try:
    # Opened here, because NumPy leaves the file open where it is broken.
    with open(path, 'rb') as f, np.load(f, allow_pickle=False) as npz:
      meta = json.loads(bytes(npz[_META]))
      return meta, {name: npz[name] for name in meta['keys']}
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    return {}, {}


def read_part(folder: str | os.PathLike, clip_id: str) -> Part:
  """Reads the streams of a clip that `make_parts` has made.

  Raises:
    UserError: there is no such file, or it is broken.
  """
  path = part_path(folder, clip_id)
  meta, arrays = _read(path)
  if not meta:
    raise errors.UserError(
      f'{path}: missing or broken, expected the streams of clip '
      f'`{clip_id}`. Run `v2meow prepare` again.'
    )
  return Part(meta['seconds'], arrays)


def _keys(source: Source, made: Extractors) -> dict[str, str]:
  """What every stream of a clip follows from."""
  from_file = made.visual or made.audio or made.music
  key = source.key() if from_file else ''
  return {
    name: f'{source.caption if name in made.text else key} {version}'
    for name, version in made.versions.items()
  }


def update_part(source: Source, made: Extractors, folder: str) -> bool:
  """Makes the file of a clip, or the streams that it lacks.

  Args:
    source: the clip.
    made: what makes its streams.
    folder: where the files are.

  Returns:
    Whether there was anything to make.

  Raises:
    UserError: the clip cannot be used.
  """
  path = part_path(folder, source.clip_id)
  keys = _keys(source, made)
  meta, have = _read(path)
  have = {n: a for n, a in have.items() if meta['keys'][n] == keys.get(n)}
  if set(have) == set(keys):
    return False
  part = make_part(source, made, have)
  meta = {'seconds': part.seconds, 'keys': keys}
  with files.replace(str(path)) as temporary:
    with open(temporary, 'wb') as f:
      encoded = np.frombuffer(json.dumps(meta).encode(), np.uint8)
      np.savez_compressed(f, **part.arrays, **{_META: encoded})
  return True


def try_out(made: Extractors) -> None:
  """Encodes a moment of silence, to meet a mistake before any clip does.

  Raises:
    UserError: weights do not fit the network that they are for.
  """
  for name, encoder in made.audio.items():
    try:
      encoder.encode(np.zeros((1, encoder.spec.hop), np.float32))
    except Exception as e:  # whatever the network's library raises
      raise errors.UserError(
        f'The weights for stream `{name}` do not fit: '
        f'{" ".join(str(e).split())[:200]} Use weights and gin files that '
        'belong together.'
      ) from e
