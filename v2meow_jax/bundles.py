"""Bundles: a trained system in one folder.

  FOLDER/bundle.gin            networks, codec and visual features (`Recipe`)
  FOLDER/<part>.safetensors    weights: semantic, coarse, fine (of these, the
                               stages there are), codec; style, if text is
                               embedded by weights; tokenizer, if it can go on
                               from sound
  FOLDER/CARD.md               what it is, what it was trained on, its licence

`python -m v2meow_jax.bundles pack` makes one from checkpoints. Weights are
stored in bfloat16 or in int8 (`quantization.py`), and computed with in float32.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
from typing import Any

import gin
import numpy as np
import tree

from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import platforms
from v2meow_jax import quantization
from v2meow_jax import stages
from v2meow_jax import weights

GIN = 'bundle.gin'
CARD = 'CARD.md'
_SUFFIX = '.safetensors'
_PARTS = ('coarse', 'codec')
# What a system may do without.
_OPTIONAL_PARTS = ('semantic', 'fine', 'style', 'tokenizer')
# Folders of the models that have a name; shipped inside the package.
MODELS = {'bundled': pathlib.Path(__file__).resolve().parent / 'bundled'}

_gin_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What gin says about a system; gin/generate.gin binds it.

  Attributes:
    semantic: model of the first stage (`models.StageModel`); None for a
      cascade without it.
    coarse: model of the second stage.
    fine: model of the third stage, or None.
    codec: makes the `codecs.base.Codec` from its weights.
    visual: extractors of the visual streams (`visual.base.Extractor`).
    style: makes the `embedders.base.Embedder` from its weights, {} if it has
      none; None where the system takes no text.
    tokenizer: makes the `tokenizers.base.Tokenizer` of the first stage's
      tokens from its weights; None where the system cannot go on from sound.
    overlap: part of a window that continues what the window before has made.
  """

  semantic: Any | None
  coarse: Any
  fine: Any | None
  codec: Callable[[dict], Any]
  visual: Sequence[Any]
  style: Callable[[dict], Any] | None = None
  tokenizer: Callable[[dict], Any] | None = None
  overlap: float = 0.5

  def __post_init__(self):
    if not 0 < self.overlap < 1:
      raise ValueError(
        f'overlap is {self.overlap}, expected above 0 and below 1. Set '
        'bundles.Recipe.overlap.'
      )
    extracted = {extractor.spec.name for extractor in self.visual}
    made = {model.stage.target.name for model in self.models}
    for model in self.models:
      for view in model.stage.inputs:
        if view.spec.is_timed and view.name not in extracted | made:
          raise ValueError(
            f'Stage `{model.stage.name}` needs stream `{view.name}`, expected '
            'an extractor for it or a stage that makes it. Add it to '
            'bundles.Recipe.visual, or use a file of gin/visual whose '
            'EXTRACTORS make it.'
          )
    if not self.visual:
      raise ValueError(
        'The system sees nothing: bundles.Recipe.visual is empty, expected '
        'at least one extractor. Add a file of gin/visual.'
      )
    acoustic = [m.stage.target for m in (self.coarse, self.fine) if m]
    levels = [
      level
      for view in acoustic
      for level in range(view.first_level, view.first_level + view.num_levels)
    ]
    num_levels = acoustic[0].spec.num_levels
    if levels != list(range(num_levels)):
      raise ValueError(
        f'The stages make levels {", ".join(map(str, levels))} of '
        f'`{acoustic[0].name}`, expected 0 to {num_levels - 1}, each once. '
        'Without a fine stage, set coarse/stages.make.coarse_levels = None.'
      )

  @property
  def models(self) -> tuple[Any, ...]:
    """The models of the stages that there are, in order."""
    return tuple(m for m in (self.semantic, self.coarse, self.fine) if m)

  def model(self, name: str) -> Any:
    """The model of the stage `name`.

    Raises:
      UserError: the system has no such stage.
    """
    model = getattr(self, name)
    if model is None:
      raise errors.UserError(
        f'The system has no stage `{name}`, expected one of '
        f'{", ".join(m.stage.name for m in self.models)}. Leave it out, or '
        f'bind bundles.Recipe.{name}.'
      )
    return model


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A system with its weights.

  Attributes:
    folder: where it is.
    models: of the stages, in order (`models.StageModel`).
    params: parameters of each stage by name, float32.
    visual: extractors of the visual streams.
    codec: with its weights.
    style: embedder of text with its weights, or None.
    tokenizer: of the semantic tokens, with its weights; None where the bundle
      has none.
    overlap: see `Recipe`.
  """

  folder: pathlib.Path
  models: tuple[Any, ...]
  params: Mapping[str, Any]
  visual: Sequence[Any]
  codec: Any
  style: Any = None
  tokenizer: Any = None
  overlap: float = 0.5


def find(name_or_dir: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of a bundle.

  Raises:
    UserError: there is no such model.
  """
  name = os.fspath(name_or_dir)
  folder = MODELS.get(name, pathlib.Path(name))
  if (folder / GIN).is_file():
    return folder
  if name in MODELS:
    raise errors.UserError(
      f'Model `{name}` is not complete: {folder / GIN} is missing. Install '
      'v2meow_jax again.'
    )
  if folder.is_dir():
    raise errors.UserError(
      f'{name}: no model, expected a folder with {GIN} in it. Make one with '
      '`python -m v2meow_jax.bundles pack`.'
    )
  raise errors.UserError(
    f'Unknown model `{name}`, expected {", ".join(MODELS)} or the folder of a '
    'model. Check the name.'
  )


