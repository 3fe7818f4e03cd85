"""Adversaries for training a codec, and the losses between them and it.

Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", section
III-D: MelGAN's discriminator of waveforms at several scales, and one of the
complex STFT. The paper names neither their activation nor a normalisation of
their weights: here LeakyReLU of 0.2, as in MelGAN, and no normalisation.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax.codecs import losses

Array = jax.Array

# Mean magnitude of a feature map below which it counts as if it were this.
_FLOOR = 1e-3
# Widths of a residual unit of the STFT discriminator, over `stft_channels`:
# of its first convolution and of what comes out (figure 4). Time is halved by
# every second unit, frequency by each.
_STFT_UNITS = ((1, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16))


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions of the discriminators; the defaults are the paper's.

  Attributes:
    scales: by how much the waveform is brought down for each discriminator of
      waveforms: powers of two.
    wave_channels: features of its first layer; each stride has four times as
      many as the one before.
    wave_max_channels: most features of a layer.
    wave_strides: of its grouped convolutions.
    wave_group_size: inputs of a group of features.
    stft_window: samples per spectrum.
    stft_hop: samples between spectra; divides the window.
    stft_channels: features of the STFT discriminator's first layer.
  """

  scales: tuple[int, ...] = (1, 2, 4)
  wave_channels: int = 16
  wave_max_channels: int = 1024
  wave_strides: tuple[int, ...] = (4, 4, 4, 4)
  wave_group_size: int = 4
  stft_window: int = 1024
  stft_hop: int = 256
  stft_channels: int = 32

  def __post_init__(self):
    wrong = [s for s in self.scales if s < 1 or s & (s - 1)]
    if wrong:
      raise ValueError(
        f'scales has {wrong[0]}, expected powers of two. Set '
        'discriminators.Config.scales.'
      )


class Judgement(NamedTuple):
  """What a discriminator makes of a batch of waveforms.

  Attributes:
    logits: float32 `[batch, time]`, above 0 for what it takes for real.
    features: outputs of its inner layers, `[batch, time, …]`, first layer
      first.
  """

  logits: Array
  features: tuple[Array, ...]


def _activation(x: Array) -> Array:
  return nn.leaky_relu(x, 0.2)


class WaveDiscriminator(nn.Module):
  """MelGAN's discriminator of waveforms at one scale.

  Attributes:
    config: dimensions.
    scale: by how much the waveform is brought down.
  """

  config: Config
  scale: int = 1

  @nn.compact
  def __call__(self, waveform: Array) -> Judgement:
    """Judges float32 `[batch, samples]`."""
    c = self.config
    x = waveform[..., None]
    for _ in range(self.scale.bit_length() - 1):
      # [batch, samples, 1] -> [batch, samples / 2, 1]
      x = nn.avg_pool(x, (4,), (2,), ((1, 1),), count_include_pad=False)
    channels = c.wave_channels
    x = _activation(nn.Conv(channels, (15,), padding=7, name='conv_in')(x))
    features = [x]
    for i, stride in enumerate(c.wave_strides):
      groups = channels // min(c.wave_group_size, channels)
      channels = min(4 * channels, c.wave_max_channels)
      # [batch, time, features] -> [batch, time / stride, 4 * features]
      x = nn.Conv(
        channels,
        (10 * stride + 1,),
        strides=stride,
        padding=5 * stride,
        feature_group_count=groups,
        name=f'down_{i}',
      )(x)
      features.append(x := _activation(x))
    x = _activation(nn.Conv(channels, (5,), padding=2, name='conv_out')(x))
    features.append(x)
    logits = nn.Conv(1, (3,), padding=1, name='logits')(x)
    return Judgement(logits[..., 0], tuple(features))


