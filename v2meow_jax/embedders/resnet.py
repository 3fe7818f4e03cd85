"""ResNet-50 over a spectrogram (He et al., 2016; MuLan, audio tower).

With group norms (Wu and He, 2018) in the place of batch norms: a clip is then
embedded as it is alone, in training as afterwards, so that no example of a
batch tells the loss about another, and nothing but parameters is kept.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax

Array = jax.Array

_GROUPS = 32
_EXPANSION = 4  # of the last convolution of a block


def _norm(features: int, name: str, **kwargs) -> nn.GroupNorm:
  return nn.GroupNorm(min(_GROUPS, features), name=name, **kwargs)


class Block(nn.Module):
  """Three convolutions, added to what they read.

  Attributes:
    features: of the first two; the last has four times as many.
    stride: of the second, in time and in frequency.
  """

  features: int
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, time, bands, features]`; `stride` shortens both axes."""

    def convolve(x, name, features, size, stride=1):
      return nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        name=name,
      )(x)

    wide = _EXPANSION * self.features
    y = convolve(x, 'conv_0', self.features, 1)
    y = jax.nn.relu(_norm(self.features, 'norm_0')(y))
    y = convolve(y, 'conv_1', self.features, 3, self.stride)
    y = jax.nn.relu(_norm(self.features, 'norm_1')(y))
    y = convolve(y, 'conv_2', wide, 1)
    # Each block starts as the identity (Goyal et al., 2017).
    y = _norm(wide, 'norm_2', scale_init=nn.initializers.zeros)(y)
    if x.shape != y.shape:
      x = convolve(x, 'conv_skip', wide, 1, self.stride)
      x = _norm(wide, 'norm_skip')(x)
    return jax.nn.relu(x + y)


class ResNet(nn.Module):
  """Spectrogram to one vector.

  Attributes:
    num_blocks: of each of the stages; (3, 4, 6, 3) is ResNet-50.
    features: of the first convolution; each stage has twice as many as the one
      before.
  """

  num_blocks: Sequence[int] = (3, 4, 6, 3)
  features: int = 64

  @nn.compact
  def __call__(self, spectrogram: Array) -> Array:
    """Maps float32 `[batch, time, bands]` to `[batch, features]`."""
    x = spectrogram[..., None]
    # [batch, time, bands, 1] -> [batch, time / 4, bands / 4, features]
    x = nn.Conv(
      self.features,
      (7, 7),
      2,
      padding=3,
      use_bias=False,
      kernel_init=nn.initializers.he_normal(),
      name='conv',
    )(x)
    x = jax.nn.relu(_norm(self.features, 'norm')(x))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage, count in enumerate(self.num_blocks):
      for i in range(count):
        # [batch, time, bands, …] -> half of both where a stage begins
        stride = 2 if stage and not i else 1
        block = Block(
          self.features << stage, stride, name=f'stage_{stage}_block_{i}'
        )
        x = block(x)
    return x.mean(axis=(1, 2))
