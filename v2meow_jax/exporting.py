"""Export: a system as StableHLO programs that run without this package.

  FOLDER/manifest.json             all that a caller needs to know
  FOLDER/PART/params.safetensors   weights of a stage or of the codec
  FOLDER/STAGE/PROGRAM.*           arrange, prefill, step, sample, decode
  FOLDER/codec/decode.*            sound of a chunk of codes

Each program is there twice: `.jax_export` for `jax.export.deserialize`, and
`.stablehlo`, portable bytecode for any other runtime. Parameters are arguments
of the programs and never in them. docs/export.md says how to call them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from v2meow_jax import arrays
from v2meow_jax import bundles
from v2meow_jax import cascade
from v2meow_jax import decoding
from v2meow_jax import decoding_weights
from v2meow_jax import errors
from v2meow_jax import fingerprints
from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import sampling
from v2meow_jax import stages
from v2meow_jax import versions
from v2meow_jax import vocabularies
from v2meow_jax import weights as weights_lib
from v2meow_jax.codecs import base

MANIFEST = 'manifest.json'
FORMAT = 'v2meow_jax.export'
# Counts up where a caller of before would no longer be right.
FORMAT_VERSION = 1
PARAMS = 'params.safetensors'

# Where an argument comes from, by the first part of its name: the file of the
# parameters, or a program; where there are two, the first call and all later
# ones. The caller gives all others.
_SOURCES = {
  'params': ['file'],
  'weights': ['arrange'],
  'context': ['prefill'],
  'state': ['prefill', 'step'],
  'token': ['prefill', 'sample'],
  'logits': ['step'],
}
_CODEC_SOURCES = {'params': ['file'], 'state': ['zeros', 'decode']}
# Its arguments are used up: what comes back under the same name can be written
# in their place.
_DONATED = 'state'

_spec = jax.ShapeDtypeStruct
_int32 = lambda *shape: _spec(shape, jnp.int32)
_float32 = lambda *shape: _spec(shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Program:
  """A function of named arguments, which may be nested.

  Attributes:
    name: of its files.
    function: takes and returns a dict.
    arguments: shapes of what it takes, by name.
    sources: see `_SOURCES`.
  """

  name: str
  function: Callable[..., Mapping[str, Any]]
  arguments: Mapping[str, Any]
  sources: Mapping[str, list[str]] = dataclasses.field(
    default_factory=lambda: _SOURCES
  )

  @functools.cached_property
  def _jitted(self) -> tuple[Any, list[jax.ShapeDtypeStruct], Any]:
    """A function of leaves, their shapes, and those of its results as a tree.

    Traced once.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(dict(self.arguments))
    paths, leaves = zip(*flat, strict=True)
    trees = []

    def call(*leaves):
      results = self.function(**jax.tree.unflatten(tree, leaves))
      trees.append(jax.tree.structure(results))
      return tuple(jax.tree.leaves(results))

    call.__name__ = self.name
    donated = [i for i, path in enumerate(paths) if path[0].key == _DONATED]
    # All arguments stay, so that the manifest's order is that of the program.
    jitted = jax.jit(call, keep_unused=True, donate_argnums=donated)
    results = jax.eval_shape(jitted, *leaves)
    return jitted, leaves, jax.tree.unflatten(trees[0], results)

  @property
  def results(self) -> Mapping[str, Any]:
    """Shapes of what it returns."""
    return self._jitted[2]

  def export(self, platforms: Sequence[str]) -> jax_export.Exported:
    """Lowers it to a function of all leaves, in the order of `describe`."""
    jitted, leaves, _ = self._jitted
    with _no_source_paths():
      return jax_export.export(jitted, platforms=platforms)(*leaves)

  def describe(self) -> dict[str, list[dict]]:
    """Arguments and results in their order."""
    arguments = list(_leaves(self.arguments))
    for entry in arguments:
      group, _, key = entry['name'].partition('/')
      entry['from'] = self.sources.get(group, ['caller'])
      if group == 'params':
        entry['key'] = key
    return {
      'arguments': arguments,
      'results': list(_leaves(self.results)),
    }


