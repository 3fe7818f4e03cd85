import importlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v2meow_jax import attention
from v2meow_jax import layers
from v2meow_jax import relative_positions


def naive_bucket(relative_position, bidirectional, num_buckets, max_distance):
  """One number at a time, from the words of the T5 paper."""
  distance = -relative_position
  first = 0
  if bidirectional:
    num_buckets //= 2
    if distance < 0:
      first, distance = num_buckets, -distance
  distance = max(distance, 0)
  exact = num_buckets // 2
  if distance < exact:
    return first + distance
  share = np.log(distance / exact) / np.log(max_distance / exact)
  return first + min(
    exact + int(share * (num_buckets - exact) + 1e-5), num_buckets - 1
  )


@pytest.mark.parametrize('bidirectional', [False, True])
@pytest.mark.parametrize('sizes', [(32, 128), (16, 20), (128, 1024)])
def test_relative_position_bucket_is_as_defined(bidirectional, sizes):
  places = np.arange(-1500, 1500)
  found = relative_positions.bucket(places, bidirectional, *sizes)
  expected = [naive_bucket(p, bidirectional, *sizes) for p in places]
  np.testing.assert_array_equal(found, expected)
  assert found.min() == 0
  assert found.max() == sizes[0] - 1


@pytest.mark.t5x
@pytest.mark.parametrize('bidirectional', [False, True])
def test_relative_position_bucket_is_that_of_t5x(bidirectional):
  t5x_layers = importorskip_t5x('t5x.examples.t5.layers')
  places = np.arange(-300, 300)
  expected = t5x_layers.RelativePositionBiases._relative_position_bucket(
    places, bidirectional, 32, 128
  )
  np.testing.assert_array_equal(
    relative_positions.bucket(places, bidirectional, 32, 128),
    expected,
  )


def importorskip_t5x(name):
  try:
    return importlib.import_module(name)
  except ImportError as e:
    pytest.skip(f'missing: t5x ({e})')


def test_biases_share_the_table_by_distance(rng):
  module = relative_positions.Biases(
    num_buckets=8, max_distance=16, num_heads=2, bidirectional=True
  )
  table = rng.standard_normal((2, 8), 'f4')
  queries = np.array([0, 3, relative_positions.UNTIMED], 'i4')
  keys = np.array([5, 0, relative_positions.UNTIMED, -20], 'i4')
  bias = module.apply({'params': {'rel_embedding': table}}, queries, keys)
  assert bias.shape == (2, 3, 4)
  for i, query in enumerate(queries):
    for j, key in enumerate(keys):
      untimed = relative_positions.UNTIMED in (query, key)
      # Without time, the bucket of the farthest past: the last of its half.
      bucket = 3 if untimed else naive_bucket(int(key - query), True, 8, 16)
      np.testing.assert_array_equal(bias[:, i, j], table[:, bucket])


@pytest.mark.parametrize('bidirectional', [True, False])
def test_biases_of_a_tpu_are_the_same(bidirectional, rng):
  buckets = lambda distances: relative_positions.bucket(
    distances, bidirectional, 8, 16
  )
  table = rng.standard_normal((2, 8), 'f4')
  queries = np.array([0, 3, 40, relative_positions.UNTIMED], 'i4')
  keys = np.array([5, 0, relative_positions.UNTIMED, -20, 40], 'i4')
  distances = relative_positions._distances(queries, keys)
  gather = lambda table: relative_positions._gather_bias(
    table, buckets(distances), queries, keys
  )
  multiply = lambda table: relative_positions._multiply_bias(
    table, distances, buckets(distances), queries, keys, jnp.float32
  )
  np.testing.assert_array_equal(multiply(table), gather(table))
  weights = rng.standard_normal((2, 4, 5), 'f4')
  gradient = lambda f: jax.grad(lambda table: jnp.sum(f(table) * weights))
  np.testing.assert_allclose(
    gradient(multiply)(table),
    gradient(gather)(table),
    atol=1e-6,  # 2e-7
  )


def naive_attention(query, key, value, bias, padding):
  logits = jnp.einsum('bhqd,bhkd->bhqk', query, key) + bias
  weights = jax.nn.softmax(logits + padding[:, None, None])
  return jnp.einsum('bhqk,bhkd->bhqd', weights, value)


def make_attention_arguments(rng):
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, 'f4'))
  padding = np.zeros((2, 7), 'f4')
  padding[1, 4:] = attention.MASK_VALUE
  return (
    draw(2, 3, 5, 4),
    draw(2, 3, 7, 4),
    draw(2, 3, 7, 4),
    draw(3, 5, 7),
    jnp.asarray(padding),
  )


def test_attention_equals_its_definition(rng):
  arguments = make_attention_arguments(rng)
  np.testing.assert_allclose(
    attention.dot_product_attention(*arguments),
    naive_attention(*arguments),
    atol=2e-6,
  )


def test_gradient_of_attention_equals_that_of_its_definition(rng):
  arguments = make_attention_arguments(rng)
  weight = rng.standard_normal((2, 3, 5, 4), 'f4')

  def gradients(function):
    loss = lambda *parts: jnp.sum(function(*parts, arguments[4]) * weight)
    return jax.grad(loss, argnums=(0, 1, 2, 3))(*arguments[:4])

  found = gradients(attention.dot_product_attention)
  for a, b in zip(found, gradients(naive_attention)):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_query_without_any_key_is_finite(rng):
  query, key, value, bias, _ = make_attention_arguments(rng)
  padding = jnp.full((2, 7), attention.MASK_VALUE)
  output = attention.dot_product_attention(query, key, value, bias, padding)
  np.testing.assert_allclose(
    output,
    jnp.broadcast_to(value.mean(2, keepdims=True), query.shape),
    atol=1e-6,
  )


