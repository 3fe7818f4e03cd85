"""Layers of the Transformer encoders that embedders are made of."""

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class SelfAttention(nn.Module):
  """Self-attention with biases and a projection behind it.

  Attributes:
    num_heads: heads; they share the width evenly.
    has_bias: whether query, key and value have biases.
    dropout: rate on the probabilities.
  """

  num_heads: int
  has_bias: bool = True
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x: Array, bias: Array | None = None, deterministic: bool = True
  ) -> Array:
    """Maps float32 `[batch, time, features]` to the same shape.

    Args:
      x: see above.
      bias: added to the logits, `[batch | 1, heads | 1, time, time]`.
      deterministic: whether nothing is dropped.
    """
    features = x.shape[-1]
    shape = (self.num_heads, features // self.num_heads)
    project = lambda name: nn.DenseGeneral(
      shape, use_bias=self.has_bias, name=name
    )(x)
    # [batch, time, features] -> [batch, time, heads, features / heads]
    query, key, value = project('query'), project('key'), project('value')
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    logits = logits / jnp.sqrt(jnp.float32(shape[1]))
    if bias is not None:
      logits = logits + bias
    weights = jax.nn.softmax(logits, axis=-1)
    weights = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
    x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    # [batch, time, heads, features / heads] -> [batch, time, features]
    return nn.DenseGeneral(features, axis=(-2, -1), name='output')(x)


class Mlp(nn.Module):
  """Two dense layers with GELU between.

  Attributes:
    num_hidden: width between.
  """

  num_hidden: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[…, features]` to the same shape."""
    hidden = nn.Dense(self.num_hidden, name='hidden')(x)
    hidden = jax.nn.gelu(hidden, approximate=False)
    return nn.Dense(x.shape[-1], name='output')(hidden)


class Layer(nn.Module):
  """Attention and MLP, each added to what it reads.

  Attributes:
    num_heads: of the attention.
    num_hidden: of the MLP.
    norm_first: whether the norm stands before each (as in ViT), or behind the
      sum (as in BERT).
    epsilon: of the norms.
    dropout: rate on the probabilities and on what is added.
  """

  num_heads: int
  num_hidden: int
  norm_first: bool
  epsilon: float = 1e-6
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x: Array, bias: Array | None = None, deterministic: bool = True
  ) -> Array:
    """Maps `[batch, time, features]` to the same shape; see SelfAttention."""
    attend = SelfAttention(
      self.num_heads, dropout=self.dropout, name='attention'
    )
    parts = {
      'attention_norm': lambda x: attend(x, bias, deterministic),
      'mlp_norm': Mlp(self.num_hidden, name='mlp'),
    }
    for name, part in parts.items():
      norm = nn.LayerNorm(epsilon=self.epsilon, name=name)
      made = part(norm(x) if self.norm_first else x)
      x = x + nn.Dropout(self.dropout)(made, deterministic=deterministic)
      x = x if self.norm_first else norm(x)
    return x
