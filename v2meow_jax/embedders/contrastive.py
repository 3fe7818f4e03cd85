"""Trains two towers on captioned music, for the training command.

The loss is symmetric: each clip must find its words among those of the whole
batch, and each text its clip (Huang et al., 2022; Radford et al., 2021). The
batch is that of all devices of all hosts: under `jax.jit` the scores are one
matrix product, whose rows lie where their clips do.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os

import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax.embedders import mulan
from v2meow_jax.embedders import wordpiece

Array = jax.Array

# Odd, so that every bit of a token counts.
_HASH = 0x9E3779B1


class Captions:
  """The tokens of a clip's captions, for `crops.CropDataset.annotate`."""

  def __init__(
    self,
    vocabulary: str | os.PathLike,
    text_length: int,
    num_captions: int = 1,
  ):
    """Reads the vocabulary.

    Args:
      vocabulary: file of it.
      text_length: tokens of a caption; more are left out.
      num_captions: captions of a clip, which stand in lines in the manifest's
        column. Of more the first are used; fewer come again.

    Raises:
      UserError: the vocabulary cannot be read.
    """
    self._wordpiece = wordpiece.read_vocabulary(vocabulary)
    self._text_length = text_length
    self._num_captions = num_captions

  def __call__(self, clip: manifests.Clip) -> dict[str, np.ndarray]:
    """Returns `tokens`, int32 `[captions, text_length]`.

    Raises:
      UserError: the clip has no caption.
    """
    lines = [line.strip() for line in clip.caption.splitlines()]
    lines = [line for line in lines if line][: self._num_captions]
    if not lines:
      raise errors.UserError(
        f'Clip `{clip.clip_id}` has no caption, expected words in the column '
        'caption of its manifest. Add them or leave the clip out.'
      )
    tokens = [self._wordpiece.encode(x, self._text_length) for x in lines]
    return {'tokens': np.resize(tokens, (self._num_captions, len(tokens[0])))}


