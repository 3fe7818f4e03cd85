"""Codec of waveforms by their spectra: a residual quantiser between two STFTs.

It keeps phase, and so the waveform itself.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from v2meow_jax import streams
from v2meow_jax.codecs import base
from v2meow_jax.codecs import losses
from v2meow_jax.codecs import spectra

Array = jax.Array

_CONFIG = spectra.Config()


class Network(spectra.Network):
  """Encoder and decoder; the quantiser stands between them, outside.

  Attributes: see `spectra.Network`.
  """

  def setup(self):
    super().setup()
    self.gain_head = nn.Dense(self.num_bins)
    self.wave_head = nn.Dense(2 * self.num_bins)

  @property
  def delay(self) -> int:
    """Samples by which decoding chunk by chunk runs behind."""
    return (self.config.window - self.config.hop) // 2

  def __call__(self, waveform: Array) -> Array:
    """Encodes and decodes without quantiser; makes all parameters."""
    return self.decode(self.encode(waveform))

  def describe(self, spectrum: Array) -> Array:
    """See `spectra.Network`: compressed spectra and loudness."""
    size = losses.magnitude(spectrum)
    gain = size ** (self.config.magnitude_power - 1.0)
    return jnp.concatenate(
      [spectrum.real * gain, spectrum.imag * gain, 0.2 * jnp.log(size)], -1
    )

  def decode(self, latents: Array, num_valid: Array | None = None) -> Array:
    """Maps latents to a waveform.

    Args:
      latents: float32 `[batch, time, stack * num_features]`.
      num_valid: int32 scalar; positions from here on lie behind the end of the
        clip and make no sound. None if all belong to it.

    Returns:
      float32 `[batch, time * hop]`; `delay` samples late if chunk by chunk.
    """
    x = self.decode_features(latents)
    # The wave head is linear and so learns phase early; the gain spans the
    # range of loudness. Bounded above: a wild latent must not become a wild
    # sample.
    gain = jnp.exp(jnp.minimum(self.gain_head(x) - 1.0, 6.0))
    real, imaginary = jnp.split(self.wave_head(x), 2, axis=-1)
    spectrum = jax.lax.complex(gain * real, gain * imaginary)
    return self.inverse_stft(spectrum, self.valid(latents, num_valid))

  def reconstruct(self, latents: Array, waveform: Array) -> Array:
    """What training compares with the original `waveform`: `decode`."""
    del waveform
    return self.decode(latents)


class SpectralCodec(base.Codec):
  """Keeps the waveform: 16 kHz, 25 Hz, 12 levels of 512 codes.

  Attributes: see `base.Codec`.
  """

  def __init__(self, variables: dict, config: spectra.Config = _CONFIG):
    super().__init__(streams.get('spectral'), Network(config), variables)