def load(name_or_dir: str | os.PathLike = 'bundled') -> Bundle:
  """Loads a bundle.

  Args:
    name_or_dir: name of a model or its folder.

  Returns:
    The bundle, with its weights in memory.

  Raises:
    UserError: there is no such model, or it is not complete.
  """
  folder = find(name_or_dir)
  load_part = lambda part: quantization.dequantize(
    weights.load_params(folder / f'{part}{_SUFFIX}')
  )
  with read_recipe([folder.resolve() / GIN]) as recipe:
    has_weights = lambda part: (folder / f'{part}{_SUFFIX}').is_file()
    style, tokenizer = None, None
    if recipe.style:
      style = recipe.style(load_part('style') if has_weights('style') else {})
    if recipe.tokenizer and has_weights('tokenizer'):
      tokenizer = recipe.tokenizer(load_part('tokenizer'))
    return Bundle(
      folder=folder,
      models=recipe.models,
      params={m.stage.name: load_part(m.stage.name) for m in recipe.models},
      visual=recipe.visual,
      codec=recipe.codec(load_part('codec')),
      style=style,
      tokenizer=tokenizer,
      overlap=recipe.overlap,
    )


@contextlib.contextmanager
def read_recipe(
  files: Sequence[str | os.PathLike], bindings: Sequence[str] = ()
) -> Iterator[Recipe]:
  """Builds what gin files describe, without weights, for a `with` block.

  gin has one configuration per process: inside the block it is that of the
  files, behind it the caller's own again.

  Args:
    files: gin files, absolute or as `configs.parse` finds them.
    bindings: gin bindings behind the files.

  Yields:
    The recipe.

  Raises:
    UserError: a file is missing or wrong, or they describe no whole system.
  """
  config = gin.config
  # The tables that `gin.clear_config` empties, and the search path. gin has
  # no public way to put them back.
  tables = (
    config._CONFIG,
    config._SINGLETONS,
    config._IMPORTS,
    config._OPERATIVE_CONFIG,
  )
  with _gin_lock:
    saved = [table.copy() for table in tables]
    search_path = list(config._LOCATION_PREFIXES)
    was_locked = config.config_is_locked()
    try:
      configs.parse(
        [os.fspath(file) for file in files], bindings, root='bundles.Recipe'
      )
      yield _make_recipe()
    finally:
      config._set_config_is_locked(False)
      for table, content in zip(tables, saved, strict=True):
        table.clear()
        table.update(content)
      config._LOCATION_PREFIXES[:] = search_path
      config._set_config_is_locked(was_locked)


def _make_recipe() -> Recipe:
  """What gin binds; a mistake in it is the user's to mend, in one line."""
  try:
    return gin.get_configurable(Recipe)()
  except ValueError as error:
    line = configs.one_line(error)
    if line is None:
      raise
    raise errors.UserError(line) from error


