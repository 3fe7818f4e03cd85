"""w2v-BERT 2.0 (Seamless Communication, 2023): 25 Hz, from a 50-Hz conformer.

24 blocks of width 1024 that hear Kaldi's log mels of 16-kHz sound, two frames
at a time; published as `facebook/w2v-bert-2.0` under the MIT licence, trained
on speech. Its positions are at 50 Hz: a token is of the mean of two.

The mels of a clip are standardised by their own mean and deviation over the
clip, as in training, so a token depends a little on all of its clip. The
default layer is 17, which MaskGCT (Wang et al., 2024) makes its semantic tokens
of.
"""

from collections.abc import Mapping
import dataclasses

from flax import linen as nn
import jax
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

_SPEC = streams.get('w2v_bert_2')
NUM_MELS = 80
_WINDOW, _HOP, _FFT = 400, 160, 512
_PREEMPHASIS = 0.97
_FLOOR = 1.192092955078125e-07


@dataclasses.dataclass(frozen=True)
class Config(clustered.Config):
  """Dimensions of the network, as its checkpoint has them.

  Attributes:
    embed_dim: width.
    num_layers: conformer blocks.
    num_heads: attention heads.
    mlp_dim: inner width of the feed-forward steps.
    kernel_size: taps of the convolutions.
    max_left: most distance to the past that attention tells apart.
    max_right: the same to the future.
    dtype: dtype of the computation.
  """

  layer: int = 17
  embed_dim: int = 1024
  num_layers: int = 24
  num_heads: int = 16
  mlp_dim: int = 4096
  kernel_size: int = 31
  max_left: int = 64
  max_right: int = 8
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
      position='relative_key',
      max_left=self.max_left,
      max_right=self.max_right,
      is_causal=True,
      dtype=self.dtype,
    )


