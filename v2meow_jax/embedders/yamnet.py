"""YAMNet: what is heard, in 521 classes of AudioSet, twice a second.

MobileNet v1 on patches of 96 log-mel frames (`research/audioset/yamnet` of
TensorFlow's models). Batch normalisation is folded into the convolutions when
weights are converted.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weight_files
from v2meow_jax import weights
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import vggish
from v2meow_jax.embedders import windowed

Array = jax.Array

_SPEC = streams.get('yamnet')
_EMBEDDING = streams.get('yamnet_embedding')
# As VGGish hears, but for the offset.
LOG_MEL = dataclasses.replace(vggish.LOG_MEL, offset=0.001)
# Strides of the depthwise convolutions.
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions.

  Attributes:
    channels: of the first convolution, and of the thirteen pairs behind it.
    limit: where an activation ends: 6 in the models of TFLite, none (0) in
      that of Keras.
  """

  channels: tuple[int, ...] = (
      32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024,
  )  # fmt: skip
  limit: float = 0.0


class Network(nn.Module):
  """The network behind the spectrogram."""

  config: Config = Config()

  @nn.compact
  def __call__(self, patches: Array) -> tuple[Array, Array]:
    """Hears patches.

    Args:
      patches: float32 `[batch, frames, mels]`.

    Returns:
      Embeddings, float32 `[batch, 1024]`, and scores before the sigmoid,
      `[batch, 521]`.
    """
    conv = functools.partial(nn.Conv, padding='SAME', precision='highest')
    first, *rest = self.config.channels
    x = patches[..., None]
    # [batch, time, mels, 1] -> [batch, time / 2, mels / 2, channels]
    x = self._bend(conv(first, (3, 3), (2, 2), name='conv_1')(x))
    for number, (channels, stride) in enumerate(zip(rest, _STRIDES), 2):
      x = conv(
        x.shape[-1],
        (3, 3),
        (stride, stride),
        feature_group_count=x.shape[-1],
        name=f'depthwise_{number}',
      )(x)
      x = conv(channels, (1, 1), name=f'pointwise_{number}')(self._bend(x))
      x = self._bend(x)
    # [batch, time, mels, channels] -> [batch, channels]
    embedding = x.mean(axis=(1, 2))
    dense = nn.Dense(_SPEC.num_features, precision='highest', name='classifier')
    return embedding, dense(embedding)

  def _bend(self, x):
    x = nn.relu(x)
    return jnp.minimum(x, self.config.limit) if self.config.limit else x


def expected(config: Mapping[str, Any]) -> dict:
  """Shapes of the parameters, see `pretrained.Checkpoint`."""
  network = Network(weights.configure(Config(), weights.add_config({}, config)))
  patches = jax.ShapeDtypeStruct(
    (1, vggish.FRAMES, LOG_MEL.num_mels), jnp.float32
  )
  return jax.eval_shape(network.init, jax.random.PRNGKey(0), patches)['params']


class YAMNet(windowed.Windowed):
  """YAMNet as an embedder of windows of 0.975 s.

  Attributes:
    labels: names of the 521 classes, whose scores are before the sigmoid; ()
      where embeddings are asked for.
  """

  def __init__(
    self,
    params: Mapping,
    config: Config = Config(),
    hop_seconds: float = 0.48,
    stream: str = _SPEC.name,
  ):
    """Takes the weights.

    Args:
      params: as `v2meow weights convert` writes them.
      config: dimensions, where the weights do not say them.
      hop_seconds: from one window to the next.
      stream: 'yamnet' for scores, 'yamnet_embedding' for what they are made
        of.

    Raises:
      UserError: weights that do not fit.
      ValueError: another stream, or a bad hop.
    """
    choices = (_SPEC.name, _EMBEDDING.name)
    if stream not in choices:
      raise ValueError(
        f'YAMNet for stream `{stream}`, expected {" or ".join(choices)}.'
      )
    config = weights.configure(config, params)
    params = weights.without_config(params)
    weights.check_params(expected(dataclasses.asdict(config)), params)
    network, has_scores = Network(config), stream == _SPEC.name
    super().__init__(
      stream,
      lambda params, x: network.apply({'params': params}, LOG_MEL(x))[
        int(has_scores)
      ],
      params,
      vggish.WINDOW,
      hop_seconds,
      audioset.YAMNET_NAMES if has_scores else (),
    )


def _layers() -> list[str]:
  """Names of the layers with weights, in order."""
  pairs = (
    (f'depthwise_{i}', f'pointwise_{i}') for i in range(2, 2 + len(_STRIDES))
  )
  return ['conv_1', *(name for pair in pairs for name in pair), 'classifier']


# The names of the TFLite model's constants say how it was made; what counts
# are the number of the layer and, of two, which is the kernel.
_TFLITE_NAME = re.compile(
  r'(?:tower0/)?network/layer(\d+)/(?:sep)?(?:conv|fc)/'
)


