"""Decoding with a key-value cache: one compiled loop over the positions.

The first positions (a prefix, a prompt) go through the network in one pass,
`prefill`, which leaves the keys and values of every layer. Each `step` then
computes one position with the same parameters, arranged once for that
(decoding_weights.py). The result equals the full pass.

The caches grow in blocks: the loop is a few loops, one for each length of the
caches, so that a step reads little of what is still empty.
"""

from collections.abc import Callable, Mapping
import functools
import itertools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import attention
from v2meow_jax import decoding_weights
from v2meow_jax import layers
from v2meow_jax import network
from v2meow_jax import relative_positions

Array = jax.Array
Params = Mapping[str, Any]

# Positions by which caches grow, at least, and how often they grow at most.
# Each length is compiled for; of 8, a step reads an eighth too much on average.
BLOCK = 256
MOST_BLOCKS = 8


class Cache(NamedTuple):
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
  def make(cls, key: Array, value: Array) -> 'Cache':
    """Of keys and values `[batch, heads, positions, depth]`."""
    join = lambda x: x.reshape(-1, *x.shape[2:])
    return cls(join(key), join(value))

  def grow(self, length: int) -> 'Cache':
    """Makes room for `length` positions."""
    room = ((0, 0), (0, length - self.key.shape[1]), (0, 0))
    return Cache(jnp.pad(self.key, room), jnp.pad(self.value, room))

  def write(self, key: Array, value: Array, position: Array) -> 'Cache':
    """Puts `[batch, heads * depth]` of one position in its place."""
    put = lambda cache, x: lax.dynamic_update_slice_in_dim(
      cache, x.reshape(cache.shape[0], 1, -1), position, axis=1
    )
    return Cache(put(self.key, key), put(self.value, value))


def _normalize(x: Array, dtype: Any) -> Array:
  """The layer norm without its scale, which is in the kernel behind it."""
  return layers.rms_norm(x, jnp.ones((), jnp.float32), dtype)


def _attend(
  query: Array, cache: Cache, bias: Array, cfg: network.Config
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
  layer: decoding_weights.Layer,
  x: Array,
  cache: Cache,
  cross_cache: Cache | None,
  position: Array,
  bias: Array,
  cross_bias: Array | None,
  cfg: network.Config,
) -> tuple[Array, Cache]:
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
  dtype = cfg.dtype
  qkv = layer.qkv.multiply(_normalize(x, dtype), dtype)
  query, key, value = jnp.split(qkv, 3, axis=-1)
  cache = cache.write(key, value, position)
  x += layer.out.multiply(_attend(query, cache, bias, cfg), dtype)
  if cross_cache is not None:
    query = layer.cross_query.multiply(_normalize(x, dtype), dtype)
    y = _attend(query, cross_cache, cross_bias, cfg)
    x += layer.cross_out.multiply(y, dtype)
  parts = layer.inward.multiply(_normalize(x, dtype), dtype)
  parts = jnp.split(parts, len(cfg.mlp_activations), axis=-1)
  hidden = layers.multiply_activations(parts, cfg.mlp_activations)
  return x + layer.outward.multiply(hidden, dtype), cache


def _padding(mask: Array) -> Array:
  """float32 bias of padded keys, `[batch, 1, positions]`."""
  return jnp.where(mask, 0.0, attention.MASK_VALUE)[:, None]


class State(NamedTuple):
  """What a step leaves to the next, and what `prefill` leaves to all.

  Attributes:
    caches: of self-attention, per layer, filled up to the next position.
    padding: float32 `[batch, 1, positions]`, added to the logits of
      self-attention.
    cross_caches: of the encoder's output, per layer; empty without an encoder.
    cross_padding: float32 `[batch, 1, inputs]`, or None.
  """

  caches: list[Cache]
  padding: Array
  cross_caches: list[Cache]
  cross_padding: Array | None

  def grow(self, length: int) -> 'State':
    """Makes room for `length` positions."""
    room = ((0, 0), (0, 0), (0, length - self.padding.shape[2]))
    return self._replace(
      caches=[cache.grow(length) for cache in self.caches],
      padding=jnp.pad(self.padding, room),
    )

  def cut(self, length: int) -> 'State':
    """Keeps the room of the first `length` positions."""
    return self._replace(
      caches=jax.tree.map(lambda x: x[:, :length], self.caches),
      padding=self.padding[:, :, :length],
    )

  def put(self, part: 'State') -> 'State':
    """Takes the positions of what `cut` gave."""
    write = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, 0, axis=1)
    return self._replace(caches=jax.tree.map(write, self.caches, part.caches))


