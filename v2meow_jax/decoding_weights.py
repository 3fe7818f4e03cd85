"""Parameters of a network, arranged once for the steps of decoding.

A step computes one position. For that the projections of one input stand side
by side, norms' scales are multiplied into the kernels behind them, each level
has a kernel of its own, and weights may be kept in fewer bits.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from v2meow_jax import network
from v2meow_jax import quantization

Array = jax.Array
Params = Mapping[str, Any]

# How weights can be kept; None is the dtype of the computation.
WEIGHTS_DTYPES = (None, 'bfloat16', 'int8')


class Matrix(NamedTuple):
  """A matrix `[in, out]` as it is kept.

  Attributes:
    values: `[in, out]`.
    scale: float32 `[out]`, times the values, of int8; else None.
  """

  values: Array
  scale: Array | None = None

  @classmethod
  def keep(cls, kernel: Array, dtype: Any, weights_dtype: str | None):
    """Keeps a kernel in `weights_dtype`, or where that is None in `dtype`."""
    if weights_dtype == 'int8':
      return cls(*quantization.quantize_columns(kernel))
    return cls(kernel.astype(weights_dtype or dtype))

  def multiply(self, x: Array, dtype: Any) -> Array:
    """`x @ matrix` in `dtype`, float32 or bfloat16.

    What is kept in fewer bits is multiplied in bfloat16, which holds all int8
    numbers, and summed in float32.
    """
    if self.values.dtype == dtype:
      return x.astype(dtype) @ self.values
    y = jnp.matmul(
      x.astype(jnp.bfloat16),
      self.values.astype(jnp.bfloat16),
      preferred_element_type=jnp.float32,
    )
    return (y if self.scale is None else y * self.scale).astype(dtype)


class Layer(NamedTuple):
  """Parameters of one decoder layer, arranged for one position.

  Attributes:
    qkv: `[embed, 3 * heads * depth]`, with the norm's scale.
    out: `[heads * depth, embed]`.
    cross_query: `[embed, heads * depth]`, with the norm's scale, or None.
    cross_out: `[heads * depth, embed]`, or None.
    inward: `[embed, activations * mlp]`, with the norm's scale.
    outward: `[mlp, embed]`.
  """

  qkv: Matrix
  out: Matrix
  cross_query: Matrix | None
  cross_out: Matrix | None
  inward: Matrix
  outward: Matrix


class Weights(NamedTuple):
  """What `step` reads of the parameters, see `arrange`.

  Attributes:
    layers: parameters of each layer.
    embedding: `[ids, embed]`.
    heads: per level, the kernel of its logits, `[embed, codes]`, with the
      norm's scale: so that a step reads its own only.
    bias: of positions of the target to one another, `[heads, distances]`, see
      `network.Decoder.bias_tables`.
    input_bias: of positions of the target to the inputs, or None.
  """

  layers: list[Layer]
  embedding: Array
  heads: list[Matrix]
  bias: Array
  input_bias: Array | None


def arrange(
  module: network.Transformer, params: Params, weights_dtype: str | None = None
) -> Weights:
  """Arranges the parameters of a network for `step`.

  Args:
    module: network of the stage.
    params: its parameters.
    weights_dtype: how they are kept, one of `WEIGHTS_DTYPES`: 'bfloat16', or
      'int8' with a scale for each column. Biases are float32 in any case.
  """
  cfg = module.config
  decoder = params['decoder']
  count = cfg.num_decoder_layers if module.has_encoder else cfg.num_layers
  embedder = (params if module.has_encoder else decoder)['token_embedder']
  kernel = decoder['logits_dense']['kernel']
  kernel *= decoder['decoder_norm']['scale'][:, None]
  bias, input_bias = module.apply(
    {'params': params}, method=lambda module: module.decoder.bias_tables()
  )
  table = embedder['embedding']
  return Weights(
    layers=[
      _arrange(decoder[f'layers_{i}'], cfg, weights_dtype) for i in range(count)
    ],
    # A step reads few rows: in int8 they would not be smaller by much.
    embedding=table if weights_dtype is None else table.astype(jnp.bfloat16),
    heads=[
      Matrix.keep(part, jnp.float32, weights_dtype)
      for part in jnp.split(kernel, module.stage.target.num_levels, axis=1)
    ],
    bias=bias,
    input_bias=input_bias,
  )


def _arrange(
  params: Params, cfg: network.Config, weights_dtype: str | None
) -> Layer:
  """Arranges the parameters of one decoder layer."""
  keep = lambda kernel: Matrix.keep(kernel, cfg.dtype, weights_dtype)

  def joined(norm: str, block: str, names: list[str]) -> Matrix:
    kernels = [params[block][name]['kernel'] for name in names]
    scale = params[norm]['scale'][:, None]
    return keep(jnp.concatenate(kernels, axis=1) * scale)

  kernel = lambda block, name: keep(params[block][name]['kernel'])
  cross = 'encoder_decoder_attention'
  has_encoder = cross in params
  inwards = sorted(name for name in params['mlp'] if name.startswith('wi'))
  return Layer(
    qkv=joined(
      'pre_self_attention_layer_norm',
      'self_attention',
      ['query', 'key', 'value'],
    ),
    out=kernel('self_attention', 'out'),
    cross_query=joined('pre_cross_attention_layer_norm', cross, ['query'])
    if has_encoder
    else None,
    cross_out=kernel(cross, 'out') if has_encoder else None,
    inward=joined('pre_mlp_layer_norm', 'mlp', inwards),
    outward=kernel('mlp', 'wo'),
  )
