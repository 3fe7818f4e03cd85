"""HTSAT, the audio tower of CLAP (Chen et al., 2022; Liu et al., 2021).

A Swin Transformer over a log-mel spectrogram that is folded into a square: four
parts of the time lie above one another. Attention sees windows of the square,
which every other layer moves by half.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax.embedders import transformer

Array = jax.Array

_MASKED = -100.0  # the published weights were trained with no more
_SHARPNESS = -0.75  # of the cubic interpolation


def stretch(x: Array, length: int) -> Array:
  """Interpolates `[batch, time, …]` to a length: cubic, ends on ends."""
  have = x.shape[1]
  if have == length:
    return x
  place = np.arange(length) * (have - 1) / (length - 1)
  first = np.floor(place).astype(int)
  total = 0.0
  for tap in (-1, 0, 1, 2):
    d = np.abs(place - first - tap)
    near = ((_SHARPNESS + 2) * d - (_SHARPNESS + 3)) * d * d + 1
    far = _SHARPNESS * (((d - 5) * d + 8) * d - 4)
    weight = np.where(d <= 1, near, far).astype(np.float32)
    total += x[:, np.clip(first + tap, 0, have - 1)] * weight[:, None]
  return total


def _relative_places(window: int) -> np.ndarray:
  """Row of the table of biases for each two of a window's places."""
  places = np.stack(np.divmod(np.arange(window * window), window), axis=1)
  # [places, places, 2]
  apart = places[:, None] - places[None] + window - 1
  return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def _partition(x: Array, window: int) -> Array:
  """Cuts `[batch, rows, columns, features]` to `[windows, places, …]`."""
  batch, rows, columns, features = x.shape
  x = x.reshape(
    batch, rows // window, window, columns // window, window, features
  )
  return x.swapaxes(2, 3).reshape(-1, window * window, features)


def _join(x: Array, shape: Sequence[int]) -> Array:
  """Inverse of `_partition`."""
  batch, rows, columns, features = shape
  window = round(x.shape[1] ** 0.5)
  x = x.reshape(
    batch, rows // window, columns // window, window, window, features
  )
  return x.swapaxes(2, 3).reshape(shape)


def _mask(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
  """Bias that keeps apart what a move around the edge has put together."""
  region = lambda size: (
    (np.arange(size) >= size - window).astype(int)
    + (np.arange(size) >= size - shift)
  )
  regions = region(rows)[:, None] * 3 + region(columns)
  parts = np.asarray(_partition(regions[None, :, :, None], window))[..., 0]
  apart = parts[:, :, None] != parts[:, None, :]
  # [windows, 1, places, places]
  return np.where(apart, _MASKED, 0.0).astype(np.float32)[:, None]


class Layer(nn.Module):
  """Attention within windows, and an MLP.

  Attributes:
    num_heads: of the attention.
    num_hidden: of the MLP.
    window: rows and columns of a window.
    shift: how far the windows are moved.
    has_bias: of query, key and value.
    epsilon: of the norms.
  """

  num_heads: int
  num_hidden: int
  window: int
  shift: int
  has_bias: bool
  epsilon: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[batch, rows, columns, features]` to the same shape."""
    batch, rows, columns, _ = x.shape
    table = self.param(
      'position_bias',
      nn.initializers.zeros,
      ((2 * self.window - 1) ** 2, self.num_heads),
    )
    # [places, places, heads] -> [1, heads, places, places]
    bias = table[_relative_places(self.window)].transpose(2, 0, 1)[None]
    if self.shift:
      bias = bias + _mask(rows, columns, self.window, self.shift)
      bias = jnp.tile(bias, (batch, 1, 1, 1))
    y = nn.LayerNorm(epsilon=self.epsilon, name='attention_norm')(x)
    y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
    y = transformer.SelfAttention(
      self.num_heads, self.has_bias, name='attention'
    )(_partition(y, self.window), bias)
    x = x + jnp.roll(_join(y, x.shape), (self.shift, self.shift), (1, 2))
    y = nn.LayerNorm(epsilon=self.epsilon, name='mlp_norm')(x)
    return x + transformer.Mlp(self.num_hidden, name='mlp')(y)


class Htsat(nn.Module):
  """Spectrogram to one vector.

  Attributes:
    side: rows and columns of the square.
    patch: rows and columns of a patch of it.
    window: patches in a row and in a column of a window.
    patch_dim: width of the first stage; each has twice that of the one before.
    depths: layers of each stage.
    num_heads: of each stage.
    mlp_ratio: of an MLP, over the width.
    has_bias: of query, key and value.
    epsilon: of the norms in the layers.
  """

  side: int
  patch: int
  window: int
  patch_dim: int
  depths: Sequence[int]
  num_heads: Sequence[int]
  mlp_ratio: float
  has_bias: bool
  epsilon: float

  @nn.compact
  def __call__(self, spectrogram: Array) -> Array:
    """Maps float32 `[batch, time, bands]` to `[batch, features]`."""
    batch, _, bands = spectrogram.shape
    parts = self.side // bands
    # Of each band, from the statistics of the training data.
    scale = self.param('band_scale', nn.initializers.ones, (bands,))
    shift = self.param('band_shift', nn.initializers.zeros, (bands,))
    # [batch, time, bands] -> [batch, side * parts, bands]
    x = stretch(spectrogram * scale + shift, self.side * parts)
    # [batch, parts, side, bands] -> [batch, parts, bands, side]
    x = x.reshape(batch, parts, self.side, bands).swapaxes(2, 3)
    # [batch, side, side, 1] -> [batch, side / patch, side / patch, features]
    x = nn.Conv(
      self.patch_dim,
      (self.patch, self.patch),
      self.patch,
      padding='VALID',
      name='patches',
    )(x.reshape(batch, self.side, self.side, 1))
    x = nn.LayerNorm(epsilon=1e-5, name='patch_norm')(x)
    for stage, depth in enumerate(self.depths):
      if stage:
        # [batch, rows, columns, features] -> half of both, four times as many
        corners = [
          x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)
        ]
        x = jnp.concatenate(corners, axis=-1)
        x = nn.LayerNorm(epsilon=1e-5, name=f'merge_norm_{stage}')(x)
        x = nn.Dense(x.shape[-1] // 2, use_bias=False, name=f'merge_{stage}')(x)
      # A square no larger than a window is one, and is not moved.
      is_whole = min(x.shape[1:3]) <= self.window
      for i in range(depth):
        x = Layer(
          self.num_heads[stage],
          int(self.mlp_ratio * x.shape[-1]),
          self.window,
          self.window // 2 if i % 2 and not is_whole else 0,
          self.has_bias,
          self.epsilon,
          name=f'stage_{stage}_layer_{i}',
        )(x)
    return nn.LayerNorm(epsilon=1e-5, name='norm')(x).mean(axis=(1, 2))
