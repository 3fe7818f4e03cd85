"""MuLan: music and text in one space (Huang et al., 2022).

Two towers that contrastive.py trains from captioned music: a ResNet-50 or an
AST over the log-mel spectrogram of ten seconds, and a BERT over WordPiece; each
ends in a projection to vectors of length 1. A clip is the mean of its windows,
made as long as 1 again (V2Meow, Adding Control).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.embedders import bert
from v2meow_jax.embedders import resnet
from v2meow_jax.embedders import shared_space
from v2meow_jax.embedders import spectrogram_transformer
from v2meow_jax.embedders import wordpiece

Array = jax.Array

VOCABULARY = 'vocabulary.txt'  # a leaf of the weights: UTF-8 as uint8 [bytes]
TOWERS = ('resnet', 'ast')
SPEC = streams.get('mulan')

# The log-mel spectrogram: 25 ms every 10 ms, bands on Slaney's scale.
_FRAME, _HOP, _FFT = 400, 160, 512
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7800.0
# Added to the power of a band, about -60 dB of full scale: what is quieter is
# silence. The logarithm is then about normal.
_FLOOR = 1e-4
_LOG_MEAN, _LOG_DEVIATION = -4.0, 4.0

_MIN_TOKENS = 16  # a text is padded to a power of two, to compile little


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions of the towers; weights carry theirs.

  Attributes:
    audio_tower: 'resnet' or 'ast'.
    window_seconds: what the audio tower hears at once.
    num_bands: bands of the spectrogram.
    resnet_blocks: blocks of each stage of the ResNet.
    resnet_features: of its first convolution.
    ast_dim: width of the AST.
    ast_layers: its layers.
    ast_heads: its heads.
    ast_hidden: of its MLPs.
    ast_stride: from one of its patches of 16 x 16 to the next.
    vocab_size: tokens of the text tower.
    text_length: tokens of a text; more are left out.
    text_dim: width of the text tower.
    text_layers: its layers.
    text_heads: its heads.
    text_hidden: of its MLPs.
    dropout: rate in the Transformers.
  """

  audio_tower: str = 'resnet'
  window_seconds: float = 10.0
  num_bands: int = 64
  resnet_blocks: Sequence[int] = (3, 4, 6, 3)
  resnet_features: int = 64
  ast_dim: int = 768
  ast_layers: int = 12
  ast_heads: int = 12
  ast_hidden: int = 3072
  ast_stride: int = 10
  vocab_size: int = 30522
  text_length: int = 512
  text_dim: int = 768
  text_layers: int = 12
  text_heads: int = 12
  text_hidden: int = 3072
  dropout: float = 0.1

  def __post_init__(self):
    if self.audio_tower not in TOWERS:
      raise ValueError(
        f'Unknown audio tower `{self.audio_tower}`, expected '
        f'{" or ".join(TOWERS)}. Set mulan.Config.audio_tower.'
      )

  @property
  def num_samples(self) -> int:
    """Samples of a window."""
    return round(self.window_seconds * SPEC.sample_rate_hz)


@functools.cache
def _filters(num_bands: int) -> np.ndarray:
  import librosa

  return librosa.filters.mel(
    sr=SPEC.sample_rate_hz,
    n_fft=_FFT,
    n_mels=num_bands,
    fmin=_LOWEST_HZ,
    fmax=_HIGHEST_HZ,
    norm=None,
  )


def log_mel(waveform: Array, num_bands: int) -> Array:
  """Maps float32 `[batch, samples]` to `[batch, frames, bands]`."""
  count = 1 + (waveform.shape[1] - _FRAME) // _HOP
  places = np.arange(count)[:, None] * _HOP + np.arange(_FRAME)
  window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
  # [batch, samples] -> [batch, frames, frame]
  spectrum = jnp.fft.rfft(waveform[:, places] * window, _FFT)
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  # [batch, frames, frequencies] -> [batch, frames, bands]
  mel = power @ _filters(num_bands).T
  return (jnp.log(mel + _FLOOR) - _LOG_MEAN) / _LOG_DEVIATION


