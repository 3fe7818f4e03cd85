"""w2v-BERT (Chung et al., 2021): the paper's semantic tokens, ours to train.

Log mels of 16-kHz sound, 100 frames a second, go through two convolutions that
leave a quarter of them, through the conformer blocks of the contrastive module
and those of the masked-prediction module (section 3.1). Tokens are k-means of
a block of the second module, the seventh as in AudioLM (Borsos et al., 2022).
`w2v_bert_model.py` trains it.

The defaults are the paper's XL model: 0.6 G parameters in 12 and 12 blocks of
width 1024 (table 1), with 8 heads and 5 taps, as the conformer XL of Zhang et
al. (2020) that it goes back to. The paper leaves open what follows the
convolution in a block; here it is a layer norm, because the statistics of a
batch would depend on how a batch is cut for devices and microbatches.
"""

from collections.abc import Mapping
import dataclasses
import functools
from types import ModuleType

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import mels
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.tokenizers import clustered
from v2meow_jax.tokenizers import conformer
from v2meow_jax.tokenizers import frames as frames_lib

Array = jax.Array

_SPEC = streams.get('w2v_bert')
NUM_MELS = 80
STEPS = 4  # frames a token
_WINDOW, _HOP, _FFT = 400, 160, 1024
_FLOOR = 1e-6
# Mean and deviation of the log mels of eight pieces of music, rounded.
_MEAN, _DEVIATION = -3.5, 5.0


@dataclasses.dataclass(frozen=True)
class Config(clustered.Config):
  """Dimensions of the network.

  Attributes:
    layer: blocks of the masked-prediction module behind which the features
      are taken.
    embed_dim: width.
    contrastive_layers: blocks of the contrastive module.
    masked_layers: blocks of the masked-prediction module.
    num_heads: attention heads.
    mlp_dim: inner width of the feed-forward steps.
    kernel_size: taps of the convolutions over time.
    conv_features: features of the two convolutions in front.
    dropout_rate: in training.
    remat: whether training computes blocks again in the backward pass.
    dtype: dtype of the computation.
  """

  embed_dim: int = 1024
  contrastive_layers: int = 12
  masked_layers: int = 12
  num_heads: int = 8
  mlp_dim: int = 4096
  kernel_size: int = 5
  conv_features: tuple[int, int] = (128, 32)
  dropout_rate: float = 0.1
  remat: bool = False
  dtype: str = 'float32'

  def conformer(self, num_layers: int) -> conformer.Config:
    """The conformer of a module."""
    return conformer.Config(
      embed_dim=self.embed_dim,
      num_layers=num_layers,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      kernel_size=self.kernel_size,
      dropout_rate=self.dropout_rate,
      remat=self.remat,
      dtype=self.dtype,
    )

  def dimensions(self) -> dict:
    """What a file of weights says of them."""
    names = (
      'embed_dim',
      'contrastive_layers',
      'masked_layers',
      'num_heads',
      'mlp_dim',
      'kernel_size',
      'conv_features',
    )
    return {name: getattr(self, name) for name in names}


def _log_mel(frames, xp: ModuleType):
  """Maps `[…, frames, 400]` samples to standardised log mels."""
  window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
  matrix = mels.filters(
    _SPEC.sample_rate_hz, _FFT, NUM_MELS, low_hz=20.0, high_hz=8000.0
  )
  spectrum = xp.fft.rfft(frames * window, _FFT)
  power = spectrum.real**2 + spectrum.imag**2
  x = xp.log(xp.maximum(power @ matrix, _FLOOR))
  return (x - _MEAN) / _DEVIATION


# Silence at both ends, so that the four frames of a token, as long as 880
# samples, have their middle in the middle of its 640.
_MARGIN = (_WINDOW - _HOP) // 2


