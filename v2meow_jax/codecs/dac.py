"""DAC: the Descript Audio Codec, 16 kHz, 50 Hz, 12 levels of 1024 codes.

Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN": Snake
activations, codebooks of few features that are compared by direction. Its
weights are published (`descript/dac_16khz`, MIT) and have the geometry of the
paper's SoundStream. It is not causal: a position depends on 160 ms behind it,
a sample on 196 ms; `chunked.py` has it run chunk by chunk all the same.
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

from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weight_files
from v2meow_jax import weights
from v2meow_jax.codecs import chunked
from v2meow_jax.codecs import published

Array = jax.Array

_DILATIONS = (1, 3, 9)
_TAPS = 7
# pi as two numbers: any whole number up to 2^15 times the first is exact.
_PI = (3.140625, math.pi - 3.140625)
_SINE_TERMS = 6


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions of the network; those of `descript/dac_16khz`.

  Attributes:
    channels: features of the encoder at the sample rate; twice as many behind
      each stride.
    decoder_channels: features of the decoder at the rate of the codes; half as
      many behind each stride.
    strides: of the encoder's blocks; their product is the codec's hop.
    code_features: features of a codebook entry.
  """

  channels: int = 64
  decoder_channels: int = 1536
  strides: tuple[int, ...] = (2, 4, 5, 8)
  code_features: int = 8

  @property
  def num_features(self) -> int:
    """Features of a latent."""
    return self.channels * 2 ** len(self.strides)


def sine_squared(x: Array) -> Array:
  """sin(x)^2, as exact as float32 is up to 10^5.

  XLA's own sine takes five to ten times as long on a CPU, and half of an
  encoder's time.
  """
  turns = jnp.round(x * (1 / math.pi))
  x = (x - turns * _PI[0]) - turns * _PI[1]  # within a quarter turn of 0
  square, sine = x * x, 0.0
  for i in reversed(range(_SINE_TERMS)):
    sine = sine * square + (-1) ** i / math.factorial(2 * i + 1)
  return jnp.square(sine * x)


class Snake(nn.Module):
  """x + sin(a x)^2 / a, with a for each feature (Ziyin et al., 2020)."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[..., features]` to the same shape."""
    alpha = self.param('alpha', nn.initializers.ones, (x.shape[-1],))
    return x + sine_squared(alpha * x) / (alpha + 1e-9)


class Centred(nn.Module):
  """Convolution over time with as many inputs ahead as behind.

  Attributes:
    features: width of the output.
    kernel_size: taps, an odd number.
  """

  features: int
  kernel_size: int

  @nn.compact
  def __call__(
    self, x: Array, span: chunked.Span
  ) -> tuple[Array, chunked.Span]:
    """Maps `[batch, time, in]` to `[batch, time, features]`."""
    reach = self.kernel_size // 2
    x = chunked.Past(2 * reach, name='past')(x, span)
    x = chunked.Convolution(self.features, self.kernel_size, name='conv')(x)
    return x, span.later(reach)


class ResidualUnit(nn.Module):
  """Dilated convolution of 7 taps, then one of 1 tap, added to the input.

  Attributes:
    dilation: of the first convolution.
  """

  dilation: int

  @nn.compact
  def __call__(
    self, x: Array, span: chunked.Span
  ) -> tuple[Array, chunked.Span]:
    """Maps `[batch, time, features]` to the same shape."""
    length, features = x.shape[1:]
    reach = _TAPS // 2 * self.dilation
    x = chunked.Past(2 * reach, name='past')(x, span)
    y = chunked.Convolution(
      features, _TAPS, dilation=self.dilation, name='dilated'
    )(Snake(name='snake_dilated')(x))
    y = chunked.Convolution(features, 1, name='pointwise')(
      Snake(name='snake_pointwise')(y)
    )
    return x[:, reach : reach + length] + y, span.later(reach)


def _down_padding(stride: int) -> int:
  """What PyTorch pads and trims a kernel of two strides by, at each side."""
  return math.ceil(stride / 2)


def _down_delay(delay: int, stride: int) -> int:
  """Delay of a `Downsampling`, in its outputs; `delay` is of its inputs.

  An output is due when the last of its inputs has come.
  """
  return math.ceil((delay + stride - _down_padding(stride)) / stride)