class Network(nn.Module):
  """The two towers.

  Attributes:
    config: dimensions.
  """

  config: Config

  def setup(self):
    cfg = self.config
    if cfg.audio_tower == 'resnet':
      self.audio = resnet.ResNet(cfg.resnet_blocks, cfg.resnet_features)
    else:
      self.audio = spectrogram_transformer.SpectrogramTransformer(
        cfg.ast_dim,
        cfg.ast_layers,
        cfg.ast_heads,
        cfg.ast_hidden,
        stride=cfg.ast_stride,
        dropout=cfg.dropout,
      )
    self.text = bert.Bert(
      cfg.vocab_size,
      cfg.text_length,
      cfg.text_dim,
      cfg.text_layers,
      cfg.text_heads,
      cfg.text_hidden,
      dropout=cfg.dropout,
    )
    self.audio_projection = nn.Dense(SPEC.num_features)
    self.text_projection = nn.Dense(SPEC.num_features)

  def __call__(self, waveform: Array, tokens: Array) -> tuple[Array, Array]:
    """Runs both towers, to initialise them."""
    mask = jnp.ones(tokens.shape, bool)
    return self.embed_audio(waveform), self.embed_text(tokens, mask)

  def embed_audio(self, waveform: Array, deterministic: bool = True) -> Array:
    """Maps windows, float32 `[batch, samples]`, to unit `[batch, features]`."""
    spectrogram = log_mel(waveform, self.config.num_bands)
    if self.config.audio_tower == 'ast':
      x = self.audio(spectrogram, deterministic)
    else:
      x = self.audio(spectrogram)
    return _unit(self.audio_projection(x))

  def embed_text(
    self, tokens: Array, mask: Array, deterministic: bool = True
  ) -> Array:
    """Maps texts to unit vectors.

    Args:
      tokens: int32 `[batch, time]`, that of `[CLS]` first.
      mask: bool `[batch, time]`, False behind the end.
      deterministic: whether nothing is dropped.

    Returns:
      float32 `[batch, features]`.
    """
    x = self.text(tokens, mask, deterministic)
    return _unit(self.text_projection(x[:, 0]))


def _unit(x: Array) -> Array:
  # Under the root, because the gradient of a norm of 0 is no number.
  return x / jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


def pack(
  params: Mapping, config: Config, vocabulary: Sequence[str]
) -> dict[str, Mapping]:
  """Puts all that an embedder needs into one tree of arrays.

  Args:
    params: of the network.
    config: its dimensions.
    vocabulary: of the text tower.
  """
  text = '\n'.join(vocabulary).encode()
  tree = {'params': params, VOCABULARY: np.frombuffer(text, np.uint8)}
  return weights.add_config(tree, dataclasses.asdict(config))


class Mulan(shared_space.SharedSpace):
  """MuLan with trained weights."""

  spec = SPEC

  def __init__(self, params: Mapping, hop_seconds: float | None = None):
    """Takes the weights that training wrote.

    Args:
      params: as `pack` makes them.
      hop_seconds: from one window to the next; a window if None.

    Raises:
      UserError: there are none, or they are those of another network.
    """
    if VOCABULARY not in params or 'params' not in params:
      raise shared_space.no_weights(
        'mulan', 'the safetensors file that training MuLan wrote'
      )
    text = np.asarray(params[VOCABULARY], np.uint8).tobytes().decode()
    self._wordpiece = wordpiece.WordPiece(text.split('\n'))
    self.config = weights.configure(Config(), params)
    if self.config.vocab_size != len(self._wordpiece.vocabulary):
      raise errors.UserError(
        f'The vocabulary has {len(self._wordpiece.vocabulary)} pieces, '
        f'expected {self.config.vocab_size} as the text tower of MuLan. Use '
        'the weights as training wrote them.'
      )
    self.window_seconds = self.config.window_seconds
    self.hop_seconds = hop_seconds or self.window_seconds
    self.network = Network(self.config)
    expected = jax.eval_shape(
      self.network.init,
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, self.config.num_samples), jnp.float32),
      jax.ShapeDtypeStruct((1, self.config.text_length), jnp.int32),
    )
    weights.check_params(expected['params'], params['params'])
    self.params = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float32), params['params']
    )
    self._embed_audio = jax.jit(
      lambda params, waveform: self.network.apply(
        {'params': params}, waveform, method='embed_audio'
      )
    )
    self._embed_text = jax.jit(
      lambda params, tokens: self.network.apply(
        {'params': params},
        tokens,
        tokens != self._wordpiece.padding,
        method='embed_text',
      )
    )

  def _embed_windows(self, pieces: np.ndarray) -> np.ndarray:
    return np.asarray(self._embed_audio(self.params, pieces))

  def _embed_one(self, text: str) -> np.ndarray | None:
    pieces = self._wordpiece.split(text)
    if all(piece == wordpiece.UNKNOWN for piece in pieces):
      return None
    # [CLS] and [SEP] are two more.
    length = max(_MIN_TOKENS, 1 << (len(pieces) + 1).bit_length())
    tokens = self._wordpiece.encode(text, min(length, self.config.text_length))
    return np.asarray(self._embed_text(self.params, tokens[np.newaxis]))[0]
