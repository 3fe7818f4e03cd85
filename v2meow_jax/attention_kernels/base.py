"""What kernels of attention on any chip have in common.

A module of kernels has three functions of query, key, value, bias and padding,
see `attention.dot_product_attention`: `fits`, whether it takes such arrays;
`forward`, the output and statistics of the softmax; and `backward`, which is
given those and the gradient of the output too, the gradients of query, key,
value and bias.
"""

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array


def product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
  """Sum over an axis of each, in float32."""
  exact = a.dtype == b.dtype == jnp.float32
  return lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def no_statistics(query: Array) -> Array:
  """For a backward pass that makes the softmax again: no one reads these.

  Args:
    query: `[batch, heads, queries, depth]`.

  Returns:
    Zeros, float32 `[2, batch, heads, queries]`.
  """
  return jnp.zeros((2, *query.shape[:3]), jnp.float32)
