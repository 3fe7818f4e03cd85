"""PANNs' Cnn14: scores of the 527 classes of AudioSet, at 16 or 32 kHz.

Kong et al., "PANNs: large-scale pretrained audio neural networks for audio
pattern recognition". Six pairs of convolutions on a log-mel spectrogram; batch
normalisation is folded into them when weights are converted.
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

from v2meow_jax import mels
from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weight_files
from v2meow_jax import weights
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import windowed

Array = jax.Array

_EPSILON = 1e-5  # of the batch normalisation
_MELS = 64


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions.

  Attributes:
    channels: of the six pairs of convolutions; the last is also the width of
      the layer before the classifier.
  """

  channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)


def log_mel(sample_rate_hz: int) -> mels.LogMel:
  """The spectrogram of a Cnn14 that was trained at this rate.

  Raises:
    ValueError: there is none.
  """
  shapes = {16000: (512, 160, 8000.0), 32000: (1024, 320, 14000.0)}
  if sample_rate_hz not in shapes:
    raise ValueError(
      f'Cnn14 at {sample_rate_hz} Hz, expected one of '
      f'{", ".join(map(str, shapes))}.'
    )
  window, hop, high_hz = shapes[sample_rate_hz]
  return mels.LogMel(
    sample_rate_hz=sample_rate_hz,
    window=window,
    hop=hop,
    fft=window,
    num_mels=_MELS,
    low_hz=50.0,
    high_hz=high_hz,
    scale='slaney',
    is_area_one=True,
    is_centred=True,
    floor=1e-10,
    is_decibel=True,
  )


class Network(nn.Module):
  """The network behind the spectrogram."""

  config: Config = Config()

  @nn.compact
  def __call__(self, spectrogram: Array) -> tuple[Array, Array]:
    """Hears spectrograms.

    Args:
      spectrogram: float32 `[batch, time, mels]`, at least 32 frames.

    Returns:
      Embeddings, float32 `[batch, channels]`, and scores before the sigmoid,
      `[batch, 527]`.
    """
    conv = functools.partial(
      nn.Conv, kernel_size=(3, 3), padding=1, precision='highest'
    )
    scale = self.param('norm_scale', nn.initializers.ones, (_MELS,))
    bias = self.param('norm_bias', nn.initializers.zeros, (_MELS,))
    x = (spectrogram * scale + bias)[..., None]
    last = len(self.config.channels)
    for number, channels in enumerate(self.config.channels, 1):
      x = nn.relu(conv(channels, name=f'conv_{number}_1')(x))
      x = nn.relu(conv(channels, name=f'conv_{number}_2')(x))
      if number < last:
        # [batch, time, mels, in] -> [batch, time / 2, mels / 2, channels]
        x = nn.avg_pool(x, (2, 2), (2, 2))
    # [batch, time, mels, channels] -> [batch, time, channels]
    x = x.mean(axis=2)
    # [batch, time, channels] -> [batch, channels]
    x = x.max(axis=1) + x.mean(axis=1)
    dense = functools.partial(nn.Dense, precision='highest')
    x = nn.relu(dense(self.config.channels[-1], name='hidden')(x))
    return x, dense(len(audioset.IDS), name='classifier')(x)


def expected(config: Mapping[str, Any]) -> dict:
  """Shapes of the parameters, see `pretrained.Checkpoint`."""
  network = Network(weights.configure(Config(), weights.add_config({}, config)))
  spectrogram = jax.ShapeDtypeStruct((1, 64, _MELS), jnp.float32)
  return jax.eval_shape(network.init, jax.random.PRNGKey(0), spectrogram)[
    'params'
  ]


