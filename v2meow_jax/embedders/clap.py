"""CLAP: music and text in one space, with LAION's weights (Wu et al., 2023).

HTSAT over the log-mel spectrogram of ten seconds at 48 kHz, and a RoBERTa over
byte-level BPE; 512 features. Of the published ways to hear, this is the one
without fusion: a clip shorter than ten seconds is repeated as often as it fits,
and silence follows; of a longer one, where theirs hears ten seconds at random,
all windows are heard and averaged.
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
from v2meow_jax.embedders import htsat
from v2meow_jax.embedders import shared_space

Array = jax.Array

SPEC = streams.get('clap_music')
TOKENIZER = 'tokenizer.json'  # a leaf of the weights: the file as uint8 [bytes]

_MIN_TOKENS = 16  # a text is padded to a power of two, to compile little


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions, those of `laion/larger_clap_music` by default.

  Attributes:
    window_seconds: what the audio tower hears at once.
    num_bands: bands of the spectrogram.
    fft: samples of a frame.
    hop: samples from one frame to the next.
    lowest_hz: of the bands.
    highest_hz: of the bands.
    side: of the square; see `htsat.Htsat` for this and the next ones.
    patch: see there.
    window: see there.
    patch_dim: see there.
    depths: see there.
    audio_heads: see there.
    mlp_ratio: see there.
    has_bias: see there.
    audio_epsilon: of the norms there.
    vocab_size: of the text tower; see `bert.Bert` for this and the next ones.
    text_length: see there.
    text_dim: see there.
    text_layers: see there.
    text_heads: see there.
    text_hidden: see there.
    text_epsilon: of the norms there.
    projection_dim: features of the space.
    tokenizer_bytes: size of the tokenizer's file.
  """

  window_seconds: float = 10.0
  num_bands: int = 64
  fft: int = 1024
  hop: int = 480
  lowest_hz: float = 50.0
  highest_hz: float = 14000.0
  side: int = 256
  patch: int = 4
  window: int = 8
  patch_dim: int = 128
  depths: Sequence[int] = (2, 2, 12, 2)
  audio_heads: Sequence[int] = (4, 8, 16, 32)
  mlp_ratio: float = 4.0
  has_bias: bool = True
  audio_epsilon: float = 1e-5
  vocab_size: int = 50265
  text_length: int = 512
  text_dim: int = 768
  text_layers: int = 12
  text_heads: int = 12
  text_hidden: int = 3072
  text_epsilon: float = 1e-12
  projection_dim: int = SPEC.num_features
  tokenizer_bytes: int = 0

  @property
  def num_frames(self) -> int:
    """Frames of a window."""
    return round(self.window_seconds * SPEC.sample_rate_hz) // self.hop + 1


@functools.lru_cache(maxsize=2)
def _filters(config: Config) -> np.ndarray:
  import librosa

  return librosa.filters.mel(
    sr=SPEC.sample_rate_hz,
    n_fft=config.fft,
    n_mels=config.num_bands,
    fmin=config.lowest_hz,
    fmax=config.highest_hz,
    dtype=np.float64,
  )


def log_mel(waveform: np.ndarray, config: Config) -> np.ndarray:
  """The spectrogram that CLAP hears.

  In float64, as where its weights were trained: decibels tell what is nearly
  silent from what rounding leaves.

  Args:
    waveform: `[samples]`.
    config: frames and bands.

  Returns:
    float32 `[frames, bands]` in decibels.
  """
  half = config.fft // 2
  padded = np.pad(waveform.astype(np.float64), half, mode='reflect')
  frames = np.lib.stride_tricks.sliding_window_view(padded, config.fft)
  window = np.hanning(config.fft + 1)[:-1]
  spectrum = np.fft.rfft(frames[:: config.hop] * window)
  # [frames, frequencies] -> [frames, bands]
  power = np.abs(spectrum) ** 2 @ _filters(config).T
  return (10 * np.log10(np.maximum(power, 1e-10))).astype(np.float32)


