"""VGGish: 128 numbers for each second or so of sound, as FADs compare them.

Hershey et al., "CNN architectures for large-scale audio classification";
numbers of `research/audioset/vggish` of TensorFlow's models. 96 frames of a
log-mel spectrogram go through six convolutions, four halvings and three dense
layers; the embedding is the last one's, before any activation.
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
from v2meow_jax.embedders import windowed

Array = jax.Array

_SPEC = streams.get('vggish')
FRAMES = 96
LOG_MEL = mels.LogMel(
  sample_rate_hz=_SPEC.sample_rate_hz,
  window=400,
  hop=160,
  fft=512,
  num_mels=64,
  low_hz=125.0,
  high_hz=7500.0,
  slopes='mel',
  power=1,
  offset=0.01,
)
# Samples that 96 frames hear: 0.975 s.
WINDOW = (FRAMES - 1) * LOG_MEL.hop + LOG_MEL.window
_LIMIT = 2.0  # of a component behind the PCA, as AudioSet's features have it


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions.

  Attributes:
    channels: of the convolutions between two halvings; the last two are two.
    hidden: width of the dense layers.
  """

  channels: tuple[int, int, int, int] = (64, 128, 256, 512)
  hidden: int = 4096


class Network(nn.Module):
  """The network behind the spectrogram."""

  config: Config = Config()

  @nn.compact
  def __call__(self, patches: Array) -> Array:
    """Maps float32 `[batch, frames, mels]` to `[batch, 128]`."""
    one, two, three, four = self.config.channels
    conv = functools.partial(nn.Conv, kernel_size=(3, 3), precision='highest')
    dense = functools.partial(nn.Dense, precision='highest')
    x = patches[..., None]
    for group in (
      {'conv1': one},
      {'conv2': two},
      {'conv3_1': three, 'conv3_2': three},
      {'conv4_1': four, 'conv4_2': four},
    ):
      for name, features in group.items():
        x = nn.relu(conv(features, name=name)(x))
      # [batch, time, mels, channels] -> [batch, time / 2, mels / 2, channels]
      x = nn.max_pool(x, (2, 2), (2, 2))
    # [batch, time, mels, channels] -> [batch, time * mels * channels]
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(dense(self.config.hidden, name='fc1_1')(x))
    x = nn.relu(dense(self.config.hidden, name='fc1_2')(x))
    return dense(_SPEC.num_features, name='fc2')(x)


def expected(config: Mapping[str, Any]) -> dict:
  """Shapes of the parameters, see `pretrained.Checkpoint`."""
  network = Network(weights.configure(Config(), weights.add_config({}, config)))
  patches = jax.ShapeDtypeStruct((1, FRAMES, LOG_MEL.num_mels), jnp.float32)
  return jax.eval_shape(network.init, jax.random.PRNGKey(0), patches)['params']


class VGGish(windowed.Windowed):
  """VGGish as an embedder of windows of 0.975 s."""

  def __init__(
    self,
    params: Mapping,
    config: Config = Config(),
    hop_seconds: float = 0.96,
    has_final_relu: bool = False,
    pca: str | os.PathLike | None = None,
    is_quantized: bool = False,
  ):
    """Takes the weights.

    Args:
      params: as `v2meow weights convert` writes them.
      config: dimensions, where the weights do not say them.
      hop_seconds: from one window to the next; Google's FAD has 0.5.
      has_final_relu: whether the embedding goes through a ReLU, as in
        torchvggish.
      pca: NumPy archive of `pca_eigen_vectors` `[128, 128]` and `pca_means`
        `[128]` or `[128, 1]`, such as vggish_pca_params.npz, to whiten the
        embedding with and clip it to -2..2; None for none.
      is_quantized: whether what is whitened is then one of the whole numbers
        from 0 (-2) to 255 (2), as in AudioSet's features.

    Raises:
      UserError: weights that do not fit.
      ValueError: `is_quantized` without `pca`, or a bad hop.
    """
    if is_quantized and pca is None:
      raise ValueError(
        'is_quantized without pca, expected both or none. Name the file of '
        'the PCA.'
      )
    config = weights.configure(config, params)
    params = weights.without_config(params)
    weights.check_params(expected(dataclasses.asdict(config)), params)
    variables = {'params': params}
    if pca is not None:
      variables['pca'] = _read_pca(pca)
    network = Network(config)

    def embed(variables, waveform):
      x = network.apply({'params': variables['params']}, LOG_MEL(waveform))
      if has_final_relu:
        x = nn.relu(x)
      if pca is not None:
        x = _whiten(x, variables['pca'], is_quantized)
      return x

    super().__init__(_SPEC.name, embed, variables, WINDOW, hop_seconds)


