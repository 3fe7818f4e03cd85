"""A codec under training against adversaries, as SoundStream is.

Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", section
III-E. Codec and discriminators learn in the same step, each from its own
losses, and each with its own optimizer (`optimizers.partition`).

A codec that cannot yet make music is judged by anything but music: start from
one that can, or let the adversaries wait (`start_step`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from v2meow_jax.codecs import discriminators as discriminators_lib
from v2meow_jax.codecs import models

Array = jax.Array


class AdversarialModel:
  """A codec and its adversaries, with the protocol of `train.py`.

  Parameters are `{'generator': those of the codec's network,
  'discriminators': …}`; mutables are those of the codec, and beside them
  `{'adversary': {'steps': int32 scalar}}`, how often `loss_fn` was called.

  Attributes:
    spec: the stream of the codes.
    loss_is_mean: True: over the batch.
    averages_microbatches: True; see `models.CodecModel`. Each part of a batch
      counts as a step for `start_step`.
  """

  loss_is_mean = True
  averages_microbatches = True

  def __init__(
    self,
    codec: models.CodecModel,
    discriminators: discriminators_lib.Discriminators,
    reconstruction_weight: float = 1.0,
    adversarial_weight: float = 1.0,
    feature_weight: float = 100.0,
    start_step: int = 0,
    optimizer_def=None,
  ):
    """Makes a model.

    Args:
      codec: the codec in one of its phases.
      discriminators: the adversaries.
      reconstruction_weight: weight of the codec's own loss.
      adversarial_weight: weight of `discriminators.adversarial_loss`.
      feature_weight: weight of `discriminators.feature_distance`.
      start_step: steps that the codec trains alone, and the discriminators not
        at all.
      optimizer_def: an optax transformation; kept for the trainer.
    """
    self.spec = codec.spec
    self.optimizer_def = optimizer_def
    self._codec = codec
    self._discriminators = discriminators
    self._reconstruction_weight = reconstruction_weight
    self._adversarial_weight = adversarial_weight
    self._feature_weight = feature_weight
    self._start_step = start_step

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple],
    input_types: Mapping[str, jnp.dtype] | None = None,
  ) -> dict:
    """Returns `params`, the codec's mutables and `adversary`.

    Args:
      rng: random key.
      input_shapes: shapes of a batch.
      input_types: unused; a waveform is float32.

    Raises:
      errors.UserError: initial weights that cannot be read or do not fit.
    """
    rng, rng_discriminators = jax.random.split(rng)
    variables = self._codec.get_initial_variables(
      rng, input_shapes, input_types
    )
    waveform = jnp.zeros((1, input_shapes['waveform'][1]))
    adversaries = self._discriminators.init(rng_discriminators, waveform)
    params = {
      'generator': variables.pop('params'),
      'discriminators': adversaries['params'],
    }
    adversary = {'steps': jnp.zeros((), jnp.int32)}
    return {'params': params, **variables, 'adversary': adversary}

  def loss_fn(
    self,
    params: dict,
    batch: Mapping[str, Array],
    dropout_rng: Array | None,
    flax_mutables: dict,
  ):
    """Losses of codec and discriminators together; the gradients are apart.

    Args:
      params: see the class.
      batch: `{'waveform': float32 [batch, samples]}`.
      dropout_rng: random key for noise, dropped levels and restarts.
      flax_mutables: see the class.

    Returns:
      `(loss, (metrics, new flax_mutables))`. The metric `loss` is that of the
      codec.
    """
    codec_mutables = dict(flax_mutables)
    steps = codec_mutables.pop('adversary')['steps']
    waveform = batch['waveform']
    estimate, commitment, codec_mutables = self._codec.generate(
      params['generator'], waveform, dropout_rng, codec_mutables, True
    )
    reconstruction, values = self._codec.compare(
      waveform, estimate, commitment, True
    )
    judged = self._judge(params['discriminators'], waveform, estimate)
    # A factor and no `lax.cond`, in which XLA's convolutions on CPUs are slow.
    is_on = (steps >= self._start_step).astype(jnp.float32)
    judged = {name: is_on * value for name, value in judged.items()}
    loss = (
      self._reconstruction_weight * reconstruction
      + self._adversarial_weight * judged['adversarial_loss']
      + self._feature_weight * judged['feature_distance']
    )
    metrics = models.averages(loss=loss, **values, **judged)
    mutables = {**codec_mutables, 'adversary': {'steps': steps + 1}}
    return loss + judged['discriminator_loss'], (metrics, mutables)

  def eval_fn(
    self,
    params: dict,
    batch: Mapping[str, Array],
    flax_mutables: dict,
  ):
    """As `loss_fn`, without noise, with all levels and fixed codebooks.

    The loss is the codec's own, without the adversaries': what they make of
    it does not compare between steps.
    """
    codec_mutables = dict(flax_mutables)
    del codec_mutables['adversary']
    waveform = batch['waveform']
    estimate, commitment, _ = self._codec.generate(
      params['generator'], waveform, None, codec_mutables, False
    )
    loss, values = self._codec.compare(waveform, estimate, commitment, False)
    judged = self._judge(params['discriminators'], waveform, estimate)
    metrics = models.averages(loss=loss, **values, **judged)
    return loss, (metrics, flax_mutables)

  def export_variables(self, params: dict, flax_mutables: dict) -> dict:
    """Returns what the codec's weights file holds: no discriminators."""
    return self._codec.export_variables(
      params['generator'], _of_codec(flax_mutables)
    )

  def reconstruct(
    self, params: dict, waveform: Array, flax_mutables: dict
  ) -> Array:
    """See `models.CodecModel.reconstruct`."""
    return self._codec.reconstruct(
      params['generator'], waveform, _of_codec(flax_mutables)
    )

  def _judge(self, params, waveform, estimate):
    """The terms between codec and discriminators, scalars by name."""
    judge = lambda params, waveform: self._discriminators.apply(
      {'params': params}, waveform
    )
    real = judge(params, waveform)
    # The same numbers twice (and computed once): the discriminators learn from
    # the one, the codec from the other.
    fake = judge(params, jax.lax.stop_gradient(estimate))
    heard = judge(jax.lax.stop_gradient(params), estimate)
    mean = lambda judged: sum(j.logits.mean() for j in judged) / len(judged)
    return {
      'discriminator_loss': discriminators_lib.discriminator_loss(
        real, fake
      ).mean(),
      'adversarial_loss': discriminators_lib.adversarial_loss(heard).mean(),
      'feature_distance': discriminators_lib.feature_distance(
        real, heard
      ).mean(),
      'real_logit': mean(real),
      'fake_logit': mean(fake),
    }


def _of_codec(mutables: Mapping) -> dict:
  return {k: v for k, v in mutables.items() if k != 'adversary'}
