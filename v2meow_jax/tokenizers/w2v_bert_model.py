"""The trainable w2v-BERT: what the training command drives.

(Chung et al., 2021, sections 3.1 and 3.2.) Spans of the encoded sound become
noise. The contrastive module shall find the quantised vector of each masked
position among those of other masked positions of the clip, the
masked-prediction module its id; both losses and that of the codebook's
diversity are summed. The quantiser sees what is not masked: a linear map to
one logit for each code, a code drawn by Gumbel's trick, its vector, and the
gradient of the softmax (Baevski et al., 2020).

The loss is a sum over masked positions, so that microbatches add up; the
diversity of a batch counts for each of its masked positions, as in fairseq.
"""

from collections.abc import Mapping

from flax import linen as nn
from flax import traverse_util
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from v2meow_jax import weights
from v2meow_jax.tokenizers import w2v_bert

Array = jax.Array

_EXCLUDED = -1e9  # score of a distractor that is no other code


def draw_spans(
  rng: Array, shape: tuple[int, int], probability: float, length: int
) -> Array:
  """Draws which positions are masked.

  Args:
    rng: random key.
    shape: `(batch, time)`.
    probability: that a span begins at a position; every clip has one at least.
    length: positions of a span, unless it meets the end; spans may overlap.

  Returns:
    bool `[batch, time]`.
  """
  batch, time = shape
  rng_start, rng_first = jax.random.split(rng)
  start = jax.random.bernoulli(rng_start, probability, shape)
  latest = max(1, time - length + 1)
  first = jax.random.randint(rng_first, (batch, 1), 0, latest)
  start |= jnp.arange(time) == first
  count = jnp.cumsum(start, axis=1)
  past = jnp.pad(count, ((0, 0), (length, 0)))[:, :time]
  return count > past


def draw_distractors(rng: Array, mask: Array, count: int) -> Array:
  """Draws other masked positions of the same clip for each position.

  Args:
    rng: random key.
    mask: bool `[batch, time]`, at least two positions of each clip.
    count: positions to draw, with replacement.

  Returns:
    int32 `[batch, time, count]`; what it says of positions that are not masked
    means nothing.
  """
  # Masked positions first, and the place of each among them.
  order = jnp.argsort(~mask, axis=1, stable=True)
  place = jnp.cumsum(mask, axis=1) - 1
  others = mask.sum(axis=1)[:, None, None] - 1
  drawn = jax.random.uniform(rng, (*mask.shape, count)) * others
  drawn = jnp.clip(drawn.astype(jnp.int32), 0, jnp.maximum(others - 1, 0))
  drawn += drawn >= place[..., None]
  drawn = jnp.minimum(drawn, mask.shape[1] - 1)
  return jax.vmap(lambda order, drawn: order[drawn])(order, drawn)


class Heads(nn.Module):
  """What training alone needs: the quantiser and the two predictions.

  Attributes:
    num_codes: codes of the codebook.
    code_dim: width of a code.
  """

  num_codes: int
  code_dim: int

  def setup(self):
    self.logits = nn.Dense(self.num_codes)
    # Alike at first: no code is nearer to all sounds than the others.
    self.codebook = self.param(
      'codebook',
      nn.initializers.variance_scaling(1.0, 'fan_out', 'uniform'),
      (self.num_codes, self.code_dim),
    )
    self.context = nn.Dense(self.code_dim)
    self.prediction = nn.Dense(self.num_codes)

  def __call__(self, features, first, second):
    """Makes the parameters."""
    return self.score_codes(features), self.predict(first, second)

  def score_codes(self, features: Array) -> Array:
    """Maps encoded sound to a logit for each code."""
    return self.logits(features.astype(jnp.float32))

  def look_up(self, shares: Array) -> Array:
    """Mean of codes, `[…, codes]` to `[…, code_dim]`."""
    return shares @ self.codebook

  def predict(self, first: Array, second: Array) -> tuple[Array, Array]:
    """Vectors to compare with codes, and logits of ids."""
    return (
      self.context(first.astype(jnp.float32)),
      self.prediction(second.astype(jnp.float32)),
    )