def _read_pca(path):
  size = _SPEC.num_features
  found = weight_files.read(path)
  if 'pca_means' in found and found['pca_means'].size == size:
    found['pca_means'] = found['pca_means'].reshape(size)
  given = {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}
  weights.check_params(
    {
      'pca_eigen_vectors': jax.ShapeDtypeStruct((size, size), jnp.float32),
      'pca_means': jax.ShapeDtypeStruct((size,), jnp.float32),
    },
    given,
  )
  return given


def _whiten(x: Array, pca: Mapping[str, Array], is_quantized: bool) -> Array:
  x = jnp.matmul(
    x - pca['pca_means'], pca['pca_eigen_vectors'].T, precision='highest'
  )
  x = jnp.clip(x, -_LIMIT, _LIMIT)
  if is_quantized:  # cut off, as Google's code does; torchvggish rounds
    x = jnp.floor((x + _LIMIT) * (255.0 / (2 * _LIMIT)))
  return x


# Our names, theirs in TensorFlow, and their number in torchvggish.
_LAYERS = (
  ('conv1', 'conv1', 'features.0'),
  ('conv2', 'conv2', 'features.3'),
  ('conv3_1', 'conv3/conv3_1', 'features.6'),
  ('conv3_2', 'conv3/conv3_2', 'features.8'),
  ('conv4_1', 'conv4/conv4_1', 'features.11'),
  ('conv4_2', 'conv4/conv4_2', 'features.13'),
  ('fc1_1', 'fc1/fc1_1', 'embeddings.0'),
  ('fc1_2', 'fc1/fc1_2', 'embeddings.2'),
  ('fc2', 'fc2', 'embeddings.4'),
)


def _convert_tensorflow(paths: Mapping[str, os.PathLike]) -> dict:
  (path,) = paths.values()
  table = {}
  for ours, theirs, _ in _LAYERS:
    table[f'{ours}/kernel'] = f'vggish/{theirs}/weights'
    table[f'{ours}/bias'] = f'vggish/{theirs}/biases'
  ignore = (r'global_step', r'.*/(Adam|Adam_1)', r'beta[12]_power')
  arrays = weight_files.read(path)
  return _say_dimensions(
    weights.translate(arrays, table, ignore, os.fspath(path))
  )


def _convert_torch(paths: Mapping[str, os.PathLike]) -> dict:
  """torchvggish turns to time, mels, channels before its dense layers: so do
  we, and their order of inputs is ours."""
  (path,) = paths.values()
  table = {}
  for ours, _, theirs in _LAYERS:
    table[f'{ours}/kernel'] = (f'{theirs}.weight', _from_torch)
    table[f'{ours}/bias'] = f'{theirs}.bias'
  arrays = weight_files.read(path)
  return _say_dimensions(
    weights.translate(arrays, table, (r'pproc\..*',), os.fspath(path))
  )


def _from_torch(kernel: np.ndarray) -> np.ndarray:
  """`[out, in, height, width]` or `[out, in]` to ours, inputs first."""
  return np.moveaxis(kernel, (0, 1), (-1, -2))


def _say_dimensions(params: dict) -> dict:
  width = lambda name: int(params[name]['bias'].shape[0])
  channels = tuple(map(width, ('conv1', 'conv2', 'conv3_2', 'conv4_2')))
  config = Config(channels, width('fc1_2'))
  return weights.add_config(params, dataclasses.asdict(config))


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='vggish',
    summary='VGGish, the TensorFlow checkpoint',
    licence='Apache-2.0',
    files=('vggish_model.ckpt|vggish_model.ckpt.index',),
    convert=_convert_tensorflow,
    expected=expected,
    origin='https://github.com/tensorflow/models/tree/master/research/audioset/'
    'vggish',
  ),
  pretrained.Checkpoint(
    name='vggish_torch',
    summary='VGGish, as torchvggish publishes it',
    licence='Apache-2.0',
    files=('vggish-10086976.pth|vggish.pth|vggish.safetensors',),
    convert=_convert_torch,
    expected=expected,
    origin='https://github.com/harritaylor/torchvggish/releases',
  ),
)