def prefill(
  module: network.Transformer,
  params: Params,
  inputs: Mapping[str, Array],
  masks: Mapping[str, Array],
  tokens: Array,
  token_mask: Array,
) -> tuple[Array, State]:
  """Computes what the first step starts from; `State.grow` makes room for it.

  Args:
    module: network of the stage.
    params: its parameters.
    inputs: of the encoder, see `network.Encoder`; empty without one.
    masks: of the encoder.
    tokens: see `decode`.
    token_mask: see `decode`.

  Returns:
    The input of the first step, int32 `[batch]`, and its state.
  """
  first = tokens.shape[1]
  # Moved right by one behind a 0; the last token is the loop's first input.
  shifted = jnp.pad(tokens, ((0, 0), (1, 0)))
  # At least one position, since there is no attention over none; the loop
  # writes over it.
  filled = max(first, 1)
  filled_mask = jnp.pad(
    token_mask, ((0, 0), (0, filled - first)), constant_values=True
  )
  memories, cross_mask = module.apply(
    {'params': params},
    inputs,
    masks,
    shifted[:, :filled],
    filled_mask,
    method='prefill',
  )
  padding = _padding(filled_mask)
  caches = [Cache.make(m['key'], m['value']) for m in memories]
  if not module.has_encoder:
    return shifted[:, first], State(caches, padding, [], None)
  cross_caches = [
    Cache.make(m['cross_key'], m['cross_value']) for m in memories
  ]
  state = State(caches, padding, cross_caches, _padding(cross_mask))
  return shifted[:, first], state


def step(
  module: network.Transformer,
  weights: decoding_weights.Weights,
  state: State,
  token: Array,
  position: Array,
) -> tuple[Array, State]:
  """Computes one position.

  Args:
    module: network of the stage.
    weights: see `decoding_weights.arrange`.
    state: filled up to `position`, with room for it.
    token: int32 `[batch]`, the input of the position.
    position: int32 scalar, that of the prefix included.

  Returns:
    float32 logits `[batch, codes]` of the position's own level, and the state
    filled up to and with `position`.
  """
  cfg, stage = module.config, module.stage
  bias, cross_bias = _bias_rows(module, weights, state, position)
  cross_caches = state.cross_caches
  x = weights.embedding[token].astype(cfg.dtype)
  caches = []
  for i, (layer, cache) in enumerate(zip(weights.layers, state.caches)):
    x, cache = _step_layer(
      layer,
      x,
      cache,
      cross_caches[i] if cross_caches else None,
      position,
      bias,
      cross_bias,
      cfg,
    )
    caches.append(cache)
  x = _normalize(x, cfg.dtype).astype(jnp.float32)
  level = (position - network.prefix_length(stage)) % stage.target.num_levels
  branches = [
    lambda x, head=head: head.multiply(x, jnp.float32) for head in weights.heads
  ]
  logits = lax.switch(level, branches, x)
  return logits, state._replace(caches=caches)


def _bias_rows(
  module: network.Transformer,
  weights: decoding_weights.Weights,
  state: State,
  position: Array,
) -> tuple[Array, Array | None]:
  """Biases of one position, see `_attend`: of self- and cross-attention."""
  stage = module.stage
  prefix = network.prefix_length(stage)
  length = state.padding.shape[2]
  places = network.positions(stage.target, stage)
  query = jnp.asarray(places)[position - prefix]
  row = relative_positions.row(weights.bias, query, places[: length - prefix])
  input_row = None
  if weights.input_bias is not None:
    inputs = (
      network.prefix_positions(stage, module.config)
      if prefix
      else network.input_positions(stage, module.config)
    )
    input_row = relative_positions.row(weights.input_bias, query, inputs)
  if prefix:
    row = jnp.concatenate([input_row, row], axis=1)
  bias = jnp.where(
    np.arange(length) <= position, row + state.padding, attention.MASK_VALUE
  )
  if prefix or input_row is None:
    return bias, state.cross_padding
  return bias, input_row + state.cross_padding


def next_token(
  module: network.Transformer, codes: Array, position: Array
) -> Array:
  """Ids of the codes of a position: the input of the next."""
  stage = module.stage
  target = stage.target
  level = (position - network.prefix_length(stage)) % target.num_levels
  return stage.target_offset + level * target.spec.num_codes + codes


