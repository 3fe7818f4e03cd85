"""The Transformer of a stage: encoder-decoder, or decoder with a prefix.

T5 1.1 with T5X's parameter names (`examples/t5`, `examples/decoder_only`). The
encoder takes a list of streams, continuous or discrete, joined to one
sequence. Relative positions count units of time, not tokens: a position's
place is its time in seconds times `Stage.reference_rate_hz`, so that streams
of different rates line up.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import operator
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import adaptors
from v2meow_jax import attention
from v2meow_jax import layers
from v2meow_jax import relative_positions
from v2meow_jax import stages

Array = jax.Array
DType = Any

# Of `jax.checkpoint_policies`, those that need no arguments.
_POLICIES = (
  'everything_saveable',
  'nothing_saveable',
  'dots_saveable',
  'dots_with_no_batch_dims_saveable',
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Dimensions of the network; the names of gin/sizes.

  Attributes:
    embed_dim: width of the residual stream.
    num_heads: attention heads.
    head_dim: depth of a head.
    mlp_dim: width of the feed-forward block.
    mlp_activations: one name per inward projection of the block.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder behind an encoder.
    num_layers: layers of a decoder without an encoder.
    dropout_rate: of embeddings, attention, MLP and residuals.
    num_buckets: buckets of relative positions.
    max_distance: relative position, in units of 1 / reference rate, at which
      the buckets end.
    cross_relpos_bias: whether attention from the target to what conditions it
      has biases by relative time, from a table of its own, so that music can
      follow the picture in time. False is T5X: no bias in cross-attention,
      and in a decoder-only network the prefix lies before the target.
    relpos_locality: how much the biases prefer what is near before training,
      see `relative_positions.Biases`. With 0, as in T5X, a small network
      takes long to find out which moment of its inputs a position belongs to.
    frame_positions: positions of the encoder that the tokens of one frame are
      folded into; None keeps a position for each token. Of streams whose
      levels share a codebook.
    input_block_queries: queries of one block of attention to the inputs, in
      encoder and decoder, of which no more weights are in memory at once; None
      for all at once. For long inputs, such as all tokens of frames.
    dtype: dtype of activations; parameters and softmax of the loss are
      float32.
    float32_attention_logits: whether attention logits are float32 in any case.
    remat: whether the backward pass computes each layer again instead of
      keeping its activations.
    remat_policy: what it keeps all the same, by a name of
      `jax.checkpoint_policies`: 'dots_with_no_batch_dims_saveable' keeps the
      products with parameters and computes those of attention again. None keeps
      the input of each layer alone.
    scan_layers: whether a loop computes the layers of a stack that are alike,
      from parameters stacked in each step: one layer is compiled instead of
      all. Parameters have the same names and numbers as without; the masks of
      dropout are others.
    causal_block_queries: queries of one block of causal self-attention. Smaller
      blocks leave out more of the masked half, larger ones make larger products
      and fewer of them: 128 is best on a CPU, 512 takes the compiler of TPUs a
      quarter of the time.
    fused_attention: whether a TPU or an NVIDIA GPU (A100 or later) computes
      attention in kernels, that of the inputs in blocks (`input_block_queries`)
      apart; see docs/scaling.md. Elsewhere, and where no kernel takes the
      sizes, it changes nothing but that the backward pass computes the weights
      again.
  """

  embed_dim: int = 512
  num_heads: int = 8
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  num_layers: int = 6
  dropout_rate: float = 0.1
  num_buckets: int = 32
  max_distance: int = 128
  cross_relpos_bias: bool = False
  relpos_locality: float = 0.0
  frame_positions: int | None = 4
  input_block_queries: int | None = None
  dtype: DType = jnp.float32
  float32_attention_logits: bool = False
  remat: bool = False
  remat_policy: str | None = None
  scan_layers: bool = False
  causal_block_queries: int = 128
  fused_attention: bool = False

  def __post_init__(self):
    # gin passes lists; a module's attributes must be hashable.
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    if self.remat_policy is not None and self.remat_policy not in _POLICIES:
      raise ValueError(
        f'remat_policy is `{self.remat_policy}`, expected None or one of '
        f'{", ".join(_POLICIES)}. Set network.Config.remat_policy.'
      )


