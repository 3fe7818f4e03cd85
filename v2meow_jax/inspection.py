"""What `v2meow inspect` prints: streams, stages, a model, a dataset."""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import json
import os
import pathlib

import numpy as np

from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import stages
from v2meow_jax import streams


def describe(options: argparse.Namespace) -> str:
  """Returns the text that the parsed arguments of the command ask for.

  Raises:
    UserError: there is no such model or dataset.
  """
  if options.what == 'streams':
    return describe_streams()
  if options.what == 'stages':
    return describe_stages(options.model)
  if options.what == 'model':
    return describe_model(options.model)
  return describe_records(options.dir, options.split, options.count)


def describe_streams() -> str:
  """The table of streams.py."""
  header = ('stream', 'rate', 'holds', 'audio')
  rows = []
  for spec in streams.STREAMS.values():
    rate = f'{spec.rate_hz:g} Hz' if spec.is_timed else 'once per clip'
    holds = f'{spec.num_features} features'
    if spec.is_discrete:
      levels = f'{spec.num_levels} x ' if spec.num_levels > 1 else ''
      holds = f'{levels}{spec.num_codes} codes'
    audio = f'{spec.sample_rate_hz} Hz' if spec.sample_rate_hz else ''
    rows.append((spec.name, rate, holds, audio))
  return _table(header, rows)


def describe_stages(model: str | None = None) -> str:
  """Inputs, lengths and vocabularies of the stages.

  Args:
    model: name or folder of a model; None for the paper's stages.
  """
  if model is None:
    visual = ('clip', 'i3d_flow')
    rows = [
      stages.make('semantic', visual=visual, style='mulan'),
      stages.make('coarse'),
      stages.make('fine'),
    ]
  else:
    path = bundles.find(model).resolve() / bundles.GIN
    with bundles.read_recipe([path]) as recipe:
      rows = [row.stage for row in recipe.models]
  return '\n\n'.join(map(_describe_stage, rows))


def _describe_stage(stage: stages.Stage) -> str:
  header = ('', 'stream', 'levels', 'rate', 'positions', 'token ids')
  rows = []
  for view in (*stage.inputs, stage.target):
    is_target = view is stage.target
    ids, levels = '', ''
    if view.spec.is_discrete:
      first = (
        stage.target_offset if is_target else stage.input_offset(view.name)
      )
      ids = f'{first} to {first + view.num_ids - 1}'
      levels = f'{view.first_level} to {view.first_level + view.num_levels - 1}'
    rows.append(
      (
        'target' if is_target else 'input',
        view.name,
        levels,
        f'{view.rate_hz:g} Hz' if view.spec.is_timed else 'once per clip',
        view.length(stage.seconds),
        ids,
      )
    )
  title = (
    f'{stage.name}: {stage.architecture}, windows of {stage.seconds:g} s, '
    f'{stage.vocab_size} token ids (0 padding, 1 end)'
  )
  return f'{title}\n{_table(header, rows)}'


def describe_model(model: str) -> str:
  """The card of a model and the dimensions of its networks."""
  folder = bundles.find(model)
  with bundles.read_recipe([folder.resolve() / bundles.GIN]) as recipe:
    models = recipe.models
  header = ('stage', 'layers', 'width', 'heads', 'MLP', 'temperature')
  rows = []
  for row in models:
    config = row.config
    layers = f'{config.num_layers}'
    if row.stage.architecture == stages.ENCODER_DECODER:
      layers = f'{config.num_encoder_layers} + {config.num_decoder_layers}'
    rows.append(
      (
        row.stage.name,
        layers,
        config.embed_dim,
        f'{config.num_heads} x {config.head_dim}',
        config.mlp_dim,
        f'{row.options.temperature:g}',
      )
    )
  card = folder / bundles.CARD
  text = card.read_text().strip() if card.is_file() else f'# Model {model}'
  return f'{text}\n\n## Networks\n{_table(header, rows)}\n\nFolder: {folder}'


def describe_records(folder: str, split: str, count: int) -> str:
  """The streams of the first clips of a dataset.

  Args:
    folder: what `v2meow prepare` wrote: TFRecords of TFDS, or arrays.
    split: which part of it.
    count: clips to show.
  """
  path = pathlib.Path(folder)
  if not path.is_dir():
    raise errors.UserError(
      f'{folder}: no such folder, expected a dataset. Make one with `v2meow '
      'prepare`.'
    )
  if (path / split / 'index.json').is_file():
    clips = _array_clips(path / split)
  else:
    clips = _record_clips(path, split)
  return '\n\n'.join(
    f'{clip_id}\n{_table(("stream", "shape", "range"), _summaries(clip))}'
    for clip_id, clip in itertools.islice(clips, count)
  )


def _array_clips(path: pathlib.Path) -> Iterator[tuple[str, Mapping]]:
  """Yields clip_id and streams of a split that was written as arrays."""
  index = json.loads((path / 'index.json').read_text())
  files = {
    name: np.load(path / f'{name}.npy', mmap_mode='r', allow_pickle=False)
    for name in index['streams']
  }
  for clip in index['clips']:
    yield (
      f'{clip["clip_id"]} ({clip["seconds"]:.2f} s)',
      {
        name: files[name][start : start + length]
        for name, (start, length) in clip['offsets'].items()
      },
    )


def _record_clips(
  path: pathlib.Path, split: str
) -> Iterator[tuple[str, Mapping]]:
  """Yields clip_id and features of a split of a TFDS dataset."""
  infos = sorted(path.glob('**/dataset_info.json'))
  if not infos:
    raise errors.UserError(
      f'{path}: no dataset with split `{split}`, expected the folder that '
      '`v2meow prepare` wrote. Check the path and --split.'
    )
  # TensorFlow would speak of processors and missing GPUs.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise errors.UserError(
      f'{path}: holds TFRecords, and reading them needs TensorFlow Datasets. '
      "Install it with pip install 'v2meow_jax[train]'."
    ) from error
  builder = tfds.builder_from_directory(infos[-1].parent)
  if split not in builder.info.splits:
    raise errors.UserError(
      f'{path}: no split `{split}`, expected one of '
      f'{", ".join(builder.info.splits)}. Choose one with --split.'
    )
  dataset = builder.as_dataset(
    split=split, read_config=tfds.ReadConfig(try_autocache=False)
  )
  for example in tfds.as_numpy(dataset):
    clip_id = example.pop('clip_id', b'').decode()
    yield clip_id, example


def _summaries(clip: Mapping) -> Iterable[tuple]:
  for name, value in sorted(clip.items()):
    array = np.asarray(value)
    if array.dtype.kind in 'SO':
      text = value.decode() if isinstance(value, bytes) else str(value)
      yield name, 'text', text[:60]
    elif array.ndim == 0:
      yield name, f'{array.dtype}', f'{array:g}'
    else:
      shape = f'{array.dtype} {list(array.shape)}'
      span = f'{array.min():g} to {array.max():g}' if array.size else ''
      yield name, shape, span


def _table(header: Sequence, rows: Iterable[Sequence]) -> str:
  """Aligns columns."""
  lines = [[str(cell) for cell in row] for row in (header, *rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    ).rstrip()
    for line in lines
  )
