"""Conformer (Gulati et al., 2020): the encoder of the learnt tokenizers.

A block is half a feed-forward step, self-attention, a convolution over time,
another half step and a norm. Published conformers differ in how attention
knows positions, and in how the convolution is padded and normalised; `Config`
says which one this is.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

POSITIONS = ('relative', 'relative_key', 'rotary')
NORMS = ('layer', 'batch')
# Added to the scores of keys that are padding; finite, so that a clip of
# padding alone gives numbers, too.
_MASKED = -1e9
_ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions and variant of a conformer.

  Attributes:
    embed_dim: width.
    num_layers: blocks.
    num_heads: attention heads; they share the width out.
    mlp_dim: inner width of the feed-forward steps.
    kernel_size: taps of the convolution over time, odd.
    position: 'relative' (sinusoids and two biases, Dai et al., 2019),
      'relative_key' (a vector per distance, Shaw et al., 2018) or 'rotary' (Su
      et al., 2021, on the inputs of queries and keys).
    max_left: most distance to the past that 'relative_key' tells apart.
    max_right: the same to the future.
    is_causal: whether the convolution sees the past only; attention never is.
    norm: what follows the convolution: 'layer', or 'batch' with the statistics
      of training, which are parameters here.
    final_norm: whether a norm follows the last block.
    epsilon: of all norms.
    dropout_rate: of the inner and outer ends of all parts.
    remat: whether training computes a block again in the backward pass.
    dtype: dtype of the computation; parameters and softmax are float32.
  """

  embed_dim: int = 1024
  num_layers: int = 24
  num_heads: int = 16
  mlp_dim: int = 4096
  kernel_size: int = 31
  position: str = 'relative'
  max_left: int = 64
  max_right: int = 8
  is_causal: bool = False
  norm: str = 'layer'
  final_norm: bool = False
  epsilon: float = 1e-5
  dropout_rate: float = 0.0
  remat: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    for name, value, choices in (
      ('position', self.position, POSITIONS),
      ('norm', self.norm, NORMS),
    ):
      if value not in choices:
        raise ValueError(
          f'Unknown {name} `{value}` of a conformer, expected one of '
          f'{", ".join(choices)}.'
        )
    if self.embed_dim % self.num_heads or not self.kernel_size % 2:
      raise ValueError(
        f'Conformer of width {self.embed_dim}, {self.num_heads} heads and '
        f'{self.kernel_size} taps, expected a width that the heads share and '
        'an odd number of taps.'
      )

  @property
  def head_dim(self) -> int:
    return self.embed_dim // self.num_heads


def dense(features, axes, config, name, use_bias=True):
  """A linear map whose kernel has logical axes, for meshes of devices."""
  return nn.Dense(
    features,
    use_bias=use_bias,
    dtype=config.dtype,
    kernel_init=nn.with_logical_partitioning(
      nn.initializers.xavier_uniform(), axes
    ),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:]),
    name=name,
  )


def layer_norm(config, name):
  # Not the fast variance: it loses digits where the mean is large.
  return nn.LayerNorm(
    epsilon=config.epsilon,
    dtype=config.dtype,
    use_fast_variance=False,
    name=name,
  )


class FrozenBatchNorm(nn.Module):
  """Batch norm with the statistics of training, which are parameters here.

  Attributes:
    epsilon: added to the variance.
  """

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    shape = x.shape[-1:]
    mean = self.param('mean', zeros, shape)
    variance = self.param('variance', ones, shape)
    scale = self.param('scale', ones, shape)
    bias = self.param('bias', zeros, shape)
    scale = scale * jax.lax.rsqrt(variance + self.epsilon)
    return x * scale.astype(x.dtype) + (bias - mean * scale).astype(x.dtype)


def sinusoids(length: int, features: int) -> np.ndarray:
  """Sinusoids of all distances of a clip (Dai et al., 2019).

  Args:
    length: positions of the clip.
    features: width, even.

  Returns:
    float32 `[2 * length - 1, features]`: of the distances length - 1 (far in
    the past) to 1 - length; sine and cosine alternate.
  """
  distance = np.arange(length - 1, -length, -1, dtype=np.float32)
  rates = np.exp(
    np.arange(0, features, 2, dtype=np.float32) * (-np.log(1e4) / features)
  ).astype(np.float32)
  angles = distance[:, None] * rates
  waves = np.stack([np.sin(angles), np.cos(angles)], axis=2)
  return waves.reshape(2 * length - 1, features).astype(np.float32)


