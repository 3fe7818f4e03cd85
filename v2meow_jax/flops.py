"""FLOPs of a function, counted in what JAX traces of it."""

from collections.abc import Callable
import dataclasses
import math

import jax

from v2meow_jax import models


def of_step(model: models.StageModel, batch: dict) -> int:
  """Model FLOPs of one training step.

  Products of forward and backward pass as the model is defined: nothing that
  is computed a second time to save memory, nothing of blocks of attention that
  no query may see, no element-wise work and no optimizer.

  Args:
    model: the model of a stage.
    batch: arrays or shapes of the model features.

  Returns:
    FLOPs of the whole batch.
  """
  # Layers that keep their activations compute nothing twice.
  config = dataclasses.replace(model.config, remat=False, fused_attention=False)
  plain = models.StageModel(model.stage, config)
  shapes = {name: array.shape for name, array in batch.items()}
  params = jax.eval_shape(
    lambda key: plain.get_initial_variables(key, shapes)['params'],
    jax.random.PRNGKey(0),
  )
  gradient = jax.grad(lambda p, b: plain.loss_fn(p, b, None)[0])
  return of_function(gradient, params, batch)


def of_function(function: Callable, *args) -> int:
  """FLOPs of the products and convolutions of a call.

  Args:
    function: any that JAX can trace.
    *args: arrays or shapes.

  Returns:
    FLOPs; a scan counts as often as it runs, a `while` once, a choice as its
    cheapest branch.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracting, _), _ = params['dimension_numbers']
      left = equation.invars[0].aval.shape
      shared = math.prod(left[d] for d in contracting)
      total += 2 * math.prod(equation.outvars[0].aval.shape) * shared
    elif name == 'conv_general_dilated':
      out_axis = params['dimension_numbers'].rhs_spec[0]
      kernel = equation.invars[1].aval.shape
      shared = math.prod(kernel) // kernel[out_axis]
      total += 2 * math.prod(equation.outvars[0].aval.shape) * shared
    elif name == 'cond':
      total += min(_count(branch.jaxpr) for branch in params['branches'])
    else:
      times = params['length'] if name == 'scan' else 1
      total += times * sum(map(_count, _inner(params)))
  return total


def _inner(params: dict) -> list:
  """The functions that an equation calls."""
  found = []
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else [value]:
      if hasattr(item, 'jaxpr'):  # with constants
        found.append(item.jaxpr)
      elif hasattr(item, 'eqns'):
        found.append(item)
  return found
