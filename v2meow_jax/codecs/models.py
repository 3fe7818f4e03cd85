"""The trainable codec: what the training command drives.

Training has phases, each started from the weights of the one before:

*   'autoencoder': encoder and decoder without quantiser; noise on the latents
    stands for it.
*   the quantiser fit (`fit_quantizer.py`): k-means per level, no gradient.
*   'joint': everything together; codebooks move by exponential averages, the
    encoder gets the gradient straight through and is tied to its codes.
*   'decoder': the decoder alone, on quantised latents; the codes stay what
    they are.

'joint' can also be the first phase, as in SoundStream: the first batch then
initialises the codebooks by k-means. 'joint' and 'decoder' can have adversaries
(`adversarial.py`).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import losses
from v2meow_jax.codecs import rvq

Array = jax.Array

PHASES = ('autoencoder', 'joint', 'decoder')


class CodecModel:
  """A codec under training, with the protocol of `train.py`.

  A batch is `{'waveform': float32 [batch, samples]}`, samples a multiple of
  the codec's hop.

  Attributes:
    module: network with `encode`, `reconstruct` and `decode`, as
      `spectral.Network`.
    spec: the stream of the codes.
    loss_is_mean: True: over the batch.
    averages_microbatches: True: the mean over the parts of a batch is that of
      the batch. The codebooks move once for each part.
  """

  loss_is_mean = True
  averages_microbatches = True

  def __init__(
    self,
    module,
    stream: str,
    phase: str,
    below: base.Codec | None = None,
    optimizer_def=None,
    initial_weights: str | None = None,
    latent_noise: float = 0.1,
    distance: Callable[..., Array] = losses.spectral_distance,
    complex_weight: float = 0.6,
    commitment_weight: float = 0.25,
    full_probability: float = 0.5,
    ema_decay: float = 0.99,
    dead_threshold: float = 0.03,
    kmeans_iterations: int = 10,
  ):
    """Makes a model.

    Args:
      module: the network.
      stream: name of the codec's row in streams.py.
      phase: one of `PHASES`.
      below: codec of the first levels (`layered.py`); it stays what it is.
      optimizer_def: an optax transformation; kept for the trainer.
      initial_weights: safetensors file to start from, of this layer or, where
        there are two, of both; None for random ones.
      latent_noise: standard deviation of the noise on the latents, which
        stands for the quantiser ('autoencoder').
      distance: of magnitudes, such as those of `losses.py`; has weight 1.
      complex_weight: weight of the distance that sees phase.
      commitment_weight: weight of the latents' distance to their codes
        ('joint').
      full_probability: share of clips decoded from all levels ('joint',
        'decoder'); the others use a random number of them.
      ema_decay: weight of the past in the codebooks' averages ('joint').
      dead_threshold: a code chosen by fewer vectors a step restarts ('joint').
      kmeans_iterations: of the codebooks' initialisation ('joint', where no
        weights are given).

    Raises:
      ValueError: unknown phase or stream, or 'decoder' without weights.
    """
    if phase not in PHASES:
      raise ValueError(
        f'Unknown phase `{phase}`, expected one of {", ".join(PHASES)}.'
      )
    if phase == 'decoder' and initial_weights is None:
      raise ValueError(
        "Phase 'decoder' without initial_weights, expected the weights of a "
        'codec with codebooks. Set CodecModel.initial_weights.'
      )
    self.module = module
    self.spec = streams.get(stream)
    self.optimizer_def = optimizer_def
    self._phase = phase
    self._below = below
    self._num_levels = self.spec.num_levels
    if below is not None:
      self._num_levels -= below.spec.num_levels
    self._initial_weights = initial_weights
    self._latent_noise = latent_noise
    self._distance = distance
    self._complex_weight = complex_weight
    self._commitment_weight = commitment_weight
    self._full_probability = full_probability
    self._ema_decay = ema_decay
    self._dead_threshold = dead_threshold
    self._kmeans_iterations = kmeans_iterations

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple],
    input_types: Mapping[str, jnp.dtype] | None = None,
  ) -> dict:
    """Returns `params` and, but for 'autoencoder', `quantizer`.

    Args:
      rng: random key.
      input_shapes: shapes of a batch.
      input_types: unused; a waveform is float32.

    Raises:
      errors.UserError: initial weights that cannot be read or do not fit.
    """
    del input_types
    shape = tuple(input_shapes['waveform'])
    waveform = jax.ShapeDtypeStruct((1, shape[1]), jnp.float32)
    latents = jax.eval_shape(self._init_latents, rng, waveform)
    book = (self._num_levels, self.spec.num_codes, latents.shape[-1])
    if self._initial_weights is not None:
      given = weights.load_params(self._initial_weights)
      # A file of both layers serves the training of either.
      upper = given.pop('upper', given)
      if self._below is not None:
        given = upper
      expected = {'params': jax.eval_shape(self._init, rng, waveform)}
      if self._phase != 'autoencoder' or 'quantizer' in given:
        expected['quantizer'] = {
          'codebooks': jax.ShapeDtypeStruct(book, jnp.float32)
        }
      weights.check_params(expected, given)
      given = jax.tree.map(jnp.asarray, given)
      params = given['params']
      codebooks = given.get('quantizer', {}).get('codebooks')
    else:
      params = self._init(rng, jnp.zeros(waveform.shape, jnp.float32))
      codebooks = jnp.zeros(book, jnp.float32)
    if self._phase == 'autoencoder':
      return {'params': params}
    state = rvq.init_state(codebooks)
    return {
      'params': params,
      'quantizer': {
        'codebooks': state.codebooks,
        'counts': state.counts,
        'sums': state.sums,
        # 0 until the first batch has initialised the codebooks.
        'fitted': jnp.array(self._initial_weights is not None, jnp.int32),
      },
    }

  def _init(self, rng, waveform):
    return self.module.init(rng, waveform, mutable=['params'])['params']

  def _init_latents(self, rng, waveform):
    variables = {'params': self._init(rng, waveform)}
    return self.module.apply(variables, waveform, method='encode')

  def loss_fn(
    self,
    params: dict,
    batch: Mapping[str, Array],
    dropout_rng: Array | None,
    flax_mutables: dict | None = None,
  ):
    """Mean loss per clip of a training batch.

    Args:
      params: of the network.
      batch: `{'waveform': float32 [batch, samples]}`.
      dropout_rng: random key for noise, dropped levels and restarts.
      flax_mutables: `{'quantizer': …}` but for 'autoencoder'.

    Returns:
      `(loss, metrics)` for 'autoencoder', else
      `(loss, (metrics, new flax_mutables))`.
    """
    return self._run(params, batch, dropout_rng, flax_mutables, training=True)

  def eval_fn(
    self,
    params: dict,
    batch: Mapping[str, Array],
    flax_mutables: dict | None = None,
  ):
    """As `loss_fn`, without noise, with all levels and fixed codebooks.

    The distances have their full overlap here, half of it in training.
    """
    return self._run(params, batch, None, flax_mutables, training=False)

  def export_variables(
    self, params: dict, flax_mutables: dict | None = None
  ) -> dict:
    """Returns what the codec's weights file holds, for `base.Codec`.

    Of two layers both, but after 'autoencoder', where codebooks still lack.
    """
    variables = {'params': params}
    if flax_mutables:
      codebooks = flax_mutables['quantizer']['codebooks']
      variables['quantizer'] = {'codebooks': codebooks}
      if self._below is not None:
        return {**self._below.variables, 'upper': variables}
    return variables

  def reconstruct(
    self, params: dict, waveform: Array, flax_mutables: dict | None = None
  ) -> Array:
    """What a clip sounds like behind the codec, as far as it is trained.

    Args:
      params: of the network.
      waveform: float32 `[batch, samples]`.
      flax_mutables: as in `loss_fn`; its codes are those of all levels. After
        'autoencoder' there are none, and the latents are decoded as they are.

    Returns:
      float32 `[batch, samples]`.
    """
    variables = {'params': params}
    latents = self.module.apply(variables, waveform, method='encode')
    if flax_mutables:
      codebooks = flax_mutables['quantizer']['codebooks']
      latents, _, _ = rvq.quantize(latents, codebooks, None)
    if self._below is not None:
      below = self._below.quantize(waveform)
      latents = jnp.concatenate([below, latents], axis=-1)
    return self.module.apply(variables, latents, method='decode')

  def _run(self, params, batch, rng, flax_mutables, training):
    waveform = batch['waveform']
    estimate, commitment, flax_mutables = self.generate(
      params, waveform, rng, flax_mutables, training
    )
    loss, values = self.compare(waveform, estimate, commitment, training)
    metrics = averages(loss=loss, **values)
    if self._phase == 'autoencoder':
      return loss, metrics
    return loss, (metrics, flax_mutables)

  def generate(
    self,
    params: dict,
    waveform: Array,
    rng: Array | None,
    flax_mutables: dict | None,
    training: bool,
  ) -> tuple[Array, Array, dict | None]:
    """What the phase decodes of a batch.

    Args:
      params: of the network.
      waveform: float32 `[batch, samples]`.
      rng: random key for noise, dropped levels and restarts; None if not
        training.
      flax_mutables: as in `loss_fn`.
      training: whether to drop levels and to move codebooks.

    Returns:
      float32 waveform `[batch, samples]`, the latents' distance to their codes
      `[batch]`, and the new `flax_mutables`.
    """
    variables = {'params': params}
    latents = self.module.apply(variables, waveform, method='encode')
    commitment = jnp.zeros(waveform.shape[:1])
    if self._phase == 'autoencoder':
      if training:
        noise = jax.random.normal(rng, latents.shape)
        latents += self._latent_noise * noise
    elif self._phase == 'decoder':
      quantizer = flax_mutables['quantizer']
      # Neither encoder nor codebooks may move: the codes are final.
      latents, _, _ = rvq.quantize(
        jax.lax.stop_gradient(latents),
        quantizer['codebooks'],
        self._draw_num_levels(rng, waveform.shape[0], training),
      )
    else:
      latents, commitment, quantizer = self._quantize_and_learn(
        latents, flax_mutables['quantizer'], rng, training
      )
      flax_mutables = {'quantizer': quantizer}
    if self._below is not None:
      below = jax.lax.stop_gradient(self._below.quantize(waveform))
      latents = jnp.concatenate([below, latents], axis=-1)
    if self._phase == 'decoder':  # learns to make what is heard in the end
      estimate = self.module.apply(variables, latents, method='decode')
    else:
      estimate = self.module.apply(
        variables, latents, waveform, method='reconstruct'
      )
    return estimate, commitment, flax_mutables

  def compare(
    self, waveform: Array, estimate: Array, commitment: Array, training: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Mean loss per clip of what `generate` returned.

    Args:
      waveform: float32 `[batch, samples]`.
      estimate: float32 `[batch, samples]`.
      commitment: float32 `[batch]`.
      training: whether spectra may have half their overlap.

    Returns:
      The loss, and its terms and further measures by name, all float32 scalars.
    """
    overlap = 2 if training else 4
    rate = self.spec.sample_rate_hz
    values = {}
    mel = losses.spectral_distance(waveform, estimate, rate, overlap)
    distance = mel
    if self._distance is not losses.spectral_distance:
      distance = self._distance(waveform, estimate, rate, overlap)
      values['distance'] = distance.mean()
    phase = losses.complex_distance(waveform, estimate, overlap=overlap)
    loss = jnp.mean(
      distance
      + self._complex_weight * phase
      + self._commitment_weight * commitment
    )
    return loss, values | {
      'spectral_distance': mel.mean(),
      'complex_distance': phase.mean(),
      'commitment': commitment.mean(),
      'snr_db': losses.snr_db(waveform, estimate).mean(),
    }

  def _draw_num_levels(self, rng, batch, training):
    if not training:
      return None
    return rvq.sample_num_levels(
      rng, batch, self._num_levels, self._full_probability
    )

  def _quantize_and_learn(self, latents, quantizer, rng, training):
    """Quantises, and moves the codebooks if training."""
    state = rvq.State(
      quantizer['codebooks'], quantizer['counts'], quantizer['sums']
    )
    fitted = quantizer['fitted']
    # Codebooks are no function of the parameters.
    vectors = jax.lax.stop_gradient(latents)
    if training:
      rng, rng_fit, rng_restart = jax.random.split(rng, 3)
      state = jax.lax.cond(
        fitted == 0,
        lambda: rvq.init_state(
          rvq.fit(
            rng_fit,
            vectors.reshape(-1, vectors.shape[-1]),
            self._num_levels,
            self.spec.num_codes,
            self._kmeans_iterations,
          )
        ),
        lambda: state,
      )
      fitted = jnp.ones_like(fitted)
    num_levels = self._draw_num_levels(rng, latents.shape[0], training)
    quantised, codes, residuals = rvq.quantize(
      vectors, state.codebooks, num_levels
    )
    commitment = jnp.square(latents - quantised).mean((1, 2))
    if training:
      state = rvq.update_ema(
        state, residuals, codes, self._ema_decay, num_levels
      )
      state = rvq.restart_dead_codes(
        state, residuals, rng_restart, self._dead_threshold
      )
    return (
      rvq.straight_through(latents, quantised),
      commitment,
      {
        'codebooks': state.codebooks,
        'counts': state.counts,
        'sums': state.sums,
        'fitted': fitted,
      },
    )


def averages(**values):
  """Metrics as clu knows them; inference never needs clu."""
  from clu import metrics  # pylint: disable=g-import-not-at-top

  return {
    name: metrics.Average(total=value, count=jnp.ones((), jnp.float32))
    for name, value in values.items()
  }