def rotate(x: Array) -> Array:
  """Turns pairs of features by an angle that grows with the position.

  Args:
    x: `[batch, time, heads, features]`; feature i is paired with i +
      features / 2.

  Returns:
    The same shape.
  """
  _, length, _, features = x.shape
  rates = _ROTARY_BASE ** (
    -np.arange(0, features, 2, dtype=np.float32) / features
  )
  angles = np.arange(length, dtype=np.float32)[:, None] * rates
  # [time, features / 2] -> [time, 1, features]
  angles = np.concatenate([angles, angles], axis=1)[:, None]
  first, second = jnp.split(x, 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  cos, sin = (f(angles).astype(x.dtype) for f in (np.cos, np.sin))
  return x * cos + turned * sin


def shift(scores: Array) -> Array:
  """Moves scores of distances to the keys at these distances.

  Args:
    scores: `[…, time, 2 * time - 1]`, of the distances as `sinusoids` has
      them.

  Returns:
    `[…, query, key]`.
  """
  *batch, length, width = scores.shape
  # Of rows one longer, cut from the second row on, each starts one later.
  scores = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(1, 0)])
  scores = scores.reshape(*batch, width + 1, length)[..., 1:, :]
  return scores.reshape(*batch, length, width)[..., :length]


def score_distances(
  query: Array, table: Array, max_left: int, max_right: int
) -> Array:
  """Products of queries with a vector for each distance.

  Args:
    query: `[batch, time, heads, features]`.
    table: `[max_left + 1 + max_right, features]`: of the distances -max_left
      (a key in the past) to max_right; keys farther away count as these.
    max_left: see `table`.
    max_right: see `table`.

  Returns:
    `[batch, head, query, key]`.
  """
  scores = jnp.einsum('bqhd,rd->bhqr', query, table)
  time = np.arange(query.shape[1])
  index = np.clip(time - time[:, None], -max_left, max_right) + max_left
  return jnp.take_along_axis(scores, jnp.asarray(index)[None, None], axis=3)


class FeedForward(nn.Module):
  """Feed-forward step, without its residual connection."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    """Maps `[batch, time, embed]` to the same shape."""
    c = self.config
    drop = nn.Dropout(c.dropout_rate, deterministic=deterministic)
    x = layer_norm(c, 'norm')(x)
    x = nn.silu(dense(c.mlp_dim, ('embed', 'mlp'), c, 'wi')(x))
    x = nn.with_logical_constraint(x, ('batch', 'length', 'mlp'))
    return drop(dense(c.embed_dim, ('mlp', 'embed'), c, 'wo')(drop(x)))


class Attention(nn.Module):
  """Self-attention that knows distances, without its residual connection."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
    """Maps `[batch, time, embed]`; `mask` is `[batch, time]`."""
    c = self.config
    x = layer_norm(c, 'norm')(x)
    split = lambda x: x.reshape(*x.shape[:2], c.num_heads, c.head_dim)
    project = lambda name: dense(c.embed_dim, ('embed', 'joined_kv'), c, name)
    placed = x
    if c.position == 'rotary':
      placed = rotate(split(x)).reshape(x.shape)
    query = split(project('query')(placed))
    key = split(project('key')(placed))
    value = split(project('value')(x))
    scores = self._scores(query, key) * c.head_dim**-0.5
    scores = scores.astype(jnp.float32)
    scores = jnp.where(mask[:, None, None, :], scores, _MASKED)
    weights = nn.softmax(scores).astype(c.dtype)
    x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    x = x.reshape(*x.shape[:2], c.embed_dim)
    x = dense(c.embed_dim, ('joined_kv', 'embed'), c, 'out')(x)
    return nn.Dropout(c.dropout_rate, deterministic=deterministic)(x)

  def _scores(self, query, key):
    """Products of queries with keys and distances: `[batch, head, q, k]`."""
    c = self.config
    length = query.shape[1]
    if c.position == 'relative':
      shape = (c.num_heads, c.head_dim)
      zeros = nn.initializers.zeros
      content = self.param('content_bias', zeros, shape).astype(c.dtype)
      distance = self.param('distance_bias', zeros, shape).astype(c.dtype)
      table = dense(
        c.embed_dim, ('embed', 'joined_kv'), c, 'distance', use_bias=False
      )(jnp.asarray(sinusoids(length, c.embed_dim)))
      table = table.reshape(-1, *shape)
      of_distance = jnp.einsum('bqhd,rhd->bhqr', query + distance, table)
      of_content = jnp.einsum('bqhd,bkhd->bhqk', query + content, key)
      return of_content + shift(of_distance)
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    if c.position == 'relative_key':
      table = self.param(
        'distance',
        nn.initializers.normal(0.02),
        (c.max_left + c.max_right + 1, c.head_dim),
      ).astype(c.dtype)
      scores += score_distances(query, table, c.max_left, c.max_right)
    return scores


