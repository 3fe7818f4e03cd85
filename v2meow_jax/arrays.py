"""Whole clips as plain arrays: training without TensorFlow.

The layout, for `v2meow prepare --arrays` which writes it and training which
reads it:

  FOLDER/<split>/index.json     {"streams": {name: facts of its StreamSpec},
                                 "clips": [{"clip_id", "seconds",
                                            "offsets": {name: [start, length]}}
                                           …]}
  FOLDER/<split>/<stream>.npy   all clips one after another along time:
                                float32 [time, features] or
                                int32 [time, levels]; a once-per-clip stream
                                has one row for each clip

The reader makes the same model features from a crop as the seqio road does
(`preprocessors.py`, `feature_converters.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import fractions
import json
import math
import os
import pathlib

import numpy as np

from v2meow_jax import errors
from v2meow_jax import hosts
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import vocabularies

_INDEX = 'index.json'
# What a random number is for: part of its seed, beside the dataset's seed.
_CROPS, _ORDER = range(2)


class ArrayWriter:
  """Writes the clips of one split; a context manager.

  The split appears under its name when the block ends without an exception
  and not before; memory does not grow with the number of clips.

  Attributes:
    folder: folder of the split.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    split: str,
    specs: Sequence[streams.StreamSpec],
  ):
    """Opens `folder/split` for the streams `specs`."""
    self.folder = pathlib.Path(folder) / split
    self._specs = {spec.name: spec for spec in specs}
    self._clips = []
    self._rows = dict.fromkeys(self._specs, 0)
    self._files = {}

  def __enter__(self) -> 'ArrayWriter':
    self.folder.mkdir(parents=True, exist_ok=True)
    for name in self._specs:
      self._files[name] = open(self._part(name), 'wb')
      self._write_header(name)
    return self

  def add(
    self, clip_id: str, arrays: Mapping[str, np.ndarray], seconds: float
  ) -> None:
    """Appends one clip.

    Args:
      clip_id: its name.
      arrays: for each stream `[time, features]`, `[time, levels]`, or
        `[features]` once per clip.
      seconds: length of the clip.

    Raises:
      ValueError: a stream is missing or has another shape than its spec.
    """
    rows = {}
    for name, spec in self._specs.items():
      if name not in arrays:
        raise ValueError(
          f'Clip {clip_id}: no stream `{name}`, expected '
          f'{", ".join(self._specs)}.'
        )
      array = np.asarray(arrays[name], _dtype(spec))
      array = array if spec.is_timed else array[np.newaxis]
      if array.ndim != 2 or array.shape[1] != _width(spec):
        raise ValueError(
          f'Clip {clip_id}: stream `{name}` has shape '
          f'{np.shape(arrays[name])}, expected {spec.example_shape()} with '
          'None for time.'
        )
      rows[name] = array
    offsets = {}
    for name, array in rows.items():
      self._files[name].write(np.ascontiguousarray(array).tobytes())
      offsets[name] = [self._rows[name], len(array)]
      self._rows[name] += len(array)
    self._clips.append(
      {'clip_id': clip_id, 'seconds': float(seconds), 'offsets': offsets}
    )

  def __exit__(self, error, *unused):
    for name, file in self._files.items():
      if error is None:
        file.seek(0)
        self._write_header(name)
      file.close()
      if error is None:
        os.replace(self._part(name), self.folder / f'{name}.npy')
      else:
        os.remove(self._part(name))
    if error is None:
      index = {
        'streams': {n: dataclasses.asdict(s) for n, s in self._specs.items()},
        'clips': self._clips,
      }
      part = self.folder / f'{_INDEX}.part'
      part.write_text(json.dumps(index))
      os.replace(part, self.folder / _INDEX)

  def _part(self, name: str) -> pathlib.Path:
    return self.folder / f'{name}.npy.part'

  def _write_header(self, name: str) -> None:
    # NumPy pads the header so that the first axis may grow in place.
    spec = self._specs[name]
    np.lib.format.write_array_header_1_0(
      self._files[name],
      {
        'descr': np.lib.format.dtype_to_descr(_dtype(spec)),
        'fortran_order': False,
        'shape': (self._rows[name], _width(spec)),
      },
    )


def _rate(spec: streams.StreamSpec) -> fractions.Fraction:
  return fractions.Fraction(spec.rate_hz).limit_denominator(10**6)


def _dtype(spec: streams.StreamSpec) -> np.dtype:
  return np.dtype(np.int32 if spec.is_discrete else np.float32)


def _width(spec: streams.StreamSpec) -> int:
  return spec.num_levels if spec.is_discrete else spec.num_features


def crop_grid_hz(stage: stages.Stage) -> fractions.Fraction:
  """Rate of the times at which every timed stream has a position.

  The largest rate that divides the rates of all streams: 5 Hz for streams at
  10 and 25 Hz. A crop starts on this grid, so that streams stay aligned.
  """
  rates = [
    _rate(view.spec)
    for view in (*stage.inputs, stage.target)
    if view.spec.is_timed
  ]
  denominator = math.lcm(*(r.denominator for r in rates))
  numerator = math.gcd(*(int(r * denominator) for r in rates))
  return fractions.Fraction(numerator, denominator)


