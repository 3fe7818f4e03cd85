"""FLOPs by hand, by JAX's trace and by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import stage_examples
from v2meow_jax import flops
from v2meow_jax import stages
from v2meow_jax import training_steps


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


def test_products_of_all_kinds():
  matmul = lambda x, w: x @ w
  assert flops.of_function(matmul, shape(3, 4), shape(4, 5)) == 2 * 3 * 4 * 5
  batched = lambda x, w: jnp.einsum('bhqd,bhkd->bhqk', x, w)
  count = flops.of_function(batched, shape(2, 3, 5, 4), shape(2, 3, 7, 4))
  assert count == 2 * 2 * 3 * 5 * 7 * 4
  convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), 'VALID')
  # [batch, in, length], [out, in, width]
  count = flops.of_function(convolve, shape(2, 4, 10), shape(5, 4, 3))
  assert count == 2 * 2 * 5 * 8 * (4 * 3)
  assert flops.of_function(lambda x, y: x * y + y, shape(9), shape(9)) == 0


def test_a_scan_counts_as_often_as_it_runs():
  scan = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
  product = 2 * 3 * 4 * 4
  count = flops.of_function(scan, shape(3, 4), shape(6, 4, 4))
  assert count == 6 * product
  gradient = jax.grad(lambda x, w: jnp.sum(scan(x, w)), argnums=(0, 1))
  count = flops.of_function(jax.jit(gradient), shape(3, 4), shape(6, 4, 4))
  assert count == 3 * 6 * product


def test_a_choice_counts_as_its_cheapest_branch():
  choose = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)
  assert flops.of_function(choose, shape(4, 4), shape(4, 4)) == 0


@pytest.mark.parametrize(
  'architecture', [stages.ENCODER_DECODER, stages.DECODER_ONLY]
)
def test_a_step_counts_its_products_thrice_and_what_is_repeated_once(
  architecture,
):
  model = stage_examples.make_model(architecture)
  batch = {
    name: jax.ShapeDtypeStruct(size, np.int32)
    for name, size in model.feature_shapes(2).items()
  }
  recipe = training_steps.Recipe(model, None, (), 2)
  batch = recipe.batch_shapes()
  step = flops.of_step(model, batch)
  params = jax.eval_shape(
    lambda key: model.get_initial_variables(key, model.feature_shapes(2))[
      'params'
    ],
    jax.random.PRNGKey(0),
  )
  forward = flops.of_function(
    lambda params, batch: model.eval_fn(params, batch)[0], params, batch
  )
  # Forward, and the gradients of both factors; inputs need none, and that of
  # the bias is a product of its own.
  assert 2.8 * forward < step < 3.2 * forward
  again = stage_examples.make_model(architecture, remat=True)
  assert flops.of_step(again, batch) == step


def test_xla_counts_the_same_and_what_is_between():
  recipe = training_steps.make(
    'fine', 'tiny', 1, bindings=['stages.make.seconds = 0.5']
  )
  batch = recipe.batch_shapes()
  gradient = jax.grad(lambda p, b: recipe.model.loss_fn(p, b, None)[0])
  params = jax.eval_shape(
    lambda key: recipe.model.get_initial_variables(
      key, recipe.model.feature_shapes(1)
    )['params'],
    jax.random.PRNGKey(0),
  )
  analysis = jax.jit(gradient).lower(params, batch).cost_analysis()
  step = flops.of_step(recipe.model, batch)
  # Element-wise work is half of this tiny network's.
  assert step < analysis['flops'] < 3 * step
