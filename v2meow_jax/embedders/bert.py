"""The encoder of BERT and RoBERTa (Devlin et al., 2019; Liu et al., 2019)."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from v2meow_jax.embedders import transformer

Array = jax.Array

_MASKED = -1e9


class Bert(nn.Module):
  """Tokens to vectors, each of which has seen the whole text.

  The vectors of token types are left out: of a single text all tokens have the
  same, which a converter adds to the positions.

  Attributes:
    vocab_size: tokens.
    max_length: positions.
    embed_dim: width.
    num_layers: layers.
    num_heads: of each.
    num_hidden: of each MLP.
    epsilon: of the norms.
    dropout: rate.
  """

  vocab_size: int
  max_length: int
  embed_dim: int = 768
  num_layers: int = 12
  num_heads: int = 12
  num_hidden: int = 3072
  epsilon: float = 1e-12
  dropout: float = 0.1

  @nn.compact
  def __call__(
    self, tokens: Array, mask: Array, deterministic: bool = True
  ) -> Array:
    """Encodes texts.

    Args:
      tokens: int32 `[batch, time]`, at most `max_length` long.
      mask: bool `[batch, time]`, False behind the end of a text.
      deterministic: whether nothing is dropped.

    Returns:
      float32 `[batch, time, embed]`.
    """
    normal = nn.initializers.normal(0.02)
    words = nn.Embed(
      self.vocab_size, self.embed_dim, embedding_init=normal, name='words'
    )
    positions = self.param(
      'positions', normal, (self.max_length, self.embed_dim)
    )
    # [batch, time] -> [batch, time, embed]
    x = words(tokens) + positions[: tokens.shape[1]]
    x = nn.LayerNorm(epsilon=self.epsilon, name='norm')(x)
    x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
    bias = jnp.where(mask[:, None, None, :], 0.0, _MASKED)
    for i in range(self.num_layers):
      x = transformer.Layer(
        self.num_heads,
        self.num_hidden,
        norm_first=False,
        epsilon=self.epsilon,
        dropout=self.dropout,
        name=f'layer_{i}',
      )(x, bias, deterministic)
    return x
