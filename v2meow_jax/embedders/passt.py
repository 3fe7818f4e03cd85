"""PaSST: scores of the 527 classes of AudioSet from a Transformer, at 32 kHz.

Koutini et al., "Efficient training of audio transformers with Patchout". A
vision Transformer reads overlapping patches of a log-mel spectrogram of 10 s,
each with a position in time and one in frequency; two tokens gather what is
heard. It is the classifier of audiocraft's KL divergence.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import Any

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
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import windowed

Array = jax.Array

_SPEC = streams.get('passt')
_PATCH = 16
_HEAD = 64  # width of a head of attention
_LOG_MEL = mels.LogMel(
  sample_rate_hz=_SPEC.sample_rate_hz,
  window=800,
  hop=320,
  fft=1024,
  num_mels=128,
  low_hz=0.0,
  high_hz=15000.0,
  slopes='mel',
  is_centred=True,
  is_periodic=False,
  offset=1e-5,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions.

  Attributes:
    width: of the Transformer.
    mlp: width of its hidden layers.
    layers: blocks.
    heads: of attention.
    stride: bands and frames from one patch to the next.
    num_times: patches in time that have a position; later ones are not heard.
  """

  width: int = 768
  mlp: int = 3072
  layers: int = 12
  heads: int = 12
  stride: int = 10
  num_times: int = 99

  @property
  def num_bands(self) -> int:
    """Patches in frequency."""
    return (_LOG_MEL.num_mels - _PATCH) // self.stride + 1


def spectrogram(waveform: Array) -> Array:
  """Maps float32 `[batch, samples]` to `[batch, time, mels]`, about 0."""
  waveform = waveform[:, 1:] - 0.97 * waveform[:, :-1]  # pre-emphasis
  return (_LOG_MEL(waveform) + 4.5) / 5.0


