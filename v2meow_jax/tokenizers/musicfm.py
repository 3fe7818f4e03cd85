"""MusicFM (Won et al., 2024): a conformer trained on music alone, at 25 Hz.

128 mels in decibels of 24-kHz sound, 100 a second, two residual convolutions
that leave a quarter of the frames, and 12 conformer blocks of width 1024 with
rotary positions (those of `Wav2Vec2ConformerModel`). Code and weights are at
github.com/minzwon/musicfm and huggingface.co/minzwon/MusicFM: of the Free Music
Archive ('fma') and of the Million Song Dataset ('msd'). Its authors take layer
7; the last one has a norm more than the others.
"""

from collections.abc import Mapping
import dataclasses
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import errors
from v2meow_jax import mels
from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weight_files
from v2meow_jax import weights
from v2meow_jax.tokenizers import clustered
from v2meow_jax.tokenizers import conformer
from v2meow_jax.tokenizers import frames as frames_lib
from v2meow_jax.tokenizers import wav2vec_names as names

Array = np.ndarray

_SPEC = streams.get('musicfm')
NUM_MELS = 128
_WINDOW, _HOP = 2048, 240
_FLOOR = 1e-10  # -100 dB
# Of the network that MusicFM takes the dimensions of its heads from,
# facebook/wav2vec2-conformer-rope-large-960h-ft: 1024 / 16.
_HEAD_DIM = 64
_PREFIX = 'state_dict.model.'


@dataclasses.dataclass(frozen=True)
class Config(clustered.Config):
  """Dimensions of the network, as its checkpoint has them.

  Attributes:
    embed_dim: width.
    num_layers: conformer blocks.
    num_heads: attention heads.
    mlp_dim: inner width of the feed-forward steps.
    kernel_size: taps of the convolutions over time.
    conv_dim: features of the convolutions in front.
    mel_mean: mean of the mels of the training set, dB.
    mel_deviation: their deviation, dB.
    dtype: dtype of the computation.
  """

  layer: int = 7
  embed_dim: int = 1024
  num_layers: int = 12
  num_heads: int = 16
  mlp_dim: int = 4096
  kernel_size: int = 31
  conv_dim: int = 512
  mel_mean: float = 0.0
  mel_deviation: float = 1.0
  dtype: str = 'float32'

  @property
  def conformer(self) -> conformer.Config:
    """The conformer of these dimensions."""
    return conformer.Config(
      embed_dim=self.embed_dim,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      kernel_size=self.kernel_size,
      position='rotary',
      norm='batch',
      final_norm=True,
      dtype=self.dtype,
    )


class Residual(nn.Module):
  """Two convolutions over time and mels beside one; halves both."""

  config: Config

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps `[batch, time, mels, features]`; `mask` is `[batch, time / 2]`."""
    c = self.config
    mask = mask[:, :, None, None]

    def convolve(x, name, stride):
      x = nn.Conv(
        c.conv_dim, (3, 3), (stride, stride), 1, dtype=c.dtype, name=name
      )(x)
      return conformer.FrozenBatchNorm(name=f'{name}_norm')(x)

    inner = nn.relu(convolve(x, 'conv1', 2))
    inner = convolve(jnp.where(mask, inner, 0), 'conv2', 1)
    return jnp.where(mask, nn.relu(convolve(x, 'conv3', 2) + inner), 0)


class Network(nn.Module):
  """Convolutions over the mels, and conformer.

  Attributes:
    config: dimensions, and the layer that is returned.
  """

  config: Config
  steps = 4
  bins = NUM_MELS

  @property
  def num_layers(self) -> int:
    return self.config.num_layers

  @property
  def embed_dim(self) -> int:
    return self.config.embed_dim

  @nn.compact
  def __call__(self, frames: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps `[batch, time, 4, 128]`, standardised, to `[batch, time, embed]`."""
    c = self.config.conformer
    batch, time = mask.shape
    # [batch, time, 4, mels] -> [batch, 4 * time, mels, 1]
    x = frames.reshape(batch, time * self.steps, self.bins, 1)
    x = jnp.where(mask.repeat(4, axis=1)[..., None, None], x, 0)
    x = Residual(self.config, name='residual_0')(x, mask.repeat(2, axis=1))
    x = Residual(self.config, name='residual_1')(x, mask)
    # [batch, time, mels / 4, features] -> [batch, time, mels / 4 * features]
    x = x.reshape(batch, time, -1)
    x = conformer.dense(c.embed_dim, ('mel', 'embed'), c, 'projection')(x)
    layer = None if self.is_initializing() else self.config.layer
    return conformer.Conformer(c, name='conformer')(x, mask, layer)


def log_mel(waveform: Array) -> Array:
  """Mels in decibels, as torchaudio makes them.

  Args:
    waveform: float32 `[samples]` at 24 kHz, about [-1, 1].

  Returns:
    float32 `[frames, 128]`, frames = samples / 240 rounded down; the middle of
    frame i is sample 240 i; the ends of the clip are mirrored.
  """
  # Behind the last full hop stands the middle of a frame that is left out.
  num_frames = len(waveform) // _HOP
  margin = _WINDOW // 2
  # NumPy mirrors as often as it takes, where torch refuses shorter clips.
  waveform = np.pad(waveform, margin, mode='reflect')
  waveform = waveform[: _WINDOW + (num_frames - 1) * _HOP]
  window = np.hanning(_WINDOW + 1)[:-1]
  matrix = mels.filters(
    _SPEC.sample_rate_hz, _WINDOW, NUM_MELS, low_hz=0.0, high_hz=12_000.0
  )

  def transform(frames):
    power = frames_lib.power(frames * window, _WINDOW) @ matrix
    return 10 * np.log10(np.maximum(power, _FLOOR))

  return frames_lib.blocks(waveform, _WINDOW, _HOP, transform)


