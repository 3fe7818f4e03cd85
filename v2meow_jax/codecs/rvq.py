"""Residual vector quantiser for every codec, as pure functions.

Each level quantises what the levels before it left over (SoundStream, section
III-C). Codebooks are one array, float32 `[levels, codes, features]`. Training
keeps running sums beside them (`State`) and moves the codebooks by exponential
moving averages, no gradient.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from v2meow_jax.tokenizers import kmeans

Array = jax.Array


@flax.struct.dataclass
class State:
  """Codebooks with the running sums that move them.

  Attributes:
    codebooks: float32 `[levels, codes, features]`.
    counts: float32 `[levels, codes]`, average vectors per step of each code.
    sums: float32 `[levels, codes, features]`, average sum of those vectors.
  """

  codebooks: Array
  counts: Array
  sums: Array


def nearest_code(vectors: Array, codebook: Array) -> Array:
  """Index of the nearest codebook entry in Euclidean distance.

  Args:
    vectors: float32 `[..., features]`.
    codebook: float32 `[codes, features]`.

  Returns:
    int32 `[...]`; the first of equally near ones.
  """
  # |v - c|^2 without |v|^2, which is the same for every code.
  distances = jnp.square(codebook).sum(-1) - 2.0 * vectors @ codebook.T
  return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def _quantize(latents: Array, codebooks: Array) -> tuple[Array, Array, Array]:
  """Returns codes `[levels, ...]` and, per level, residuals and choices."""

  def step(residual, codebook):
    codes = nearest_code(residual, codebook)
    chosen = codebook[codes]
    return residual - chosen, (codes, residual, chosen)

  _, (codes, residuals, chosen) = jax.lax.scan(step, latents, codebooks)
  return codes, residuals, chosen


def encode(latents: Array, codebooks: Array) -> Array:
  """Quantises latents level by level.

  Args:
    latents: float32 `[..., features]`.
    codebooks: float32 `[levels, codes, features]`.

  Returns:
    int32 codes `[..., levels]`.
  """
  codes, _, _ = _quantize(latents, codebooks)
  return jnp.moveaxis(codes, 0, -1)


def decode(codes: Array, codebooks: Array) -> Array:
  """Sums the entries that the codes name; any number of first levels.

  Args:
    codes: int32 `[..., levels]`, at most as many levels as codebooks.
    codebooks: float32 `[levels, codes, features]`.

  Returns:
    float32 latents `[..., features]`.
  """
  latents = jnp.zeros(codes.shape[:-1] + codebooks.shape[-1:], codebooks.dtype)
  for level in range(codes.shape[-1]):
    latents += codebooks[level][codes[..., level]]
  return latents


def quantize(
  latents: Array, codebooks: Array, num_levels: Array | None = None
) -> tuple[Array, Array, Array]:
  """Quantises with the first `num_levels` levels of each clip.

  Args:
    latents: float32 `[batch, time, features]`.
    codebooks: float32 `[levels, codes, features]`.
    num_levels: int32 `[batch]`, 1..levels; None for all.

  Returns:
    quantised latents `[batch, time, features]`; codes `[batch, time, levels]`
    of all levels; residuals `[levels, batch, time, features]` that each level
    was given.
  """
  codes, residuals, chosen = _quantize(latents, codebooks)
  if num_levels is None:
    quantised = chosen.sum(0)
  else:
    levels = jnp.arange(codebooks.shape[0])[:, None, None, None]
    active = levels < num_levels[None, :, None, None]
    quantised = jnp.where(active, chosen, 0.0).sum(0)
  return quantised, jnp.moveaxis(codes, 0, -1), residuals


def straight_through(latents: Array, quantised: Array) -> Array:
  """The quantised value, with the gradient passed on to `latents` whole."""
  return latents + jax.lax.stop_gradient(quantised - latents)


def sample_num_levels(
  rng: Array, batch: int, levels: int, full_probability: float
) -> Array:
  """Quantiser dropout: how many levels each clip of a batch uses.

  Args:
    rng: random key.
    batch: clips.
    levels: levels of the quantiser.
    full_probability: share of clips with all levels; the others draw a number
      evenly from 1..levels.

  Returns:
    int32 `[batch]`.
  """
  rng_full, rng_number = jax.random.split(rng)
  number = jax.random.randint(rng_number, (batch,), 1, levels + 1)
  full = jax.random.bernoulli(rng_full, full_probability, (batch,))
  return jnp.where(full, levels, number)


def init_state(codebooks: Array) -> State:
  """Returns the state in which every code has been used once a step."""
  return State(
    codebooks=codebooks,
    counts=jnp.ones(codebooks.shape[:2], jnp.float32),
    sums=codebooks,
  )


def update_ema(
  state: State,
  residuals: Array,
  codes: Array,
  decay: float,
  num_levels: Array | None = None,
) -> State:
  """Moves every code towards the mean of the vectors that chose it.

  Counts and sums are exponential moving averages (van den Oord et al., "Neural
  Discrete Representation Learning", appendix A.1); a codebook entry is their
  ratio. A code that nothing chooses keeps its place, as its sum and count
  shrink together.

  Args:
    state: before the step.
    residuals: float32 `[levels, batch, time, features]` given to each level.
    codes: int32 `[batch, time, levels]`.
    decay: weight of the past, 0..1.
    num_levels: int32 `[batch]`; a clip does not move levels it does not use.

  Returns:
    The state after the step.
  """
  levels, codes_per_level, num_features = state.codebooks.shape
  if num_levels is None:
    num_levels = jnp.full(codes.shape[:1], levels)
  weights = jnp.broadcast_to(
    jnp.arange(levels)[:, None, None] < num_levels[None, :, None],
    residuals.shape[:-1],
  ).astype(jnp.float32)

  def sums_of_level(vectors, codes, weights):
    counts = jnp.zeros((codes_per_level,)).at[codes].add(weights)
    sums = jnp.zeros((codes_per_level, num_features))
    return counts, sums.at[codes].add(vectors * weights[:, None])

  counts, sums = jax.vmap(sums_of_level)(
    residuals.reshape(levels, -1, num_features),
    jnp.moveaxis(codes, -1, 0).reshape(levels, -1),
    weights.reshape(levels, -1),
  )
  counts = decay * state.counts + (1.0 - decay) * counts
  sums = decay * state.sums + (1.0 - decay) * sums
  # The floor only keeps the ratio finite: a dead code's sum is as small.
  codebooks = sums / jnp.maximum(counts, 1e-20)[..., None]
  codebooks = jnp.where(counts[..., None] > 1e-20, codebooks, state.codebooks)
  return State(codebooks=codebooks, counts=counts, sums=sums)


def restart_dead_codes(
  state: State, residuals: Array, rng: Array, threshold: float
) -> State:
  """Gives codes that are hardly used the place of a vector of the batch.

  Args:
    state: after `update_ema`.
    residuals: float32 `[levels, batch, time, features]` given to each level.
    rng: random key that picks the vectors.
    threshold: a code below this many vectors a step is dead.

  Returns:
    The state; a restarted code counts as used `threshold` times a step.
  """
  levels, codes_per_level, num_features = state.codebooks.shape
  vectors = residuals.reshape(levels, -1, num_features)
  picks = jax.random.randint(
    rng, (levels, codes_per_level), 0, vectors.shape[1]
  )
  fresh = jnp.take_along_axis(vectors, picks[..., None], axis=1)
  dead = state.counts < threshold
  counts = jnp.where(dead, threshold, state.counts)
  codebooks = jnp.where(dead[..., None], fresh, state.codebooks)
  sums = jnp.where(dead[..., None], fresh * threshold, state.sums)
  return State(codebooks=codebooks, counts=counts, sums=sums)


@functools.partial(
  jax.jit, static_argnames=('num_levels', 'num_codes', 'iterations')
)
def fit(
  rng: Array,
  vectors: Array,
  num_levels: int,
  num_codes: int,
  iterations: int = 20,
) -> Array:
  """Fits all codebooks: k-means per level on what the levels before left.

  Args:
    rng: random key.
    vectors: float32 `[number, features]` latents.
    num_levels: levels of the quantiser.
    num_codes: entries per level.
    iterations: of k-means per level.

  Returns:
    float32 codebooks `[levels, codes, features]`.
  """

  def step(vectors, level):
    codebook = kmeans.fit_traced(
      jax.random.fold_in(rng, level), vectors, num_codes, iterations
    )
    return vectors - codebook[nearest_code(vectors, codebook)], codebook

  _, codebooks = jax.lax.scan(step, vectors, jnp.arange(num_levels))
  return codebooks
