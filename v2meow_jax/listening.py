"""What a model sounds like while it is trained, for TensorBoard.

A listener is asked at each evaluation. All processes call it, because all
devices take part; the first one decodes.
"""

import abc
from collections.abc import Callable, Mapping
import fractions
import math
from typing import Any

import jax
import numpy as np

from v2meow_jax import errors
from v2meow_jax import network
from v2meow_jax import partitioning
from v2meow_jax import quantization
from v2meow_jax import stages
from v2meow_jax import vocabularies
from v2meow_jax import weights

Batch = Mapping[str, np.ndarray]


class Listener(abc.ABC):
  """Makes sounds of a model and of some clips that it is evaluated with.

  Attributes:
    sample_rate_hz: of the sounds; known once it is open.
  """

  def __init__(self, num_clips: int = 2):
    """Makes a listener.

    Args:
      num_clips: clips to hear: the first ones of the first batch that the
        first process reads.

    Raises:
      ValueError: there is none to hear.
    """
    if num_clips < 1:
      raise ValueError(
        f'num_clips is {num_clips}, expected at least 1. Leave LISTENER None '
        'to hear nothing.'
      )
    self.sample_rate_hz = 0
    self._num_clips = num_clips
    self._given = None  # the sounds that do not change; said once

  def open(self, model: Any, batch_size: int, mesh: jax.sharding.Mesh) -> None:
    """Makes ready to hear a model.

    Args:
      model: of the kind that the listener knows.
      batch_size: examples of a batch of `listen`, over all processes.
      mesh: the devices.

    Raises:
      UserError: it is a model of another kind.
    """
    (share,) = partitioning.batch_sharding(mesh).shard_shape((batch_size,))
    num_shares = batch_size // share
    # All devices make equally many, few enough to hear what was asked for.
    count = num_shares * min(share, math.ceil(self._num_clips / num_shares))
    self._fraction = fractions.Fraction(count, batch_size)
    self._run = jax.jit(
      self._make(model), out_shardings=partitioning.replicated(mesh)
    )

  def listen(self, training: Any, batch: Batch) -> dict[str, np.ndarray]:
    """Returns sounds by name.

    Args:
      training: the `trainer.Trainer`.
      batch: what this process read of a batch.

    Returns:
      Waveforms, float32 `[samples]`; `{}` but for the first process.
    """
    count = int(len(next(iter(batch.values()))) * self._fraction)
    few = {name: array[:count] for name, array in batch.items()}
    on_devices, _ = training.to_devices(few)
    state = training.state
    made = self._run(state.params, state.mutables, on_devices)
    if jax.process_index():
      return {}
    few = {name: array[: self._num_clips] for name, array in few.items()}
    made = np.asarray(made)[: min(self._num_clips, count)]
    sounds = _name(*self._finish(few, made))
    if self._given is None:
      self._given = _name(*self._original(few))
      sounds |= self._given
    return sounds

  @abc.abstractmethod
  def _make(self, model: Any) -> Callable:
    """Checks the model; returns `(params, mutables, batch)` to an array."""

  @abc.abstractmethod
  def _finish(self, batch: Batch, made: np.ndarray) -> tuple[str, Any]:
    """Returns a name, and the waveforms of what was made."""

  @abc.abstractmethod
  def _original(self, batch: Batch) -> tuple[str, Any]:
    """Returns a name, and the waveforms to compare with."""


def _name(name: str, waveforms) -> dict[str, np.ndarray]:
  return {f'{name}/{i}': np.asarray(w) for i, w in enumerate(waveforms)}


class CodecListener(Listener):
  """Hears a codec under training: the original, and what is left of it."""

  def _make(self, model):
    if not hasattr(model, 'reconstruct'):
      raise errors.UserError(
        f'A {type(model).__name__} cannot be heard by CodecListener, expected '
        'a codec under training. Set LISTENER for this model, or None.'
      )
    self.sample_rate_hz = model.spec.sample_rate_hz

    def make(params, mutables, batch):
      return model.reconstruct(params, batch['waveform'], mutables)

    return make

  def _finish(self, batch, made):
    return 'reconstruction', made

  def _original(self, batch):
    return 'original', batch['waveform']


class StageListener(Listener):
  """Hears a stage: a crop's own tokens decoded, and those that it samples.

  The levels that the stage reads are the crop's own in both.
  """

  def __init__(
    self, codec: Callable[[dict], Any], weights_path: str, num_clips: int = 2
  ):
    """Reads the codec.

    Args:
      codec: makes the `codecs.base.Codec` from its weights.
      weights_path: its safetensors file.
      num_clips: see `Listener`.

    Raises:
      UserError: the weights cannot be read.
    """
    super().__init__(num_clips)
    self._codec = codec(
      quantization.dequantize(weights.load_params(weights_path))
    )
    self.sample_rate_hz = self._codec.sample_rate_hz

  def _make(self, model):
    stage = getattr(model, 'stage', None)
    spec, codec = self._codec.spec, self._codec
    while codec and stage and codec.spec != stage.target.spec:
      codec = codec.below  # the stage may write the tokens of a lower layer
    if not codec or not stage:
      what = 'no stage' if stage is None else f'stage `{stage.name}`'
      raise errors.UserError(
        f'Codec `{spec.name}` cannot make {what} heard, expected a stage that '
        f'predicts `{spec.name}`. Leave runs/listen.gin out.'
      )
    self._stage, self._codec = stage, codec
    self._prefix = network.prefix_length(stage)

    def make(params, mutables, batch):
      del mutables
      return model.predict_batch(params, batch)

    return make

  def _finish(self, batch, made):
    return 'sample', self._decode(batch, made)

  def _original(self, batch):
    ids = batch['decoder_target_tokens'][:, self._prefix :]
    return 'target', self._decode(batch, ids)

  def _decode(self, batch: Batch, ids: np.ndarray) -> list[np.ndarray]:
    """Waveforms of the ids of a target, each as long as its crop."""
    stage = self._stage
    codes = _unflatten(stage.target, ids, stage.target_offset)
    if stage.target.first_level:
      codes = np.concatenate([self._read(batch), codes], axis=-1)
    waveforms = np.asarray(self._codec.decode(codes))
    weight = batch['decoder_loss_weights'][:, self._prefix :]
    lengths = np.count_nonzero(weight, axis=1) // stage.target.num_levels
    return [
      waveform[: length * self._codec.hop]
      for waveform, length in zip(waveforms, lengths, strict=True)
    ]

  def _read(self, batch: Batch) -> np.ndarray:
    """Codes of the levels below the target's, which the stage reads."""
    stage, start = self._stage, 0
    for view in stage.inputs:
      length = view.length(stage.seconds)
      if view.spec == stage.target.spec:
        if stage.architecture == stages.DECODER_ONLY:
          ids = batch['decoder_target_tokens'][:, start : start + length]
        else:
          ids = batch[f'encoder_{view.name}']
        return _unflatten(view, ids, stage.input_offset(view.name))
      start += length
    raise AssertionError(stage)  # the lower levels are always an input


def _unflatten(view: stages.View, ids: np.ndarray, offset: int) -> np.ndarray:
  """Codes, int32 `[batch, time, levels]`; 0 where the ids are padding."""
  num_codes = view.spec.num_codes
  codes = vocabularies.unflatten_levels(ids, view.num_levels, num_codes, offset)
  return np.clip(codes, 0, num_codes - 1)