def model_features(
  stage: stages.Stage,
  clips: Sequence[Mapping[str, np.ndarray]],
  starts: Sequence[int],
  keep_style: Sequence[bool] | None = None,
  keep_visual: Sequence[bool] | None = None,
) -> dict[str, np.ndarray]:
  """Makes the model features of one crop of each clip.

  Args:
    stage: what to crop and how it is laid out.
    clips: whole streams, `[time, features]`, `[time, levels]` or `[features]`.
    starts: where each crop starts, in units of 1 / `crop_grid_hz` s.
    keep_style: whether once-per-clip streams are seen; else their mask is 0.
      All are by default.
    keep_visual: the same for the visual streams.

  Returns:
    `encoder_<stream>`, `encoder_<stream>_mask` and `decoder_*` by name, each
    `[batch, …]`. What lies behind the end of a clip is padding: id 0, mask 0,
    loss weight 0.
  """
  if keep_style is None:
    keep_style = np.ones(len(clips), bool)
  if keep_visual is not None:
    # No positions of the picture: what is left is padding.
    nothing = [
      {name: clip[name][:0] for name in stage.visual_names} for clip in clips
    ]
    clips = [
      clip if keep else {**clip, **gone}
      for clip, gone, keep in zip(clips, nothing, keep_visual, strict=True)
    ]
  target = _ids(stage, stage.target, clips, starts)
  if stage.architecture == stages.DECODER_ONLY:
    prefix = [_ids(stage, view, clips, starts) for view in stage.inputs]
    # [batch, positions] each -> [batch, prefix + target]
    ids = np.concatenate([*prefix, target], axis=1)
    num_prefix = ids.shape[1] - target.shape[1]
    place = np.arange(ids.shape[1])
    # Inputs are shifted right: the last token of the prefix is the input at
    # the first position of the target.
    causal = np.broadcast_to(place <= num_prefix, ids.shape)
    return {
      'decoder_target_tokens': ids,
      'decoder_input_tokens': _shift_right(ids),
      'decoder_loss_weights': _int32((place >= num_prefix) & (ids != 0)),
      'decoder_causal_attention': _int32(causal),
    }
  features = {}
  for view in stage.inputs:
    name = f'encoder_{view.name}'
    if not view.spec.is_timed:
      vectors = np.stack([clip[view.name] for clip in clips])
      keep = np.asarray(keep_style)[:, np.newaxis]
      features[name] = np.where(keep, vectors, 0).astype(np.float32)
      # A vector of zeros says nothing.
      mask = features[name].any(axis=1, keepdims=True)
    elif view.spec.is_discrete:
      features[name] = _ids(stage, view, clips, starts)
      mask = features[name] != 0
    else:
      shape = view.spec.example_shape(view.length(stage.seconds))
      features[name] = np.zeros((len(clips), *shape), np.float32)
      mask = np.zeros((len(clips), shape[0]), np.int32)
      for row, crop in enumerate(_crops(stage, view, clips, starts)):
        features[name][row, : len(crop)] = crop
        mask[row, : len(crop)] = 1
    features[f'{name}_mask'] = _int32(mask)
  return features | {
    'decoder_target_tokens': target,
    'decoder_input_tokens': _shift_right(target),
    'decoder_loss_weights': _int32(target != 0),
  }


def _crops(stage, view, clips, starts) -> Iterator[np.ndarray]:
  """Yields the crop of each clip, shorter where the clip ends."""
  length = view.spec.length(stage.seconds)
  positions = int(_rate(view.spec) / crop_grid_hz(stage))
  for clip, start in zip(clips, starts, strict=True):
    yield clip[view.name][start * positions : start * positions + length]


def _ids(stage, view, clips, starts) -> np.ndarray:
  """Crops a discrete stream: int32 `[batch, time * levels]`, 0 is padding."""
  offset = (
    stage.target_offset
    if view == stage.target
    else stage.input_offset(view.name)
  )
  levels = slice(view.first_level, view.first_level + view.num_levels)
  ids = np.zeros((len(clips), view.length(stage.seconds)), np.int32)
  for row, crop in enumerate(_crops(stage, view, clips, starts)):
    flat = vocabularies.flatten_levels(crop[:, levels], view.level_ids, offset)
    ids[row, : len(flat)] = flat
  return ids


def _int32(array) -> np.ndarray:
  return np.asarray(array).astype(np.int32)


def _shift_right(ids: np.ndarray) -> np.ndarray:
  return np.pad(ids[:, :-1], ((0, 0), (1, 0)))


