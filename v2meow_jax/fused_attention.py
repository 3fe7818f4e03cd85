"""Attention in kernels where the platform has them, and under any mesh."""

import math
import types

from flax import linen as nn
import jax
from jax import lax

from v2meow_jax import attention
from v2meow_jax.attention_kernels import base
from v2meow_jax.attention_kernels import gpu
from v2meow_jax.attention_kernels import tpu

Array = jax.Array

# Kernels of each platform that has any; each says by `fits` what they take.
_KERNELS = {'cuda': gpu, 'tpu': tpu}


def _kernels(*inputs: Array) -> dict[str, types.ModuleType]:
  """Kernels that take these, by platform."""
  return {
    platform: kernels
    for platform, kernels in _KERNELS.items()
    if kernels.fits(*inputs)
  }


@jax.custom_vjp
def _on_device(query, key, value, bias, padding):
  return _on_device_forward(query, key, value, bias, padding)[0]


def _on_device_forward(*inputs):
  outputs = lax.platform_dependent(
    *inputs,
    default=_forward,
    **{name: x.forward for name, x in _kernels(*inputs).items()},
  )
  return outputs[0], (*inputs, *outputs)


def _on_device_backward(residuals, gradient):
  inputs = residuals[:5]
  gradients = lax.platform_dependent(
    *residuals,
    gradient,
    default=_backward,
    **{name: x.backward for name, x in _kernels(*inputs).items()},
  )
  return *gradients, inputs[-1] * 0


def _forward(*inputs):
  """As `forward` of the kernels."""
  output = attention.dot_product_attention(*inputs)
  return output, base.no_statistics(inputs[0])


def _backward(query, key, value, bias, padding, output, statistics, gradient):
  """As `backward` of the kernels."""
  del output, statistics
  residuals = attention._attention_forward(query, key, value, bias, padding)[1]
  return attention._attention_backward(residuals, gradient)[:4]


_on_device.defvjp(_on_device_forward, _on_device_backward)


def dot_product_attention(
  query: Array, key: Array, value: Array, bias: Array, padding: Array
) -> Array:
  """`attention.dot_product_attention`, on TPUs and NVIDIA GPUs in kernels.

  XLA does not know how to cut a kernel: under a mesh each device gets its
  examples and heads. On other platforms, and where a platform's kernels do not
  take the sizes (`fits`), it is computed as it is written out.

  Args:
    query: see `attention.dot_product_attention`.
    key: as there.
    value: as there.
    bias: as there.
    padding: as there.

  Returns:
    As there.
  """
  if not _kernels(query, key, value, bias, padding):
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
