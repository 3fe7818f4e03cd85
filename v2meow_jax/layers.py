"""Layers of the Transformer: MLP, norm, embedding; attention.py has the rest.

The architecture is T5 1.1 (https://arxiv.org/abs/1910.10683 and T5X's
`examples/t5`); parameter names, shapes and logical axis names are T5X's, so
that weights move between the two.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array
DType = Any
Initializer = Callable[..., Array]

_ACTIVATIONS = {
  'relu': nn.relu,
  'gelu': nn.gelu,
  'silu': nn.silu,
  'linear': lambda x: x,
}


class Dense(nn.Module):
  """A linear map of the last axis, without bias.

  Attributes:
    in_features: width of the input.
    features: width of the output.
    kernel_axes: logical axes of the kernel `[in_features, features]`.
    dtype: dtype of the product; the kernel is float32.
    kernel_init: initialiser of the kernel.
  """

  in_features: int
  features: int
  kernel_axes: tuple[str, str]
  dtype: DType = jnp.float32
  kernel_init: Initializer = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'truncated_normal'
  )

  def setup(self):
    self.kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
      (self.in_features, self.features),
      jnp.float32,
    )

  def __call__(self, inputs: Array) -> Array:
    """Maps `[..., in_features]` to `[..., features]`."""
    return project(inputs, self.kernel, self.dtype)


def project(inputs: Array, kernel: Array, dtype: DType) -> Array:
  """Product of `[..., in]` and `[in, out]` in `dtype`."""
  # As matrices: XLA's CPU backend copies the gradient of a higher array to
  # another layout before it computes that of the kernel.
  x = inputs.astype(dtype).reshape(-1, inputs.shape[-1])
  y = x @ kernel.astype(dtype)
  return y.reshape(*inputs.shape[:-1], kernel.shape[-1])


class LayerNorm(nn.Module):
  """T5's layer norm: scales by the root mean square, no mean, no bias.

  Attributes:
    features: width of the last axis.
    dtype: dtype of the result; statistics are float32.
    epsilon: added to the mean square.
  """

  features: int
  dtype: DType = jnp.float32
  epsilon: float = 1e-6

  def setup(self):
    self.scale = self.param(
      'scale',
      nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
      (self.features,),
      jnp.float32,
    )

  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    return rms_norm(x, self.scale, self.dtype, self.epsilon)


def rms_norm(
  x: Array, scale: Array, dtype: DType, epsilon: float = 1e-6
) -> Array:
  """Divides `x` by its root mean square over the last axis, times `scale`."""
  x = x.astype(jnp.float32)
  mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
  y = (x * lax.rsqrt(mean_square + epsilon)).astype(dtype)
  return y * scale.astype(dtype)


class Embed(nn.Module):
  """A table of vectors, one per id.

  Attributes:
    num_embeddings: number of ids.
    features: width of a vector.
    dtype: dtype of the result; the table is float32.
  """

  num_embeddings: int
  features: int
  dtype: DType = jnp.float32

  def setup(self):
    self.embedding = self.param(
      'embedding',
      nn.with_logical_partitioning(
        nn.initializers.normal(stddev=1.0), ('vocab', 'embed')
      ),
      (self.num_embeddings, self.features),
      jnp.float32,
    )

  def __call__(self, ids: Array) -> Array:
    """Maps int32 `[batch, length]` to `[batch, length, features]`."""
    # However the table is cut, each device looks its own ids up in all of it.
    table = nn.with_logical_constraint(self.embedding, (None, None))
    x = jnp.take(table, ids, axis=0, mode='clip')
    return nn.with_logical_constraint(
      x.astype(self.dtype), ('batch', 'length', 'embed')
    )


class MlpBlock(nn.Module):
  """Feed-forward block, gated where it has two activations.

  Attributes:
    embed_dim: width of input and output.
    mlp_dim: width between.
    activations: one name per inward projection; their results are multiplied.
    dtype: dtype of the computation.
    dropout_rate: dropout of the middle, shared by all positions.
  """

  embed_dim: int
  mlp_dim: int
  activations: Sequence[str] = ('relu',)
  dtype: DType = jnp.float32
  dropout_rate: float = 0.0

  def setup(self):
    for name in self.activations:
      if name not in _ACTIVATIONS:
        raise ValueError(
          f'Unknown activation `{name}` in mlp_activations, expected one of '
          f'{", ".join(_ACTIVATIONS)}.'
        )
    inward = functools.partial(
      Dense,
      self.embed_dim,
      self.mlp_dim,
      kernel_axes=('embed', 'mlp'),
      dtype=self.dtype,
    )
    for name in self.inward_names:
      setattr(self, name, inward())
    self.wo = Dense(
      self.mlp_dim,
      self.embed_dim,
      kernel_axes=('mlp', 'embed'),
      dtype=self.dtype,
    )
    self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

  @property
  def inward_names(self) -> list[str]:
    """Names of the inward projections, T5X's."""
    count = len(self.activations)
    return ['wi'] if count == 1 else [f'wi_{i}' for i in range(count)]

  def __call__(self, inputs: Array, deterministic: bool = True) -> Array:
    """Maps `[batch, length, embed]` to the same shape."""
    parts = [getattr(self, name)(inputs) for name in self.inward_names]
    x = multiply_activations(parts, self.activations)
    x = nn.with_logical_constraint(x, ('batch', 'length', 'mlp'))
    return self.wo(self.dropout(x, deterministic=deterministic))


def multiply_activations(
  parts: Sequence[Array], activations: Sequence[str]
) -> Array:
  """Product of the parts, each through its activation."""
  applied = [_ACTIVATIONS[name](x) for name, x in zip(activations, parts)]
  return functools.reduce(operator.mul, applied)
