"""AST, a Transformer over patches of a spectrogram (Gong et al., 2021)."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from v2meow_jax.embedders import transformer

Array = jax.Array


class SpectrogramTransformer(nn.Module):
  """Spectrogram to one vector: the mean of two tokens in front of the patches.

  Attributes:
    embed_dim: width.
    num_layers: layers.
    num_heads: of each.
    num_hidden: of each MLP.
    patch: length and height of a patch.
    stride: from one patch to the next; they overlap where it is less.
    dropout: rate.
  """

  embed_dim: int = 768
  num_layers: int = 12
  num_heads: int = 12
  num_hidden: int = 3072
  patch: int = 16
  stride: int = 10
  dropout: float = 0.0

  @nn.compact
  def __call__(self, spectrogram: Array, deterministic: bool = True) -> Array:
    """Maps float32 `[batch, time, bands]` to `[batch, embed]`."""
    normal = nn.initializers.truncated_normal(0.02)
    # [batch, time, bands] -> [batch, bands, time, 1]: patches one band after
    # another, as in AST.
    x = spectrogram.swapaxes(1, 2)[..., None]
    x = nn.Conv(
      self.embed_dim,
      (self.patch, self.patch),
      self.stride,
      padding='VALID',
      name='patches',
    )(x)
    x = x.reshape(len(x), -1, self.embed_dim)
    tokens = self.param('tokens', normal, (2, self.embed_dim))
    tokens = jnp.broadcast_to(tokens, (len(x), *tokens.shape))
    # [batch, patches, embed] -> [batch, 2 + patches, embed]
    x = jnp.concatenate([tokens, x], axis=1)
    x = x + self.param('positions', normal, x.shape[1:])
    x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
    for i in range(self.num_layers):
      x = transformer.Layer(
        self.num_heads,
        self.num_hidden,
        norm_first=True,
        epsilon=1e-12,
        dropout=self.dropout,
        name=f'layer_{i}',
      )(x, None, deterministic)
    return nn.LayerNorm(epsilon=1e-12, name='norm')(x)[:, :2].mean(axis=1)