class ResidualUnit(nn.Module):
  """Two convolutions over time and frequency, the second with strides.

  Attributes:
    inner: features between the two.
    features: features of the output.
    strides: of the second, in time and in frequency.
  """

  inner: int
  features: int
  strides: tuple[int, int]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, time, bins, in]` to both axes over their stride."""
    kernel = tuple(stride + 2 for stride in self.strides)
    y = nn.Conv(self.inner, (3, 3), name='conv')(_activation(x))
    y = nn.Conv(self.features, kernel, self.strides, name='down')(
      _activation(y)
    )
    return y + nn.Conv(self.features, (1, 1), self.strides, name='skip')(x)


class StftDiscriminator(nn.Module):
  """Discriminator of complex short-time spectra, at one scale.

  Attributes:
    config: dimensions.
  """

  config: Config

  @nn.compact
  def __call__(self, waveform: Array) -> Judgement:
    """Judges float32 `[batch, samples]`."""
    c = self.config
    window = losses.hann_window(c.stft_window)
    # White noise of RMS 1 has magnitude 1. The paper's window / 2 bins: the
    # highest is left out.
    gain = window.sum() / np.sqrt(np.square(window).sum())
    spectrum = losses.stft(waveform, c.stft_window, c.stft_hop)[..., :-1] * gain
    # [batch, time, bins] -> [batch, time, bins, 2]
    x = jnp.stack([spectrum.real, spectrum.imag], axis=-1)
    x = nn.Conv(c.stft_channels, (7, 7), name='conv_in')(x)
    features = [x]
    for i, (inner, outer) in enumerate(_STFT_UNITS):
      x = ResidualUnit(
        inner * c.stft_channels,
        outer * c.stft_channels,
        (1 + i % 2, 2),
        name=f'unit_{i}',
      )(x)
      features.append(x)
    # [batch, time / 8, bins / 64, features] -> [batch, time / 8, 1, 1]
    logits = nn.Conv(1, (1, x.shape[2]), padding='VALID', name='logits')(
      _activation(x)
    )
    return Judgement(logits[..., 0, 0], tuple(features))


class Discriminators(nn.Module):
  """All discriminators of a codec.

  Attributes:
    config: dimensions.
  """

  config: Config = Config()

  @nn.compact
  def __call__(self, waveform: Array) -> list[Judgement]:
    """Judges float32 `[batch, samples]`: by its STFT, then at each scale."""
    c = self.config
    return [StftDiscriminator(c, name='stft')(waveform)] + [
      WaveDiscriminator(c, scale, name=f'wave_{scale}')(waveform)
      for scale in c.scales
    ]


def discriminator_loss(
  real: Sequence[Judgement], fake: Sequence[Judgement]
) -> Array:
  """Hinge loss of the discriminators, a mean over them and over time.

  Equation 1 of the paper: max(0, 1 - D(x)) + max(0, 1 + D(G(x))).

  Args:
    real: of real waveforms.
    fake: of the codec's.

  Returns:
    float32 `[batch]`.
  """
  parts = [
    nn.relu(1.0 - r.logits).mean(-1) + nn.relu(1.0 + f.logits).mean(-1)
    for r, f in zip(real, fake, strict=True)
  ]
  return sum(parts) / len(parts)


def adversarial_loss(fake: Sequence[Judgement]) -> Array:
  """Hinge loss of the codec, equation 2 of the paper: max(0, 1 - D(G(x))).

  Args:
    fake: of the codec's waveforms.

  Returns:
    float32 `[batch]`, a mean over discriminators and time.
  """
  parts = [nn.relu(1.0 - f.logits).mean(-1) for f in fake]
  return sum(parts) / len(parts)


def feature_distance(
  real: Sequence[Judgement], fake: Sequence[Judgement]
) -> Array:
  """L1 distance of inner features, a mean over all layers.

  Equation 3 of the paper, with each layer's distance over the mean magnitude
  of its real features: a discriminator cannot win by scaling them, and one
  weight serves all layers.

  Args:
    real: of real waveforms; it gets no gradient.
    fake: of the codec's.

  Returns:
    float32 `[batch]`, 0 for equal ones.
  """
  parts = []
  for r, f in zip(real, fake, strict=True):
    for a, b in zip(r.features, f.features, strict=True):
      a = jax.lax.stop_gradient(a)
      axes = tuple(range(1, a.ndim))
      scale = jnp.maximum(jnp.abs(a).mean(axes), _FLOOR)
      parts.append(jnp.abs(a - b).mean(axes) / scale)
  return sum(parts) / len(parts)
