"""Attention in blocks equals attention at once, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v2meow_jax import attention
from v2meow_jax import relative_positions

HEADS, DEPTH, BATCH = 2, 4, 2


def make_biases(rng):
  """Biases of the pairs of positions, and what they follow from."""
  module = relative_positions.Biases(
    num_buckets=8, max_distance=12, num_heads=HEADS, bidirectional=True
  )
  table = rng.standard_normal((HEADS, 8), 'f4')
  return (
    lambda table, *places: module.apply(
      {'params': {'rel_embedding': table}}, *places
    ),
    table,
  )


def make_operands(rng, queries, keys):
  shape = lambda length: (BATCH, HEADS, length, DEPTH)
  return [rng.standard_normal(shape(n), 'f4') for n in (queries, keys, keys)]


@pytest.mark.parametrize('block', [5, 64])
def test_blocks_equal_all_at_once(rng, block):
  biases, table = make_biases(rng)
  # Three frames of six tokens at one time each, and one that has no time.
  queries = np.arange(20, dtype=np.int32)
  keys = np.append(np.repeat([0, 6, 12], 6), relative_positions.UNTIMED).astype(
    'i4'
  )
  operands = make_operands(rng, len(queries), len(keys))
  padding = np.zeros((BATCH, len(keys)), 'f4')
  padding[1, -4:] = attention.MASK_VALUE
  weights = rng.standard_normal((BATCH, HEADS, len(queries), DEPTH), 'f4')

  def whole(operands, table):
    bias = biases(table, queries, keys)
    return attention.dot_product_attention(*operands, bias, padding)

  def blocks(operands, table):
    bias = attention.block_bias(
      lambda *places: biases(table, *places), queries, keys, block
    )
    assert bias.shape == (HEADS, len(queries), len(keys))
    assert bias.by_place.shape == (HEADS, 20, 4)
    return attention.blockwise_attention(*operands, bias, padding)

  found, expected = (
    jax.jit(
      jax.value_and_grad(
        lambda *args, f=f: jnp.sum(f(*args) * weights), argnums=(0, 1)
      )
    )(operands, table)
    for f in (blocks, whole)
  )
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    # Measured: 1.9e-6 of values up to 5.7.
    np.testing.assert_allclose(a, b, atol=1e-5)
  # Not because nothing depends on anything.
  for gradient in jax.tree.leaves(expected[1]):
    assert np.abs(gradient).max() > 0.1


def temporary_bytes(length, block):
  """Temporaries of a training step of attention of `length` positions."""
  shape = jax.ShapeDtypeStruct((1, HEADS, length, DEPTH), jnp.float32)
  places = np.repeat(np.arange(8), length // 8).astype(np.int32)
  padding = np.zeros((1, length), 'f4')

  def loss(query, key, value, table):
    biases = lambda a, b: table[:, : len(a), : len(b)]
    if block is None:
      bias = table[:, places][:, :, places]
      x = attention.dot_product_attention(query, key, value, bias, padding)
    else:
      bias = attention.block_bias(biases, places, places, block)
      x = attention.blockwise_attention(query, key, value, bias, padding)
    return jnp.sum(x**2)

  table = jax.ShapeDtypeStruct((HEADS, 8, 8), jnp.float32)
  step = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
  compiled = step.lower(shape, shape, shape, table).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_square():
  blocks, at_once = (
    [temporary_bytes(n, block) for n in (2048, 4096)] for block in (64, None)
  )
  # Measured: 4.5 and 8.9 MB, against 67 and 269 MB.
  assert blocks[1] < 2.2 * blocks[0]
  assert at_once[1] > 3.8 * at_once[0]
  assert blocks[1] < at_once[1] / 20


def test_cut_queries(rng):
  biases, table = make_biases(rng)
  places = np.array([0, 0, 3, 3, 5], np.int32)
  whole = biases(table, places, places)
  blocks = attention.block_bias(
    lambda *args: biases(table, *args), places, places, 2
  )
  for bias in (whole, blocks):
    assert attention.cut_queries(bias, 1, 4).shape == (HEADS, 3, 5)
  cut = attention.cut_queries(blocks, 1, None)
  np.testing.assert_array_equal(
    cut.rows()[:, :, cut.keys], whole[:, 1:].swapaxes(0, 1)
  )
  assert attention.cut_queries(None, 1, 4) is None
