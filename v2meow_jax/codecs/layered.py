"""Codec of two layers: the bundled model's tokens, and on top the waveform.

The first levels are those of `spectrogram.py`, magnitudes alone, which small
stages can write; the phase is searched. The levels behind them say what the
magnitudes do not, so that all of them together keep the waveform of a given
sound, as SoundStream's do. What decodes them is a network of its own
(`spectral.py`), which also sees what the first levels say.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import rvq
from v2meow_jax.codecs import spectra
from v2meow_jax.codecs import spectral
from v2meow_jax.codecs import spectrogram

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config(spectra.Config):
  """Dimensions of the network of the upper layer.

  Attributes:
    below: dimensions of the lower layer.
  """

  decoder_blocks: int = 6
  num_features: int = 48
  below: spectrogram.Config = spectrogram.Config()


class Network(spectral.Network):
  """The upper layer: encodes a waveform, decodes the latents of both layers.

  Attributes: see `spectra.Network`.
  """

  config: Config = Config()

  def __call__(self, waveform: Array) -> Array:
    """Encodes and decodes without quantiser; makes all parameters."""
    latents = self.encode(waveform)
    below = jnp.zeros((*latents.shape[:2], self._num_features_below))
    return self.decode(jnp.concatenate([below, latents], axis=-1))

  @property
  def _num_features_below(self) -> int:
    return self.config.below.stack * self.config.below.num_features

  def unstack(self, latents: Array) -> Array:
    """See `spectra.Network`.

    Args:
      latents: float32 `[batch, time, features]`: those of the lower layer, and
        behind them those of this one.

    Returns:
      float32 `[batch, spectra, features / stack]`.
    """
    layers = jnp.split(latents, [self._num_features_below], axis=-1)
    return jnp.concatenate([*map(super().unstack, layers)], axis=-1)


def read_below(
  path: str | None, config: spectrogram.Config
) -> spectrogram.SpectrogramCodec:
  """Reads the lower layer, to train an upper one on it.

  Args:
    path: safetensors file of a `SpectrogramCodec`, or of both layers.
    config: its dimensions.

  Raises:
    errors.UserError: no file is given, or it cannot be read.
  """
  if path is None:
    raise errors.UserError(
      'No BELOW_WEIGHTS, expected the weights of a codec of '
      'codecs/spectrogram.gin, on which the upper layer is trained. Set '
      '--gin.BELOW_WEIGHTS.'
    )
  return spectrogram.SpectrogramCodec(weights.load_params(path), config)


class LayeredCodec(base.Codec):
  """16 kHz, 25 Hz, levels of 512 codes: 8 of magnitudes, 18 of the waveform.

  Its weights are those of a `SpectrogramCodec`, and beside them `upper`, those
  of the upper layer. Codes of the first 8 levels alone are decoded as that
  codec decodes them.

  Attributes: see `base.Codec`; `network` and `variables` are the upper layer's.
  """

  def __init__(self, variables: dict, config: Config = Config()):
    below = spectrogram.SpectrogramCodec(variables, config.below)
    super().__init__(
      streams.get('layered'), Network(config), variables['upper'], below
    )
    codebooks = below.variables['quantizer']['codebooks']
    self.variables['quantizer']['below'] = codebooks

  def encode_chunks(self, chunks: Iterable[Array]) -> Iterator[np.ndarray]:
    """See `base.Codec`."""
    # Both layers have the same hop, and so yield as many positions at a time.
    ours, theirs = itertools.tee(chunks)
    yield from map(
      lambda *layers: np.concatenate(layers, axis=-1),
      self.below.encode_chunks(theirs),
      super().encode_chunks(ours),
    )

  def decode_chunks(self, chunks: Iterable[Array]) -> Iterator[np.ndarray]:
    """See `base.Codec`."""
    chunks = iter(chunks)
    for first in chunks:
      chunks = itertools.chain([first], chunks)
      codec = self.of_levels(np.shape(first)[-1])
      if codec is not self:
        return codec.decode_chunks(chunks)
      break
    return super().decode_chunks(chunks)

  def _dequantize(self, quantizer: dict, codes: Array) -> Array:
    split = self.below.spec.num_levels
    below = rvq.decode(codes[..., :split], quantizer['below'])
    upper = rvq.decode(codes[..., split:], quantizer['codebooks'])
    return jnp.concatenate([below, upper], axis=-1)