class Network(nn.Module):
  """Projection of the mels, conformer, and the mean of pairs.

  Attributes:
    config: dimensions, and the layer that is returned.
  """

  config: Config
  steps = 2
  bins = 2 * NUM_MELS

  @property
  def num_layers(self) -> int:
    return self.config.num_layers

  @property
  def embed_dim(self) -> int:
    return self.config.embed_dim

  def __call__(self, frames: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps `[batch, time, 2, 160]` to `[batch, time, embed]`."""
    batch, time = mask.shape
    # [batch, time, 2, bins] -> [batch, 2 * time, bins]
    x = frames.reshape(batch, time * self.steps, self.bins)
    x = self.encode(x, mask.repeat(self.steps, axis=1))
    # [batch, 2 * time, embed] -> [batch, time, embed]
    return x.reshape(batch, time, self.steps, -1).mean(axis=2)

  @nn.compact
  def encode(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Maps `[batch, length, 160]`, at 50 Hz, to the layer's features."""
    c = self.config.conformer
    x = conformer.layer_norm(c, 'input_norm')(x)
    x = conformer.dense(c.embed_dim, ('mel', 'embed'), c, 'projection')(x)
    layer = None if self.is_initializing() else self.config.layer
    return conformer.Conformer(c, name='conformer')(x, mask, layer)


def log_mel(waveform: Array) -> Array:
  """Kaldi's log mel filter banks.

  Args:
    waveform: float32 `[samples]` at 16 kHz, about [-1, 1], at least 400.

  Returns:
    float32 `[frames, 80]`; frame i is of the 400 samples from 160 i on.
  """
  # Povey's window: Hann's to the power of 0.85.
  window = np.hanning(_WINDOW) ** 0.85
  matrix = mels.filters(
    _SPEC.sample_rate_hz, _FFT, NUM_MELS, 20.0, 8000.0, slopes='mel'
  )

  def transform(frames):
    frames = frames.astype(np.float64) * 2**15  # Kaldi hears 16-bit integers
    frames -= frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = frames_lib.power((frames - _PREEMPHASIS * before) * window, _FFT)
    return np.log(np.maximum(spectrum @ matrix, _FLOOR))

  return frames_lib.blocks(waveform, _WINDOW, _HOP, transform)


def standardise(x: Array) -> Array:
  """Subtracts the mean of each mel and divides by its deviation."""
  deviation = np.sqrt(x.var(axis=0, ddof=1, dtype=np.float64) + 1e-7)
  mean = x.mean(axis=0, dtype=np.float64)
  return ((x - mean) / deviation).astype(np.float32)


class W2vBert2(clustered.Clustered):
  """Semantic tokens at 25 Hz from w2v-BERT 2.0."""

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
    # With so much silence at both ends, the four frames of a token, as long as
    # 880 samples, have their middle in the middle of its 640.
    margin = (_WINDOW - _HOP) // 2
    x = standardise(log_mel(np.pad(waveform, margin)))
    # [2 * length, 80] -> [length, 160]: an earlier frame, a later one.
    return x.reshape(-1, 2 * NUM_MELS)


def read_config(found: Mapping) -> dict:
  """Dimensions of a checkpoint, as fields of `Config`.

  Args:
    found: its config.json.

  Raises:
    UserError: it is of another kind of network, or lacks a dimension.
  """
  fixed = {
    'model_type': 'wav2vec2-bert',
    'position_embeddings_type': 'relative_key',
    'hidden_act': 'swish',
    'feature_projection_input_dim': 2 * NUM_MELS,
    'layer_norm_eps': 1e-5,
  }
  theirs = {
    'embed_dim': 'hidden_size',
    'num_layers': 'num_hidden_layers',
    'num_heads': 'num_attention_heads',
    'mlp_dim': 'intermediate_size',
    'kernel_size': 'conv_depthwise_kernel_size',
    'max_left': 'left_max_position_embeddings',
    'max_right': 'right_max_position_embeddings',
  }
  problems = [
    f'{name} is {found.get(name)!r}, expected {value!r}'
    for name, value in fixed.items()
    if found.get(name) != value
  ]
  problems += [
    f'{name} is {found.get(name)!r}, expected a whole number above 0'
    for name in theirs.values()
    if not isinstance(found.get(name), int) or found[name] < 1
  ]
  if problems:
    raise errors.UserError(
      f'config.json is not that of w2v-BERT 2.0: {"; ".join(problems)}. Use '
      'the files of facebook/w2v-bert-2.0.'
    )
  return {ours: found[name] for ours, name in theirs.items()}


def translate(arrays: Mapping[str, Array], config: Mapping) -> dict:
  """Makes our weights of those of Hugging Face's `Wav2Vec2BertModel`.

  Args:
    arrays: theirs, by name.
    config: dimensions, as `read_config` returns them.

  Returns:
    Variables of `W2vBert2`, with their config, without a fit.

  Raises:
    UserError: arrays are missing, or nothing uses them.
  """
  table = {
    **names.norm('input_norm', 'feature_projection.layer_norm'),
    **names.dense('projection', 'feature_projection.projection'),
  }
  for i in range(config['num_layers']):
    ours, theirs = f'conformer/layers_{i}', f'encoder.layers.{i}'
    table |= names.block(ours, theirs, 'layer')
    table[f'{ours}/attention/distance'] = (
      f'{theirs}.self_attn.distance_embedding.weight'
    )
  # What masks in training, and what follows the last block in other uses.
  ignore = ('masked_spec_embed', r'adapter\..*', r'intermediate_ffn\..*')
  params = weights.translate(arrays, table, ignore, 'w2v-BERT 2.0')
  return weights.add_config({'params': params}, config)


def _convert(paths):
  config = read_config(weight_files.read_json(paths['config.json']))
  return translate(weight_files.read(paths['model.safetensors']), config)


def _expected(config):
  network = Network(weights.configure(Config(), weights.add_config({}, config)))
  is_fitted = 'layer' in config
  return clustered.expected(network, _SPEC.num_codes, is_fitted)


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='w2v_bert_2',
    summary='w2v-BERT 2.0, of speech: semantic tokens after a k-means fit',
    licence='MIT',
    files=('config.json', 'model.safetensors'),
    convert=_convert,
    expected=_expected,
    repository='facebook/w2v-bert-2.0',
    origin='https://huggingface.co/facebook/w2v-bert-2.0',
  ),
)