def test_blocks_change_nothing(rng):
  module = attention.Attention(num_heads=2, head_dim=4, embed_dim=8)
  x = rng.standard_normal((2, 10, 8), 'f4')
  bias = rng.standard_normal((2, 10, 10), 'f4')
  order = np.arange(10)
  # The first three see each other, the others what is before them.
  visible = (order[:, None] >= order) | (order < 3)
  visible[:3, 3:] = False
  bias = jnp.where(visible, bias, attention.MASK_VALUE)

  def run(module, blocks):
    query, (key, value) = module.project_queries(x), module.project_memory(x)
    biases = attention.split_blocks(bias, blocks)
    return module.attend(query, key, value, biases, None)

  whole = [(0, 10, 10)]
  params = module.init(jax.random.PRNGKey(0), whole, method=run)
  np.testing.assert_allclose(
    module.apply(params, [(0, 3, 3), (3, 6, 6), (6, 10, 10)], method=run),
    module.apply(params, whole, method=run),
    atol=1e-6,
  )


def test_attention_dropout_is_one_mask_for_all_queries(rng):
  # Values that are unit vectors make the output the weights themselves.
  module = attention.Attention(
    num_heads=1, head_dim=6, embed_dim=6, dropout_rate=0.5
  )
  query = rng.standard_normal((1, 1, 4, 6), 'f4')
  key = rng.standard_normal((1, 1, 6, 6), 'f4')
  value = np.eye(6, dtype='f4')[None, None]
  params = {
    name: {'kernel': np.eye(6, dtype='f4')}
    for name in ('query', 'key', 'value', 'out')
  }

  def run(deterministic):
    return module.apply(
      {'params': params},
      query,
      key,
      value,
      None,
      None,
      deterministic,
      method='attend',
      rngs={'dropout': jax.random.PRNGKey(3)},
    )[0]

  ratio = np.asarray(run(False) / run(True))
  np.testing.assert_allclose(ratio, np.round(ratio), atol=1e-5)
  assert set(np.round(ratio).ravel()) == {0.0, 2.0}
  assert (ratio.round() == ratio.round()[:1]).all()


def test_initial_kernels_are_as_wide_as_those_of_t5():
  module = attention.Attention(num_heads=4, head_dim=16, embed_dim=64)
  init = lambda key: module.init(key, np.zeros((1, 1, 64), 'f4'), method=touch)
  touch = lambda module, x: (
    module.project_queries(x),
    module.project_memory(x),
    module.out(x),
  )
  params = nn.meta.unbox(jax.jit(init)(jax.random.PRNGKey(0))['params'])
  deviation = {name: params[name]['kernel'].std() for name in params}
  # Divided by the root of the depth where T5 leaves the logits as they are.
  for name, expected in (('query', 1 / 32), ('key', 1 / 8), ('out', 1 / 8)):
    assert abs(deviation[name] / expected - 1) < 0.05


def test_layer_norm_divides_by_the_root_mean_square(rng):
  x = 3 + rng.standard_normal((2, 5, 8), 'f4')
  scale = rng.standard_normal(8, 'f4')
  expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
  found = layers.LayerNorm(8).apply({'params': {'scale': scale}}, x)
  np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_mlp_multiplies_its_activations(rng):
  wi_0, wi_1 = rng.standard_normal((2, 8, 12), 'f4')
  wo = rng.standard_normal((12, 8), 'f4')
  x = rng.standard_normal((2, 5, 8), 'f4')
  params = {'wi_0': {'kernel': wi_0}, 'wi_1': {'kernel': wi_1}}
  params['wo'] = {'kernel': wo}
  module = layers.MlpBlock(8, 12, ('relu', 'linear'))
  expected = (np.maximum(x @ wi_0, 0) * (x @ wi_1)) @ wo
  np.testing.assert_allclose(
    module.apply({'params': params}, x), expected, rtol=1e-4, atol=1e-4
  )


def test_unknown_activation_names_the_known_ones(rng):
  module = layers.MlpBlock(8, 12, ('swish',))
  with pytest.raises(ValueError) as e:
    module.init(jax.random.PRNGKey(0), np.zeros((1, 1, 8), 'f4'))
  assert str(e.value) == (
    'Unknown activation `swish` in mlp_activations, expected one of relu, '
    'gelu, silu, linear.'
  )


def test_locality_prefers_what_is_near_before_training():
  biases = relative_positions.Biases(
    num_buckets=32,
    max_distance=128,
    num_heads=3,
    bidirectional=True,
    locality=4.0,
  )
  queries = np.array([50])
  keys = np.array([50, 51, 40, 120, relative_positions.UNTIMED])
  params = biases.init(jax.random.PRNGKey(0), queries, keys)
  bias = np.asarray(biases.apply(params, queries, keys))[:, 0]
  noise = 0.5  # T5's own initial table reaches 0.41: sqrt(6 / 35)
  # The first head's weights fall with the fourth power of the distance.
  for key, distance in ((1, 1), (2, 10), (3, 70)):
    expected = -4 * np.log1p(distance)
    # A bucket holds many distances: its mean stands for them.
    assert bias[0, key] == pytest.approx(expected, abs=1 + 2 * noise)
  assert bias[0, 0] > bias[0, 1] > bias[0, 2] > bias[0, 3]
  # The last head has no preference, and neither has what has no time.
  assert np.abs(bias[2]).max() < noise
  assert np.abs(bias[:, 4]).max() < noise
