"""The conformer: positions, padding, causality and its choices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tokenizers import published
from v2meow_jax import weights
from v2meow_jax.tokenizers import conformer
from v2meow_jax.tokenizers import wav2vec_names as names

TINY = conformer.Config(
  embed_dim=8, num_layers=2, num_heads=2, mlp_dim=12, kernel_size=3, max_left=4
)
VARIANTS = {
  'w2v_bert': TINY,
  'w2v_bert_2': dataclasses.replace(
    TINY, position='relative_key', is_causal=True
  ),
  'musicfm': dataclasses.replace(
    TINY, position='rotary', norm='batch', final_norm=True
  ),
}
LENGTH = 9


def random_params(config, seed=0):
  """Parameters none of which is zero, and the module."""
  module = conformer.Conformer(config)
  x = jnp.zeros((1, LENGTH, config.embed_dim))
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  leaves = [
    1 + 0.3 * rng.uniform(-1, 1, x.shape).astype('f4')
    if len(x.shape) == 1
    else 0.4 * rng.standard_normal(x.shape).astype('f4')
    for x in leaves
  ]
  return module, jax.tree.unflatten(tree, leaves)


@pytest.mark.parametrize('is_live', published.GOLDEN_AND_LIVE)
def test_relative_positions_match_transformers(is_live):
  golden, arrays = published.read('relative', seed=int(is_live))
  if is_live:
    golden = published.compute('relative', seed=1)
  config = conformer.Config(
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=24,
    kernel_size=5,
    is_causal=True,
  )
  table = {}
  for i in range(2):
    ours, theirs = f'layers_{i}', f'encoder.layers.{i}'
    table |= names.block(ours, theirs, 'layer')
    theirs = f'{theirs}.self_attn'
    table |= {
      f'{ours}/attention/distance/kernel': (
        f'{theirs}.linear_pos.weight',
        np.transpose,
      ),
      f'{ours}/attention/content_bias': f'{theirs}.pos_bias_u',
      f'{ours}/attention/distance_bias': f'{theirs}.pos_bias_v',
    }
  ignore = ('feature_projection.*', 'masked_spec_embed')
  params = weights.translate(arrays, table, ignore)
  out = conformer.Conformer(config).apply(
    {'params': params}, golden['layer_0'][None]
  )
  # Measured: 3e-7.
  assert published.error(out[0], golden['layer_2']) < 2e-6


@pytest.mark.parametrize('name', VARIANTS)
def test_padding_changes_nothing(name, rng):
  module, params = random_params(VARIANTS[name])
  x = rng.standard_normal((2, LENGTH, 8)).astype('f4')
  lengths = [LENGTH, 5]
  mask = np.arange(LENGTH) < np.array(lengths)[:, None]
  filled = np.where(mask[..., None], x, np.nan)
  run = jax.jit(module.apply)
  out = np.asarray(run(params, filled, mask))
  assert np.isfinite(out).all()
  for row, length in enumerate(lengths):
    alone = run(params, x[row : row + 1, :length])
    # Measured: 5e-7.
    np.testing.assert_allclose(out[row, :length], alone[0], atol=4e-6)


@pytest.mark.parametrize('name', VARIANTS)
def test_a_layer_is_the_same_whatever_stands_behind_it(name, rng):
  config = VARIANTS[name]
  module, params = random_params(config)
  x = rng.standard_normal((1, LENGTH, 8)).astype('f4')
  # NaN in the second block: it is not computed.
  broken = jax.tree.map(lambda x: x, params)
  broken['params']['layers_1'] = jax.tree.map(
    lambda x: np.full_like(x, np.nan), params['params']['layers_1']
  )
  first = module.apply(broken, x, layer=1)
  short = dataclasses.replace(config, num_layers=1, final_norm=False)
  expected = conformer.Conformer(short).apply(params, x)
  np.testing.assert_array_equal(first, expected)
  np.testing.assert_array_equal(module.apply(params, x, layer=0), x)
  assert not np.allclose(first, module.apply(params, x), atol=0.1)


@pytest.mark.parametrize('is_causal', [False, True])
def test_convolution_hears_what_it_says(is_causal, rng):
  config = dataclasses.replace(TINY, is_causal=is_causal)
  module = conformer.Convolution(config)
  x = rng.standard_normal((1, LENGTH, 8)).astype('f4')
  mask = np.ones((1, LENGTH), bool)
  params = module.init(jax.random.key(0), x, mask, True)
  heard = jax.jacobian(
    lambda x: module.apply(params, x, mask, True)[0].sum(-1)
  )(x)[:, 0]
  heard = np.abs(heard).sum(-1) > 0  # [output, input]
  time = np.arange(LENGTH)
  distance = time - time[:, None]
  low, high = (-2, 0) if is_causal else (-1, 1)
  expected = (low <= distance) & (distance <= high)
  np.testing.assert_array_equal(heard, expected)


@pytest.mark.parametrize('name', ['w2v_bert', 'w2v_bert_2', 'musicfm'])
def test_attention_knows_order(name, rng):
  """Without the convolution, too: positions reach the scores."""
  config = VARIANTS[name]
  _, params = random_params(config)
  module = conformer.Attention(config)
  params = {'params': params['params']['layers_0']['attention']}
  x = rng.standard_normal((1, LENGTH, 8)).astype('f4')
  mask = np.ones((1, LENGTH), bool)
  forth = module.apply(params, x, mask, True)
  back = module.apply(params, x[:, ::-1], mask, True)[:, ::-1]
  assert np.abs(forth - back).max() > 1e-2


def test_distances_beyond_the_limits_are_alike(rng):
  query = rng.standard_normal((1, LENGTH, 2, 4)).astype('f4')
  table = rng.standard_normal((8, 4)).astype('f4')
  scores = conformer.score_distances(query, table, 4, 3)
  for q in range(LENGTH):
    for k in range(LENGTH):
      expected = query[0, q] @ table[4 + min(max(k - q, -4), 3)]
      np.testing.assert_allclose(scores[0, :, q, k], expected, atol=1e-5)


def test_low_precision_and_recomputation(rng):
  x = rng.standard_normal((1, LENGTH, 8)).astype('f4')
  module, params = random_params(TINY)
  exact = module.apply(params, x)
  low = conformer.Conformer(dataclasses.replace(TINY, dtype='bfloat16'))
  out = low.apply(params, x)
  assert out.dtype == jnp.bfloat16
  # Measured: 0.02 of values up to 2.5.
  np.testing.assert_allclose(out.astype('f4'), exact, atol=0.1)
  again = conformer.Conformer(dataclasses.replace(TINY, remat=True))
  np.testing.assert_array_equal(again.apply(params, x), exact)


def test_dropout_is_drawn(rng):
  x = rng.standard_normal((1, LENGTH, 8)).astype('f4')
  module = conformer.Conformer(dataclasses.replace(TINY, dropout_rate=0.5))
  _, params = random_params(TINY)
  run = lambda seed: module.apply(
    params, x, deterministic=False, rngs={'dropout': jax.random.key(seed)}
  )
  assert not np.allclose(run(0), run(1), atol=0.1)
  np.testing.assert_array_equal(run(0), run(0))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      dict(position='absolute'),
      'Unknown position `absolute` of a conformer, expected one of relative, '
      'relative_key, rotary.',
    ),
    (
      dict(norm='none'),
      'Unknown norm `none` of a conformer, expected one of layer, batch.',
    ),
    (
      dict(kernel_size=4),
      'Conformer of width 8, 2 heads and 4 taps, expected a width that the '
      'heads share and an odd number of taps.',
    ),
  ],
)
def test_unknown_choices(change, message):
  with pytest.raises(ValueError) as error:
    dataclasses.replace(TINY, **change)
  assert str(error.value) == message