def decode(
  module: network.Transformer,
  params: Params,
  inputs: Mapping[str, Array],
  masks: Mapping[str, Array],
  tokens: Array,
  token_mask: Array,
  choose: Callable[..., tuple[Array, Any]],
  draw: Callable[[Array], Any] | None = None,
  first: Array | None = None,
  stop: Array | None = None,
  block: int = BLOCK,
  weights_dtype: str | None = None,
) -> tuple[Array, Any]:
  """Generates positions of the target, one after the other.

  Args:
    module: network of the stage.
    params: its parameters.
    inputs: of the encoder, see `network.Encoder`; empty without one.
    masks: of the encoder.
    tokens: int32 ids `[batch, length]`: the prefix where there is no encoder,
      then the prompt, whole times.
    token_mask: bool `[batch, length]`, False where the prefix is padding.
    choose: maps float32 logits `[batch, codes]` and the int32 place in the
      target to codes, int32 `[batch]`, and anything else to collect.
    draw: maps places in the target, int32 `[places]`, to arrays with the places
      in front, of which `choose` gets its own's as third argument: random
      numbers, which many places at once draw faster. None for none.
    first: int32 scalar, the first place to generate: so much of the prompt is
      read. None for all of it.
    stop: int32 scalar, the place to stop before. None for the end.
    block: positions by which the caches grow, about; more where they would
      grow more often than `MOST_BLOCKS` times.
    weights_dtype: how weights are kept, see `decoding_weights.arrange`.

  Returns:
    Codes, int32 `[batch, target]`, and what `choose` collected, with the target
    in front; 0 outside `first` to `stop`.
  """
  prefix = network.prefix_length(module.stage)
  count = module.stage.target_length
  room = tokens.shape[1] - prefix
  weights = decoding_weights.arrange(module, params, weights_dtype)
  start = lambda length: _start(
    module, params, inputs, masks, tokens, token_mask, length
  )
  if first is None:
    first, state = room, start(room)
  else:
    # All of the prompt's room or nothing goes through the network: what is
    # behind `first` is written over before it is seen.
    state = lax.cond(first > 0, lambda: start(room), lambda: start(0))
  stop = count if stop is None else stop
  # Moved right by one behind a 0: the input of the first step.
  shifted = jnp.pad(tokens, ((0, 0), (1, 0)))
  token = lax.dynamic_index_in_dim(shifted, prefix + first, 1, keepdims=False)

  def advance(place, carry, drawn):
    token, state, made = carry
    logits, state = step(module, weights, state, token, prefix + place)
    out = choose(logits, place, *drawn(place))
    made = jax.tree.map(
      lambda all, x: lax.dynamic_update_index_in_dim(all, x, place, 0),
      made,
      out,
    )
    return next_token(module, out[0], prefix + place), state, made

  def run(start, end, carry):
    """The steps of one block."""
    drawn = lambda place: ()
    if draw is not None:
      numbers = draw(jnp.arange(start, end, dtype=jnp.int32))
      pick = lambda x, place: lax.dynamic_index_in_dim(x, place, 0, False)
      drawn = lambda place: (
        jax.tree.map(lambda x: pick(x, place - start), numbers),
      )
    token, state, made = carry
    most = max if isinstance(first, int) else jnp.maximum
    least = min if isinstance(stop, int) else jnp.minimum
    token, part, made = lax.fori_loop(
      most(first, start),
      least(stop, end),
      functools.partial(advance, drawn=drawn),
      (token, state.cut(prefix + end), made),
    )
    return token, state.put(part), made

  def example():
    """What `choose` gives for one place."""
    logits = jnp.zeros((len(tokens), module.stage.target.spec.num_codes))
    places = jnp.zeros(1, jnp.int32)
    drawn = () if draw is None else (jax.tree.map(_first, draw(places)),)
    return choose(logits, places[0], *drawn)

  shapes = jax.eval_shape(example)
  made = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
  carry = (token, state, made)
  num_blocks = min(max(1, round(count / block)), MOST_BLOCKS)
  ends = np.linspace(0, count, num_blocks + 1).round()
  for start, end in itertools.pairwise(ends.astype(int).tolist()):
    has_steps = (first < end) & (start < stop)
    go = functools.partial(run, start, end)
    if isinstance(has_steps, bool):
      carry = go(carry) if has_steps else carry
    else:
      carry = lax.cond(has_steps, go, lambda carry: carry, carry)
  codes, collected = carry[-1]
  # [target, batch] -> [batch, target]
  return codes.T, collected


def _first(x: Array) -> Array:
  return x[0]


def _start(
  module: network.Transformer,
  params: Params,
  inputs: Mapping[str, Array],
  masks: Mapping[str, Array],
  tokens: Array,
  token_mask: Array,
  length: int,
) -> State:
  """The state behind `length` tokens of the prompt, with room for all."""
  prefix = network.prefix_length(module.stage)
  kept = slice(prefix + length)
  _, state = prefill(
    module, params, inputs, masks, tokens[:, kept], token_mask[:, kept]
  )
  return state.grow(prefix + module.stage.target_length)