class MusicFm(clustered.Clustered):
  """Semantic tokens at 25 Hz from MusicFM."""

  spec = _SPEC

  def __init__(self, params: Mapping, config: Config = Config()):
    """Makes a tokenizer; see `clustered.Clustered`.

    Args:
      params: weights that `v2meow weights convert` wrote, or those with a fit.
      config: the layer, the windows and, where the weights do not say them,
        the dimensions.
    """
    super().__init__(params, Network(weights.configure(config, params)))

  def _frames(self, waveform: Array) -> Array:
    c = self.network.config
    return (log_mel(waveform) - c.mel_mean) / c.mel_deviation


def _find_config(arrays: Mapping[str, Array], stats: Mapping) -> dict:
  """Dimensions that a checkpoint has, as fields of `Config`."""
  default = Config()
  size = lambda name, axis, other: (
    int(arrays[name].shape[axis]) if name in arrays else other
  )
  layers = [re.match(r'conformer\.layers\.(\d+)\.', name) for name in arrays]
  embed_dim = size('conv.linear.weight', 0, default.embed_dim)
  block = 'conformer.layers.0'
  try:
    mean, deviation = (
      float(stats[f'melspec_{_WINDOW}_{name}']) for name in ('mean', 'std')
    )
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'The statistics of MusicFM have no number {error}, expected '
      f'melspec_{_WINDOW}_mean and melspec_{_WINDOW}_std. Use the JSON file '
      'beside its weights.'
    ) from error
  return {
    'embed_dim': embed_dim,
    'num_layers': 1 + max((int(m[1]) for m in layers if m), default=11),
    'num_heads': max(1, embed_dim // _HEAD_DIM),
    'mlp_dim': size(
      f'{block}.ffn1.intermediate_dense.weight', 0, default.mlp_dim
    ),
    'kernel_size': size(
      f'{block}.conv_module.depthwise_conv.weight', 2, default.kernel_size
    ),
    'conv_dim': size('conv.conv.0.conv1.weight', 0, default.conv_dim),
    'mel_mean': mean,
    'mel_deviation': deviation,
  }


def translate(arrays: Mapping[str, Array], stats: Mapping) -> dict:
  """Makes our weights of those of `MusicFM25Hz`.

  Args:
    arrays: theirs, by name, as they lie in the checkpoint.
    stats: mean and deviation of the training set's mels.

  Returns:
    Variables of `MusicFm`, with their config, without a fit.

  Raises:
    UserError: arrays are missing, or nothing uses them; so are statistics.
  """
  # What else a checkpoint holds is of its training.
  arrays = {
    name.removeprefix(_PREFIX): array
    for name, array in arrays.items()
    if name.startswith(_PREFIX)
  }
  config = _find_config(arrays, stats)
  table = names.norm('conformer/norm', 'conformer.layer_norm')
  table |= names.dense('projection', 'conv.linear')

  def projection(x):
    # [embed, (features, mels)] -> [(mels, features), embed]
    x = x.reshape(len(x), -1, NUM_MELS // 4)
    return x.transpose(2, 1, 0).reshape(-1, len(x))

  table['projection/kernel'] = ('conv.linear.weight', projection)
  for i in range(2):
    for j in (1, 2, 3):
      ours, theirs = f'residual_{i}/conv{j}', f'conv.conv.{i}'
      # [out, in, mels, time] -> [time, mels, in, out]
      table[f'{ours}/kernel'] = (f'{theirs}.conv{j}.weight', np.transpose)
      table[f'{ours}/bias'] = f'{theirs}.conv{j}.bias'
      table |= names.batch_norm(f'{ours}_norm', f'{theirs}.bn{j}')
  for i in range(config['num_layers']):
    table |= names.block(
      f'conformer/layers_{i}', f'conformer.layers.{i}', 'batch'
    )
  ignore = (
    r'.*\.num_batches_tracked',
    r'(linear|loss|cls_token|quantizer_\w+|preprocessor_\w+)(\..*)?',
    # Made, but never used: positions are rotary.
    r'conformer\.(pos_conv_embed|embed_positions)\..*',
  )
  params = weights.translate(arrays, table, ignore, 'MusicFM')
  return weights.add_config({'params': params}, config)


def _convert(paths):
  by_suffix = {path.suffix: path for path in paths.values()}
  stats = weight_files.read_json(by_suffix['.json'])
  return translate(weight_files.read(by_suffix['.pt']), stats)


def _expected(config):
  network = Network(weights.configure(Config(), weights.add_config({}, config)))
  is_fitted = 'layer' in config
  return clustered.expected(network, _SPEC.num_codes, is_fitted)


CHECKPOINTS = tuple(
  pretrained.Checkpoint(
    name=f'musicfm_{data}',
    summary=f'MusicFM of {what}: semantic tokens after a k-means fit',
    licence='MIT',
    files=(f'pretrained_{data}.pt', f'{data}_stats.json'),
    convert=_convert,
    expected=_expected,
    repository='minzwon/MusicFM',
    origin='https://github.com/minzwon/musicfm',
  )
  for data, what in (
    ('fma', 'the Free Music Archive'),
    ('msd', 'the Million Song Dataset'),
  )
)
