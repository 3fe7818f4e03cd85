"""Loss and metrics of a stage over its tokens, as T5X has them."""

import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@flax.struct.dataclass
class PerStep:
  """A sum over the batch of a step, averaged over steps.

  A metric as those of clu, but that the microbatches of a step count as one.

  Attributes:
    total: float32 scalar.
    steps: float32 scalar.
  """

  total: Array
  steps: Array

  def merge(self, other: 'PerStep') -> 'PerStep':
    """Adds another step, or another part of this one."""
    return PerStep(self.total + other.total, self.steps + other.steps)

  def compute(self) -> Array:
    """Returns the mean over steps."""
    return self.total / self.steps


def cross_entropy(
  logits: Array, codes: Array, label_smoothing: float, z_loss: float
) -> tuple[Array, Array]:
  """Cross entropy of each position against its smoothed label.

  As T5X's: the entropy of the smoothed label is taken off, so that 0 can be
  reached.

  Args:
    logits: float32 `[..., codes]`.
    codes: int32 `[...]`; outside [0, codes) where there is nothing to predict.
    label_smoothing: probability spread over the other codes.
    z_loss: weight of the squared log of the normaliser.

  Returns:
    Cross entropy and z-loss, both float32 `[...]`.
  """
  num_codes = logits.shape[-1]
  log_normalizer = jax.nn.logsumexp(logits, axis=-1)
  # A comparison that XLA fuses into the sum; a gather is slow backwards.
  is_code = jnp.arange(num_codes) == codes[..., None]
  code_logit = jnp.sum(jnp.where(is_code, logits, 0), axis=-1)
  if label_smoothing:
    confidence = 1.0 - label_smoothing
    low = label_smoothing / (num_codes - 1)
    entropy = -(
      confidence * np.log(confidence)
      + (num_codes - 1) * low * np.log(low + 1e-20)
    )
    other_logits = jnp.sum(logits, axis=-1) - code_logit
    expected_logit = confidence * code_logit + low * other_logits
    loss = log_normalizer - expected_logit - entropy
  else:
    loss = log_normalizer - code_logit
  return loss, z_loss * jnp.square(log_normalizer)


def token_metrics(
  loss: Array,
  z_loss: Array,
  token_loss: Array,
  logits: Array,
  codes: Array,
  weights: Array,
) -> dict[str, Any]:
  """Metrics of one batch, under T5X's names where it has one.

  Args:
    loss: float32 scalar, normalised sum.
    z_loss: float32 scalar, the part of `loss` that is z-loss.
    token_loss: float32 `[batch, time, levels]`.
    logits: float32 `[batch, time, levels, codes]`.
    codes: int32 `[batch, time, levels]`.
    weights: float32 `[batch, time, levels]`.

  Returns:
    clu metrics by name.
  """
  from clu import metrics as clu_metrics  # only training needs clu

  average = lambda total, count: clu_metrics.Average(
    total=jnp.asarray(total, jnp.float32),
    count=jnp.asarray(count, jnp.float32),
  )
  is_right = (jnp.argmax(logits, axis=-1) == codes) * weights
  token_loss = token_loss * weights
  num_tokens = jnp.sum(weights)
  metrics = {
    'accuracy': average(jnp.sum(is_right), num_tokens),
    'loss_per_nonpadding_target_token': average(
      jnp.sum(token_loss), num_tokens
    ),
    'nonpadding_fraction': average(num_tokens, weights.size),
  }
  if codes.shape[-1] > 1:
    for level in range(codes.shape[-1]):
      count = jnp.sum(weights[..., level])
      metrics[f'accuracy/level_{level}'] = average(
        jnp.sum(is_right[..., level]), count
      )
      metrics[f'loss_per_token/level_{level}'] = average(
        jnp.sum(token_loss[..., level]), count
      )
  # T5X's own metrics get the number of steps from its trainer by type, so
  # that microbatches count as one; plain averages would halve the sums.
  t5x_metrics = sys.modules.get('t5x.metrics')
  if t5x_metrics is None:
    totals = {'loss': loss, 'z_loss': z_loss, 'num_tokens': num_tokens}
    metrics |= {
      name: PerStep(total, jnp.ones([])) for name, total in totals.items()
    }
  else:
    speed = t5x_metrics.TimeRate.from_model_output(numerator=num_tokens)
    metrics |= {
      'loss': t5x_metrics.AveragePerStep(total=loss),
      'z_loss': t5x_metrics.AveragePerStep(total=z_loss),
      'num_tokens': t5x_metrics.AveragePerStep(total=num_tokens),
      'timing/target_tokens_per_second': speed,
    }
  return metrics