def save(
  folder: str | os.PathLike,
  files: Sequence[str | os.PathLike],
  params: Mapping[str, Mapping],
  bindings: Sequence[str] = (),
  card: str = '',
  dtype: str = 'bfloat16',
) -> pathlib.Path:
  """Writes a bundle; the folder appears when it is whole.

  Args:
    folder: where to write; replaced if it is a bundle already.
    files: gin files, as in gin/README.md, with gin/generate.gin.
    params: weights of each part by name: the stages, 'codec', 'style' if it
      has any, and whatever else shall be kept with them.
    bindings: gin bindings behind the files.
    card: the text of CARD.md; a table of the parts follows it.
    dtype: of the stored weights: 'float32', 'bfloat16', or 'int8' for the
      matrices of the stages and bfloat16 for all else. A tokenizer is float32
        in any case.

  Returns:
    The folder.

  Raises:
    UserError: a part is missing or does not fit its network, the gin files
      are wrong, or the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and any(folder.iterdir()) and not (folder / GIN).exists():
    raise errors.UserError(
      f'{folder}: is in use and no model, expected a new or an empty folder. '
      'Choose another.'
    )
  with read_recipe(files, bindings) as recipe:
    needed = [*(model.stage.name for model in recipe.models), 'codec']
    missing = [part for part in needed if part not in params]
    if missing:
      raise errors.UserError(
        f'No weights of {", ".join(missing)}, expected those of '
        f'{", ".join(needed)}. Name a checkpoint for each.'
      )
    for part in params:
      try:
        _check(recipe, part, params[part])
      except (errors.UserError, ValueError) as error:
        line = configs.one_line(error) or error
        raise errors.UserError(f'Part `{part}`: {line}') from error
    # What was used, with the defaults of today: a bundle stays what it is.
    described = _drop_unused_imports(gin.operative_config_str())
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(
    tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent)
  )
  try:
    (partial / GIN).write_text(
      '# A whole system, written by `python -m v2meow_jax.bundles pack`.\n'
      + described
    )
    for part in params:
      path = partial / f'{part}{_SUFFIX}'
      if dtype == 'int8' and part in stages.NAMES:
        weights.save_params(path, quantization.quantize(params[part]))
      else:
        stored = 'bfloat16' if dtype == 'int8' else dtype
        # The tokenizer is small, and its tokens shall stay what they were.
        stored = 'float32' if part == 'tokenizer' else stored
        weights.save_params(path, params[part], stored)
      path.chmod(0o644)  # safetensors lets only the owner read
    card = card or f'# Model {folder.name}'
    (partial / CARD).write_text(_card(card, partial, recipe, params))
    partial.chmod(0o755)
    if folder.exists():
      shutil.rmtree(folder)
    partial.rename(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return folder


def _drop_unused_imports(text: str) -> str:
  """Drops the imports of a gin file whose module it does not name again."""
  lines = text.splitlines()
  is_import = lambda line: line.startswith(('import ', 'from v2meow_jax'))
  rest = '\n'.join(line for line in lines if not is_import(line))
  name = lambda line: re.split(r'[ .]', line)[-1]
  return '\n'.join(
    line
    for line in lines
    if not is_import(line) or re.search(rf'\b{name(line)}\.', rest)
  )


def _check(recipe: Recipe, part: str, params: Mapping) -> None:
  """Raises where the weights of a part do not fit its network."""
  import jax

  if part == 'codec':
    layer = recipe.codec(params)
    waveform = jax.ShapeDtypeStruct((1, layer.hop), 'float32')
    while layer is not None:
      expected = jax.eval_shape(layer.network.init, jax.random.key(0), waveform)
      weights.check_params(expected['params'], layer.variables['params'])
      layer = layer.below
  elif part == 'style' and recipe.style:
    recipe.style(params)
  elif part == 'tokenizer' and recipe.tokenizer and recipe.semantic:
    found, target = recipe.tokenizer(params).spec, recipe.semantic.stage.target
    if found != target.spec:
      raise ValueError(
        f'makes stream `{found.name}`, expected `{target.name}` of stage '
        '`semantic`. Choose another file of gin/tokenizers.'
      )
  elif part in stages.NAMES:
    model = recipe.model(part)
    expected = jax.eval_shape(
      lambda key: model.get_initial_variables(key, model.feature_shapes(1))[
        'params'
      ],
      jax.random.key(0),
    )
    weights.check_params(expected, params)


def _card(
  text: str, folder: pathlib.Path, recipe: Recipe, params: Mapping
) -> str:
  """The text of CARD.md: the given one and what the parts are."""
  lines = [
    text.strip(),
    '',
    '## Parts',
    '| part | what | parameters | file |',
    '| --- | --- | --- | --- |',
  ]
  for part in params:
    count = sum(np.size(value) for value in tree.flatten(params[part]))
    size = (folder / f'{part}{_SUFFIX}').stat().st_size
    lines.append(
      f'| {part} | {_what(recipe, part)} | {count / 1e6:.2f} M | '
      f'{size / 1e6:.2f} MB |'
    )
  return '\n'.join(lines) + '\n'


def _what(recipe: Recipe, part: str) -> str:
  if part not in stages.NAMES:
    return {
      'codec': f'{recipe.models[-1].stage.target.name} to sound and back',
      'style': 'text to style',
      'tokenizer': f'sound to {recipe.models[0].stage.target.name}',
    }.get(part, '')
  stage = recipe.model(part).stage
  inputs = ' + '.join(view.name for view in stage.inputs)
  return f'{inputs} to {stage.target.name}, {stage.seconds:g} s'


def read_part(path: pathlib.Path, part: str) -> Mapping:
  """Reads the weights of one part, float32.

  Args:
    path: a safetensors file, a checkpoint of training, or a folder of
      checkpoints (the newest).
    part: which: a stage, 'codec', 'style' or 'tokenizer'.

  Raises:
    UserError: they cannot be read.
  """
  if path.suffix == _SUFFIX:
    return quantization.dequantize(weights.load_params(path))
  from v2meow_jax import checkpoints  # only training needs orbax

  params = checkpoints.load_params(path)
  if part in stages.NAMES:
    return params
  return {'params': params, **checkpoints.load_mutables(path)}


def add_gin_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that name what `read_recipe` reads."""
  parser.add_argument(
    '--gin_file',
    metavar='FILE',
    action='append',
    required=True,
    help='gin file; repeat it, gin/generate.gin last',
  )
  parser.add_argument(
    '--gin',
    metavar='BINDING',
    action='append',
    default=[],
    help='a line of gin behind the files; repeat it',
  )