class _Projection(nn.Module):
  """Two dense layers into the space, and length 1.

  Attributes:
    num_features: of the space.
  """

  num_features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = jax.nn.relu(nn.Dense(self.num_features, name='dense_0')(x))
    x = nn.Dense(self.num_features, name='dense_1')(x)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Network(nn.Module):
  """The two towers.

  Attributes:
    config: dimensions.
  """

  config: Config

  def setup(self):
    cfg = self.config
    self.audio = htsat.Htsat(
      cfg.side,
      cfg.patch,
      cfg.window,
      cfg.patch_dim,
      cfg.depths,
      cfg.audio_heads,
      cfg.mlp_ratio,
      cfg.has_bias,
      cfg.audio_epsilon,
    )
    self.text = bert.Bert(
      cfg.vocab_size,
      cfg.text_length,
      cfg.text_dim,
      cfg.text_layers,
      cfg.text_heads,
      cfg.text_hidden,
      cfg.text_epsilon,
    )
    self.pooler = nn.Dense(cfg.text_dim)
    self.audio_projection = _Projection(cfg.projection_dim)
    self.text_projection = _Projection(cfg.projection_dim)

  def __call__(self, spectrogram: Array, tokens: Array) -> tuple[Array, Array]:
    """Runs both towers, to initialise them."""
    mask = jnp.ones(tokens.shape, bool)
    return self.embed_audio(spectrogram), self.embed_text(tokens, mask)

  def embed_audio(self, spectrogram: Array) -> Array:
    """Maps float32 `[batch, frames, bands]` to unit `[batch, features]`."""
    return self.audio_projection(self.audio(spectrogram))

  def embed_text(self, tokens: Array, mask: Array) -> Array:
    """Maps int32 `[batch, time]` and a mask to unit `[batch, features]`."""
    first = self.text(tokens, mask)[:, 0]
    return self.text_projection(jnp.tanh(self.pooler(first)))


def parameter_shapes(config: Config) -> Mapping:
  """Returns what the network of these dimensions is made of."""
  return jax.eval_shape(
    Network(config).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, config.num_frames, config.num_bands), jnp.float32),
    jax.ShapeDtypeStruct((1, config.text_length), jnp.int32),
  )['params']


class Clap(shared_space.SharedSpace):
  """CLAP with the weights that `v2meow weights convert` wrote."""

  spec = SPEC

  def __init__(self, params: Mapping, hop_seconds: float | None = None):
    """Takes converted weights.

    Args:
      params: as `clap_checkpoint.convert` makes them.
      hop_seconds: from one window to the next; a window if None.

    Raises:
      UserError: there are none, or they are those of another network.
    """
    if TOKENIZER not in params or 'params' not in params:
      raise shared_space.no_weights(
        'clap_music',
        'the file that `v2meow weights convert clap_music` wrote',
      )
    self.config = weights.configure(Config(), params)
    weights.check_params(parameter_shapes(self.config), params['params'])
    self._tokenizer_file = np.asarray(params[TOKENIZER], np.uint8).tobytes()
    self.window_seconds = self.config.window_seconds
    self.hop_seconds = hop_seconds or self.window_seconds
    self.network = Network(self.config)
    self.params = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float32), params['params']
    )
    apply = lambda method: jax.jit(
      lambda params, *args: self.network.apply(
        {'params': params}, *args, method=method
      )
    )
    self._embed_audio = apply('embed_audio')
    self._embed_text = apply('embed_text')

  def _fill(self, waveform: np.ndarray, num_samples: int) -> np.ndarray:
    repeated = np.tile(waveform, num_samples // len(waveform))
    return np.pad(repeated, (0, num_samples - len(repeated)))

  def _embed_windows(self, pieces: np.ndarray) -> np.ndarray:
    spectrograms = np.stack([log_mel(piece, self.config) for piece in pieces])
    return np.asarray(self._embed_audio(self.params, spectrograms))

  @functools.cached_property
  def _tokenizer(self):
    try:
      import tokenizers
    except ImportError as error:
      raise errors.UserError(
        'The text tower of CLAP needs the package `tokenizers`. Install it, or '
        "everything with pip install 'v2meow_jax[pretrained]'."
      ) from error
    tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer_file.decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(self.config.text_length)
    return tokenizer

  def _embed_one(self, text: str) -> np.ndarray | None:
    if not text.strip():
      return None
    tokens = self._tokenizer.encode(text).ids
    # A power of two, so that few lengths are compiled.
    length = max(_MIN_TOKENS, 1 << (len(tokens) - 1).bit_length())
    padded = np.zeros((1, min(length, self.config.text_length)), np.int32)
    padded[0, : len(tokens)] = tokens
    mask = np.arange(padded.shape[1])[np.newaxis] < len(tokens)
    return np.asarray(self._embed_text(self.params, padded, mask))[0]