class W2vBertModel:
  """w2v-BERT under training, with the protocol of `train.py`.

  A batch is `{'waveform': float32 [batch, samples]}`, samples a multiple of
  the stream's hop.

  Attributes:
    network: the network that remains.
    heads: the rest.
  """

  def __init__(
    self,
    config: w2v_bert.Config,
    optimizer_def=None,
    num_codes: int = 1024,
    code_dim: int = 1024,
    mask_probability: float = 0.065,
    mask_length: int = 10,
    mask_deviation: float = 0.1,
    num_distractors: int = 100,
    temperature: float = 0.1,
    first_gumbel_temperature: float = 2.0,
    last_gumbel_temperature: float = 0.5,
    gumbel_decay: float = 0.999995,
    diversity_weight: float = 0.1,
    contrastive_weight: float = 1.0,
    masked_weight: float = 1.0,
  ):
    """Makes a model.

    Args:
      config: dimensions of the network.
      optimizer_def: an optax transformation; kept for the trainer.
      num_codes: codes that the quantiser tells apart.
      code_dim: width of a code.
      mask_probability: that a masked span begins at a position (section 4.2).
      mask_length: positions of a span.
      mask_deviation: of the noise in the place of what is masked.
      num_distractors: wrong codes that the right one is among.
      temperature: that cosines of the contrastive loss are divided by.
      first_gumbel_temperature: of the softmax of codes at the first update.
      last_gumbel_temperature: the least.
      gumbel_decay: factor of that temperature an update.
      diversity_weight: alpha of equation 1.
      contrastive_weight: beta of equation 2.
      masked_weight: gamma of equation 2.
    """
    self.network = w2v_bert.Network(config)
    self.heads = Heads(num_codes, code_dim)
    self.optimizer_def = optimizer_def
    self._num_codes = num_codes
    self._mask_probability = mask_probability
    self._mask_length = mask_length
    self._mask_deviation = mask_deviation
    self._num_distractors = num_distractors
    self._temperature = temperature
    self._gumbel = (
      first_gumbel_temperature,
      last_gumbel_temperature,
      gumbel_decay,
    )
    self._diversity_weight = diversity_weight
    self._contrastive_weight = contrastive_weight
    self._masked_weight = masked_weight

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple],
    input_types: Mapping[str, jnp.dtype] | None = None,
  ) -> dict:
    """Returns `params`, `params_axes` and `quantizer`, which counts updates.

    Args:
      rng: random key.
      input_shapes: shapes of a batch.
      input_types: unused; a waveform is float32.

    Raises:
      ValueError: clips are too short to mask a part of them.
    """
    del input_types
    num_samples = input_shapes['waveform'][1]
    hop = w2v_bert.W2vBert.spec.hop
    if num_samples % hop or num_samples // hop <= self._mask_length:
      raise ValueError(
        f'Clips of {num_samples} samples, expected a multiple of {hop} and '
        f'more than the {self._mask_length} positions of a masked span. Set '
        'other CROP_SECONDS.'
      )
    rng_network, rng_heads = jax.random.split(rng)
    frames = w2v_bert.log_mel(jnp.zeros((1, num_samples)))
    mask = jnp.ones(frames.shape[:2], bool)
    boxed = self.network.init(rng_network, frames, mask)
    features = self.network.apply(nn.meta.unbox(boxed), frames, method='encode')
    context = jnp.zeros((1, 1, self.network.embed_dim))
    heads = self.heads.init(rng_heads, features, context, context)
    boxed = {'network': boxed['params'], 'heads': heads['params']}
    flat = traverse_util.flatten_dict(boxed)
    axes = {
      (*path[:-1], f'{path[-1]}_axes'): partitioning.AxisMetadata(leaf.names)
      for path, leaf in flat.items()
      if isinstance(leaf, nn.LogicallyPartitioned)
    }
    return {
      'params': nn.meta.unbox(boxed),
      'params_axes': traverse_util.unflatten_dict(axes),
      'quantizer': {'updates': jnp.zeros((), jnp.float32)},
    }

  def loss_fn(
    self,
    params: dict,
    batch: Mapping[str, Array],
    dropout_rng: Array,
    flax_mutables: dict,
  ):
    """Loss of a training batch: the sum over clips of their masked mean.

    Args:
      params: of network and heads.
      batch: `{'waveform': float32 [batch, samples]}`.
      dropout_rng: random key for spans, noise, codes and dropout.
      flax_mutables: `{'quantizer': …}`.

    Returns:
      `(loss, (metrics, new flax_mutables))`.
    """
    loss, metrics = self._run(params, batch, dropout_rng, flax_mutables, True)
    updates = flax_mutables['quantizer']['updates'] + 1
    return loss, (metrics, {'quantizer': {'updates': updates}})

  def eval_fn(
    self, params: dict, batch: Mapping[str, Array], flax_mutables: dict
  ):
    """As `loss_fn`, with the same spans in every batch and the best codes."""
    rng = jax.random.key(0)
    loss, metrics = self._run(params, batch, rng, flax_mutables, False)
    return loss, (metrics, flax_mutables)

  def export_variables(
    self, params: dict, flax_mutables: dict | None = None
  ) -> dict:
    """Returns what `w2v_bert.W2vBert` loads, still without a k-means fit."""
    del flax_mutables
    return weights.add_config(
      {'params': params['network']}, self.network.config.dimensions()
    )

  def _run(self, params, batch, rng, flax_mutables, training):
    rngs = dict(
      zip(('spans', 'noise', 'codes', 'distractors', 'dropout', 'targets'),
          jax.random.split(rng, 6))
    )  # fmt: skip
    network, heads = ({'params': params[n]} for n in ('network', 'heads'))
    frames = w2v_bert.log_mel(batch['waveform'])
    features = self.network.apply(network, frames, method='encode')
    mask = draw_spans(
      rngs['spans'],
      frames.shape[:2],
      self._mask_probability,
      self._mask_length,
    )
    noise = jax.random.normal(rngs['noise'], features.shape, features.dtype)
    first, second = self.network.apply(
      network,
      jnp.where(mask[..., None], self._mask_deviation * noise, features),
      deterministic=not training,
      method='contextualise',
      rngs={'dropout': rngs['dropout']} if training else None,
    )
    context, id_logits = self.heads.apply(
      heads, first, second, method='predict'
    )
    code_logits = self.heads.apply(heads, features, method='score_codes')
    drawn, shares = self._choose(
      code_logits,
      rngs['codes'],
      flax_mutables['quantizer']['updates'],
      training,
    )
    quantised = self.heads.apply(heads, shares, method='look_up')
    contrastive, is_found = self._contrast(
      context, quantised, drawn, mask, rngs['distractors']
    )
    # The likeliest code, not the drawn one: noise cannot be predicted.
    ids = self._targets(jnp.argmax(code_logits, axis=-1), rngs['targets'])
    masked = -jnp.take_along_axis(
      nn.log_softmax(id_logits), ids[..., None], axis=-1
    )[..., 0]
    is_right = jnp.argmax(id_logits, axis=-1) == ids
    perplexity = _perplexity(nn.softmax(code_logits).mean((0, 1)))
    diversity = 1 - perplexity / self._num_codes
    loss = (
      self._contrastive_weight
      * (contrastive + self._diversity_weight * diversity)
      + self._masked_weight * masked
    )
    # A constant, so that microbatches add up: the masked positions of a clip
    # that are to be expected.
    positions = mask.shape[1]
    share = 1 - (1 - self._mask_probability) ** self._mask_length
    total = jnp.where(mask, loss, 0).sum()
    used = nn.one_hot(ids, self._num_codes).mean((0, 1))
    metrics = _averages(
      mask,
      loss=loss,
      contrastive_loss=contrastive,
      contrastive_accuracy=is_found,
      masked_loss=masked,
      masked_accuracy=is_right,
    ) | _averages(
      jnp.ones(()),
      diversity_loss=diversity,
      code_perplexity=_perplexity(used),
      commonest_code=used.max(),
      masked_share=mask.mean(),
    )
    return total / (positions * share), metrics

  def _targets(self, ids: Array, rng: Array) -> Array:
    """Ids that the masked-prediction module shall find."""
    del rng
    return ids

  def _choose(self, logits, rng, updates, training):
    """Codes and their shares, with the gradient of the softmax."""
    first, last, decay = self._gumbel
    if not training:
      ids = jnp.argmax(logits, axis=-1)
      return ids, nn.one_hot(ids, self._num_codes)
    temperature = jnp.maximum(last, first * decay**updates)
    noisy = logits + jax.random.gumbel(rng, logits.shape)
    ids = jnp.argmax(noisy, axis=-1)
    soft = nn.softmax(noisy / temperature)
    hard = nn.one_hot(ids, self._num_codes)
    return ids, hard + soft - jax.lax.stop_gradient(soft)

  def _contrast(self, context, quantised, ids, mask, rng):
    """Contrastive loss of each position, and whether the right one was best."""
    unit = lambda x: (
      x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)
    )
    context, quantised = unit(context), unit(quantised)
    # [batch, position, candidate]
    scores = jnp.einsum('btd,bsd->bts', context, quantised) / self._temperature
    others = draw_distractors(rng, mask, self._num_distractors)
    wrong = jnp.take_along_axis(scores, others, axis=2)
    other_ids = jax.vmap(lambda ids, others: ids[others])(ids, others)
    wrong = jnp.where(other_ids == ids[..., None], _EXCLUDED, wrong)
    right = jnp.einsum('btt->bt', scores)
    both = jnp.concatenate([right[..., None], wrong], axis=2)
    loss = jax.nn.logsumexp(both, axis=2) - right
    return loss, right > wrong.max(axis=2)


def _perplexity(shares: Array) -> Array:
  """Number of codes that would be used as evenly."""
  return jnp.exp(-(shares * jnp.log(shares + 1e-7)).sum())


def _averages(weight, **values):
  """Metrics as clu knows them; inference never needs clu."""
  from clu import metrics  # pylint: disable=g-import-not-at-top

  return {
    name: metrics.Average(
      total=(weight * value).sum(), count=weight.sum().astype(jnp.float32)
    )
    for name, value in values.items()
  }
