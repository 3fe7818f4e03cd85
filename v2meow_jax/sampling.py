"""Sampling: temperature, top-k and top-p as pure functions of logits."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array


class Options(NamedTuple):
  """How to choose a token; numbers and not settings, so none recompiles.

  Attributes:
    temperature: divides the logits; 0 takes the most likely token.
    top_k: only the k most likely tokens may be taken; 0 for all.
    top_p: only the most likely tokens that together reach this probability
      may be taken; 1 for all.
  """

  temperature: float | Array = 1.0
  top_k: int | Array = 0
  top_p: float | Array = 1.0


def validate(options: Options) -> None:
  """Raises ValueError where a number is out of its range."""
  if not options.temperature >= 0:
    raise ValueError(
      f'temperature is {options.temperature}, expected 0 or more. Pass 0 '
      'for the most likely tokens, about 1 for free ones.'
    )
  if not options.top_k >= 0:
    raise ValueError(
      f'top_k is {options.top_k}, expected 0 or more. Pass 0 for all tokens.'
    )
  if not 0 < options.top_p <= 1:
    raise ValueError(
      f'top_p is {options.top_p}, expected above 0 and up to 1. Pass 1 for '
      'all tokens.'
    )


def restrict(logits: Array, top_k: Array, top_p: Array) -> Array:
  """Sets the logits of tokens outside top-k and top-p to -inf.

  Top-p counts on the distribution that top-k leaves. The most likely token
  always stays, and so do tokens as likely as the last one that stays.

  Args:
    logits: float32 `[..., codes]`, already divided by the temperature.
    top_k: int scalar, 0 for all.
    top_p: float scalar, 1 for all.

  Returns:
    float32 `[..., codes]`.
  """
  num_codes = logits.shape[-1]
  # Descending. [..., codes]
  ordered = -jnp.sort(-logits, axis=-1)
  kept = jnp.where(top_k > 0, jnp.minimum(top_k, num_codes), num_codes)
  in_k = jnp.arange(num_codes) < kept
  probabilities = jax.nn.softmax(jnp.where(in_k, ordered, -jnp.inf))
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  in_p = (before < top_p) | (top_p >= 1)
  # Lowest logit that stays. [..., 1]
  smallest = jnp.min(
    jnp.where(in_k & in_p, ordered, jnp.inf), axis=-1, keepdims=True
  )
  return jnp.where(logits >= smallest, logits, -jnp.inf)


def gumbel(keys: Array, num_codes: int) -> Array:
  """Noise for `sample`, of each row by its own key.

  Args:
    keys: PRNG keys, `[...]`.
    num_codes: codes to choose from.

  Returns:
    float32 `[..., codes]`.
  """
  draw = lambda key: jax.random.gumbel(key, (num_codes,), jnp.float32)
  for _ in keys.shape:
    draw = jax.vmap(draw)
  return draw(keys)


def sample(logits: Array, noise: Array, options: Options) -> Array:
  """Draws one code per row (Gumbel-max).

  Args:
    logits: float32 `[batch, codes]`.
    noise: float32 `[batch, codes]`, see `gumbel`.
    options: scalars, may be traced.

  Returns:
    int32 `[batch]`.
  """
  is_greedy = options.temperature <= 0
  scaled = logits / jnp.where(is_greedy, 1.0, options.temperature)
  # Sorting costs more than everything else here, so only where asked for.
  scaled = lax.cond(
    (options.top_k > 0) | (options.top_p < 1),
    lambda x: restrict(x, options.top_k, options.top_p),
    lambda x: x,
    scaled,
  )
  scores = scaled + jnp.where(is_greedy, 0.0, noise)
  return most_likely(scores)


def most_likely(scores: Array) -> Array:
  """`jnp.argmax` of the last axis, int32 `[...]`, where no score is NaN.

  On a CPU `jnp.argmax` compares one number at a time: this is ten times as
  fast.
  """
  largest = jnp.max(scores, axis=-1, keepdims=True)
  last = scores.shape[-1] - 1
  order = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
  return jnp.min(jnp.where(scores == largest, order, last), axis=-1)