class Convolution(nn.Module):
  """Gated convolution over time, without its residual connection."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
    """Maps `[batch, time, embed]`; `mask` is `[batch, time]`."""
    c = self.config
    x = layer_norm(c, 'norm')(x)
    x = jnp.where(mask[..., None], x, 0)  # as behind the ends of the clip
    x = dense(2 * c.embed_dim, ('embed', 'mlp'), c, 'gate', use_bias=False)(x)
    x, gate = jnp.split(x, 2, axis=-1)
    x = x * nn.sigmoid(gate)
    kernel = self.param(
      'kernel',
      nn.initializers.normal(c.kernel_size**-0.5),
      (c.kernel_size, c.embed_dim),
    ).astype(c.dtype)
    past = c.kernel_size - 1 if c.is_causal else c.kernel_size // 2
    length = x.shape[1]
    x = jnp.pad(x, ((0, 0), (past, c.kernel_size - 1 - past), (0, 0)))
    # A sum of shifted products: XLA's grouped convolution is slow on CPUs.
    x = sum(x[:, i : i + length] * kernel[i] for i in range(c.kernel_size))
    if c.norm == 'layer':
      x = layer_norm(c, 'inner_norm')(x)
    else:
      x = FrozenBatchNorm(c.epsilon, name='inner_norm')(x)
    x = nn.silu(x)
    x = dense(c.embed_dim, ('mlp', 'embed'), c, 'out', use_bias=False)(x)
    return nn.Dropout(c.dropout_rate, deterministic=deterministic)(x)


class Block(nn.Module):
  """One block."""

  config: Config
  deterministic: bool = True

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    """Maps `[batch, time, embed]`; `mask` is `[batch, time]`."""
    c, fixed = self.config, self.deterministic
    x += 0.5 * FeedForward(c, name='mlp_0')(x, fixed)
    x += Attention(c, name='attention')(x, mask, fixed)
    x += Convolution(c, name='convolution')(x, mask, fixed)
    x += 0.5 * FeedForward(c, name='mlp_1')(x, fixed)
    x = layer_norm(c, 'norm')(x)
    return nn.with_logical_constraint(x, ('batch', 'length', 'embed'))


class Conformer(nn.Module):
  """The blocks one after another.

  What padding holds, even NaN, changes nothing elsewhere.
  """

  config: Config

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | None = None,
    layer: int | None = None,
    deterministic: bool = True,
  ) -> Array:
    """Encodes a batch.

    Args:
      x: `[batch, time, embed]`.
      mask: bool `[batch, time]`, False for padding; None for none.
      layer: blocks to go through, 0 for none; later ones are not computed.
        Behind all of them, which is the default, stands the final norm.
      deterministic: False for dropout, which needs the key 'dropout'.

    Returns:
      `[batch, time, embed]` in the config's dtype.
    """
    c = self.config
    if mask is None:
      mask = jnp.ones(x.shape[:2], bool)
    x = jnp.where(mask[..., None], x, 0).astype(c.dtype)
    block = nn.remat(Block) if c.remat else Block
    num_layers = c.num_layers if layer is None else layer
    for i in range(num_layers):
      x = block(c, deterministic, name=f'layers_{i}')(x, mask)
    if c.final_norm and num_layers == c.num_layers:
      x = layer_norm(c, 'norm')(x)
    return x