def main(argv: Sequence[str]) -> int:
  """`python -m v2meow_jax.bundles pack …`."""
  platforms.settle()
  parser = argparse.ArgumentParser(
    prog='python -m v2meow_jax.bundles',
    description='Makes bundles, for `v2meow generate --model`.',
  )
  commands = parser.add_subparsers(metavar='COMMAND', required=True)
  pack = commands.add_parser(
    'pack',
    help='put trained parts into one folder',
    description='Puts trained parts into one folder. PATH is a .safetensors '
    'file, a checkpoint, or a folder of checkpoints (the newest).',
    epilog='example: python -m v2meow_jax.bundles pack --out my_model '
    '--gin_file gin/sizes/tiny.gin … --gin_file gin/generate.gin '
    '--semantic runs/semantic --coarse runs/coarse --fine runs/fine '
    '--codec runs/codec.safetensors --card my_card.md',
  )
  add = pack.add_argument
  add('--out', metavar='DIR', required=True, help='folder to write')
  add_gin_flags(pack)
  for part in (*_PARTS, *_OPTIONAL_PARTS):
    add(
      f'--{part}',
      metavar='PATH',
      type=pathlib.Path,
      required=part in _PARTS,
      help=f'weights of {part}',
    )
  add('--card', metavar='FILE', type=pathlib.Path, help='text of CARD.md')
  add(
    '--dtype',
    choices=('bfloat16', 'float32', 'int8'),
    default='bfloat16',
    help='of the stored weights; int8 means the matrices of the stages, and '
    'bfloat16 for all else (default: %(default)s)',
  )
  args = parser.parse_args(argv)
  try:
    paths = {
      part: getattr(args, part)
      for part in (*_PARTS, *_OPTIONAL_PARTS)
      if getattr(args, part)
    }
    folder = save(
      args.out,
      args.gin_file,
      {part: read_part(path, part) for part, path in paths.items()},
      args.gin,
      card=args.card.read_text() if args.card else '',
      dtype=args.dtype,
    )
  except (errors.UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(folder)
  return 0


if __name__ == '__main__':
  # gin knows this module by its own name, not as `__main__`.
  from v2meow_jax import bundles as this_module

  sys.exit(this_module.main(sys.argv[1:]))
