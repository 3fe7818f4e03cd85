"""EnCodec: 24 kHz, 75 Hz, the first 8 of 32 levels of 1024 codes.

Défossez et al., "High Fidelity Neural Audio Compression": SEANet with an LSTM
at the rate of the codes, all of it causal. Its weights are published
(`facebook/encodec_24khz`, MIT). The variant of 48 kHz, which hears in stereo
and normalises every second, is not.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weight_files
from v2meow_jax import weights
from v2meow_jax.codecs import chunked
from v2meow_jax.codecs import published

Array = jax.Array

_TAPS = 7
_RESIDUAL_TAPS = 3
# What the network is built for, by the names of the published config.
_FIXED = {
  'audio_channels': 1,
  'chunk_length_s': None,
  'compress': 2,
  'kernel_size': _TAPS,
  'last_kernel_size': _TAPS,
  'norm_type': 'weight_norm',
  'normalize': False,
  'num_residual_layers': 1,
  'pad_mode': 'reflect',
  'residual_kernel_size': _RESIDUAL_TAPS,
  'trim_right_ratio': 1.0,
  'use_causal_conv': True,
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions of the network; those of `facebook/encodec_24khz`.

  Attributes:
    channels: features at the sample rate; twice as many behind each stride.
    strides: of the encoder's blocks; their product is the codec's hop.
    lstm_layers: at the rate of the codes, in the encoder and in the decoder.
    num_features: features of a latent and of a codebook entry.
  """

  channels: int = 32
  strides: tuple[int, ...] = (2, 4, 5, 8)
  lstm_layers: int = 2
  num_features: int = 128


class Causal(nn.Module):
  """Convolution over time that sees no later input.

  Before the clip's start it sees the clip mirrored there.

  Attributes: see `chunked.Convolution`.
  """

  features: int
  kernel_size: int
  stride: int = 1

  @nn.compact
  def __call__(
    self, x: Array, span: chunked.Span
  ) -> tuple[Array, chunked.Span]:
    """Maps `[batch, time, in]` to `[batch, time / stride, features]`."""
    past = self.kernel_size - self.stride
    x = chunked.Past(past, mirrors=True, name='past')(x, span)
    x = chunked.Convolution(
      self.features, self.kernel_size, self.stride, name='conv'
    )(x)
    return x, span.divided(self.stride)