def positions(view: stages.View, stage: stages.Stage) -> np.ndarray:
  """Place in time of each position of a view.

  Args:
    view: an input or the target of `stage`.
    stage: gives the seconds and the reference rate.

  Returns:
    int32 `[positions]` in units of 1 / reference rate from the start of the
    crop; `UNTIMED` for a once-per-clip stream.
  """
  if not view.spec.is_timed:
    return np.full(1, relative_positions.UNTIMED, np.int32)
  order = np.arange(view.length(stage.seconds))
  if view.spec.shares_codebook:
    order //= view.num_levels  # the tokens of a frame are at its time
  seconds = order / view.time_rate_hz
  return np.round(seconds * stage.reference_rate_hz).astype(np.int32)


def input_positions(stage: stages.Stage, config: Config) -> np.ndarray:
  """Place in time of each position of all inputs joined, see `positions`."""
  places = []
  for view in stage.inputs:
    count = adaptors.positions_per_time(view, config.frame_positions)
    places.append(positions(view, stage)[:: view.num_levels // count])
  return np.concatenate(places)


def prefix_length(stage: stages.Stage) -> int:
  """Positions in front of the target in the decoder."""
  is_prefix = stage.architecture == stages.DECODER_ONLY
  return stage.input_length if is_prefix else 0


def prefix_positions(stage: stages.Stage, config: Config) -> np.ndarray:
  """Place in time of each position of the prefix, see `positions`."""
  places = input_positions(stage, config)
  if config.cross_relpos_bias:
    return places
  # One time line as in T5X: the prefix ends where the target starts.
  span = round(stage.seconds * stage.reference_rate_hz)
  return np.where(
    places == relative_positions.UNTIMED, places, places - span
  ).astype(np.int32)


def _causal_blocks(
  prefix: int, length: int, causal_block_queries: int
) -> list[tuple[int, int, int]]:
  """Blocks for `attention.split_blocks`: the prefix if any, then the target."""
  count = max(1, round((length - prefix) / causal_block_queries))
  ends = np.linspace(prefix, length, count + 1).round().astype(int).tolist()
  # The prefix sees all of itself and nothing else.
  blocks = [(0, prefix, prefix)] if prefix else []
  return blocks + [(a, b, b) for a, b in zip(ends[:-1], ends[1:]) if b > a]


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each with pre-norm and residual.

  Attributes:
    config: dimensions.
  """

  config: Config

  def setup(self):
    cfg = self.config
    self.pre_attention_layer_norm = _norm(cfg)
    self.attention = _attention(cfg)
    self.pre_mlp_layer_norm = _norm(cfg)
    self.mlp = _mlp(cfg)
    self.dropout = _dropout(cfg)

  def __call__(
    self, x: Array, bias: attention.Bias, mask: Array, deterministic: bool
  ) -> Array:
    """Maps `[batch, length, embed]` to the same shape.

    Args:
      x: `[batch, length, embed]`.
      bias: `[heads, length, length]`.
      mask: bool `[batch, length]`.
      deterministic: whether to leave out dropout.
    """
    y = self.pre_attention_layer_norm(x)
    query = self.attention.project_queries(y)
    key, value = self.attention.project_memory(y)
    y = self.attention.attend(query, key, value, [bias], mask, deterministic)
    x = _residual(x + self.dropout(y, deterministic=deterministic))
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    return _residual(x + self.dropout(y, deterministic=deterministic))


class DecoderLayer(nn.Module):
  """Causal self-attention, attention to the encoder if any, and MLP.

  Attributes:
    config: dimensions.
    has_encoder: whether there is an encoder to attend to.
  """

  config: Config
  has_encoder: bool

  def setup(self):
    cfg = self.config
    self.pre_self_attention_layer_norm = _norm(cfg)
    self.self_attention = _attention(cfg)
    if self.has_encoder:
      self.pre_cross_attention_layer_norm = _norm(cfg)
      self.encoder_decoder_attention = _attention(cfg)
    self.pre_mlp_layer_norm = _norm(cfg)
    self.mlp = _mlp(cfg)
    self.dropout = _dropout(cfg)

  def __call__(
    self,
    x: Array,
    biases: Sequence[Array],
    mask: Array | None,
    encoded: Array | None,
    cross_bias: attention.Bias | None,
    cross_mask: Array | None,
    start: int,
    deterministic: bool,
  ) -> tuple[Array, dict[str, Array]]:
    """Computes the positions from `start` on.

    Args:
      x: `[batch, length, embed]`.
      biases: of the blocks of the positions computed, see
        `attention.split_blocks`.
      mask: bool `[batch, length]`, False where a position is padding.
      encoded: `[batch, inputs, embed]`, output of the encoder.
      cross_bias: `[heads, length - start, inputs]`, or None.
      cross_mask: bool `[batch, inputs]`.
      start: first position computed; those before are only attended to.
      deterministic: whether to leave out dropout.

    Returns:
      `[batch, length - start, embed]`, and the keys and values
      `[batch, heads, positions, depth]` of both attentions by name.
    """
    attn = self.self_attention
    y = self.pre_self_attention_layer_norm(x)
    query = attn.project_queries(y[:, start:])
    key, value = attn.project_memory(y)
    x = x[:, start:]
    memory = {'key': key, 'value': value}
    y = attn.attend(query, key, value, biases, mask, deterministic)
    x = _residual(x + self.dropout(y, deterministic=deterministic))

    if self.has_encoder:
      attn = self.encoder_decoder_attention
      query = attn.project_queries(self.pre_cross_attention_layer_norm(x))
      key, value = attn.project_memory(encoded)
      memory |= {'cross_key': key, 'cross_value': value}
      y = attn.attend(
        query,
        key,
        value,
        None if cross_bias is None else [cross_bias],
        cross_mask,
        deterministic,
      )
      x = _residual(x + self.dropout(y, deterministic=deterministic))

    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    x = _residual(x + self.dropout(y, deterministic=deterministic))
    return x, memory


class Encoder(nn.Module):
  """Encoder over streams, each through its own adaptor.

  Attributes:
    stage: names the streams and their places in time.
    config: dimensions.
    token_embedder: table shared by all discrete streams and the decoder.
  """

  stage: stages.Stage
  config: Config
  token_embedder: nn.Module

  def setup(self):
    cfg = self.config
    self.relpos_bias = _relative_positions(cfg, bidirectional=True)
    for view in self.stage.inputs:
      if not view.spec.is_discrete:
        projection = layers.Dense(
          view.spec.num_features,
          cfg.embed_dim,
          # Names of T5X only: its Adafactor refuses others.
          kernel_axes=('mlp', 'embed'),
          dtype=cfg.dtype,
        )
        setattr(self, f'{view.name}_projection', projection)
      elif view.spec.shares_codebook:
        adaptor = adaptors.FrameAdaptor(
          view.num_levels,
          adaptors.positions_per_time(view, cfg.frame_positions),
          cfg.embed_dim,
          cfg.dtype,
        )
        setattr(self, f'{view.name}_adaptor', adaptor)
    layer_class = _remat(cfg, EncoderLayer, static_argnums=(4,))
    self.layers = [layer_class(cfg) for _ in range(cfg.num_encoder_layers)]
    self.encoder_norm = _norm(cfg)
    self.dropout = _dropout(cfg)
    self.output_dropout = nn.Dropout(cfg.dropout_rate)

  def __call__(
    self,
    inputs: Mapping[str, Array],
    masks: Mapping[str, Array],
    deterministic: bool = True,
  ) -> tuple[Array, Array]:
    """Encodes all inputs of the stage.

    Args:
      inputs: per stream, float32 `[batch, time, features]` or
        `[batch, features]` once per clip, or ids int32 `[batch, positions]`.
      masks: per stream, `[batch, positions]`, 0 where the input is padding;
        what stands there has no influence.
      deterministic: whether to leave out dropout.

    Returns:
      `[batch, inputs, embed]` and the joined mask, bool `[batch, inputs]`.
    """
    parts, part_masks = [], []
    for view in self.stage.inputs:
      x, mask = inputs[view.name], masks[view.name] != 0
      if view.spec.shares_codebook:
        adapt = getattr(self, f'{view.name}_adaptor')
        x, mask = adapt(x, mask, self.token_embedder.embedding)
      elif view.spec.is_discrete:
        x = self.token_embedder(jnp.where(mask, x, 0))
      else:
        if not view.spec.is_timed:
          x = x[:, None]  # [batch, features] -> [batch, 1, features]
        x = jnp.where(mask[..., None], x, 0)
        x = getattr(self, f'{view.name}_projection')(x)
      parts.append(x)
      part_masks.append(mask)
    # [batch, positions, embed] each -> [batch, inputs, embed]
    x = _residual(jnp.concatenate(parts, axis=1))
    x = self.dropout(x, deterministic=deterministic)
    x = x.astype(self.config.dtype)
    mask = jnp.concatenate(part_masks, axis=1)
    places = input_positions(self.stage, self.config)
    bias = _pair_biases(self.relpos_bias, places, places, self.config)
    run = lambda layer, x: (layer(x, bias, mask, deterministic), None)
    x, _ = _apply_layers(self, self.layers, run, x, deterministic)
    x = self.encoder_norm(x)
    return self.output_dropout(x, deterministic=deterministic), mask


class Decoder(nn.Module):
  """Decoder behind an encoder, or alone with its inputs as a prefix.

  Attributes:
    stage: gives the places in time, levels and codes.
    config: dimensions.
    shared_embedder: the encoder's table of tokens; None without an encoder.
  """

  stage: stages.Stage
  config: Config
  shared_embedder: nn.Module | None = None

  def setup(self):
    cfg = self.config
    has_encoder = self.shared_embedder is not None
    if not has_encoder:
      self.token_embedder = _embedder(self.stage, cfg)
    self.relpos_bias = _relative_positions(cfg, bidirectional=False)
    if cfg.cross_relpos_bias:
      self.cross_relpos_bias = _relative_positions(cfg, bidirectional=True)
    layer_class = _remat(cfg, DecoderLayer, static_argnums=(7, 8))
    num_layers = cfg.num_decoder_layers if has_encoder else cfg.num_layers
    self.layers = [layer_class(cfg, has_encoder) for _ in range(num_layers)]
    self.decoder_norm = _norm(cfg)
    self.dropout = _dropout(cfg)
    target = self.stage.target
    self.logits_dense = layers.Dense(
      cfg.embed_dim,
      target.num_levels * target.spec.num_codes,
      kernel_axes=('embed', 'vocab'),
      dtype=jnp.float32,  # for a stable softmax, as T5X
    )

  def biases(
    self, length: int | None = None
  ) -> tuple[Array, attention.Bias | None]:
    """Biases of the attention logits of the first positions.

    Args:
      length: how many, with the whole prefix; None for all.

    Returns:
      `[heads, length, length]` of self-attention, `MASK_VALUE` where a query
      may not see a key, and `[heads, length, inputs]` of cross-attention or
      None.
    """
    cfg = self.config
    places = positions(self.stage.target, self.stage)
    inputs = input_positions(self.stage, cfg)
    prefix = prefix_length(self.stage)
    if length is not None:
      places = places[: length - prefix]
    aligned = cfg.cross_relpos_bias
    cross_bias = None
    if not prefix:
      bias = self.relpos_bias(places, places)
      if aligned:
        cross_bias = _pair_biases(self.cross_relpos_bias, places, inputs, cfg)
      elif cfg.input_block_queries is not None:
        # Blocks without a bias: all pairs are alike.
        zero = lambda *_: jnp.zeros((cfg.num_heads, 1, 1), cfg.dtype)
        nowhere = lambda x: np.zeros_like(x)
        cross_bias = attention.block_bias(
          zero, nowhere(places), nowhere(inputs), cfg.input_block_queries
        )
    elif aligned:
      queries = np.concatenate([inputs, places])
      bias = jnp.concatenate(
        [
          self.cross_relpos_bias(queries, inputs),
          self.relpos_bias(queries, places),
        ],
        axis=-1,
      )
    else:
      queries = np.concatenate([prefix_positions(self.stage, cfg), places])
      bias = self.relpos_bias(queries, queries)
    order = jnp.arange(bias.shape[-1])
    visible = (order[:, None] >= order) | (order < prefix)
    return jnp.where(visible, bias, attention.MASK_VALUE), cross_bias

  def bias_tables(self) -> tuple[Array, Array | None]:
    """Biases by distance, for `relative_positions.row`.

    Returns:
      `[heads, distances]` from positions of the target to one another, and to
      the inputs; None where attention to them has no biases.
    """
    places = positions(self.stage.target, self.stage)
    biases = self.relpos_bias.by_distance(places, places)
    if self.config.cross_relpos_bias:
      inputs = input_positions(self.stage, self.config)
      return biases, self.cross_relpos_bias.by_distance(places, inputs)
    if not prefix_length(self.stage):
      return biases, None
    inputs = prefix_positions(self.stage, self.config)
    return biases, self.relpos_bias.by_distance(places, inputs)

  def __call__(
    self,
    tokens: Array,
    mask: Array | None,
    encoded: Array | None,
    cross_mask: Array | None,
    start: int = 0,
    deterministic: bool = True,
  ) -> tuple[Array, list[dict[str, Array]]]:
    """Computes the hidden states of the first positions.

    Args:
      tokens: int32 `[batch, length]`, inputs of the first `length` positions.
      mask: `[batch, length]`, 0 where a position is padding; None for none.
      encoded: `[batch, inputs, embed]`, output of the encoder if any.
      cross_mask: bool `[batch, inputs]`.
      start: first position wanted; 0 or the end of the prefix.
      deterministic: whether to leave out dropout.

    Returns:
      `[batch, length - start, embed]`, and per layer the keys and values of
      all `length` positions, see `DecoderLayer`.
    """
    length = tokens.shape[1]
    embedder = self.shared_embedder or self.token_embedder
    x = self.dropout(embedder(tokens), deterministic=deterministic)
    x = x.astype(self.config.dtype)
    bias, cross_bias = self.biases(length)
    mask = None if mask is None else mask != 0
    blocks = _causal_blocks(
      min(prefix_length(self.stage), length),
      length,
      self.config.causal_block_queries,
    )
    biases = attention.split_blocks(bias, blocks)
    run = lambda layer, x: layer(
      x, biases, mask, encoded, cross_bias, cross_mask, 0, deterministic
    )
    x, memories = _apply_layers(self, self.layers[:-1], run, x, deterministic)
    # Of the last layer, only what is wanted.
    biases = [b for b, (first, _, _) in zip(biases, blocks) if first >= start]
    cross_bias = attention.cut_queries(cross_bias, start, None)
    x, memory = self.layers[-1](
      x, biases, mask, encoded, cross_bias, cross_mask, start, deterministic
    )
    return x, [*memories, memory]

  def logits(self, x: Array, deterministic: bool = True) -> Array:
    """Logits of whole times; a position's are those of its own level.

    Args:
      x: `[batch, time * levels, embed]`, hidden states of the target.
      deterministic: whether to leave out dropout.

    Returns:
      float32 `[batch, time, levels, codes]`.
    """
    target = self.stage.target
    x = self.dropout(self.decoder_norm(x), deterministic=deterministic)
    x = x.astype(jnp.float32)
    # [batch, time * levels, embed] -> [batch, time, levels, embed]
    x = x.reshape(x.shape[0], -1, target.num_levels, x.shape[-1])
    kernel = self.logits_dense.kernel.reshape(
      -1, target.num_levels, target.spec.num_codes
    )
    return jnp.einsum('btld,dlk->btlk', x, kernel)


class Transformer(nn.Module):
  """The network of one stage.

  Attributes:
    stage: what conditions and what is predicted.
    config: dimensions.
  """

  stage: stages.Stage
  config: Config

  def setup(self):
    if self.has_encoder:
      self.token_embedder = _embedder(self.stage, self.config)
      self.encoder = Encoder(self.stage, self.config, self.token_embedder)
      self.decoder = Decoder(self.stage, self.config, self.token_embedder)
    else:
      self.decoder = Decoder(self.stage, self.config)

  @property
  def has_encoder(self) -> bool:
    return self.stage.architecture == stages.ENCODER_DECODER

  def __call__(
    self,
    inputs: Mapping[str, Array],
    masks: Mapping[str, Array],
    decoder_input_tokens: Array,
    decoder_target_tokens: Array,
    *,
    enable_dropout: bool = False,
  ) -> Array:
    """Logits of all positions of the target, given those before.

    Args:
      inputs: of the encoder, see `Encoder`; empty without an encoder.
      masks: of the encoder.
      decoder_input_tokens: int32 `[batch, length]`, the target tokens moved
        right by one behind a 0; with the prefix in front where there is no
        encoder.
      decoder_target_tokens: int32 `[batch, length]`; positions with id 0 are
        padding and not attended to.
      enable_dropout: whether to apply dropout (needs the rng `dropout`).

    Returns:
      float32 `[batch, time, levels, codes]`.
    """
    deterministic = not enable_dropout
    encoded, cross_mask = None, None
    if self.has_encoder:
      encoded, cross_mask = self.encoder(inputs, masks, deterministic)
    x, _ = self.decoder(
      decoder_input_tokens,
      decoder_target_tokens,
      encoded,
      cross_mask,
      start=prefix_length(self.stage),
      deterministic=deterministic,
    )
    return self.decoder.logits(x, deterministic)

  def prefill(
    self,
    inputs: Mapping[str, Array],
    masks: Mapping[str, Array],
    tokens: Array,
    token_mask: Array,
  ) -> tuple[list[dict[str, Array]], Array | None]:
    """What decoding needs from the inputs and the first tokens, in one pass.

    Args:
      inputs: of the encoder, see `Encoder`; empty without an encoder.
      masks: of the encoder.
      tokens: int32 `[batch, length]`, inputs of the first positions.
      token_mask: `[batch, length]`, 0 where a position is padding.

    Returns:
      Keys and values of each layer (see `DecoderLayer`), and the mask of the
      encoder, bool `[batch, inputs]`.
    """
    encoded, cross_mask = None, None
    if self.has_encoder:
      encoded, cross_mask = self.encoder(inputs, masks)
    _, memories = self.decoder(tokens, token_mask, encoded, cross_mask)
    return memories, cross_mask


def _pair_biases(
  biases: relative_positions.Biases,
  query_positions: np.ndarray,
  key_positions: np.ndarray,
  cfg: Config,
) -> attention.Bias:
  """Biases of all pairs, in blocks where the config asks for them."""
  if cfg.input_block_queries is None:
    return biases(query_positions, key_positions)
  return attention.block_bias(
    biases, query_positions, key_positions, cfg.input_block_queries
  )


def _residual(x: Array) -> Array:
  """Whole examples on each device: parameters come to them, cut or not."""
  return nn.with_logical_constraint(x, ('batch', 'length', 'embed'))


def _apply_layers(
  parent: nn.Module,
  stack: Sequence[nn.Module],
  run: Callable[[nn.Module, Array], tuple[Array, Any]],
  x: Array,
  deterministic: bool,
) -> tuple[Array, list]:
  """Applies layers that are alike, one after the other.

  Args:
    parent: encoder or decoder; its config says whether in a loop.
    stack: its layers.
    run: layer and `x` to the next `x` and what else the layer returns.
    x: `[batch, length, embed]`.
    deterministic: whether to leave out dropout.

  Returns:
    The last `x`, and what else each layer has returned.
  """
  loops = parent.config.scan_layers and len(stack) > 1
  if not loops or parent.is_initializing():
    others = []
    for layer in stack:
      x, other = run(layer, x)
      others.append(other)
    return x, others
  params = [layer.variables['params'] for layer in stack]
  params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  keys = None
  if not deterministic:
    keys = jax.random.split(parent.make_rng('dropout'), len(stack))
  layer = stack[0].clone(parent=None, name=None)

  def body(x, of_layer):
    params, key = of_layer
    rngs = {} if key is None else {'dropout': key}
    return run(layer.bind({'params': params}, rngs=rngs), x)

  x, others = jax.lax.scan(body, x, (params, keys))
  return x, [
    jax.tree.map(operator.itemgetter(i), others) for i in range(len(stack))
  ]


def _remat(
  cfg: Config, layer_class: type[nn.Module], static_argnums: tuple[int, ...]
) -> type[nn.Module]:
  """A layer whose activations are kept or made again, as the config says."""
  if not cfg.remat:
    return layer_class
  policy = cfg.remat_policy and getattr(
    jax.checkpoint_policies, cfg.remat_policy
  )
  return nn.remat(layer_class, static_argnums=static_argnums, policy=policy)


def _norm(cfg: Config) -> layers.LayerNorm:
  return layers.LayerNorm(cfg.embed_dim, cfg.dtype)


def _attention(cfg: Config) -> attention.Attention:
  return attention.Attention(
    num_heads=cfg.num_heads,
    head_dim=cfg.head_dim,
    embed_dim=cfg.embed_dim,
    dtype=cfg.dtype,
    dropout_rate=cfg.dropout_rate,
    float32_logits=cfg.float32_attention_logits,
    fused=cfg.fused_attention,
  )


def _mlp(cfg: Config) -> layers.MlpBlock:
  return layers.MlpBlock(
    embed_dim=cfg.embed_dim,
    mlp_dim=cfg.mlp_dim,
    activations=cfg.mlp_activations,
    dtype=cfg.dtype,
    dropout_rate=cfg.dropout_rate,
  )


def _dropout(cfg: Config) -> nn.Dropout:
  # T5X: one mask for all positions of an example.
  return nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))


def _embedder(stage: stages.Stage, cfg: Config) -> layers.Embed:
  return layers.Embed(stage.vocab_size, cfg.embed_dim, cfg.dtype)


def _relative_positions(
  cfg: Config, bidirectional: bool
) -> relative_positions.Biases:
  return relative_positions.Biases(
    num_buckets=cfg.num_buckets,
    max_distance=cfg.max_distance,
    num_heads=cfg.num_heads,
    bidirectional=bidirectional,
    locality=cfg.relpos_locality,
    dtype=cfg.dtype,
  )
