"""Attention in one kernel where the platform has it, and under any mesh."""

import math

from flax import linen as nn
import jax
from jax import lax

from v2meow_jax import attention
from v2meow_jax import attention_kernels

Array = jax.Array


@jax.custom_vjp
def _on_device(query, key, value, bias, padding):
  return lax.platform_dependent(
    query,
    key,
    value,
    bias,
    padding,
    tpu=attention_kernels.forward,
    default=attention.dot_product_attention,
  )


def _on_device_forward(*inputs):
  return _on_device(*inputs), inputs


def _on_device_backward(inputs, gradient):
  gradients = lax.platform_dependent(
    *inputs,
    gradient,
    tpu=attention_kernels.backward,
    default=lambda *x: attention._attention_backward(
      attention._attention_forward(*x[:5])[1], x[5]
    )[:4],
  )
  return *gradients, inputs[-1] * 0


_on_device.defvjp(_on_device_forward, _on_device_backward)


def dot_product_attention(
  query: Array, key: Array, value: Array, bias: Array, padding: Array
) -> Array:
  """`attention.dot_product_attention`, on a TPU as one kernel on each device.

  XLA does not know how to cut a kernel: under a mesh each device gets its
  examples and heads. Elsewhere than on a TPU, and where a head's bias is too
  large for the chip's memory, it is computed as it is written out.

  Args:
    query: see `attention.dot_product_attention`.
    key: as there.
    value: as there.
    bias: as there.
    padding: as there.

  Returns:
    As there.
  """
  if not attention_kernels.fits(*bias.shape[1:]):
    return attention.dot_product_attention(query, key, value, bias, padding)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return _on_device(query, key, value, bias, padding)
  batch, heads = (
    _cut(mesh, name, size)
    for name, size in zip(('batch', 'heads'), query.shape)
  )
  by_head = jax.sharding.PartitionSpec(batch, heads)
  return jax.shard_map(
    _on_device,
    in_specs=(
      *(by_head, by_head, by_head),
      jax.sharding.PartitionSpec(heads),
      jax.sharding.PartitionSpec(batch),
    ),
    out_specs=by_head,
    check_vma=False,  # kernels do not say along which axes they vary
  )(query, key, value, bias, padding)


def _cut(mesh: jax.sharding.AbstractMesh, name: str, size: int):
  """Mesh axes that cut a logical axis of this size; None where it is odd."""
  (axes,) = nn.logical_to_mesh_axes((name,))
  names = (axes,) if isinstance(axes, str) else axes or ()
  return None if size % math.prod(mesh.shape[n] for n in names) else axes
