"""Adaptors: how the tokens of a frame become positions of the encoder.

An image tokenizer makes many tokens of one frame (ViT-VQGAN: 32 x 32), which
share a codebook and a place in time. They are folded into a few positions, or
each keeps a position of its own (V2Meow, Visual Feature Extraction, leaves it
open).
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from v2meow_jax import layers
from v2meow_jax import stages

Array = jax.Array
DType = Any

# Width of a token among others of its frame: that of ViT-VQGAN's codes.
_TOKEN_DIM = 32


def positions_per_time(view: stages.View, frame_positions: int | None) -> int:
  """Positions of the encoder for one time of a view.

  Args:
    view: an input of a stage.
    frame_positions: positions for the tokens of a frame; None for one each.

  Raises:
    ValueError: the tokens of a frame cannot be shared out evenly.
  """
  if not view.spec.shares_codebook or frame_positions is None:
    return view.num_levels
  if frame_positions < 1 or view.num_levels % frame_positions:
    raise ValueError(
      f'frame_positions is {frame_positions}, expected a divisor of the '
      f'{view.num_levels} tokens of a frame of `{view.name}`, or None to keep '
      'them all. Set network.Config.frame_positions.'
    )
  return frame_positions


class FrameAdaptor(nn.Module):
  """Makes positions of the encoder of the tokens of frames.

  A position of a frame is a group of tokens, in the order of the frame. Their
  vectors, side by side, are projected to the width of the encoder, so that
  each token counts at its place. As all positions of a frame are at one time,
  a learned vector says which of them a position is.

  Attributes:
    num_tokens: tokens of a frame.
    num_positions: positions of a frame, a divisor of `num_tokens`. With as
      many as tokens, nothing is projected.
    embed_dim: width of the encoder.
    dtype: dtype of the computation; parameters are float32.
  """

  num_tokens: int
  num_positions: int
  embed_dim: int
  dtype: DType = jnp.float32

  def setup(self):
    self.places = self.param(
      'places',
      nn.with_logical_partitioning(
        nn.initializers.normal(stddev=1.0),
        # A name of T5X, whose Adafactor refuses others, for a small table.
        ('relpos_buckets', 'embed'),
      ),
      (self.num_positions, self.embed_dim),
      jnp.float32,
    )
    if self._group > 1:
      self.tokens = layers.Dense(
        self.embed_dim, _TOKEN_DIM, ('embed', 'mlp'), self.dtype
      )
      self.projection = layers.Dense(
        self._group * _TOKEN_DIM, self.embed_dim, ('mlp', 'embed'), self.dtype
      )

  @property
  def _group(self) -> int:
    return self.num_tokens // self.num_positions

  def __call__(
    self, ids: Array, mask: Array, table: Array
  ) -> tuple[Array, Array]:
    """Maps the tokens of frames to positions.

    Args:
      ids: int32 `[batch, times * tokens]`.
      mask: bool `[batch, times * tokens]`, False where a token is padding.
      table: float32 `[ids, embed]`, the stage's vectors of all ids.

    Returns:
      `[batch, times * positions, embed]` and its mask, True where any token
      of the group is none of padding.
    """
    if self._group > 1:
      # Of the few ids, not of the many tokens: [ids, embed] -> [ids, token]
      table = self.tokens(table)
    x = jnp.take(table.astype(self.dtype), ids, axis=0, mode='clip')
    x = jnp.where(mask[..., None], x, 0)
    if self._group > 1:
      # [batch, times * tokens, token] -> [batch, times * positions, embed]
      x = x.reshape(x.shape[0], -1, self._group * _TOKEN_DIM)
      x = self.projection(x)
      mask = mask.reshape(mask.shape[0], -1, self._group).any(axis=-1)
    times = x.shape[1] // self.num_positions
    x += jnp.tile(self.places, (times, 1)).astype(self.dtype)
    return nn.with_logical_constraint(x, ('batch', 'length', 'embed')), mask
