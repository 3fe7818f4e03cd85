"""SoundStream: the codec of the paper, 16 kHz, 50 Hz, 12 levels of 1024 codes.

Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec"; geometry as
in AudioLM, whose tokens V2Meow models. Causal: a position sees its own samples
and those before, a sample its own position and those before. The paper's
optional denoising (section III-F, a condition that says whether to) is left
out.
"""

import dataclasses

from flax import linen as nn
import jax

from v2meow_jax import streams
from v2meow_jax.codecs import base
from v2meow_jax.codecs import seanet

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions of the network.

  Attributes:
    channels: features at the sample rate.
    strides: of the encoder's blocks; their product is the codec's hop.
    dilations: of the residual units of each block.
    num_features: features of a latent and of a codebook entry.
  """

  channels: int = 32
  strides: tuple[int, ...] = (2, 4, 5, 8)
  dilations: tuple[int, ...] = (1, 3, 9)
  num_features: int = 512


class Network(nn.Module):
  """Encoder and decoder; the quantiser stands between them, outside.

  Attributes:
    config: dimensions.
  """

  config: Config = Config()

  def setup(self):
    c = self.config
    self.encoder = seanet.Encoder(
      c.channels, c.strides, c.dilations, c.num_features
    )
    self.decoder = seanet.Decoder(c.channels, c.strides, c.dilations)

  @property
  def lookahead(self) -> int:
    """Samples past the end of a position that the encoder sees: none."""
    return 0

  @property
  def delay(self) -> int:
    """Samples by which decoding chunk by chunk runs behind: none."""
    return 0

  def __call__(self, waveform: Array) -> Array:
    """Encodes and decodes without quantiser; makes all parameters."""
    return self.decode(self.encode(waveform))

  def encode(self, waveform: Array) -> Array:
    """Maps float32 `[batch, time * hop]` to `[batch, time, num_features]`."""
    return self.encoder(waveform)

  def decode(self, latents: Array, num_valid: Array | None = None) -> Array:
    """Maps latents to a waveform.

    Args:
      latents: float32 `[batch, time, num_features]`.
      num_valid: unused; what lies behind the end cannot be heard before it.

    Returns:
      float32 `[batch, time * hop]`.
    """
    del num_valid
    return self.decoder(latents)

  def reconstruct(self, latents: Array, waveform: Array) -> Array:
    """What training compares with the original `waveform`: `decode`."""
    del waveform
    return self.decode(latents)


class SoundStream(base.Codec):
  """SoundStream with trained parameters. Attributes: see `base.Codec`."""

  def __init__(self, variables: dict, config: Config = Config()):
    super().__init__(streams.get('soundstream'), Network(config), variables)
