"""Decoding equals the full pass, in a loop and step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import stage_examples
from v2meow_jax import decoding
from v2meow_jax import decoding_weights
from v2meow_jax import network
from v2meow_jax import relative_positions
from v2meow_jax import stages

LEVELS = stage_examples.CODES.num_levels


def example(architecture, times=0, batch_size=2):
  """A model, its parameters, and the arguments of `decoding.prefill`."""
  model = stage_examples.make_model(architecture)
  params = stage_examples.make_params(model)
  inputs, masks = stage_examples.make_inputs(model.stage, batch_size)
  masks['words'][1:, -4:] = 0
  codes = stage_examples.make_codes(model.stage, batch_size)
  batch = stage_examples.make_batch(model.stage, inputs, masks, codes)
  *arguments, _, targets = model._network_inputs(batch)
  first = network.prefix_length(model.stage) + times * LEVELS
  tokens = targets[:, :first]
  return model, params, (*arguments, tokens, tokens > 0)


@pytest.mark.parametrize(
  'architecture, times',
  [(stages.ENCODER_DECODER, 0), (stages.DECODER_ONLY, 5)],
)
def test_step_by_step_equals_the_loop(architecture, times):
  model, params, arguments = example(architecture, times)
  module = model.module
  choose = lambda logits, place: (
    jnp.argmax(jnp.roll(logits, place, axis=1), axis=1),
    logits,
  )
  codes, logits = jax.jit(functools.partial(decoding.decode, module))(
    params, *arguments, choose=jax.tree_util.Partial(choose)
  )
  weights = jax.jit(functools.partial(decoding_weights.arrange, module))(params)
  prefill = jax.jit(functools.partial(decoding.prefill, module))
  token, state = prefill(params, *arguments)
  prefix = network.prefix_length(model.stage)
  state = state.grow(prefix + codes.shape[1])
  step = jax.jit(functools.partial(decoding.step, module))
  for i in range(times * LEVELS, codes.shape[1]):
    # A program of one position knows nothing but its arguments.
    found, state = step(weights, state, token, jnp.int32(prefix + i))
    # Measured: 0, although XLA may fuse the two in different ways.
    np.testing.assert_allclose(found, logits[i], atol=1e-6)
    token = decoding.next_token(module, codes[:, i], jnp.int32(prefix + i))


@pytest.mark.parametrize(
  'architecture', [stages.ENCODER_DECODER, stages.DECODER_ONLY]
)
def test_any_part_of_a_window_in_blocks_is_that_of_the_whole(architecture):
  model, params, arguments = example(architecture, 0)
  params = jax.tree.map(jnp.asarray, params)
  whole, logits = jax.jit(functools.partial(decoding.decode, model.module))(
    params, *arguments, choose=jax.tree_util.Partial(_choose)
  )
  # Prompts are ids.
  ids = jax.vmap(
    lambda code, place: decoding.next_token(model.module, code, place),
    (1, 0),
    1,
  )(whole, network.prefix_length(model.stage) + np.arange(whole.shape[1]))
  tokens = jnp.concatenate([arguments[2], ids], axis=1)
  run = jax.jit(
    lambda first, stop: decoding.decode(
      model.module,
      params,
      *arguments[:2],
      tokens,
      tokens > 0,
      _choose,
      first=first,
      stop=stop,
      block=5,
    )
  )
  length = whole.shape[1]
  half = length // (2 * LEVELS) * LEVELS
  for first, stop in (
    (0, length),
    (half, length),
    (half + LEVELS, length - 1),
    (LEVELS, half),
    (length - LEVELS, length),
  ):
    codes, found = run(jnp.int32(first), jnp.int32(stop))
    # Measured: 1e-6.
    np.testing.assert_allclose(found[first:stop], logits[first:stop], atol=8e-6)
    np.testing.assert_array_equal(codes[:, first:stop], whole[:, first:stop])
    assert not codes[:, :first].any() and not codes[:, stop:].any()


def _choose(logits, place):
  return jnp.argmax(jnp.roll(logits, place, axis=1), axis=1), logits


def test_a_step_reads_no_more_than_a_block_ahead():
  model, params, arguments = example(stages.DECODER_ONLY)
  choose = lambda logits, place, drawn: (jnp.argmax(logits, axis=1), drawn)
  draw = lambda places: jnp.stack([places, places**2], axis=1)
  decode = lambda params: decoding.decode(
    model.module, params, *arguments, choose, draw, block=8
  )
  lengths = set()
  program = str(jax.make_jaxpr(decode)(params))
  cfg = model.config
  for positions in range(16, 41):
    if f'f32[{2 * cfg.num_heads},{positions},{cfg.head_dim}]' in program:
      lengths.add(positions)
  # A prefix of 16, and 24 steps.
  assert lengths == {16, 24, 32, 40}
  # Each step got what was drawn for it, whatever block it is in.
  _, drawn = jax.jit(decode)(params)
  steps = np.arange(24)
  np.testing.assert_array_equal(drawn, np.stack([steps, steps**2], axis=1))


@pytest.mark.parametrize('aligned', [True, False])
def test_a_row_of_biases_is_that_of_all(rng, aligned):
  biases = relative_positions.Biases(16, 20, 3, bidirectional=aligned)
  queries = np.arange(2, 9)
  keys = np.arange(9)
  if aligned:
    keys = np.array([0, 4, relative_positions.UNTIMED, 2, 2])
  variables = {'params': {'rel_embedding': rng.standard_normal((3, 16), 'f4')}}
  everything = biases.apply(variables, queries, keys)
  by_distance = biases.apply(variables, queries, keys, method='by_distance')
  for i, query in enumerate(queries):
    row = relative_positions.row(by_distance, jnp.int32(query), keys)
    np.testing.assert_array_equal(row, everything[:, i])


# Measured, of the deviation of the logits: .0057 and .0112 in the mean.
@pytest.mark.parametrize(
  'weights_dtype, most', [('bfloat16', 0.02), ('int8', 0.04)]
)
def test_weights_in_fewer_bits_are_near_float32(weights_dtype, most):
  model, params, arguments = example(stages.ENCODER_DECODER, 5)

  def logits(weights_dtype):
    choose = lambda logits, place: (jnp.full(2, place % 7), logits)
    decode = functools.partial(
      decoding.decode,
      model.module,
      choose=choose,
      weights_dtype=weights_dtype,
    )
    return np.asarray(jax.jit(decode)(params, *arguments)[1])

  weights = jax.eval_shape(
    lambda params: decoding_weights.arrange(
      model.module, params, weights_dtype
    ),
    params,
  )
  kept = [weights.layers[0].qkv, weights.layers[1].outward, weights.heads[0]]
  assert {matrix.values.dtype for matrix in kept} == {jnp.dtype(weights_dtype)}
  exact = logits(None)
  difference = np.abs(logits(weights_dtype) - exact).mean()
  assert 0 < difference < most * exact.std()


def test_a_matrix_of_int8_errs_by_half_a_step_of_its_column(rng):
  kernel = rng.standard_normal((64, 5), 'f4') * [1, 10, 0.1, 5, 0]
  matrix = decoding_weights.Matrix.keep(
    jnp.asarray(kernel), jnp.float32, 'int8'
  )
  found = matrix.multiply(jnp.eye(64), jnp.float32)
  step = np.abs(kernel).max(axis=0) / 127
  assert (np.abs(found - kernel) <= 0.501 * step).all()