class ContrastiveModel:
  """MuLan under training, with the protocol of `train.py`.

  A batch is `{'waveform': float32 [batch, samples], 'tokens': int32 [batch,
  captions, text_length]}`.

  Attributes:
    config: dimensions, with the size of the vocabulary.
    loss_is_mean: True: over the batch, so that a step has no microbatches.
  """

  loss_is_mean = True

  def __init__(
    self,
    vocabulary: str | os.PathLike,
    config: mulan.Config = mulan.Config(),  # noqa: B008, it cannot change
    temperature: float = 0.1,
    min_temperature: float = 0.01,
    optimizer_def=None,
  ):
    """Makes a model.

    Args:
      vocabulary: file of the text tower's.
      config: dimensions; the vocabulary's size is its own.
      temperature: what scores are divided by at first; it is learned.
      min_temperature: it falls no further.
      optimizer_def: an optax transformation; kept for the trainer.

    Raises:
      UserError: the vocabulary cannot be read.
    """
    self._wordpiece = wordpiece.read_vocabulary(vocabulary)
    size = len(self._wordpiece.vocabulary)
    self.config = dataclasses.replace(config, vocab_size=size)
    self.optimizer_def = optimizer_def
    self._network = mulan.Network(self.config)
    self._log_temperature = math.log(temperature)
    self._min_temperature = min_temperature

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, Sequence[int]],
    input_types: Mapping[str, jnp.dtype] | None = None,
  ) -> dict:
    """Returns `params`: `towers` and `log_temperature`.

    Args:
      rng: random key.
      input_shapes: shapes of a batch.
      input_types: unused.

    Raises:
      UserError: crops of another length than the audio tower hears.
    """
    del input_types
    samples = input_shapes['waveform'][1]
    if samples != self.config.num_samples:
      raise errors.UserError(
        f'Crops have {samples} samples, expected {self.config.num_samples}: '
        f'{self.config.window_seconds:g} s, as the audio tower hears. Set '
        'CROP_SECONDS to mulan.Config.window_seconds.'
      )
    towers = self._network.init(
      rng,
      jnp.zeros((1, samples)),
      jnp.zeros((1, input_shapes['tokens'][2]), jnp.int32),
    )['params']
    temperature = jnp.array(self._log_temperature, jnp.float32)
    return {'params': {'towers': towers, 'log_temperature': temperature}}

  def loss_fn(
    self, params: Mapping, batch: Mapping[str, Array], dropout_rng: Array
  ) -> tuple[Array, dict]:
    """Mean loss of a training batch, and its metrics.

    Args:
      params: see `get_initial_variables`.
      batch: see the class; of several captions each crop gets one at random.
      dropout_rng: random key.
    """
    choice, audio, text = jax.random.split(dropout_rng, 3)
    tokens = batch['tokens']
    picked = jax.random.randint(choice, (len(tokens),), 0, tokens.shape[1])
    tokens = jnp.take_along_axis(tokens, picked[:, None, None], axis=1)[:, 0]
    return self._run(params, batch['waveform'], tokens, (audio, text))

  def eval_fn(
    self, params: Mapping, batch: Mapping[str, Array]
  ) -> tuple[Array, dict]:
    """As `loss_fn`, with the first captions and without dropout."""
    return self._run(params, batch['waveform'], batch['tokens'][:, 0], None)

  def export_variables(
    self, params: Mapping, flax_mutables: Mapping | None = None
  ) -> dict:
    """Returns what `mulan.Mulan` takes, with vocabulary and dimensions."""
    del flax_mutables
    return mulan.pack(params['towers'], self.config, self._wordpiece.vocabulary)

  def _run(self, params, waveform, tokens, rngs):
    embed = lambda method, rng, *args: self._network.apply(
      {'params': params['towers']},
      *args,
      deterministic=rng is None,
      rngs=None if rng is None else {'dropout': rng},
      method=method,
    )
    rng_audio, rng_text = rngs or (None, None)
    audio = embed('embed_audio', rng_audio, waveform)
    mask = tokens != self._wordpiece.padding
    text = embed('embed_text', rng_text, tokens, mask)
    temperature = jnp.maximum(
      jnp.exp(params['log_temperature']), self._min_temperature
    )
    loss, hits = contrast(audio, text, temperature, _hashes(tokens))
    return loss, _averages(loss=loss, temperature=temperature, **hits)


def _hashes(tokens: Array) -> Array:
  """Maps tokens `[batch, time]` to uint32 `[batch]`, equal for equal texts."""
  powers = np.cumprod(np.full(tokens.shape[1], _HASH, np.uint32))
  return (tokens.astype(jnp.uint32) * powers).sum(axis=1)


def contrast(
  audio: Array, text: Array, temperature: Array, words: Array
) -> tuple[Array, dict[str, Array]]:
  """The symmetric contrastive loss of a batch, and who finds whom.

  Args:
    audio: unit vectors `[batch, features]`.
    text: unit vectors `[batch, features]`.
    temperature: scalar.
    words: `[batch]`, equal where two clips have the same caption. Such clips
      are no negatives of each other, and to find one for the other is right.

  Returns:
    The mean loss; and of the first guesses the right share, `recall_of_text`
    where music looks for its words and `recall_of_audio` where words look for
    their music, beside the share that chance finds, `recall_by_chance`.
  """
  scores = audio @ text.T / temperature  # [clips, texts]
  same = words[:, None] == words[None, :]
  itself = jnp.eye(len(words), dtype=bool)
  allowed = jnp.where(same & ~itself, -jnp.inf, scores)
  found = jnp.diagonal(scores)
  losses = [jax.nn.logsumexp(allowed, axis) - found for axis in (1, 0)]
  right = lambda axis: jnp.mean(
    (words[scores.argmax(axis)] == words).astype(jnp.float32)
  )
  return 0.5 * (losses[0].mean() + losses[1].mean()), {
    'recall_of_text': right(1),
    'recall_of_audio': right(0),
    'recall_by_chance': same.mean(),
  }


def _averages(**values):
  """Metrics as clu knows them; inference never needs clu."""
  from clu import metrics  # pylint: disable=g-import-not-at-top

  return {
    name: metrics.Average(total=value, count=jnp.ones((), jnp.float32))
    for name, value in values.items()
  }
