"""Decoding with a key-value cache: one compiled loop over the positions.

The first positions (a prefix, a prompt) go through the network in one pass,
which leaves the keys and values of every layer. Each step of the loop then
computes one position with the same parameters, arranged once for that: the
projections of one input side by side, norms' scales multiplied into them. The
result equals the full pass.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import attention
from v2meow_jax import layers
from v2meow_jax import network

Array = jax.Array
Params = Mapping[str, Any]


class _Layer(NamedTuple):
  """Parameters of one decoder layer, arranged for one position.

  Attributes:
    qkv: `[embed, 3 * heads * depth]`, with the norm's scale.
    out: `[heads * depth, embed]`.
    cross_query: `[embed, heads * depth]`, with the norm's scale, or None.
    cross_out: `[heads * depth, embed]`, or None.
    inward: `[embed, activations * mlp]`, with the norm's scale.
    outward: `[mlp, embed]`.
  """

  qkv: Array
  out: Array
  cross_query: Array | None
  cross_out: Array | None
  inward: Array
  outward: Array


class _Cache(NamedTuple):
  """Keys and values of one layer.

  Batch and heads are one axis: so they are operands of the products as they
  are, and XLA writes to them in place. Otherwise it copies them at each step.

  Attributes:
    key: `[batch * heads, positions, depth]`.
    value: `[batch * heads, positions, depth]`.
  """

  key: Array
  value: Array

  @classmethod
  def make(cls, key: Array, value: Array, length: int) -> '_Cache':
    """Makes room for `length` in `[batch, heads, positions, depth]`."""
    room = ((0, 0), (0, length - key.shape[2]), (0, 0))
    join = lambda x: jnp.pad(x.reshape(-1, *x.shape[2:]), room)
    return cls(join(key), join(value))

  def write(self, key: Array, value: Array, position: Array) -> '_Cache':
    """Puts `[batch, heads * depth]` of one position in its place."""
    put = lambda cache, x: lax.dynamic_update_slice_in_dim(
      cache, x.reshape(cache.shape[0], 1, -1), position, axis=1
    )
    return _Cache(put(self.key, key), put(self.value, value))


def _arrange(params: Params, cfg: network.Config) -> _Layer:
  """Arranges the parameters of one decoder layer."""

  def joined(norm: str, block: str, names: list[str]) -> Array:
    kernels = [params[block][name]['kernel'] for name in names]
    scale = params[norm]['scale'][:, None]
    return (jnp.concatenate(kernels, axis=1) * scale).astype(cfg.dtype)

  kernel = lambda block, name: params[block][name]['kernel'].astype(cfg.dtype)
  cross = 'encoder_decoder_attention'
  has_encoder = cross in params
  inwards = sorted(name for name in params['mlp'] if name.startswith('wi'))
  return _Layer(
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


def _normalize(x: Array, dtype: Any) -> Array:
  """The layer norm without its scale, which is in the kernel behind it."""
  return layers.rms_norm(x, jnp.ones((), jnp.float32), dtype)


def _attend(
  query: Array, cache: _Cache, bias: Array, cfg: network.Config
) -> Array:
  """Attention of one position.

  Args:
    query: `[batch, heads * depth]`.
    cache: keys and values.
    bias: `[batch or 1, heads or 1, positions]`, with `MASK_VALUE` where a key
      may not be seen.
    cfg: dimensions.

  Returns:
    `[batch, heads * depth]`.
  """
  batch = query.shape[0]
  # [batch, heads * depth] -> [batch * heads, depth]
  query = query.reshape(-1, cfg.head_dim)
  key = cache.key
  if cfg.float32_attention_logits:
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
  logits = jnp.einsum('nd,nsd->ns', query, key)
  # [batch * heads, positions] -> [batch, heads, positions]
  logits = logits.reshape(batch, cfg.num_heads, -1)
  weights = jax.nn.softmax(logits + bias.astype(logits.dtype))
  weights = weights.reshape(batch * cfg.num_heads, -1).astype(cfg.dtype)
  return jnp.einsum('ns,nsd->nd', weights, cache.value).reshape(batch, -1)


def _step_layer(
  layer: _Layer,
  x: Array,
  cache: _Cache,
  cross_cache: _Cache | None,
  position: Array,
  bias: Array,
  cross_bias: Array | None,
  cfg: network.Config,
) -> tuple[Array, _Cache]:
  """One position through one decoder layer.

  Args:
    layer: parameters.
    x: `[batch, embed]`.
    cache: of self-attention, filled up to `position`.
    cross_cache: of the encoder's output, or None.
    position: int scalar.
    bias: of self-attention, see `_attend`.
    cross_bias: of cross-attention, or None.
    cfg: dimensions.

  Returns:
    `[batch, embed]`, and the cache filled up to and with `position`.
  """
  qkv = _normalize(x, cfg.dtype) @ layer.qkv
  query, key, value = jnp.split(qkv, 3, axis=-1)
  cache = cache.write(key, value, position)
  x += _attend(query, cache, bias, cfg) @ layer.out
  if cross_cache is not None:
    query = _normalize(x, cfg.dtype) @ layer.cross_query
    x += _attend(query, cross_cache, cross_bias, cfg) @ layer.cross_out
  parts = _normalize(x, cfg.dtype) @ layer.inward
  parts = jnp.split(parts, len(cfg.mlp_activations), axis=-1)
  hidden = layers.multiply_activations(parts, cfg.mlp_activations)
  return x + hidden @ layer.outward, cache


def _padding(mask: Array) -> Array:
  """float32 bias of padded keys, `[batch, 1, positions]`."""
  return jnp.where(mask, 0.0, attention.MASK_VALUE)[:, None]


def decode(
  module: network.Transformer,
  params: Params,
  inputs: Mapping[str, Array],
  masks: Mapping[str, Array],
  tokens: Array,
  token_mask: Array,
  choose: Callable[[Array, Array], tuple[Array, Any]],
) -> tuple[Array, Any]:
  """Generates the positions that `tokens` leaves open, one after the other.

  Args:
    module: network of the stage.
    params: its parameters.
    inputs: of the encoder, see `network.Encoder`; empty without one.
    masks: of the encoder.
    tokens: int32 ids `[batch, length]`: the prefix where there is no encoder,
      then the prompt, whole times.
    token_mask: bool `[batch, length]`, False where the prefix is padding.
    choose: maps float32 logits `[batch, codes]` and the int32 step to codes,
      int32 `[batch]`, and anything else to collect over the steps.

  Returns:
    Codes, int32 `[batch, steps]`, and what `choose` collected, with the steps
    in front.
  """
  cfg, stage = module.config, module.stage
  target = stage.target
  num_levels, num_codes = target.num_levels, target.spec.num_codes
  batch, first = tokens.shape
  prefix = network.prefix_length(stage)
  length = prefix + stage.target_length
  # Moved right by one behind a 0; the last token is the loop's first input.
  shifted = jnp.pad(tokens, ((0, 0), (1, 0)))
  # At least one position, since there is no attention over none; the loop
  # writes over it.
  filled = max(first, 1)
  filled_mask = jnp.pad(
    token_mask, ((0, 0), (0, filled - first)), constant_values=True
  )
  memories, bias, cross_bias, cross_mask = module.apply(
    {'params': params},
    inputs,
    masks,
    shifted[:, :filled],
    filled_mask,
    method='prefill',
  )

  decoder = params['decoder']
  arranged = [
    _arrange(decoder[f'layers_{i}'], cfg) for i in range(len(memories))
  ]
  embedder = params['token_embedder'] if module.has_encoder else None
  table = (embedder or decoder['token_embedder'])['embedding']
  scale = decoder['decoder_norm']['scale'][:, None]
  kernel = decoder['logits_dense']['kernel'] * scale
  # One kernel per level, so that a step reads its own only.
  kernels = jnp.split(kernel, num_levels, axis=1)
  heads = [lambda x, kernel=kernel: x @ kernel for kernel in kernels]

  caches = [
    _Cache.make(memory['key'], memory['value'], length) for memory in memories
  ]
  padding = _padding(
    jnp.pad(token_mask, ((0, 0), (0, length - first)), constant_values=True)
  )
  cross_caches = [None] * len(memories)
  if module.has_encoder:
    cross_caches = [
      _Cache.make(
        memory['cross_key'], memory['cross_value'], cross_mask.shape[1]
      )
      for memory in memories
    ]
    cross_padding = _padding(cross_mask)

  def step(carry, xs):
    token, caches = carry
    index, bias, cross_bias = xs
    bias = bias[None] + padding
    if module.has_encoder:
      cross_bias = (
        cross_padding
        if cross_bias is None
        else (cross_bias[:, cross_places][None] + cross_padding)
      )
    x = table[token].astype(cfg.dtype)
    filled_caches = []
    for layer, cache, cross_cache in zip(arranged, caches, cross_caches):
      x, cache = _step_layer(
        layer,
        x,
        cache,
        cross_cache,
        first + index,
        bias,
        cross_bias,
        cfg,
      )
      filled_caches.append(cache)
    x = _normalize(x, cfg.dtype).astype(jnp.float32)
    level = (first - prefix + index) % num_levels
    logits = lax.switch(level, heads, x)
    codes, collected = choose(logits, index)
    token = stage.target_offset + level * num_codes + codes
    return (token, filled_caches), (codes, collected)

  # [heads, queries, keys] -> [queries, heads, keys]: a step reads one row.
  cross_places = slice(None)
  cross_bias = attention.cut_queries(cross_bias, first, None)
  if isinstance(cross_bias, attention.BlockedBias):
    # A row of places, and the place of each key.
    cross_rows, cross_places = cross_bias.rows(), cross_bias.keys
  else:
    cross_rows = None if cross_bias is None else cross_bias.swapaxes(0, 1)
  steps = np.arange(length - first, dtype=np.int32)
  _, (codes, collected) = lax.scan(
    step,
    (shifted[:, first], caches),
    (steps, bias[:, first:].swapaxes(0, 1), cross_rows),
  )
  # [steps, batch] -> [batch, steps]
  return codes.T, collected