class Panns(windowed.Windowed):
  """Cnn14 as an embedder: scores of the 527 classes, before the sigmoid."""

  def __init__(
    self,
    params: Mapping,
    config: Config = Config(),
    stream: str = 'panns_32k',
    window_seconds: float = 10.0,
    hop_seconds: float = 10.0,
  ):
    """Takes the weights.

    Args:
      params: as `v2meow weights convert` writes them.
      config: dimensions, where the weights do not say them.
      stream: 'panns_16k' or 'panns_32k', as they were trained.
      window_seconds: of a clip that it hears at once; 10 in training.
      hop_seconds: from one window to the next.

    Raises:
      UserError: weights that do not fit.
      ValueError: another stream, or a bad hop.
    """
    spec = streams.get(stream)
    front_end = log_mel(spec.sample_rate_hz)
    config = weights.configure(config, params)
    params = weights.without_config(params)
    weights.check_params(expected(dataclasses.asdict(config)), params)
    network = Network(config)
    super().__init__(
      stream,
      lambda params, x: network.apply({'params': params}, front_end(x))[1],
      params,
      round(window_seconds * spec.sample_rate_hz),
      hop_seconds,
      audioset.NAMES,
    )


def _convert(paths: Mapping[str, os.PathLike]) -> dict:
  """Their state is under `model`, and each normalisation apart."""
  (path,) = paths.values()
  arrays = {
    name.removeprefix('model.'): array
    for name, array in weight_files.read(path).items()
  }
  norm = lambda name: [
    f'{name}.{part}'
    for part in ('weight', 'bias', 'running_mean', 'running_var')
  ]
  table = {
    'norm_scale': (norm('bn0'), _scale),
    'norm_bias': (norm('bn0'), _bias),
    'hidden/kernel': ('fc1.weight', np.transpose),
    'hidden/bias': 'fc1.bias',
    'classifier/kernel': ('fc_audioset.weight', np.transpose),
    'classifier/bias': 'fc_audioset.bias',
  }
  count = sum(name.endswith('.conv1.weight') for name in arrays)
  for i in range(1, max(1, count) + 1):
    for j in (1, 2):
      theirs = norm(f'conv_block{i}.bn{j}')
      kernel = f'conv_block{i}.conv{j}.weight'
      table[f'conv_{i}_{j}/kernel'] = ([kernel, *theirs], _fold)
      table[f'conv_{i}_{j}/bias'] = (theirs, _bias)
  ignore = (
    # What computes the spectrogram, and how often a normalisation learnt.
    r'(spectrogram_extractor|logmel_extractor)\..*',
    r'.*num_batches_tracked',
    'iteration',
    r'sampler\..*',
  )
  params = weights.translate(arrays, table, ignore, os.fspath(path))
  widths = [
    int(params[f'conv_{i}_2']['bias'].shape[0])
    for i in range(1, max(1, count) + 1)
  ]
  return weights.add_config(params, dataclasses.asdict(Config(tuple(widths))))


def _scale(weight, bias, mean, variance):
  del bias, mean
  return weight / np.sqrt(variance + _EPSILON)


def _bias(weight, bias, mean, variance):
  return bias - mean * weight / np.sqrt(variance + _EPSILON)


def _fold(kernel, *norm):
  # [out, in, height, width] -> [height, width, in, out]
  return kernel.transpose(2, 3, 1, 0) * _scale(*norm)


_ORIGIN = 'https://zenodo.org/record/3987831'
CHECKPOINTS = (
  pretrained.Checkpoint(
    name='panns_16k',
    summary='PANNs Cnn14 at 16 kHz, 527 classes',
    licence='CC-BY-4.0',
    files=('Cnn14_16k_mAP=0.438.pth|panns.safetensors',),
    convert=_convert,
    expected=expected,
    origin=_ORIGIN,
  ),
  pretrained.Checkpoint(
    name='panns_32k',
    summary='PANNs Cnn14 at 32 kHz, 527 classes',
    licence='CC-BY-4.0',
    files=('Cnn14_mAP=0.431.pth|panns.safetensors',),
    convert=_convert,
    expected=expected,
    origin=_ORIGIN,
  ),
)