class ResidualUnit(nn.Module):
  """Convolutions of 3 taps and of 1, added to one of 1 tap of the input."""

  @nn.compact
  def __call__(self, x: Array, span: chunked.Span) -> Array:
    """Maps `[batch, time, features]` to the same shape."""
    features = x.shape[-1]
    y, _ = Causal(features // 2, _RESIDUAL_TAPS, name='narrow')(nn.elu(x), span)
    y = chunked.Convolution(features, 1, name='wide')(nn.elu(y))
    return chunked.Convolution(features, 1, name='shortcut')(x) + y


class Lstm(nn.Module):
  """Layers of long short-term memory, added to their input.

  Attributes:
    num_layers: of them, each as wide as the input.
  """

  num_layers: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, time, features]` to the same shape."""
    y = x
    for i in range(self.num_layers):
      y = _LstmLayer(name=f'layer_{i}')(y)
    return x + y


class _LstmLayer(nn.Module):
  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, _, features = x.shape
    init = nn.initializers.lecun_normal()
    # Gates: input, forget, cell, output.
    kernel = self.param('kernel', init, (features, 4 * features))
    recurrent = self.param('recurrent', init, (features, 4 * features))
    bias = self.param('bias', nn.initializers.zeros, (4 * features,))

    def step(carry, gates):
      state, cell = carry
      gates += state @ recurrent
      keep, forget, new, show = jnp.split(gates, 4, axis=-1)
      cell = nn.sigmoid(forget) * cell + nn.sigmoid(keep) * jnp.tanh(new)
      state = nn.sigmoid(show) * jnp.tanh(cell)
      return (state, cell), state

    empty = lambda: (jnp.zeros((batch, features), x.dtype),) * 2
    past = chunked.stream_variable(self, 'carry', empty)
    # All that does not wait for the step before, at once.
    gates = jnp.swapaxes(x @ kernel + bias, 0, 1)
    carry, states = jax.lax.scan(step, past.value if past else empty(), gates)
    if past:
      past.value = carry
    return jnp.swapaxes(states, 0, 1)


class Encoder(nn.Module):
  """Waveform to latents.

  Attributes:
    config: dimensions.
  """

  config: Config

  @nn.compact
  def __call__(
    self, x: Array, span: chunked.Span
  ) -> tuple[Array, chunked.Span]:
    """Maps `[batch, samples, 1]` to `[batch, time, num_features]`."""
    c = self.config
    x, span = Causal(c.channels, _TAPS, name='conv_in')(x, span)
    for i, stride in enumerate(c.strides):
      x = ResidualUnit(name=f'block_{i}_unit')(x, span)
      # [batch, time, channels] -> [batch, time / stride, 2 * channels]
      down = Causal(2 * x.shape[-1], 2 * stride, stride, name=f'block_{i}_down')
      x, span = down(nn.elu(x), span)
    x = Lstm(c.lstm_layers, name='lstm')(x)
    return Causal(c.num_features, _TAPS, name='conv_out')(nn.elu(x), span)


class Decoder(nn.Module):
  """Latents to waveform.

  Attributes:
    config: dimensions.
  """

  config: Config

  @nn.compact
  def __call__(
    self, x: Array, span: chunked.Span
  ) -> tuple[Array, chunked.Span]:
    """Maps `[batch, time, num_features]` to `[batch, samples, 1]`."""
    c = self.config
    width = c.channels * 2 ** len(c.strides)
    x, span = Causal(width, _TAPS, name='conv_in')(x, span)
    x = Lstm(c.lstm_layers, name='lstm')(x)
    for i, stride in reversed([*enumerate(c.strides)]):
      # [batch, time, channels] -> [batch, time * stride, channels / 2]
      up = chunked.Upsampling(x.shape[-1] // 2, stride, name=f'block_{i}_up')
      x, span = up(nn.elu(x), span)
      x = ResidualUnit(name=f'block_{i}_unit')(x, span)
    return Causal(1, _TAPS, name='conv_out')(nn.elu(x), span)


class Network(chunked.Network):
  """Encoder and decoder; the quantiser stands between them, outside.

  Attributes:
    config: dimensions.
  """

  config: Config = Config()

  def setup(self):
    super().setup()
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  @property
  def hop(self) -> int:
    """Samples per position."""
    return math.prod(self.config.strides)

  @property
  def encode_delay(self) -> int:
    """Positions by which encoding chunk by chunk lags behind: none."""
    return 0

  @property
  def delay(self) -> int:
    """Samples by which decoding chunk by chunk lags behind: none."""
    return 0


class Encodec(chunked.Codec):
  """EnCodec with trained parameters: 24 kHz, 75 Hz, 8 levels of 1024 codes.

  Attributes: see `base.Codec`.
  """

  def __init__(self, variables: Mapping, config: Config = Config()):
    """Makes a codec.

    Args:
      variables: as `v2meow weights convert encodec_24khz` writes them.
      config: dimensions, where the variables do not say them.

    Raises:
      UserError: the variables are not those of this network.
    """
    config = weights.configure(config, variables)
    given = weights.without_config(variables)
    # A checkpoint of training has the codebooks' averages beside them.
    books = given.get('quantizer', {})
    books = {k: v for k, v in books.items() if k == 'codebooks'}
    weights.check_params(shapes(config), given | {'quantizer': books})
    super().__init__(streams.get('encodec'), Network(config), variables)


def shapes(config: Config = Config()) -> dict:
  """Shapes of all parameters of a network and its quantiser."""
  spec = streams.get('encodec')
  shape = (spec.num_levels, spec.num_codes, config.num_features)
  return {
    'params': chunked.param_shapes(Network(config)),
    'quantizer': {'codebooks': jax.ShapeDtypeStruct(shape, jnp.float32)},
  }


def _convert(paths: Mapping[str, pathlib.Path]) -> dict:
  """Ours of a folder of `facebook/encodec_24khz`."""
  path = str(paths['config.json'])
  settings = weight_files.read_json(path)
  found = published.read_settings(
    settings,
    (
      *_FIXED,
      'codebook_size',
      'hidden_size',
      'num_filters',
      'num_lstm_layers',
      'sampling_rate',
      'target_bandwidths',
      'upsampling_ratios',
    ),
    path,
  )
  # Files of before the entry have the convolution.
  found['use_conv_shortcut'] = settings.get('use_conv_shortcut', True)
  wrong = [
    f'{name} {found[name]}, expected {value}'
    for name, value in ({**_FIXED, 'use_conv_shortcut': True}).items()
    if found[name] != value
  ]
  if wrong:
    raise errors.UserError(
      f'{path}: a variant of EnCodec that is not built: {"; ".join(wrong)}. '
      'Use facebook/encodec_24khz.'
    )
  config = Config(
    found['num_filters'],
    tuple(reversed(found['upsampling_ratios'])),
    found['num_lstm_layers'],
    found['hidden_size'],
  )
  spec = streams.get('encodec')
  hop = math.prod(config.strides)
  bits = math.ceil(math.log2(found['codebook_size']))
  bits_per_second = bits * math.ceil(found['sampling_rate'] / hop)
  levels = int(1000 * found['target_bandwidths'][-1] // bits_per_second)
  geometry = {
    'sample_rate_hz': found['sampling_rate'],
    'hop': hop,
    'num_codes': found['codebook_size'],
    # It has more, which are left out.
    'num_levels': min(levels, spec.num_levels),
  }
  published.check_geometry(spec, geometry, path)
  arrays = weight_files.read(paths['model.safetensors'])
  for level in range(spec.num_levels, levels):
    arrays.pop(f'{_LEVEL % level}.embed', None)
  tree = weights.translate(
    published.without_weight_norm(arrays),
    _table(config),
    # State of its training.
    [r'quantizer\..*\.(inited|cluster_size|embed_avg)'],
    what='encodec_24khz',
  )
  return weights.add_config(tree, dataclasses.asdict(config))


_LEVEL = 'quantizer.layers.%d.codebook'


def _table(config: Config) -> dict[str, weights.Entry]:
  """Their names and layouts by ours, for `weights.translate`."""
  table = {}

  def convolution(ours, theirs):
    table[f'{ours}/kernel'] = f'{theirs}.conv.weight', published.kernel
    table[f'{ours}/bias'] = f'{theirs}.conv.bias'

  def unit(ours, theirs):
    convolution(f'{ours}/narrow/conv', f'{theirs}.block.1')
    convolution(f'{ours}/wide', f'{theirs}.block.3')
    convolution(f'{ours}/shortcut', f'{theirs}.shortcut')

  def lstm(ours, theirs):
    for i in range(config.lstm_layers):
      name = lambda what, i=i: f'{theirs}.lstm.{what}_l{i}'
      layer = f'{ours}/layer_{i}'
      table[f'{layer}/kernel'] = name('weight_ih'), np.transpose
      table[f'{layer}/recurrent'] = name('weight_hh'), np.transpose
      biases = name('bias_ih'), name('bias_hh')
      table[f'{layer}/bias'] = biases, np.add

  # Theirs are numbered with the activations between them.
  encoder, decoder = 'params/encoder', 'params/decoder'
  number, place = len(config.strides), 1
  convolution(f'{encoder}/conv_in/conv', 'encoder.layers.0')
  for i in range(number):
    unit(f'{encoder}/block_{i}_unit', f'encoder.layers.{place}')
    convolution(f'{encoder}/block_{i}_down/conv', f'encoder.layers.{place + 2}')
    place += 3
  lstm(f'{encoder}/lstm', f'encoder.layers.{place}')
  convolution(f'{encoder}/conv_out/conv', f'encoder.layers.{place + 2}')
  convolution(f'{decoder}/conv_in/conv', 'decoder.layers.0')
  lstm(f'{decoder}/lstm', 'decoder.layers.1')
  place = 3
  for i, stride in reversed([*enumerate(config.strides)]):
    ours, theirs = (
      f'{decoder}/block_{i}_up/conv',
      f'decoder.layers.{place}.conv',
    )
    table |= published.upsampling(ours, theirs, stride)
    unit(f'{decoder}/block_{i}_unit', f'decoder.layers.{place + 1}')
    place += 3
  convolution(f'{decoder}/conv_out/conv', f'decoder.layers.{place}')
  levels = range(streams.get('encodec').num_levels)
  books = [f'{_LEVEL % level}.embed' for level in levels]
  table['quantizer/codebooks'] = books, lambda *arrays: np.stack(arrays)
  return table


def _expected(config: Mapping[str, Any]) -> dict:
  return shapes(weights.configure(Config(), weights.add_config({}, config)))


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='encodec_24khz',
    summary='a causal codec, 24 kHz, 75 Hz; 8 of its 32 levels',
    licence='MIT',
    files=('config.json', 'model.safetensors'),
    convert=_convert,
    expected=_expected,
    repository='facebook/encodec_24khz',
    origin='https://github.com/facebookresearch/encodec',
  ),
)