class _Block(nn.Module):
  """Attention and hidden layer, each behind its normalisation."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    dense = functools.partial(nn.Dense, precision='highest')
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6)
    y = dense(3 * c.width, name='qkv')(norm(name='norm_1')(x))
    # [batch, tokens, 3 * width] -> 3 x [batch, tokens, heads, head]
    query, key, value = jnp.moveaxis(
      y.reshape(*y.shape[:2], 3, c.heads, -1), 2, 0
    )
    weight = jnp.einsum('bqhd,bkhd->bhqk', query, key, precision='highest')
    weight = nn.softmax(weight / jnp.sqrt(query.shape[-1]), axis=-1)
    y = jnp.einsum('bhqk,bkhd->bqhd', weight, value, precision='highest')
    x += dense(c.width, name='project')(y.reshape(x.shape))
    y = dense(c.mlp, name='hidden')(norm(name='norm_2')(x))
    return x + dense(c.width, name='out')(nn.gelu(y, approximate=False))


class Network(nn.Module):
  """The network behind the spectrogram."""

  config: Config = Config()

  @nn.compact
  def __call__(self, spectrogram: Array) -> Array:
    """Maps float32 `[batch, time, mels]` to scores `[batch, 527]`."""
    c = self.config
    zeros = nn.initializers.zeros
    # [batch, time, mels] -> [batch, bands, times, width]
    x = nn.Conv(
      c.width,
      (_PATCH, _PATCH),
      (c.stride, c.stride),
      padding='VALID',
      precision='highest',
      name='patches',
    )(spectrogram.swapaxes(1, 2)[..., None])
    times = self.param('times', zeros, (c.num_times, c.width))
    bands = self.param('bands', zeros, (c.num_bands, c.width))
    x = x[:, :, : c.num_times]
    x += times[: x.shape[2]] + bands[:, None]
    tokens = self.param('tokens', zeros, (2, c.width))
    tokens = jnp.broadcast_to(tokens, (x.shape[0], 2, c.width))
    # [batch, bands, times, width] -> [batch, 2 + patches, width]
    x = jnp.concatenate([tokens, x.reshape(x.shape[0], -1, c.width)], axis=1)
    for i in range(c.layers):
      x = _Block(c, name=f'block_{i}')(x)
    x = nn.LayerNorm(epsilon=1e-6, name='norm')(x[:, :2]).mean(axis=1)
    x = nn.LayerNorm(epsilon=1e-5, name='classifier_norm')(x)
    return nn.Dense(_SPEC.num_features, precision='highest', name='classifier')(
      x
    )


def expected(config: Mapping[str, Any]) -> dict:
  """Shapes of the parameters, see `pretrained.Checkpoint`."""
  network = Network(weights.configure(Config(), weights.add_config({}, config)))
  given = jax.ShapeDtypeStruct((1, 100, _LOG_MEL.num_mels), jnp.float32)
  return jax.eval_shape(network.init, jax.random.PRNGKey(0), given)['params']


class Passt(windowed.Windowed):
  """PaSST as an embedder: scores of the 527 classes, before the sigmoid."""

  def __init__(
    self,
    params: Mapping,
    config: Config = Config(),
    window_seconds: float = 10.0,
    hop_seconds: float = 10.0,
  ):
    """Takes the weights.

    Args:
      params: as `v2meow weights convert` writes them.
      config: dimensions, where the weights do not say them.
      window_seconds: of a clip that it hears at once; 10 in training.
      hop_seconds: from one window to the next.

    Raises:
      UserError: weights that do not fit.
      ValueError: a bad hop.
    """
    config = weights.configure(config, params)
    params = weights.without_config(params)
    weights.check_params(expected(dataclasses.asdict(config)), params)
    network = Network(config)
    super().__init__(
      _SPEC.name,
      lambda params, x: network.apply({'params': params}, spectrogram(x)),
      params,
      round(window_seconds * _SPEC.sample_rate_hz),
      hop_seconds,
      audioset.NAMES,
    )


# Strides that are published, by the patches in frequency that they give.
_STRIDES = {12: 10, 10: 12, 9: 14, 8: 16}


def _convert(paths: Mapping[str, os.PathLike]) -> dict:
  """Their names are those of timm's vision Transformer."""
  (path,) = paths.values()
  arrays = {
    name.removeprefix('net.'): array
    for name, array in weight_files.read(path).items()
  }
  table = {
    'patches/kernel': ('patch_embed.proj.weight', _turn_conv),
    'patches/bias': 'patch_embed.proj.bias',
    'times': ('time_new_pos_embed', lambda x: x[0, :, 0].T),
    'bands': ('freq_new_pos_embed', lambda x: x[0, :, :, 0].T),
    'tokens': (
      ('cls_token', 'dist_token', 'new_pos_embed'),
      lambda one, two, places: np.concatenate([one[0], two[0]]) + places[0],
    ),
  }

  def layer(ours, theirs, is_norm=False):
    table[f'{ours}/{"scale" if is_norm else "kernel"}'] = (
      f'{theirs}.weight',
      np.transpose,
    )
    table[f'{ours}/bias'] = f'{theirs}.bias'

  count = sum(name.endswith('.attn.qkv.weight') for name in arrays)
  for i in range(max(1, count)):
    layer(f'block_{i}/norm_1', f'blocks.{i}.norm1', is_norm=True)
    layer(f'block_{i}/qkv', f'blocks.{i}.attn.qkv')
    layer(f'block_{i}/project', f'blocks.{i}.attn.proj')
    layer(f'block_{i}/norm_2', f'blocks.{i}.norm2', is_norm=True)
    layer(f'block_{i}/hidden', f'blocks.{i}.mlp.fc1')
    layer(f'block_{i}/out', f'blocks.{i}.mlp.fc2')
  layer('norm', 'norm', is_norm=True)
  layer('classifier_norm', 'head.0', is_norm=True)
  layer('classifier', 'head.1')
  # A second classifier, which training alone has a use for, and their own
  # spectrogram.
  ignore = (r'head_dist\..*', r'mel\..*')
  params = weights.translate(arrays, table, ignore, os.fspath(path))
  bands, width = params['bands'].shape
  if bands not in _STRIDES:
    raise errors.UserError(
      f'{path}: {bands} patches in frequency, expected one of '
      f'{", ".join(map(str, _STRIDES))}. Use a PaSST of 128 mels.'
    )
  config = Config(
    width=width,
    mlp=len(params['block_0']['hidden']['bias']),
    layers=max(1, count),
    heads=max(1, width // _HEAD),
    stride=_STRIDES[bands],
    num_times=len(params['times']),
  )
  return weights.add_config(params, dataclasses.asdict(config))


def _turn_conv(kernel: np.ndarray) -> np.ndarray:
  # [out, in, height, width] -> [height, width, in, out]
  return kernel.transpose(2, 3, 1, 0)


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='passt',
    summary='PaSST-S, 527 classes, patches of 16 every 10',
    licence='Apache-2.0',
    files=('passt-s-f128-p16-s10-ap.476-swa.pt|passt.safetensors',),
    convert=_convert,
    expected=expected,
    origin='https://github.com/kkoutini/PaSST/releases',
  ),
)
