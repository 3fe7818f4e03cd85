"""The kernels of attention, against attention as it is written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import stage_examples
from v2meow_jax import attention
from v2meow_jax import attention_kernels
from v2meow_jax import fused_attention
from v2meow_jax import stages

BATCH, HEADS, DEPTH = 3, 2, 8


@pytest.fixture(autouse=True)
def quick_compilation():
  """Compiling takes longer than running here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def make_arguments(rng, queries, keys, dtype=jnp.float32):
  """Random arrays; the last keys of the second example are padding."""
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  padding = np.zeros((BATCH, keys), 'f4')
  padding[1, keys // 2 :] = attention.MASK_VALUE
  return (
    normal(BATCH, HEADS, queries, DEPTH),
    normal(BATCH, HEADS, keys, DEPTH),
    normal(BATCH, HEADS, keys, DEPTH),
    normal(HEADS, queries, keys),
    jnp.asarray(padding),
    normal(BATCH, HEADS, queries, DEPTH),
  )


def compute(arguments):
  """Output and gradients, by the kernels and as written out."""
  *inputs, gradient = arguments
  found = (
    attention_kernels.forward(*inputs, interpret=True),
    *attention_kernels.backward(*inputs, gradient, interpret=True),
  )
  output, vjp = jax.vjp(attention.dot_product_attention, *inputs)
  return found, (output, *vjp(gradient)[:4])


def assert_close(found, expected, error):
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, 'f4'), np.asarray(b, 'f4')
    assert np.max(np.abs(a - b)) <= error * np.max(np.abs(b))


# One step of queries and several; keys that fill tiles, and that do not.
@pytest.mark.parametrize('queries, keys', [(16, 128), (300, 130)])
def test_is_attention(rng, queries, keys):
  found, expected = compute(make_arguments(rng, queries, keys))
  assert_close(found, expected, 3e-6)  # 7.9e-7 measured


def test_bfloat16(rng):
  arguments = make_arguments(rng, 40, 60, jnp.bfloat16)
  found, _ = compute(arguments)
  _, expected = compute([x.astype(jnp.float32) for x in arguments])
  expected = [x.astype(jnp.bfloat16) for x in expected]
  assert_close(found, expected, 1e-2)  # 3.4e-3 measured


@pytest.fixture
def interpreted(monkeypatch):
  """Attention that is fused on a TPU is computed as there, here too."""
  calls = []

  @jax.custom_vjp
  def on_device(*inputs):
    calls.append(inputs[3].shape)
    return attention_kernels.forward(*inputs, interpret=True)

  def backward(inputs, gradient):
    gradients = attention_kernels.backward(*inputs, gradient, interpret=True)
    return *gradients, inputs[-1] * 0

  on_device.defvjp(lambda *inputs: (on_device(*inputs), inputs), backward)
  monkeypatch.setattr(fused_attention, '_on_device', on_device)
  return calls


def loss_and_gradients(architecture, fused):
  """Of two examples, of which one has padding in target and inputs."""
  model = stage_examples.make_model(
    architecture,
    fused_attention=fused,
    causal_block_queries=9,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  stage = model.stage
  inputs, masks = stage_examples.make_inputs(stage, 2)
  for mask in masks.values():
    mask[1, mask.shape[1] // 2 :] = 0
  codes = stage_examples.make_codes(stage, 2)
  batch = stage_examples.make_batch(stage, inputs, masks, codes)
  for name in ('decoder_target_tokens', 'decoder_loss_weights'):
    batch[name][1, -4:] = 0
  params = stage_examples.make_params(model)
  loss = lambda params: model.loss_fn(params, batch, None)[0]
  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
  'architecture, shapes',
  [
    # Inputs among themselves; causal blocks of the target; the target and its
    # inputs, by time.
    (
      stages.ENCODER_DECODER,
      {(2, 23, 23), (2, 8, 8), (2, 8, 16), (2, 8, 24), (2, 24, 23)},
    ),
    # The prefix; blocks of the target behind it.
    (
      stages.DECODER_ONLY,
      {(2, 16, 16), (2, 8, 24), (2, 8, 32), (2, 8, 40)},
    ),
  ],
)
def test_stages_learn_the_same(interpreted, architecture, shapes):
  loss, gradients = loss_and_gradients(architecture, True)
  assert set(interpreted) == shapes
  interpreted.clear()
  expected_loss, expected = loss_and_gradients(architecture, False)
  assert not interpreted
  assert float(loss) == pytest.approx(float(expected_loss), rel=3e-7)
  # All parameters, the tables of relative positions too; 3.7e-6 measured.
  assert_close(jax.tree.leaves(gradients), jax.tree.leaves(expected), 1e-5)


def test_elsewhere_it_is_as_written_out(rng):
  *inputs, gradient = make_arguments(rng, 6, 9)
  found = jax.vjp(fused_attention.dot_product_attention, *inputs)
  expected = jax.vjp(attention.dot_product_attention, *inputs)
  np.testing.assert_array_equal(found[0], expected[0])
  for a, b in zip(found[1](gradient), expected[1](gradient), strict=True):
    np.testing.assert_array_equal(a, b)


def test_what_fits_the_memory_of_a_chip():
  assert attention_kernels.fits(512, 2250)  # the coarse stage
  assert not attention_kernels.fits(10_240, 10_240)  # all tokens of frames
  bias = jnp.zeros((1, 2100, 2100))
  one = lambda length: jnp.ones((1, 1, length, 4))
  # Written out: the same, without a kernel.
  output = jax.make_jaxpr(fused_attention.dot_product_attention)(
    one(2100), one(2100), one(2100), bias, jnp.zeros((1, 2100))
  )
  assert 'pallas_call' not in str(output)