class Downsampling(nn.Module):
  """Strided convolution with a kernel of two strides.

  Attributes:
    features: width of the output.
    stride: inputs per output.
  """

  features: int
  stride: int

  @nn.compact
  def __call__(
    self, x: Array, span: chunked.Span
  ) -> tuple[Array, chunked.Span]:
    """Maps `[batch, time, in]` to `[batch, time / stride, features]`."""
    length, stride = x.shape[1], self.stride
    delay = _down_delay(span.delay, stride)
    past = delay * stride - span.delay + _down_padding(stride)
    x = chunked.Past(past, name='past')(x, span)[:, : length + stride]
    x = chunked.Convolution(
      self.features, 2 * stride, stride=stride, name='conv'
    )(x)
    return x, span.divided(stride, delay)


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
    x, span = Centred(c.channels, _TAPS, name='conv_in')(x, span)
    for i, stride in enumerate(c.strides):
      for dilation in _DILATIONS:
        unit = ResidualUnit(dilation, name=f'block_{i}_dilation_{dilation}')
        x, span = unit(x, span)
      x = Snake(name=f'block_{i}_snake')(x)
      # [batch, time, channels] -> [batch, time / stride, 2 * channels]
      down = Downsampling(2 * x.shape[-1], stride, name=f'block_{i}_down')
      x, span = down(x, span)
    return Centred(c.num_features, 3, name='conv_out')(
      Snake(name='snake_out')(x), span
    )


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
    x, span = Centred(c.decoder_channels, _TAPS, name='conv_in')(x, span)
    for i, stride in reversed([*enumerate(c.strides)]):
      x = Snake(name=f'block_{i}_snake')(x)
      # [batch, time, channels] -> [batch, time * stride, channels / 2]
      up = chunked.Upsampling(
        x.shape[-1] // 2, stride, _down_padding(stride), name=f'block_{i}_up'
      )
      x, span = up(x, span)
      for dilation in _DILATIONS:
        unit = ResidualUnit(dilation, name=f'block_{i}_dilation_{dilation}')
        x, span = unit(x, span)
    x, span = Centred(1, _TAPS, name='conv_out')(
      Snake(name='snake_out')(x), span
    )
    # An odd stride makes a clip a few samples shorter: silence behind them.
    return jnp.where(span.inside(x.shape[1]), jnp.tanh(x), 0.0), span


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
    """Positions by which encoding chunk by chunk lags behind."""
    delay = _TAPS // 2
    for stride in self.config.strides:
      delay = _down_delay(delay + _TAPS // 2 * sum(_DILATIONS), stride)
    return delay + 1

  @property
  def delay(self) -> int:
    """Samples by which decoding chunk by chunk lags behind."""
    delay = _TAPS // 2
    for stride in reversed(self.config.strides):
      delay = delay * stride + _down_padding(stride)
      delay += _TAPS // 2 * sum(_DILATIONS)
    return delay + _TAPS // 2


class Dac(chunked.Codec):
  """DAC with trained parameters: 16 kHz, 50 Hz, 12 levels of 1024 codes.

  Attributes: see `base.Codec`; `variables['quantizer']` also holds the
  projections of latents to entries and back, float32 by level: `in_kernel`
  [levels, features, code_features], `in_bias`, `out_kernel` and `out_bias`.
  """

  def __init__(self, variables: Mapping, config: Config = Config()):
    """Makes a codec.

    Args:
      variables: as `v2meow weights convert dac_16khz` writes them.
      config: dimensions, where the variables do not say them.

    Raises:
      UserError: the variables are not those of this network.
    """
    config = weights.configure(config, variables)
    variables = weights.without_config(variables)
    weights.check_params(shapes(config), variables)
    super().__init__(streams.get('dac'), Network(config), variables)
    self.variables['quantizer'] = {
      name: jnp.asarray(array, jnp.float32)
      for name, array in variables['quantizer'].items()
    }

  def _quantize(self, quantizer: Mapping, latents: Array) -> Array:
    return quantize(quantizer, latents)

  def _dequantize(self, quantizer: Mapping, codes: Array) -> Array:
    return dequantize(quantizer, codes)


def shapes(config: Config = Config()) -> dict:
  """Shapes of all parameters of a network and its quantiser."""
  spec = streams.get('dac')
  levels, codes = spec.num_levels, spec.num_codes
  features, width = config.num_features, config.code_features
  quantizer = {
    'codebooks': (levels, codes, width),
    'in_kernel': (levels, features, width),
    'in_bias': (levels, width),
    'out_kernel': (levels, width, features),
    'out_bias': (levels, features),
  }
  return {
    'params': chunked.param_shapes(Network(config)),
    'quantizer': {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in quantizer.items()
    },
  }


def quantize(quantizer: Mapping[str, Array], latents: Array) -> Array:
  """Quantises latents level by level, each what the levels before left over.

  Args:
    quantizer: see `Dac`.
    latents: float32 `[..., features]`.

  Returns:
    int32 codes `[..., levels]`: of the entries of nearest direction.
  """

  def step(residual, level):
    projected = residual @ level['in_kernel'] + level['in_bias']
    entries = level['codebooks']
    # Of vectors of length 1 the nearest has the largest product; the length of
    # the projected one is the same for all entries.
    norm = jnp.linalg.norm(entries, axis=-1, keepdims=True)
    similarity = projected @ (entries / jnp.maximum(norm, 1e-12)).T
    codes = jnp.argmax(similarity, axis=-1).astype(jnp.int32)
    chosen = entries[codes] @ level['out_kernel'] + level['out_bias']
    return residual - chosen, codes

  _, codes = jax.lax.scan(step, latents, dict(quantizer))
  return jnp.moveaxis(codes, 0, -1)


def dequantize(quantizer: Mapping[str, Array], codes: Array) -> Array:
  """Inverse of `quantize`, as far as there is one; of the first few levels.

  Args:
    quantizer: see `Dac`.
    codes: int32 `[..., levels]`.

  Returns:
    float32 latents `[..., features]`.
  """
  latents = 0.0
  for level in range(codes.shape[-1]):
    entries = quantizer['codebooks'][level][codes[..., level]]
    latents += entries @ quantizer['out_kernel'][level]
    latents += quantizer['out_bias'][level]
  return latents


def _convert(paths: Mapping[str, pathlib.Path]) -> dict:
  """Ours of a folder of `descript/dac_16khz`."""
  path = str(paths['config.json'])
  found = published.read_settings(
    weight_files.read_json(path),
    (
      'encoder_hidden_size',
      'decoder_hidden_size',
      'downsampling_ratios',
      'codebook_dim',
      'codebook_size',
      'n_codebooks',
      'sampling_rate',
    ),
    path,
  )
  config = Config(
    found['encoder_hidden_size'],
    found['decoder_hidden_size'],
    tuple(found['downsampling_ratios']),
    found['codebook_dim'],
  )
  # The entry `hop_length` is not trusted: older files say 512 of this codec.
  geometry = {
    'sample_rate_hz': found['sampling_rate'],
    'hop': math.prod(config.strides),
    'num_levels': found['n_codebooks'],
    'num_codes': found['codebook_size'],
  }
  published.check_geometry(streams.get('dac'), geometry, path)
  arrays = weight_files.read(paths['model.safetensors'])
  tree = weights.translate(
    published.without_weight_norm(arrays), _table(config), what='dac_16khz'
  )
  return weights.add_config(tree, dataclasses.asdict(config))


def _table(config: Config) -> dict[str, weights.Entry]:
  """Their names and layouts by ours, for `weights.translate`."""
  table = {}

  def convolution(ours, theirs):
    table[f'{ours}/kernel'] = f'{theirs}.weight', published.kernel
    table[f'{ours}/bias'] = f'{theirs}.bias'

  def snake(ours, theirs):  # [1, features, 1] -> [features]
    table[f'{ours}/alpha'] = f'{theirs}.alpha', np.ravel

  def block(ours, theirs):
    for i, dilation in enumerate(_DILATIONS):
      unit, their_unit = (
        f'{ours}_dilation_{dilation}',
        f'{theirs}.res_unit{i + 1}',
      )
      snake(f'{unit}/snake_dilated', f'{their_unit}.snake1')
      convolution(f'{unit}/dilated', f'{their_unit}.conv1')
      snake(f'{unit}/snake_pointwise', f'{their_unit}.snake2')
      convolution(f'{unit}/pointwise', f'{their_unit}.conv2')
    snake(f'{ours}_snake', f'{theirs}.snake1')

  for half in ('encoder', 'decoder'):
    convolution(f'params/{half}/conv_in/conv', f'{half}.conv1')
    snake(f'params/{half}/snake_out', f'{half}.snake1')
    convolution(f'params/{half}/conv_out/conv', f'{half}.conv2')
  for i, stride in enumerate(config.strides):
    ours, theirs = f'params/encoder/block_{i}', f'encoder.block.{i}'
    block(ours, theirs)
    convolution(f'{ours}_down/conv', f'{theirs}.conv1')
    j = len(config.strides) - 1 - i  # theirs count from the latents on
    ours, theirs = f'params/decoder/block_{i}', f'decoder.block.{j}'
    block(ours, theirs)
    table |= published.upsampling(
      f'{ours}_up/conv', f'{theirs}.conv_t1', stride
    )
  levels = range(streams.get('dac').num_levels)
  each = lambda name: [f'quantizer.quantizers.{i}.{name}' for i in levels]
  # [out, in, 1] -> [in, out] of each level
  stack = lambda *arrays: np.stack([published.kernel(a)[0] for a in arrays])
  plain = lambda *arrays: np.stack(arrays)
  table |= {
    'quantizer/codebooks': (each('codebook.weight'), plain),
    'quantizer/in_kernel': (each('in_proj.weight'), stack),
    'quantizer/in_bias': (each('in_proj.bias'), plain),
    'quantizer/out_kernel': (each('out_proj.weight'), stack),
    'quantizer/out_bias': (each('out_proj.bias'), plain),
  }
  return table


def _expected(config: Mapping[str, Any]) -> dict:
  return shapes(weights.configure(Config(), weights.add_config({}, config)))


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='dac_16khz',
    summary='the open codec of the geometry of the paper',
    licence='MIT',
    files=('config.json', 'model.safetensors'),
    convert=_convert,
    expected=_expected,
    repository='descript/dac_16khz',
    origin='https://github.com/descriptinc/descript-audio-codec',
  ),
)