def _convert_tflite(paths: Mapping[str, os.PathLike]) -> dict:
  (path,) = paths.values()
  arrays, table = {}, {}
  for name, array in weight_files.read(path).items():
    match = _TFLITE_NAME.match(name)
    if match:  # the others are sizes and axes of operations
      what = 'bias' if array.ndim == 1 else 'kernel'
      arrays[f'layer {match[1]} {what}'] = array
  layers = _layers()
  for place, name in enumerate(layers):
    # Averaging is a layer, too, the one before the last.
    number = place + 1 + (name == 'classifier')
    turn = _from_tflite_dense if name == 'classifier' else _from_tflite
    table[f'{name}/kernel'] = (f'layer {number} kernel', turn)
    table[f'{name}/bias'] = f'layer {number} bias'
  params = weights.translate(arrays, table, what=os.fspath(path))
  return _say_dimensions(params, limit=6.0)


def _from_tflite(kernel: np.ndarray) -> np.ndarray:
  """`[out, height, width, in]` or `[1, height, width, out]` to ours."""
  if kernel.shape[0] == 1 and kernel.shape[1:3] == (3, 3):
    return kernel.transpose(1, 2, 0, 3)  # one input for each output
  return kernel.transpose(1, 2, 3, 0)


def _from_tflite_dense(kernel: np.ndarray) -> np.ndarray:
  return kernel.T


_EPSILON = 1e-4  # of the batch normalisation, params.py of YAMNet


def _convert_keras(paths: Mapping[str, os.PathLike]) -> dict:
  """Keras files name each array `layer/layer/variable:0`, in folders."""
  (path,) = paths.values()
  arrays = {
    _keras_name(name): array for name, array in weight_files.read(path).items()
  }
  table = {}
  for ours, theirs in zip(_layers(), _keras_layers(), strict=True):
    if ours == 'classifier':
      table['classifier/kernel'] = 'kernel'
      table['classifier/bias'] = 'bias'
      continue
    kind = 'depthwise_kernel' if 'depthwise' in theirs else 'kernel'
    mean, variance = (
      f'{theirs}/bn/moving_{what}' for what in ('mean', 'variance')
    )
    fold = _fold_depthwise if 'depthwise' in theirs else _fold
    table[f'{ours}/kernel'] = ((f'{theirs}/{kind}', variance), fold)
    table[f'{ours}/bias'] = ((f'{theirs}/bn/beta', mean, variance), _fold_bias)
  params = weights.translate(arrays, table, what=os.fspath(path))
  return _say_dimensions(params, limit=0.0)


def _keras_layers() -> list[str]:
  names = ['layer1/conv']
  for i in range(2, 2 + len(_STRIDES)):
    names += [f'layer{i}/depthwise_conv', f'layer{i}/pointwise_conv']
  return [*names, 'dense']


def _keras_name(name: str) -> str:
  """`layer1/conv/layer1/conv/kernel:0` and the like to `layer1/conv/kernel`."""
  parts = name.removesuffix(':0').split('/')
  for i, part in enumerate(parts):
    if part.startswith('layer') and part in parts[i + 1 :]:
      return '/'.join(parts[i + 1 + parts[i + 1 :].index(part) :])
  if parts[0].startswith('dense') or 'logits' in parts[0]:
    return parts[-1]
  return '/'.join(parts)


def _fold(kernel, variance):
  return kernel / np.sqrt(variance + _EPSILON)


def _fold_depthwise(kernel, variance):
  # [height, width, channels, 1] -> [height, width, 1, channels]
  return _fold(kernel.transpose(0, 1, 3, 2), variance)


def _fold_bias(beta, mean, variance):
  return beta - mean / np.sqrt(variance + _EPSILON)


def _say_dimensions(params: dict, limit: float) -> dict:
  widths = [
    int(params[name]['bias'].shape[0])
    for name in _layers()
    if name.startswith(('conv', 'pointwise'))
  ]
  config = Config(tuple(widths), limit)
  return weights.add_config(params, dataclasses.asdict(config))


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='yamnet_tflite',
    summary='YAMNet on log-mel patches, quantised weights',
    licence='Apache-2.0',
    files=('yamnet_spectra_in.tflite',),
    convert=_convert_tflite,
    expected=expected,
    origin='https://github.com/google-coral/coralmicro/tree/main/models',
    sha256={
      'yamnet_spectra_in.tflite': '0a266465c46718f3fcc4137366be82882a8c93bfcc4f'
      '0278581a11d11dddcdf9'
    },
  ),
  pretrained.Checkpoint(
    name='yamnet',
    summary='YAMNet, the Keras weights',
    licence='Apache-2.0',
    files=('yamnet.h5',),
    convert=_convert_keras,
    expected=expected,
    origin='https://github.com/tensorflow/models/tree/master/research/audioset/'
    'yamnet',
  ),
)
