"""Causal one-dimensional convolutions that also run chunk by chunk.

A convolution sees zeros before the start of the clip. Applied with the
collection `stream` mutable it keeps the end of its input there and continues
from it, so that chunks one after another give what the whole gives.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class CausalConv(nn.Module):
  """Convolution over time whose output sees no later input.

  Output position t sees inputs up to t * stride + stride - 1: with a stride
  the window of samples that the position stands for is whole.

  Attributes:
    features: width of the output.
    kernel_size: taps.
    stride: inputs per output; time must be a multiple of it.
    dilation: inputs between taps.
    depthwise: one filter per feature (features must equal the input's).
    initial_scale: variance of the output over that of the input, at first.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  depthwise: bool = False
  initial_scale: float = 1.0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, time, in]` to `[batch, time / stride, features]`."""
    in_features = 1 if self.depthwise else x.shape[-1]
    kernel = self.param(
      'kernel',
      nn.initializers.variance_scaling(
        self.initial_scale, 'fan_in', 'truncated_normal'
      ),
      (self.kernel_size, in_features, self.features),
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = self._with_past(x)
    if self.depthwise:
      # A sum of shifted products: XLA's grouped convolution is slow on CPUs.
      length = x.shape[1] - (self.kernel_size - 1) * self.dilation
      y = sum(
        x[:, i * self.dilation : i * self.dilation + length] * kernel[i, 0]
        for i in range(self.kernel_size)
      )
    else:
      y = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(self.stride,),
        padding='VALID',
        rhs_dilation=(self.dilation,),
        dimension_numbers=('NWC', 'WIO', 'NWC'),
      )
    return y + bias

  def _with_past(self, x: Array) -> Array:
    """Puts the past in front of `x`: zeros, or the end of the last chunk."""
    size = (self.kernel_size - 1) * self.dilation + 1 - self.stride
    shape = (x.shape[0], size, x.shape[2])
    if not self.is_mutable_collection('stream') or self.is_initializing():
      return jnp.concatenate([jnp.zeros(shape, x.dtype), x], axis=1)
    past = self.variable('stream', 'past', jnp.zeros, shape, x.dtype)
    x = jnp.concatenate([past.value, x], axis=1)
    past.value = x[:, x.shape[1] - size :]
    return x


class CausalUpsample(nn.Module):
  """Transposed convolution with kernel 2 x stride, trimmed to be causal.

  Written as a convolution with two taps that makes `stride` outputs at once.

  Attributes:
    features: width of the output.
    stride: outputs per input.
  """

  features: int
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, time, in]` to `[batch, time * stride, features]`."""
    x = CausalConv(self.features * self.stride, 2, name='conv')(x)
    # [batch, time, stride * features] -> [batch, time * stride, features]
    return x.reshape(x.shape[0], -1, self.features)
