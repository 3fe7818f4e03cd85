"""The kernels of attention, against attention as it is written out."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import stage_examples
from tests.references import triton
from v2meow_jax import attention
from v2meow_jax import fused_attention
from v2meow_jax import stages
from v2meow_jax.attention_kernels import gpu
from v2meow_jax.attention_kernels import tpu

BATCH, HEADS, DEPTH = 3, 2, 8


@pytest.fixture(autouse=True)
def quick_compilation():
  """Compiling takes longer than running here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def make_arguments(rng, queries, keys, dtype=jnp.float32):
  """Random arrays; half the second example is padding, all of the third."""
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  padding = np.zeros((BATCH, keys), 'f4')
  padding[1, keys // 2 :] = padding[2] = attention.MASK_VALUE
  return (
    normal(BATCH, HEADS, queries, DEPTH),
    normal(BATCH, HEADS, keys, DEPTH),
    normal(BATCH, HEADS, keys, DEPTH),
    normal(HEADS, queries, keys),
    jnp.asarray(padding),
    normal(BATCH, HEADS, queries, DEPTH),
  )


def compute(kernels, arguments):
  """Output and gradients, as on a chip."""
  *inputs, gradient = arguments
  outputs = kernels.forward(*inputs, interpret=True)
  gradients = kernels.backward(*inputs, *outputs, gradient, interpret=True)
  return outputs[0], *gradients


def write_out(arguments):
  """Output and gradients, as written out."""
  *inputs, gradient = arguments
  output, vjp = jax.vjp(attention.dot_product_attention, *inputs)
  return output, *vjp(gradient)[:4]


def assert_close(found, expected, error):
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, 'f4'), np.asarray(b, 'f4')
    assert np.max(np.abs(a - b)) <= error * np.max(np.abs(b))


# One step of queries and several; keys that fill tiles, and that do not.
@pytest.mark.parametrize('queries, keys', [(16, 128), (300, 130)])
def test_is_attention_on_a_tpu(rng, queries, keys):
  arguments = make_arguments(rng, queries, keys)
  found, expected = compute(tpu, arguments), write_out(arguments)
  assert_close(found, expected, 3e-6)  # 7.9e-7 measured


@pytest.fixture
def lowered(monkeypatch):
  """A GPU's kernels are lowered, and what comes of it is what runs."""
  call = gpu._call

  def run(kernel, sizes, grid, arrays, outputs, interpret):
    of_kernel = jax.jit(
      lambda *arrays: call(kernel, sizes, grid, arrays, outputs, False)
    )
    lowered = of_kernel.trace(*arrays).lower(lowering_platforms=('cuda',))
    return triton.run(lowered, arrays, outputs)

  monkeypatch.setattr(gpu, '_call', run)


# Less than a tile, and several.
@pytest.mark.parametrize('queries, keys', [(9, 5), (40, 70)])
def test_is_attention_on_a_gpu(rng, lowered, queries, keys):
  arguments = make_arguments(rng, queries, keys)
  found, expected = compute(gpu, arguments), write_out(arguments)
  assert_close(found, expected, 3e-6)  # 9.9e-7 measured


@pytest.mark.parametrize('kernels', [gpu, tpu], ids=['gpu', 'tpu'])
def test_bfloat16(rng, kernels):
  arguments = make_arguments(rng, 40, 60, jnp.bfloat16)
  found = compute(kernels, arguments)
  expected = write_out([x.astype(jnp.float32) for x in arguments])
  expected = [x.astype(jnp.bfloat16) for x in expected]
  assert_close(found, expected, 1e-2)  # 5.8e-3 measured


@pytest.fixture
def interpreted(monkeypatch, kernels):
  """Attention that is fused on a chip is computed as there, here too."""
  calls = []

  def forward(*inputs):
    calls.append(inputs[3].shape)
    return kernels.forward(*inputs, interpret=True)

  backward = functools.partial(kernels.backward, interpret=True)
  monkeypatch.setattr(fused_attention, '_forward', forward)
  monkeypatch.setattr(fused_attention, '_backward', backward)
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
  'kernels, architecture, shapes',
  [
    # Inputs among themselves; causal blocks of the target; the target and its
    # inputs, by time.
    (
      gpu,
      stages.ENCODER_DECODER,
      {(2, 23, 23), (2, 8, 8), (2, 8, 16), (2, 8, 24), (2, 24, 23)},
    ),
    # The prefix; blocks of the target behind it.
    (
      tpu,
      stages.DECODER_ONLY,
      {(2, 16, 16), (2, 8, 24), (2, 8, 32), (2, 8, 40)},
    ),
  ],
  ids=['gpu', 'tpu'],
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


def make_shapes(queries, keys, depth=64, dtype='bfloat16', heads=1):
  """Inputs of one example."""
  by_head = lambda length: jax.ShapeDtypeStruct(
    (1, heads, length, depth), dtype
  )
  return (
    by_head(queries),
    by_head(keys),
    by_head(keys),
    jax.ShapeDtypeStruct((heads, queries, keys), dtype),
    jax.ShapeDtypeStruct((1, keys), 'float32'),
  )


def test_what_fits_the_memory_of_a_chip():
  assert tpu.fits(*make_shapes(512, 2250))  # the coarse stage
  too_long = make_shapes(10_240, 10_240)  # all tokens of frames
  assert not tpu.fits(*too_long)
  assert gpu.fits(*too_long)
  assert gpu.fits(*make_shapes(1, 1, 8))
  assert gpu.fits(*make_shapes(8, 8, 256))
  assert not gpu.fits(*make_shapes(8, 8, 257))
  assert gpu.fits(*make_shapes(8, 8, 128, 'float32'))
  assert not gpu.fits(*make_shapes(8, 8, 129, 'float32'))
  # No one takes it: written out.
  neither = make_shapes(2100, 2100, 512)
  output = jax.make_jaxpr(fused_attention.dot_product_attention)(*neither)
  assert 'pallas_call' not in str(output)


def test_a_gpu_runs_kernels():
  def loss(*inputs):
    output = fused_attention.dot_product_attention(*inputs)
    return jnp.sum(output.astype(jnp.float32))

  def calls(platform, shapes):
    gradients = jax.jit(jax.grad(loss, argnums=range(4)))
    lowered = gradients.trace(*shapes).lower(lowering_platforms=(platform,))
    return set(re.findall(r'name = "_(attention_\w+)"', lowered.as_text()))

  coarse = make_shapes(512, 2250, heads=2)
  assert calls('cuda', coarse) == {
    'attention_forward',
    'attention_d_query',
    'attention_d_key_value',
    'attention_d_bias',
  }
  assert not calls('cpu', coarse)
  assert not calls('cuda', make_shapes(16, 16, 512))