def _leaves(tree: Mapping[str, Any]) -> Iterator[dict]:
  """Name, shape and dtype of each leaf, in the order of the program."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(dict(tree))[0]:
    yield {
      'name': jax.tree_util.keystr(path, simple=True, separator='/'),
      'shape': list(leaf.shape),
      'dtype': np.dtype(leaf.dtype).name,
    }


@contextlib.contextmanager
def _no_source_paths() -> Iterator[None]:
  """Leaves the folders of this machine out of what is lowered."""
  name = 'jax_hlo_source_file_canonicalization_regex'
  before = getattr(jax.config, name)
  jax.config.update(name, '.*/')
  try:
    yield
  finally:
    jax.config.update(name, before)


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: _spec(x.shape, x.dtype), tree)


def stage_programs(
  model: models.StageModel, params: Mapping, batch: int
) -> list[Program]:
  """The programs of a stage.

  Args:
    model: of the stage.
    params: its parameters; their shapes are read.
    batch: rows of a call.
  """
  stage = model.stage
  target = stage.target
  prefix = network.prefix_length(stage)
  times = target.spec.length(stage.seconds)
  params = _shapes(params)
  inputs = {view.name: _input(view, stage, batch) for view in stage.inputs}
  masks = {
    view.name: _int32(batch, view.length(stage.seconds))
    for view in stage.inputs
  }
  prompt = _int32(batch, times, target.num_levels)
  clip = {'seeds': _spec((batch,), jnp.uint32), 'start_frame': _int32(batch)}
  options = {'temperature': _float32(), 'top_k': _int32(), 'top_p': _float32()}

  def arrange(params):
    return {
      'weights': decoding_weights.arrange(
        model.module, params, model.weights_dtype
      )
    }

  def prefill(params, inputs, masks, prompt, first):
    ids, masks, tokens = model.network_arguments(inputs, masks, prompt)
    # All of the prompt, so that there is one length: what is behind `first` is
    # written over before it is seen.
    _, state = decoding.prefill(
      model.module, params, ids, masks, tokens, tokens != vocabularies.PAD_ID
    )
    # Moved right by one behind a 0: the input of the first step.
    shifted = jnp.pad(tokens, ((0, 0), (1, 0)))
    place = prefix + first * target.num_levels
    token = jax.lax.dynamic_index_in_dim(shifted, place, 1, keepdims=False)
    context = state._asdict()
    return {
      'token': token,
      'state': {'caches': context.pop('caches')},
      'context': context,
    }

  def step(weights, context, state, token, place):
    state = decoding.State(**state, **context)
    logits, state = decoding.step(
      model.module, weights, state, token, prefix + place
    )
    return {'logits': logits, 'state': {'caches': state.caches}}

  def sample(logits, seeds, start_frame, place, temperature, top_k, top_p):
    noise = model.draw(seeds, start_frame, place[None])[0]
    codes, scores = model.choose(
      logits, noise, sampling.Options(temperature, top_k, top_p)
    )
    token = decoding.next_token(model.module, codes, prefix + place)
    return {'codes': codes, 'scores': scores, 'token': token}

  def decode(masks, temperature, top_k, top_p, **others):
    options = sampling.Options(temperature, top_k, top_p)
    decoded = model.decode(input_masks=masks, options=options, **others)
    return decoded._asdict()

  seen = {
    'params': params,
    'inputs': inputs,
    'masks': masks,
    'prompt': prompt,
    'first': _int32(),
  }
  arranging = Program('arrange', arrange, {'params': params})
  start = Program('prefill', prefill, seen)
  place = {'place': _int32()}
  one = Program('step', step, {**arranging.results, **start.results, **place})
  logits = {'logits': one.results['logits']}
  return [
    arranging,
    start,
    one,
    Program('sample', sample, {**logits, **clip, **place, **options}),
    Program('decode', decode, {**seen, 'stop': _int32(), **clip, **options}),
  ]


def _input(view: stages.View, stage: stages.Stage, batch: int) -> Any:
  """Shape of an input, as `StageModel.decode` takes it."""
  spec = view.spec
  if not spec.is_timed:
    return _float32(batch, spec.num_features)
  length = spec.length(stage.seconds)
  if spec.is_discrete:
    return _int32(batch, length, view.num_levels)
  return _float32(batch, length, spec.num_features)


def codec_program(codec: base.Codec, num_levels: int, batch: int) -> Program:
  """The decoder of a codec: a chunk of codes to sound.

  Args:
    codec: the codec that decodes so many levels.
    num_levels: of the codes.
    batch: rows of a call.
  """
  codes = _int32(batch, base.CHUNK, num_levels)
  state = _shapes(codec.empty_stream(codes))

  def decode(params, state, codes, num_valid):
    waveform, state = codec.decode_chunk(params, state, codes, num_valid)
    return {'waveform': waveform, 'state': state}

  return Program(
    'decode',
    decode,
    {
      'params': _shapes(codec.variables),
      'state': state,
      'codes': codes,
      'num_valid': _int32(),
    },
    _CODEC_SOURCES,
  )


def save(
  folder: str | os.PathLike,
  name_or_dir: str | os.PathLike,
  platforms: Sequence[str],
  batch: int = 1,
) -> pathlib.Path:
  """Exports a model; the folder appears when it is whole.

  Args:
    folder: where to write; replaced if it is an export already.
    name_or_dir: name of a model or its folder.
    platforms: that the programs can run on, as JAX names them.
    batch: rows of each call.

  Returns:
    The folder, absolute.

  Raises:
    UserError: there is no such model, or the folder cannot be written.
  """
  folder = pathlib.Path(folder).resolve()
  try:
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(
      tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent)
    )
    try:
      _write(partial, name_or_dir, platforms, batch)
      partial.chmod(0o755)
      if folder.exists():
        shutil.rmtree(folder)
      partial.rename(folder)
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  except OSError as error:
    raise errors.UserError(
      f'{folder}: cannot be written ({error.strerror}), expected a folder with '
      'space in it. Choose another.'
    ) from error
  return folder


def _check_free(folder: pathlib.Path) -> None:
  """Raises UserError where something else than an export would be lost."""
  if folder.is_dir():
    if not any(folder.iterdir()):
      return
    try:
      if json.loads((folder / MANIFEST).read_text())['format'] == FORMAT:
        return
    except (OSError, ValueError, KeyError, TypeError):
      pass
  elif not os.path.lexists(folder):
    return
  raise errors.UserError(
    f'{folder}: is in use and no export, expected a new or an empty folder. '
    'Choose another.'
  )


def _write(
  folder: pathlib.Path,
  name_or_dir: str | os.PathLike,
  platforms: Sequence[str],
  batch: int,
) -> None:
  """Writes an export into an empty folder."""
  described = fingerprints.describe_model(name_or_dir)
  bundle = bundles.load(name_or_dir)
  target = bundle.models[-1].stage.target
  num_levels = target.first_level + target.num_levels
  codec = bundle.codec.of_levels(num_levels)
  parts = {
    model.stage.name: stage_programs(
      model, bundle.params[model.stage.name], batch
    )
    for model in bundle.models
  }
  parts['codec'] = [codec_program(codec, num_levels, batch)]
  params = {**bundle.params, 'codec': codec.variables}
  programs, last = {}, None
  for part, rows in parts.items():
    (folder / part).mkdir()
    weights_lib.save_params(folder / part / PARAMS, params[part])
    (folder / part / PARAMS).chmod(0o644)  # only the owner could read it
    programs[part] = {}
    for program in rows:
      last = program.export(platforms)
      path = f'{part}/{program.name}'
      (folder / f'{path}.jax_export').write_bytes(last.serialize())
      (folder / f'{path}.stablehlo').write_bytes(last.mlir_module_serialized)
      programs[part][program.name] = {
        'jax_export': f'{path}.jax_export',
        'stablehlo': f'{path}.stablehlo',
        **program.describe(),
      }
  manifest = {
    'format': FORMAT,
    'format_version': FORMAT_VERSION,
    'model': {'name': described.name, 'sha256': described.sha256},
    'versions': versions.collect(('jax', 'jaxlib', 'flax', 'numpy')),
    'calling_convention_version': last.calling_convention_version,
    'stablehlo_version': _stablehlo_version(last),
    'platforms': list(platforms),
    # A program for several asks, before all else, which it is on.
    'takes_platform_index': len(platforms) > 1,
    'batch': batch,
    'stages': [
      _describe_stage(model, bundle, programs[model.stage.name])
      for model in bundle.models
    ],
    'codec': {
      'name': codec.spec.name,
      'rate_hz': codec.spec.rate_hz,
      'num_levels': num_levels,
      'num_codes': codec.spec.num_codes,
      'sample_rate_hz': codec.sample_rate_hz,
      'hop': codec.hop,
      'delay': codec.network.delay,
      'chunk': base.CHUNK,
      'params': f'codec/{PARAMS}',
      'programs': programs['codec'],
    },
  }
  text = json.dumps(manifest, indent=1) + '\n'
  (folder / MANIFEST).write_text(text)


def _stablehlo_version(exported: jax_export.Exported) -> str | None:
  """The version that the head of the bytecode names."""
  head = exported.mlir_module_serialized[:64]
  found = re.search(rb'StableHLO_v(\d+\.\d+\.\d+)', head)
  return found and found[1].decode()


def _describe_stage(
  model: models.StageModel, bundle: bundles.Bundle, programs: Mapping
) -> dict[str, Any]:
  """What a caller needs to know of a stage."""
  stage = model.stage
  grid_hz = cascade.common_rate(
    arrays.crop_grid_hz(other.stage) for other in bundle.models
  )
  length, overlap = cascade.window_lengths(stage, grid_hz, bundle.overlap)
  return {
    'name': stage.name,
    'architecture': stage.architecture,
    'seconds': stage.seconds,
    'windows': {
      'grid_hz': float(grid_hz),
      'length': length,
      'overlap': overlap,
      'times': stage.target.spec.length(stage.seconds),
    },
    'inputs': [
      _describe_view(view, stage, stage.input_offset(view.name))
      for view in stage.inputs
    ],
    'target': _describe_view(stage.target, stage, stage.target_offset),
    'sampling': model.options._asdict(),
    'params': f'{stage.name}/{PARAMS}',
    'programs': programs,
  }


def _describe_view(
  view: stages.View, stage: stages.Stage, first_id: int
) -> dict[str, Any]:
  """A stream, as much of it as the stage sees."""
  spec = view.spec
  described = {
    'name': view.name,
    'rate_hz': spec.rate_hz,
    'times': spec.length(stage.seconds),
    'num_features': spec.num_features,
    'num_codes': spec.num_codes,
    'first_level': view.first_level,
    'num_levels': view.num_levels,
  }
  if spec.is_discrete:
    described |= {'first_id': first_id, 'level_ids': view.level_ids}
  return described
