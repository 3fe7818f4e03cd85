"""EfficientNet: a convolutional network for pictures and spectrograms.

Tan and Le, "EfficientNet: Rethinking model scaling for convolutional neural
networks", B0 by default: blocks that widen, convolve each channel alone, weigh
the channels by what they hold on average, and narrow again.
"""

import dataclasses
import functools

from flax import linen as nn
import jax

Array = jax.Array

# Of each group: widening, channels, blocks, stride of the first, kernel.
B0 = (
  (1, 16, 1, 1, 3),
  (6, 24, 2, 2, 3),
  (6, 40, 2, 2, 5),
  (6, 80, 3, 2, 3),
  (6, 112, 3, 1, 5),
  (6, 192, 4, 2, 5),
  (6, 320, 1, 1, 3),
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions and regularisation.

  Attributes:
    stem: channels of the first convolution.
    groups: see `B0`.
    head: channels of the last.
    squeeze: width of the weighing of channels over that of a block's input.
    drop_path: share of the last block's examples that skip it in training;
      less before, in proportion to depth.
    momentum: weight of the past in the averages that normalise behind training;
      less for a short one.
  """

  stem: int = 32
  groups: tuple[tuple[int, int, int, int, int], ...] = B0
  head: int = 1280
  squeeze: float = 0.25
  drop_path: float = 0.2
  momentum: float = 0.99


class _Norm(nn.Module):
  """Batch normalisation, of the batch in training."""

  momentum: float

  @nn.compact
  def __call__(self, x: Array, is_training: bool) -> Array:
    return nn.BatchNorm(
      use_running_average=not is_training,
      momentum=self.momentum,
      epsilon=1e-3,
      name='norm',
    )(x)


class _Block(nn.Module):
  """An inverted residual with squeeze and excitation."""

  widen: int
  channels: int
  stride: int
  kernel: int
  squeeze: float
  drop: float
  momentum: float

  @nn.compact
  def __call__(self, x: Array, is_training: bool) -> Array:
    conv = functools.partial(nn.Conv, use_bias=False, precision='highest')
    inputs, given = x.shape[-1], x
    width = inputs * self.widen
    if self.widen > 1:
      x = conv(width, (1, 1), name='expand')(x)
      x = nn.swish(_Norm(self.momentum, name='expand_norm')(x, is_training))
    x = conv(
      width,
      (self.kernel, self.kernel),
      (self.stride, self.stride),
      feature_group_count=width,
      name='depthwise',
    )(x)
    x = nn.swish(_Norm(self.momentum, name='depthwise_norm')(x, is_training))
    # [batch, height, width, channels] -> [batch, 1, 1, channels]
    mean = x.mean(axis=(1, 2), keepdims=True)
    reduced = max(1, int(inputs * self.squeeze))
    weight = functools.partial(nn.Conv, kernel_size=(1, 1), precision='highest')
    mean = nn.swish(weight(reduced, name='reduce')(mean))
    x = x * nn.sigmoid(weight(width, name='excite')(mean))
    x = conv(self.channels, (1, 1), name='project')(x)
    x = _Norm(self.momentum, name='project_norm')(x, is_training)
    if self.stride > 1 or inputs != self.channels:
      return x
    # An example keeps or skips the block as a whole (stochastic depth).
    x = nn.Dropout(self.drop, broadcast_dims=(1, 2, 3))(
      x, deterministic=not is_training
    )
    return given + x


class EfficientNet(nn.Module):
  """Everything before the pooling and the classifier."""

  config: Config = Config()

  @nn.compact
  def __call__(self, x: Array, is_training: bool = False) -> Array:
    """Maps float32 `[batch, height, width, channels]` to maps of features.

    Args:
      x: pictures.
      is_training: normalises by the batch, moves the averages, and skips
        blocks (key `dropout`).

    Returns:
      float32 `[batch, height / 32, width / 32, head]`, rounded up.
    """
    c = self.config
    conv = functools.partial(nn.Conv, use_bias=False, precision='highest')
    # [batch, height, width, in] -> [batch, height / 2, width / 2, stem]
    x = conv(c.stem, (3, 3), (2, 2), name='stem')(x)
    x = nn.swish(_Norm(c.momentum, name='stem_norm')(x, is_training))
    total = sum(repeats for _, _, repeats, _, _ in c.groups)
    number = 0
    for widen, channels, repeats, stride, kernel in c.groups:
      for i in range(repeats):
        x = _Block(
          widen,
          channels,
          1 if i else stride,
          kernel,
          c.squeeze,
          c.drop_path * number / total,
          c.momentum,
          name=f'block_{number}',
        )(x, is_training)
        number += 1
    x = conv(c.head, (1, 1), name='head')(x)
    return nn.swish(_Norm(c.momentum, name='head_norm')(x, is_training))
