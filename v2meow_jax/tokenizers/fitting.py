"""A fit of clusters to more sound than a machine holds, stopped at any time.

The features of the first sound say how features are standardised, and start
the centres: k-means++ and Lloyd's steps. All sound moves them in mini-batches,
a shard of clips after another, so that memory does not grow with the sound.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib

from absl import logging
import jax
import numpy as np
import tqdm

from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import partitioning
from v2meow_jax import sources
from v2meow_jax import weights
from v2meow_jax.tokenizers import base
from v2meow_jax.tokenizers import kmeans
from v2meow_jax.tokenizers import minibatch

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Settings:
  """How it is fitted.

  Attributes:
    seed: of the order of the clips and of all draws.
    start_seconds: sound that starts the fit.
    epochs: passes over all sound; the last one says what is used.
    shard_clips: clips between two saved states.
    batch_size: positions of a batch, over all devices.
  """

  seed: int = 0
  start_seconds: float = 4800.0
  epochs: int = 1
  shard_clips: int = 64
  batch_size: int = 16384


class Fitter:
  """A fit on its way; its state survives the process.

  Attributes:
    num_failed: clips that could not be read.
  """

  def __init__(
    self,
    tokenizer: base.ClusterTokenizer,
    clips: Sequence[manifests.Clip],
    settings: Settings,
    state_path: str | os.PathLike,
  ):
    """Finds where a former process has stopped.

    Args:
      tokenizer: without clusters.
      clips: what to hear.
      settings: how.
      state_path: safetensors file of the state.

    Raises:
      UserError: the state is one of another fit.
    """
    self.num_failed = 0
    self._tokenizer = tokenizer
    self._settings = settings
    order = np.random.default_rng(settings.seed).permutation(len(clips))
    self._clips = [clips[i] for i in order]
    self._path = pathlib.Path(state_path)
    self._num_shards = -(-len(clips) // settings.shard_clips)
    told = [dataclasses.asdict(settings), tokenizer.spec.name]
    told += [[str(c.file), c.start_seconds, c.end_seconds] for c in clips]
    self._fingerprint = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    mesh = partitioning.make_mesh((-1, 1, 1))
    self._sharding = partitioning.batch_sharding(mesh)
    (share,) = self._sharding.shard_shape((mesh.size,))
    num_devices = mesh.size // share
    self._batch_size = -(-settings.batch_size // num_devices) * num_devices
    self._state = self._mean = self._scale = None
    self._epoch = self._shard = 0
    if self._path.exists():
      self._restore()

  @property
  def num_clips_left(self) -> int:
    """Clips that are still to be heard, those of the start left out."""
    num_done = self._epoch * len(self._clips)
    num_done += min(self._shard * self._settings.shard_clips, len(self._clips))
    return self._settings.epochs * len(self._clips) - num_done

  def run(self, bar: tqdm.tqdm) -> dict[str, Array]:
    """Fits to the end.

    Args:
      bar: told of each clip of the mini-batches.

    Returns:
      `mean`, `scale` and `centres` of the tokenizer.

    Raises:
      UserError: no clip can be read.
      ValueError: there are fewer positions than clusters.
    """
    if self._state is None:
      self._start()
    settings = self._settings
    while self._epoch < settings.epochs:
      if self._shard == 0:
        self._state = minibatch.reset(self._state)
      first = self._shard * settings.shard_clips
      found = list(self._hear(first, first + settings.shard_clips, bar))
      if found:
        self._learn(np.concatenate(found))
      self._shard += 1
      if self._shard == self._num_shards:
        self._epoch, self._shard = self._epoch + 1, 0
      self._save()
    return {
      'mean': self._mean,
      'scale': self._scale,
      'centres': np.asarray(self._state.centres),
    }

  def report(self) -> dict[str, float]:
    """What the last pass found: `inertia`, `used` (a share), `perplexity`."""
    return {
      'inertia': minibatch.inertia(self._state),
      'used': minibatch.used(self._state),
      'perplexity': minibatch.perplexity(self._state),
    }

  def forget(self) -> None:
    """Removes the file of the state, once the result is written."""
    self._path.unlink(missing_ok=True)

  def _hear(
    self, first: int, end: int, bar: tqdm.tqdm | None = None
  ) -> Iterator[Array]:
    """Yields the features of clips, one by one."""
    rate = self._tokenizer.spec.sample_rate_hz
    for clip in self._clips[first:end]:
      try:
        yield self._tokenizer.features(sources.FileSource(clip).sound(rate))
      except errors.UserError as error:
        # One bad file among thousands must not end hours of work.
        logging.warning('Left out: %s', error)
        self.num_failed += 1
      if bar is not None:
        bar.update()

  def _start(self) -> None:
    """Standardisation and first centres, from the first sound."""
    num_points = self._settings.start_seconds * self._tokenizer.spec.rate_hz
    found, count = [], 0
    for features in self._hear(0, len(self._clips)):
      found.append(features)
      count += len(features)
      if count >= num_points:
        break
    if not found:
      raise errors.UserError(
        f'None of {len(self._clips)} clips can be read, expected at least one. '
        'See the warnings above.'
      )
    self.num_failed = 0  # they will be met again
    points = np.concatenate(found)
    mean, scale = self._tokenizer.standardise(points)
    self._mean, self._scale = mean.astype('f4'), scale.astype('f4')
    points = (points - self._mean) * self._scale
    fit = kmeans.fit(
      points,
      self._tokenizer.spec.num_codes,
      seed=self._settings.seed,
      progress=lambda step, inertia: logging.log_every_n_seconds(
        logging.INFO, 'Start: step %d, mean distance %.5f.', 10, step, inertia
      ),
    )
    logging.info(
      'Start: %d positions of %d clips, mean distance %.5f, %.1f %% used.',
      len(points), len(found), fit.inertia, 100 * fit.used,
    )  # fmt: skip
    codes = kmeans.assign(points, fit.centres)
    counts = np.bincount(codes, minlength=len(fit.centres))
    self._state = minibatch.start(fit.centres, counts)

  def _learn(self, points: Array) -> None:
    """Moves the centres by the positions of a shard, in a random order."""
    rng = np.random.default_rng((self._settings.seed, self._epoch, self._shard))
    points = (points - self._mean) * self._scale
    points = points[rng.permutation(len(points))]
    size = self._batch_size
    for i in range(0, len(points), size):
      batch = points[i : i + size]
      fill = size - len(batch)  # one shape, compiled once
      batch = np.pad(batch, ((0, fill), (0, 0)))
      weight = np.pad(np.ones(size - fill, 'f4'), (0, fill))
      self._state = minibatch.update(
        self._state,
        jax.device_put(batch, self._sharding),
        jax.device_put(weight, self._sharding),
        self._settings.seed,
      )

  def _save(self) -> None:
    place = {
      'epoch': self._epoch,
      'shard': self._shard,
      'fingerprint': self._fingerprint,
      'num_failed': self.num_failed,
    }
    arrays = {
      field.name: np.asarray(getattr(self._state, field.name))
      for field in dataclasses.fields(self._state)
    }
    arrays |= {'mean': self._mean, 'scale': self._scale}
    weights.save_params(self._path, weights.add_config(arrays, place))

  def _restore(self) -> None:
    arrays = weights.load_params(self._path)
    place = weights.read_config(arrays)
    if place.get('fingerprint') != self._fingerprint:
      raise errors.UserError(
        f'{self._path}: is the state of a fit with another manifest, tokenizer '
        'or settings, expected that of this one. Remove it to start anew, or '
        'give the same options again.'
      )
    self._epoch, self._shard = place['epoch'], place['shard']
    self.num_failed = place['num_failed']
    self._mean, self._scale = arrays['mean'], arrays['scale']
    names = [field.name for field in dataclasses.fields(minibatch.State)]
    self._state = minibatch.State(*(jax.numpy.array(arrays[n]) for n in names))
    logging.info(
      'Goes on from %s: epoch %d, shard %d of %d.',
      self._path, self._epoch, self._shard, self._num_shards,
    )  # fmt: skip
