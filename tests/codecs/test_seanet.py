"""SEANet and SoundStream's network: shapes and causality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v2meow_jax.codecs import convolutions
from v2meow_jax.codecs import soundstream

CONFIG = soundstream.Config(
  channels=2, strides=(2, 3), dilations=(1, 3), num_features=4
)
HOP = 6


@pytest.fixture(scope='module')
def network():
  return soundstream.Network(CONFIG)


@pytest.fixture(scope='module')
def variables(network):
  init = lambda: network.init(
    jax.random.PRNGKey(0), jnp.zeros((1, 4 * HOP)), mutable=['params']
  )
  return jax.jit(init)()


def _reaches(function, x, output_index):
  """Which positions of axis 1 of `x` the output at `output_index` feels."""
  loss = lambda x: jnp.square(function(x)[:, output_index]).sum()
  gradient = jax.jit(jax.grad(loss))(x)
  other = tuple(a for a in range(x.ndim) if a != 1)
  return np.flatnonzero(np.abs(gradient).sum(other))


def test_encoder_sees_its_own_samples_and_the_past(rng, network, variables):
  encode = lambda x: network.apply(variables, x, method='encode')
  x = jnp.asarray(rng.standard_normal((1, 12 * HOP)), jnp.float32)
  assert jax.eval_shape(encode, x).shape == (1, 12, 4)
  reached = _reaches(encode, x, 8)
  assert reached.max() == 9 * HOP - 1  # to the last sample of its position
  assert reached.min() < 6 * HOP


def test_decoder_sees_its_own_position_and_the_past(rng, network, variables):
  decode = lambda x: network.apply(variables, x, method='decode')
  x = jnp.asarray(rng.standard_normal((1, 12, 4)), jnp.float32)
  assert jax.eval_shape(decode, x).shape == (1, 12 * HOP)
  for sample in (8 * HOP, 9 * HOP - 1):
    reached = _reaches(decode, x, sample)
    assert reached.max() == 8
    assert reached.min() < 8


def test_random_networks_are_not_loud():
  network = soundstream.Network(soundstream.Config(channels=4, num_features=8))
  x = 0.1 * np.sin(2 * np.pi * 220 * np.arange(3200) / 16000)
  x = x[None].astype('f4')
  rms = lambda y: float(jnp.sqrt(jnp.square(y).mean()))

  @jax.jit
  def run(key):
    variables = network.init(key, x[:, :320], mutable=['params'])
    latents = network.apply(variables, x, method='encode')
    return latents, network.apply(variables, latents, method='decode')

  latents, decoded = run(jax.random.PRNGKey(0))
  assert 2e-3 < rms(latents) < 0.1  # measured .011; .46 if units add it all
  assert 2e-3 < rms(decoded) < 0.1  # measured .013; 1.1 if units add it all


def test_receptive_field_of_the_encoder_is_its_formula(network, variables, rng):
  encode = lambda x: network.apply(variables, x, method='encode')
  x = jnp.asarray(rng.standard_normal((1, 60 * HOP)), jnp.float32)
  reached = _reaches(encode, x, 59)
  # Taps minus one of each convolution times the rate it runs at, in samples:
  # in; two units of 7 taps; the stride's taps; the same at 1/2; out at 1/6.
  field = 6 + 6 * (1 + 3) + 3 + 2 * (6 * (1 + 3) + 5) + 6 * 2
  assert reached.max() - reached.min() == field


@pytest.mark.parametrize('depthwise', [False, True])
def test_causal_conv_matches_numpy(rng, depthwise):
  x = rng.standard_normal((2, 12, 3)).astype('f4')
  conv = convolutions.CausalConv(
    3 if depthwise else 5, 4, dilation=2, depthwise=depthwise
  )
  variables = conv.init(jax.random.PRNGKey(0), x, mutable=['params'])
  kernel = np.asarray(variables['params']['kernel'])
  expected = np.zeros((2, 12, kernel.shape[2]))
  for t in range(12):
    for tap in range(4):
      past = t - (3 - tap) * 2
      if past >= 0 and depthwise:
        expected[:, t] += x[:, past] * kernel[tap, 0]
      elif past >= 0:
        expected[:, t] += x[:, past] @ kernel[tap]
  np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-5)


def test_causal_conv_with_stride_matches_numpy(rng):
  x = rng.standard_normal((1, 12, 2)).astype('f4')
  conv = convolutions.CausalConv(3, 6, stride=3)
  variables = conv.init(jax.random.PRNGKey(0), x, mutable=['params'])
  kernel = np.asarray(variables['params']['kernel'])
  padded = np.concatenate([np.zeros((1, 3, 2)), x], axis=1)
  expected = [
    np.einsum('bti,tio->bo', padded[:, 3 * t : 3 * t + 6], kernel)
    for t in range(4)
  ]
  np.testing.assert_allclose(
    conv.apply(variables, x), np.stack(expected, 1), atol=1e-5
  )


def test_causal_upsample_is_a_transposed_convolution(rng):
  x = rng.standard_normal((1, 5, 2)).astype('f4')
  upsample = convolutions.CausalUpsample(3, 4)
  variables = upsample.init(jax.random.PRNGKey(0), x, mutable=['params'])
  # [tap, in, stride * out]; tap 1 is the input itself, tap 0 the one before.
  kernel = np.asarray(variables['params']['conv']['kernel']).reshape(2, 2, 4, 3)
  expected = np.zeros((1, 6 * 4, 3))
  for t in range(5):
    expected[:, 4 * t : 4 * t + 4] += np.einsum(
      'bi,iso->bso', x[:, t], kernel[1]
    )
    expected[:, 4 * t + 4 : 4 * t + 8] += np.einsum(
      'bi,iso->bso', x[:, t], kernel[0]
    )
  np.testing.assert_allclose(
    upsample.apply(variables, x), expected[:, :20], atol=1e-5
  )