def log_mel(waveform: Array) -> Array:
  """Log mels of a batch, inside a compiled program.

  Args:
    waveform: float32 `[batch, samples]`, samples a multiple of the hop.

  Returns:
    float32 `[batch, time, 4, 80]`, about standardised.
  """
  batch, num_samples = waveform.shape
  start = np.arange(num_samples // _HOP) * _HOP
  waveform = jnp.pad(waveform, ((0, 0), (_MARGIN, _MARGIN)))
  frames = waveform[:, start[:, None] + np.arange(_WINDOW)]
  return _log_mel(frames, jnp).reshape(batch, -1, STEPS, NUM_MELS)


class Network(nn.Module):
  """The network without what only training needs.

  Attributes:
    config: dimensions, and the layer that is returned.
  """

  config: Config
  steps = STEPS
  bins = NUM_MELS

  @property
  def num_layers(self) -> int:
    return self.config.masked_layers

  @property
  def embed_dim(self) -> int:
    return self.config.embed_dim

  def setup(self):
    c = self.config
    self.convolutions = [
      nn.Conv(features, (3, 3), (2, 2), dtype=c.dtype)
      for features in c.conv_features
    ]
    first = c.conformer(c.contrastive_layers)
    self.input_norm = conformer.layer_norm(first, None)
    self.projection = conformer.dense(
      c.embed_dim, ('mel', 'embed'), first, None
    )
    self.contrastive = conformer.Conformer(first)
    self.masked = conformer.Conformer(c.conformer(c.masked_layers))

  def __call__(self, frames: Array, mask: Array) -> Array:
    """Maps `[batch, time, 4, 80]` to the layer's `[batch, time, embed]`."""
    layer = None if self.is_initializing() else self.config.layer
    return self.contextualise(self.encode(frames, mask), mask, layer)[1]

  def encode(self, frames: Array, mask: Array | None = None) -> Array:
    """The feature encoder (section 3.1.1).

    Args:
      frames: `[batch, time, 4, 80]`.
      mask: bool `[batch, time]`, False for padding.

    Returns:
      `[batch, time, features]`, normalised.
    """
    batch, time = frames.shape[:2]
    if mask is None:
      mask = jnp.ones((batch, time), bool)
    x = frames.reshape(batch, time * STEPS, NUM_MELS, 1)
    x = jnp.where(mask.repeat(STEPS, axis=1)[..., None, None], x, 0)
    for repeats, convolution in zip((2, 1), self.convolutions):
      x = nn.relu(convolution(x))
      x = jnp.where(mask.repeat(repeats, axis=1)[..., None, None], x, 0)
    # [batch, time, mels / 4, features] -> [batch, time, mels / 4 * features]
    return self.input_norm(x.reshape(batch, time, -1))

  def contextualise(
    self,
    x: Array,
    mask: Array | None = None,
    layer: int | None = None,
    deterministic: bool = True,
  ) -> tuple[Array, Array]:
    """The two modules (sections 3.1.2 and 3.1.3).

    Args:
      x: what `encode` gives, or noise where positions are masked.
      mask: bool `[batch, time]`, False for padding.
      layer: blocks of the second module; all by default.
      deterministic: False for dropout.

    Returns:
      Context vectors behind either module, `[batch, time, embed]`.
    """
    first = self.contrastive(self.projection(x), mask, None, deterministic)
    return first, self.masked(first, mask, layer, deterministic)


class W2vBert(clustered.Clustered):
  """Semantic tokens at 25 Hz from w2v-BERT."""

  spec = _SPEC

  def __init__(self, params: Mapping, config: Config = Config()):
    """Makes a tokenizer; see `clustered.Clustered`.

    Args:
      params: weights that training exported, or those with a fit.
      config: the layer, the windows and, where the weights do not say them,
        the dimensions.
    """
    super().__init__(params, Network(weights.configure(config, params)))

  def _frames(self, waveform: np.ndarray) -> np.ndarray:
    transform = functools.partial(_log_mel, xp=np)
    waveform = np.pad(waveform, _MARGIN)
    return frames_lib.blocks(waveform, _WINDOW, _HOP, transform)
