"""SEANet: the convolutional encoder and decoder of SoundStream and EnCodec.

Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", section
III-A and figure 3; every convolution is causal. The encoder halves nothing but
time: each block multiplies the features by two and divides the rate by its
stride; the decoder mirrors it.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax

from v2meow_jax.codecs import convolutions

Array = jax.Array


class ResidualUnit(nn.Module):
  """Dilated convolution of 7 taps, then one of 1 tap, added to the input.

  Attributes:
    dilation: of the first convolution.
  """

  dilation: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, time, features]` to the same shape."""
    features = x.shape[-1]
    y = convolutions.CausalConv(
      features, 7, dilation=self.dilation, name='dilated'
    )(nn.elu(x))
    # Almost nothing is added at first: there is no norm, and with what 24 units
    # add a random network is 20 times as loud as what it hears.
    return x + convolutions.CausalConv(
      features, 1, initial_scale=0.01, name='pointwise'
    )(nn.elu(y))


class Encoder(nn.Module):
  """Waveform to latents.

  Attributes:
    channels: features before the first stride.
    strides: of each block, first block first.
    dilations: of the residual units of each block.
    num_features: features of a latent.
  """

  channels: int
  strides: Sequence[int]
  dilations: Sequence[int]
  num_features: int

  @nn.compact
  def __call__(self, waveform: Array) -> Array:
    """Maps `[batch, samples]` to `[batch, samples / hop, num_features]`."""
    channels = self.channels
    # [batch, samples] -> [batch, samples, channels]
    x = convolutions.CausalConv(channels, 7, name='conv_in')(
      waveform[..., None]
    )
    for i, stride in enumerate(self.strides):
      for dilation in self.dilations:
        x = ResidualUnit(dilation, name=f'block_{i}_dilation_{dilation}')(x)
      channels *= 2
      # [batch, time, channels / 2] -> [batch, time / stride, channels]
      x = convolutions.CausalConv(
        channels, 2 * stride, stride=stride, name=f'block_{i}_down'
      )(nn.elu(x))
    return convolutions.CausalConv(self.num_features, 3, name='conv_out')(
      nn.elu(x)
    )


class Decoder(nn.Module):
  """Latents to waveform.

  Attributes:
    channels: features behind the last stride.
    strides: of the encoder's blocks, first block first.
    dilations: of the residual units of each block.
  """

  channels: int
  strides: Sequence[int]
  dilations: Sequence[int]

  @nn.compact
  def __call__(self, latents: Array) -> Array:
    """Maps `[batch, time, num_features]` to `[batch, time * hop]`."""
    channels = self.channels * 2 ** len(self.strides)
    x = convolutions.CausalConv(channels, 7, name='conv_in')(latents)
    for i, stride in reversed(list(enumerate(self.strides))):
      channels //= 2
      # [batch, time, channels * 2] -> [batch, time * stride, channels]
      x = convolutions.CausalUpsample(channels, stride, name=f'block_{i}_up')(
        nn.elu(x)
      )
      for dilation in self.dilations:
        x = ResidualUnit(dilation, name=f'block_{i}_dilation_{dilation}')(x)
    # [batch, samples, channels] -> [batch, samples]
    x = convolutions.CausalConv(1, 7, name='conv_out')(nn.elu(x))
    return x[..., 0]
