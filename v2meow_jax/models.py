"""The model object of a stage, in the protocol of T5X.

One class serves the three stages and both architectures. It is what a
training loop drives (this project's own or T5X's): initial variables with
logical axes, loss and metrics, prediction and scores; and what generation
drives: `decode`. Nothing here imports T5X.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from v2meow_jax import decoding
from v2meow_jax import decoding_weights
from v2meow_jax import guidance as guidance_lib
from v2meow_jax import losses
from v2meow_jax import network
from v2meow_jax import sampling
from v2meow_jax import stages
from v2meow_jax import vocabularies

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


class Decoded(NamedTuple):
  """What a stage has made of one window.

  Attributes:
    codes: int32 `[batch, time, levels]`.
    scores: float32 `[batch, time, levels]`, log-likelihood of each code given
      all conditions and the codes before, at temperature 1 and without
      guidance, whatever it was sampled with; 0 in the prompt.
  """

  codes: Array
  scores: Array


class StageModel:
  """A stage's network with its loss, its metrics and its ways to predict."""

  def __init__(
    self,
    stage: stages.Stage,
    config: network.Config,
    optimizer_def: Any = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    loss_normalizing_factor: float | None = None,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    sample_seed: int = 0,
    weights_dtype: str | None = None,
  ):
    """Builds the network; parameters come from `get_initial_variables`.

    Args:
      stage: what conditions and what is predicted.
      config: dimensions of the network.
      optimizer_def: the optimizer, for training loops that read it here.
      z_loss: weight of the squared log of the softmax's normaliser.
      label_smoothing: probability spread over all codes of the level.
      loss_normalizing_factor: constant that divides the summed loss; None
        for 1. A constant and not the number of tokens, because T5X sums the
        gradients of microbatches.
      temperature: of sampling; None for the paper's of this stage.
      top_k: of sampling, see `sampling.Options`.
      top_p: of sampling.
      sample_seed: folded into the key of `predict_batch`, because T5X's
        infer and eval always pass the same one.
      weights_dtype: how decoding keeps the weights, see
        `decoding_weights.arrange`.

    Raises:
      ValueError: a sampling option is out of its range, or there is no such
        `weights_dtype`.
    """
    if weights_dtype not in decoding_weights.WEIGHTS_DTYPES:
      raise ValueError(
        f'weights_dtype is `{weights_dtype}`, expected one of '
        f'{", ".join(map(str, decoding_weights.WEIGHTS_DTYPES))}. Set '
        'models.StageModel.weights_dtype.'
      )
    if temperature is None:
      temperature = stages.TEMPERATURES[stage.name]
    self.stage = stage
    self.config = config
    self.module = network.Transformer(stage, config)
    self.optimizer_def = optimizer_def
    self.options = sampling.Options(temperature, top_k, top_p)
    sampling.validate(self.options)
    self._z_loss = z_loss
    self._label_smoothing = label_smoothing
    self._loss_normalizing_factor = loss_normalizing_factor or 1.0
    self._sample_seed = sample_seed
    self.weights_dtype = weights_dtype

  @property
  def FEATURE_CONVERTER_CLS(self):  # pylint: disable=invalid-name
    """Makes the seqio converter from task to model features."""
    from v2meow_jax import feature_converters  # needs seqio

    if self.stage.architecture == stages.DECODER_ONLY:
      converter = feature_converters.DecoderOnlyFeatureConverter
    else:
      converter = feature_converters.EncoderDecoderFeatureConverter
    return functools.partial(converter, self.stage)

  @property
  def input_vocabulary(self):
    """The stage's ids for seqio and T5X, which compares it with the task's."""
    from v2meow_jax import tasks  # needs seqio

    return tasks.TokenVocabulary(self.stage.vocab_size)

  @property
  def output_vocabulary(self):
    """One table of ids for inputs and targets, as in T5X."""
    return self.input_vocabulary

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, Any]:
    """Returns random parameters and their logical axes.

    Args:
      rng: PRNG key.
      input_shapes: shape of each model feature.
      input_types: unused; the stage knows them.

    Returns:
      `params` and `params_axes`, the latter as T5X wants them.

    Raises:
      ValueError: a model feature is missing or not as long as the stage says.
    """
    del input_types
    expected = self.feature_shapes(batch_size=1)
    for name, shape in expected.items():
      if name not in input_shapes:
        raise ValueError(
          f'Model feature `{name}` is missing, expected '
          f'{", ".join(expected)}. Use FEATURE_CONVERTER_CLS of this model.'
        )
      found = tuple(input_shapes[name])
      if found[1:] != shape[1:]:
        raise ValueError(
          f'Model feature `{name}` has shape {found}, expected '
          f'[batch, {", ".join(map(str, shape[1:]))}] for '
          f'{self.stage.seconds:g} s. Set TASK_FEATURE_LENGTHS to the '
          "stage's own."
        )
    batch = {
      name: jnp.zeros(shape, self._feature_dtype(name))
      for name, shape in expected.items()
    }
    boxed = self.module.init(rng, *self._network_inputs(batch))['params']
    flat = traverse_util.flatten_dict(boxed)
    axes = {
      (*path[:-1], f'{path[-1]}_axes'): partitioning.AxisMetadata(leaf.names)
      for path, leaf in flat.items()
    }
    return {
      'params': nn.meta.unbox(boxed),
      'params_axes': traverse_util.unflatten_dict(axes),
    }

  def feature_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the model features that the network reads."""
    stage = self.stage
    shapes = {}
    if self.module.has_encoder:
      for view in stage.inputs:
        length = view.length(stage.seconds)
        shape = (batch_size, length)
        if not view.spec.is_discrete:
          timed = (length,) if view.spec.is_timed else ()
          shape = (batch_size, *timed, view.spec.num_features)
        shapes[f'encoder_{view.name}'] = shape
        shapes[f'encoder_{view.name}_mask'] = (batch_size, length)
    length = network.prefix_length(stage) + stage.target_length
    for name in ('input_tokens', 'target_tokens', 'loss_weights'):
      shapes[f'decoder_{name}'] = (batch_size, length)
    return shapes

  def _feature_dtype(self, name: str):
    continuous = {
      f'encoder_{view.name}'
      for view in self.stage.inputs
      if not view.spec.is_discrete
    }
    return jnp.float32 if name in continuous else jnp.int32

  def _network_inputs(self, batch: Batch) -> tuple:
    """Arguments of the network, from the model features."""
    inputs, masks = {}, {}
    if self.module.has_encoder:
      for view in self.stage.inputs:
        inputs[view.name] = batch[f'encoder_{view.name}']
        masks[view.name] = batch[f'encoder_{view.name}_mask']
    return (
      inputs,
      masks,
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
    )

  def _logits(
    self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """float32 `[batch, time, levels, codes]`; dropout where there is a key."""
    return self.module.apply(
      {'params': params},
      *self._network_inputs(batch),
      enable_dropout=dropout_rng is not None,
      rngs=None if dropout_rng is None else {'dropout': dropout_rng},
    )

  def _targets(self, batch: Batch) -> tuple[Array, Array]:
    """Codes int32 and weights float32, both `[batch, time, levels]`."""
    target = self.stage.target
    prefix = network.prefix_length(self.stage)
    codes = vocabularies.unflatten_levels(
      batch['decoder_target_tokens'][:, prefix:],
      target.num_levels,
      target.level_ids,
      self.stage.target_offset,
    )
    weights = batch['decoder_loss_weights'][:, prefix:]
    return codes, weights.reshape(codes.shape).astype(jnp.float32)

  def loss_fn(
    self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, dict[str, Any]]:
    """Computes the training loss.

    Args:
      params: parameters of the network.
      batch: model features.
      dropout_rng: PRNG key of dropout; None for no dropout.

    Returns:
      float32 scalar, the loss summed over tokens and divided by the constant
      normaliser; and metrics by name.
    """
    logits = self._logits(params, batch, dropout_rng)
    codes, weights = self._targets(batch)
    cross_entropy, z_loss = losses.cross_entropy(
      logits, codes, self._label_smoothing, self._z_loss
    )
    # [batch, time, levels] -> scalars
    total_z_loss = jnp.sum(z_loss * weights) / self._loss_normalizing_factor
    total = jnp.sum(cross_entropy * weights) / self._loss_normalizing_factor
    loss = total + total_z_loss
    metrics = losses.token_metrics(
      loss, total_z_loss, cross_entropy + z_loss, logits, codes, weights
    )
    return loss, metrics

  def eval_fn(
    self, params: Params, batch: Batch
  ) -> tuple[Array, dict[str, Any]]:
    """The loss and metrics without dropout, see `loss_fn`."""
    return self.loss_fn(params, batch, None)

  def score_batch(
    self, params: Params, batch: Batch, return_intermediates: bool = False
  ):
    """Log-likelihood of each example's target.

    Args:
      params: parameters of the network.
      batch: model features.
      return_intermediates: whether to return the parts too.

    Returns:
      float32 `[batch]`; with intermediates also a dict with `token_scores`,
      float32 `[batch, time, levels]`, the log-likelihood of each code.
    """
    codes, weights = self._targets(batch)
    loss, _ = losses.cross_entropy(self._logits(params, batch), codes, 0.0, 0.0)
    token_scores = -loss * weights
    scores = jnp.sum(token_scores, axis=(1, 2))
    if return_intermediates:
      return scores, {'token_scores': token_scores}
    return scores

  def predict_batch(
    self, params: Params, batch: Batch, rng: Array | None = None
  ) -> Array:
    """Samples targets; int32 ids `[batch, time * levels]`.

    Args:
      params: parameters of the network.
      batch: model features; the target tokens are not looked at.
      rng: PRNG key; None for that of `sample_seed` alone.
    """
    return self.predict_batch_with_aux(params, batch, rng)[0]

  def predict_batch_with_aux(
    self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """Samples targets and scores them.

    Args:
      params: parameters of the network.
      batch: model features; the target tokens are not looked at.
      rng: PRNG key; None for that of `sample_seed` alone.

    Returns:
      int32 ids `[batch, time * levels]`, and `scores`, float32 `[batch]`, the
      log-likelihood of what was sampled.
    """
    rng = jax.random.PRNGKey(0) if rng is None else rng
    rng = jax.random.fold_in(rng, self._sample_seed)
    inputs, masks, _, target_tokens = self._network_inputs(batch)
    batch_size = target_tokens.shape[0]
    prefix = target_tokens[:, : network.prefix_length(self.stage)]
    codes, scores = self._sample(
      params,
      inputs,
      masks,
      prefix,
      prefix > 0,
      jax.random.bits(rng, (batch_size,)),
      jnp.zeros(batch_size, jnp.int32),
      self.options,
    )
    target = self.stage.target
    ids = vocabularies.flatten_levels(
      codes, target.level_ids, self.stage.target_offset
    )
    return ids, {'scores': jnp.sum(scores, axis=(1, 2))}

  def decode(
    self,
    params: Params,
    inputs: Mapping[str, Array],
    input_masks: Mapping[str, Array],
    prompt: Array,
    seeds: Array,
    start_frame: Array,
    options: sampling.Options,
    guidance: guidance_lib.Guidance | None = None,
    first: Array | None = None,
    stop: Array | None = None,
  ) -> Decoded:
    """Generates a window of the target, or a part of it.

    Compiled once, for any `first` and `stop`; without them once for each length
    of the prompt.

    The random numbers of a code depend on its clip's seed, the stage, its
    absolute time and its absolute level, and on nothing else: not on the
    batch, the window or the prompt.

    Args:
      params: parameters of the network.
      inputs: per stream, float32 `[batch, time, features]`, `[batch,
        features]` once per clip, or codes int32 `[batch, time, levels]`.
      input_masks: per stream, `[batch, positions]`, 0 where the input is
        padding; positions are time x levels.
      prompt: int32 codes `[batch, times, levels]` that the window starts
        with; `times` may be 0.
      seeds: uint32 `[batch]`.
      start_frame: int32 `[batch]`, absolute time of the window's first time.
      options: how to sample.
      guidance: how far to go towards the conditions; compiled once for each
        choice of those that are guided. What the stage does not see changes
        nothing.
      first: int32 scalar, how many times of the prompt to go on from; None for
        all of it.
      stop: int32 scalar, the time to stop before; None for the end of the
        window.

    Returns:
      Codes, the prompt included, and their scores.

    Raises:
      ValueError: a stream is missing, or an array has another shape than the
        stage says.
    """
    self._check_decode_shapes(
      inputs, input_masks, prompt, 0 if first is None else 1
    )
    if guidance is not None:
      self._check_negative(guidance, prompt.shape[0])
      guidance = jax.tree.map(jnp.float32, guidance)
    options = sampling.Options(
      jnp.float32(options.temperature),
      jnp.int32(options.top_k),
      jnp.float32(options.top_p),
    )
    return self._decode_jit(
      params,
      {view.name: inputs[view.name] for view in self.stage.inputs},
      {view.name: input_masks[view.name] for view in self.stage.inputs},
      prompt,
      seeds,
      start_frame,
      options,
      guidance,
      first,
      stop,
    )

  @functools.cached_property
  def _decode_jit(self):
    return jax.jit(self._decode)

  def _decode(
    self,
    params,
    inputs,
    input_masks,
    prompt,
    seeds,
    start_frame,
    options,
    guidance,
    first,
    stop,
  ):
    """`decode` without its checks, to be compiled."""
    stage = self.stage
    weights = guidance_lib.weights(stage, guidance)
    inputs, input_masks = guidance_lib.branches(
      stage, inputs, input_masks, guidance
    )
    # [batch, time, levels] -> [rows * batch, time, levels]
    prompts = jnp.tile(prompt, (1 + len(weights), 1, 1))
    ids, input_masks, tokens = self.network_arguments(
      inputs, input_masks, prompts
    )
    levels = stage.target.num_levels
    codes, scores = self._sample(
      params,
      ids,
      input_masks,
      tokens,
      tokens > 0,
      seeds,
      start_frame,
      options,
      weights,
      None if first is None else first * levels,
      None if stop is None else stop * levels,
    )
    first = prompt.shape[1] if first is None else first
    is_given = jnp.arange(codes.shape[1]) < first
    room = ((0, 0), (0, codes.shape[1] - prompt.shape[1]), (0, 0))
    prompt = jnp.pad(prompt, room)
    return Decoded(jnp.where(is_given[:, None], prompt, codes), scores)

  def network_arguments(
    self,
    inputs: Mapping[str, Array],
    input_masks: Mapping[str, Array],
    prompt: Array,
  ) -> tuple[dict[str, Array], Mapping[str, Array], Array]:
    """Puts codes into ids, and in order what `decoding` reads.

    Args: see `decode`.

    Returns:
      Inputs and masks of the encoder, empty without one, and the tokens of
      prefix and prompt, int32 `[batch, length]`, 0 where there is padding.
    """
    stage = self.stage
    ids = {}
    for view in stage.inputs:
      x = inputs[view.name]
      if view.spec.is_discrete:
        x = vocabularies.flatten_levels(
          x, view.level_ids, stage.input_offset(view.name)
        )
        x = jnp.where(input_masks[view.name] != 0, x, vocabularies.PAD_ID)
      ids[view.name] = x
    tokens = vocabularies.flatten_levels(
      prompt, stage.target.level_ids, stage.target_offset
    )
    if self.module.has_encoder:
      return ids, input_masks, tokens
    prefix = [ids[view.name] for view in stage.inputs]
    return {}, {}, jnp.concatenate([*prefix, tokens], axis=1)

  def _sample(
    self,
    params,
    inputs,
    masks,
    tokens,
    token_mask,
    seeds,
    start_frame,
    options,
    weights=(),
    first=None,
    stop=None,
  ):
    """Samples what `tokens` (see `decoding.decode`) leaves open.

    With weights of guidance, what goes to the network has a row for each
    branch in front, and all branches of a clip go on with the same codes.

    Returns:
      int32 codes `[batch, time, levels]` and their log-likelihood, float32 of
      that shape, both 0 where nothing was sampled.
    """
    levels = self.stage.target.num_levels

    def choose(logits, place, noise):
      del place
      codes, scores = self.choose(logits, noise, options, weights)
      return jnp.tile(codes, 1 + len(weights)), scores

    codes, scores = decoding.decode(
      self.module,
      params,
      inputs,
      masks,
      tokens,
      token_mask,
      choose,
      functools.partial(self.draw, seeds, start_frame),
      first,
      stop,
      weights_dtype=self.weights_dtype,
    )
    # [rows * batch, places] -> [batch, times, levels]
    in_times = lambda x: x.reshape(len(seeds), -1, levels)
    return in_times(codes[: len(seeds)]), in_times(scores.T)

  def draw(self, seeds: Array, start_frame: Array, places: Array) -> Array:
    """Random numbers for `choose`.

    Args:
      seeds: uint32 `[batch]`.
      start_frame: int32 `[batch]`, absolute time of the window's first time.
      places: int32 `[places]` in the window: times x levels.

    Returns:
      float32 `[places, batch, codes]`.
    """
    target = self.stage.target
    levels = target.num_levels

    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def key(seed, start_frame, place):
      # Named, so that a seed's music does not follow a setting of JAX.
      key = jax.random.key(seed, impl='threefry2x32')
      key = jax.random.fold_in(key, self.stage.index)
      key = jax.random.fold_in(key, start_frame + place // levels)
      return jax.random.fold_in(key, target.first_level + place % levels)

    keys = key(seeds, start_frame, places)
    return sampling.gumbel(keys, target.spec.num_codes)

  @staticmethod
  def choose(
    logits: Array,
    noise: Array,
    options: sampling.Options,
    weights: Sequence[Array] = (),
  ) -> tuple[Array, Array]:
    """Chooses the codes of one place.

    Args:
      logits: float32 `[rows * batch, codes]`, rows as `guidance.branches` has
        them.
      noise: float32 `[batch, codes]`, see `draw`.
      options: how to sample.
      weights: of guidance, one less than rows.

    Returns:
      int32 codes and their log-likelihood float32, both `[batch]`.
    """
    # [rows * batch, codes] -> [rows, batch, codes]
    rows = logits.reshape(1 + len(weights), -1, logits.shape[-1])
    guided = guidance_lib.combine(rows, weights)
    codes = sampling.sample(guided, noise, options)
    scores = jnp.take_along_axis(
      jax.nn.log_softmax(rows[0]), codes[:, None], axis=1
    )
    return codes, scores[:, 0]

  def _check_negative(self, guidance, batch_size):
    """Raises ValueError where a negative style does not fit the stage."""
    stage = self.stage
    for view in stage.inputs:
      shape = (batch_size, view.spec.num_features)
      if view.name not in stage.style_names or guidance.negative is None:
        continue
      found = tuple(jnp.shape(guidance.negative))
      if found != shape:
        raise ValueError(
          f'Stage `{stage.name}`: the negative style has shape {found}, '
          f'expected {shape} for stream `{view.name}`. Pass a vector for each '
          'clip.'
        )

  def _check_decode_shapes(self, inputs, input_masks, prompt, spare):
    """Raises ValueError where an argument of `decode` does not fit."""
    stage = self.stage
    expected = {}
    for view in stage.inputs:
      for where, arrays in (('inputs', inputs), ('input_masks', input_masks)):
        if view.name not in arrays:
          raise ValueError(
            f'Stage `{stage.name}`: stream `{view.name}` is missing in '
            f'{where}, expected '
            f'{", ".join(f"`{v.name}`" for v in stage.inputs)}. Pass zeros '
            'and a mask of 0 for a stream that is not there.'
          )
      length = view.spec.length(stage.seconds)
      width = (
        view.num_levels if view.spec.is_discrete else (view.spec.num_features)
      )
      shape = (length, width) if view.spec.is_timed else (width,)
      expected[f'inputs of `{view.name}`'] = (inputs[view.name].shape, shape)
      expected[f'mask of `{view.name}`'] = (
        input_masks[view.name].shape,
        (view.length(stage.seconds),),
      )
    for name, (found, shape) in expected.items():
      if tuple(found[1:]) != shape:
        raise ValueError(
          f'Stage `{stage.name}`: {name} has shape {tuple(found)}, expected '
          f'[batch, {", ".join(map(str, shape))}] for {stage.seconds:g} s. '
          'Pad to the length of the stage and mask what is padding.'
        )
    levels, times = (
      stage.target.num_levels,
      stage.target.spec.length(stage.seconds),
    )
    if (
      prompt.ndim != 3
      or prompt.shape[2] != levels
      or not (prompt.shape[1] < times + spare)
    ):
      raise ValueError(
        f'Stage `{stage.name}`: the prompt has shape {tuple(prompt.shape)}, '
        f'expected [batch, 0 to {times - 1 + spare}, {levels}]. Pass codes of '
        'whole times and leave some to generate.'
      )