class ArrayDataset:
  """Random aligned crops of the clips of one split, for one stage.

  Step `n` of the same seed is the same batch, whatever was read before and
  however many processes share it. A split is read in shuffled epochs, in which
  each clip gives one crop.

  Attributes:
    clip_ids: names of the clips.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    stage: stages.Stage,
    split: str = 'train',
    batch_size: int = 8,
    seed: int = 0,
    style_dropout: float = 0.0,
    visual_dropout: float = 0.0,
    shard: hosts.Shard | None = None,
  ):
    """Opens the split; its arrays are memory-mapped.

    Args:
      folder: what `v2meow prepare --arrays` wrote.
      stage: which streams to read, and how long a crop is.
      split: 'train', 'validation' or another folder inside `folder`.
      batch_size: examples in a batch, over all processes.
      seed: decides the order of the clips, the crops and what is dropped.
      style_dropout: share of examples whose once-per-clip streams are masked.
      visual_dropout: share whose visual streams are masked, all at once.
      shard: the part of each batch to read; all of it by default.

    Raises:
      UserError: files are missing or were made for other streams.
    """
    self._folder = pathlib.Path(folder) / split
    self._stage = stage
    self._batch_size = batch_size
    self._seed = seed
    self._style_dropout = style_dropout
    self._visual_dropout = visual_dropout
    self._examples = (shard or hosts.Shard()).examples(batch_size)
    try:
      index = json.loads((self._folder / _INDEX).read_text())
    except FileNotFoundError as e:
      raise errors.UserError(
        f'{self._folder / _INDEX}: no such file, expected arrays of split '
        f'`{split}`. Make them with `v2meow prepare MANIFEST --arrays`.'
      ) from e
    self._clips = index['clips']
    self.clip_ids = [clip['clip_id'] for clip in self._clips]
    if not self._clips:
      raise errors.UserError(
        f'{self._folder}: no clips, expected at least one. Check the '
        'column `split` of the manifest.'
      )
    self._specs = {v.name: v.spec for v in (*stage.inputs, stage.target)}
    grid = crop_grid_hz(stage)
    self._crop_length = round(stage.seconds * grid)
    # Positions of each timed stream in one step of the grid.
    self._positions = {
      name: int(_rate(spec) / grid)
      for name, spec in self._specs.items()
      if spec.is_timed
    }
    self._arrays = {}
    self._orders = {}
    for name, spec in self._specs.items():
      self._check(spec, index['streams'])
      self._arrays[name] = np.load(
        self._folder / f'{name}.npy', mmap_mode='r', allow_pickle=False
      )

  def _check(self, spec: streams.StreamSpec, written: Mapping) -> None:
    if spec.name not in written:
      raise errors.UserError(
        f'{self._folder}: no stream `{spec.name}`, which stage '
        f'`{self._stage.name}` needs; found {", ".join(sorted(written))}. '
        f'Prepare it again with --streams …,{spec.name}.'
      )
    ours = dataclasses.asdict(spec)
    for fact, value in written[spec.name].items():
      if ours.get(fact, value) != value:
        raise errors.UserError(
          f'{self._folder}: stream `{spec.name}` was prepared with {fact} '
          f'{value}, expected {ours[fact]} (streams.py). Prepare it again.'
        )

  def clip(self, index: int) -> dict[str, np.ndarray]:
    """Returns the whole streams of clip `index`."""
    offsets = self._clips[index]['offsets']
    arrays = {}
    for name, spec in self._specs.items():
      start, length = offsets[name]
      array = self._arrays[name][start : start + length]
      arrays[name] = array if spec.is_timed else array[0]
    return arrays

  def iterator(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches from step `start_step` on, without end."""
    step = start_step
    while True:
      yield self.batch(step)
      step += 1

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Returns our part of batch `step`: model features `[examples, …]`."""
    rng = np.random.default_rng([self._seed, _CROPS, step])
    # [3, batch] -> [3, examples]
    numbers = rng.random((3, self._batch_size))[:, self._examples]
    place, style, visual = numbers
    clips = []
    for number in step * self._batch_size + self._examples:
      epoch, position = divmod(int(number), len(self._clips))
      clips.append(self.clip(self._order(epoch)[position]))
    # [examples] in [0, 1) -> [examples] starts on the grid
    starts = [
      int(p * self._num_starts(clip))
      for p, clip in zip(place, clips, strict=True)
    ]
    return model_features(
      self._stage,
      clips,
      starts,
      style >= self._style_dropout,
      visual >= self._visual_dropout,
    )

  def _order(self, epoch: int) -> np.ndarray:
    """The clips of an epoch, shuffled; remembers the newest epochs."""
    if epoch not in self._orders:
      rng = np.random.default_rng([self._seed, _ORDER, epoch])
      self._orders = {
        **dict(list(self._orders.items())[-1:]),
        epoch: rng.permutation(len(self._clips)),
      }
    return self._orders[epoch]

  def _num_starts(self, clip: Mapping[str, np.ndarray]) -> int:
    """How many crops a clip has; at least one."""
    length = min(len(clip[n]) // p for n, p in self._positions.items())
    return max(length - self._crop_length, 0) + 1
