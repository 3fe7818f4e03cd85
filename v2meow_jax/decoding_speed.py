"""Speed of the decoding loop, with random weights."""

import dataclasses
import functools
import math
import time
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import configs
from v2meow_jax import decoding_weights
from v2meow_jax import models
from v2meow_jax import network
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import training_steps

# Runs that are timed, behind one that compiles.
_RUNS = 3
# Of the array whose reading measures the memory, far beyond any cache.
_BANDWIDTH_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class Dimensions:
  """Dimensions of a network that is no stage of the paper.

  Attributes:
    arch: 'encoder_decoder' or 'decoder_only'.
    layers: of the decoder, and of the encoder if any.
    embed_dim: width.
    heads: attention heads.
    head_dim: depth of a head.
    mlp_dim: width of the feed-forward block.
    vocab: codes.
    encoder_length: positions of the encoder, or of the prefix without one.
    steps: positions of the target.
    activations: of the feed-forward block.
    dtype: of activations.
  """

  arch: str
  layers: int
  embed_dim: int
  heads: int
  head_dim: int
  mlp_dim: int
  vocab: int
  encoder_length: int
  steps: int
  activations: tuple[str, ...] = ('gelu', 'linear')
  dtype: Any = 'float32'

  def model(self, weights_dtype: str | None = None) -> models.StageModel:
    """A model of one second, so that rates are lengths; biases as in T5.

    Args:
      weights_dtype: how decoding keeps the weights.
    """
    view = lambda name, length: stages.View(
      streams.StreamSpec(name, length, num_codes=self.vocab)
    )
    stage = stages.Stage(
      'semantic',
      (view('inputs', self.encoder_length),),
      view('targets', self.steps),
      1.0,
      self.arch,
    )
    config = network.Config(
      embed_dim=self.embed_dim,
      num_heads=self.heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      mlp_activations=self.activations,
      num_encoder_layers=self.layers,
      num_decoder_layers=self.layers,
      num_layers=self.layers,
      dropout_rate=0.0,
      dtype=jnp.dtype(self.dtype),
    )
    return models.StageModel(stage, config, weights_dtype=weights_dtype)


def paper_model(
  stage_name: str,
  size: str,
  steps: int,
  dtype: Any = 'float32',
  weights_dtype: str | None = None,
) -> models.StageModel:
  """A stage of the paper's streams, of as many whole seconds as needed.

  Args:
    stage_name: 'semantic', 'coarse' or 'fine'.
    size: a file of gin/sizes.
    steps: positions of the target at least.
    dtype: of activations.
    weights_dtype: how decoding keeps the weights.

  Raises:
    UserError: there is no such size.
  """
  visual = ('clip', 'i3d_flow') if stage_name == 'semantic' else ()
  view = stages.make(stage_name, visual=visual).target
  # Whole seconds, so that every stream has a whole number of positions.
  seconds = float(max(1, math.ceil(steps / view.rate_hz)))
  return models.StageModel(
    stages.make(stage_name, visual=visual, seconds=seconds),
    dataclasses.replace(read_size(size), dtype=jnp.dtype(dtype)),
    weights_dtype=weights_dtype,
  )


def read_size(size: str) -> network.Config:
  """Returns the dimensions of a file of gin/sizes.

  Raises:
    UserError: there is no such size.
  """
  path = training_steps.choose('sizes', 'size', size)
  configs.parse([path])
  config = gin.get_configurable(network.Config)()
  gin.clear_config()
  return config


def random_params(model: models.StageModel, seed: int = 0) -> dict:
  """Random float32 parameters, on the device."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(
    lambda key: model.get_initial_variables(key, model.feature_shapes(1))[
      'params'
    ],
    jax.random.key(0),
  )
  return jax.device_put(
    jax.tree.map(
      lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes
    )
  )


def random_arguments(
  model: models.StageModel, batch: int, steps: int, seed: int = 0
) -> tuple:
  """Arguments of `StageModel.decode` behind the parameters.

  All but the last `steps` positions, rounded up to a whole time, are a prompt.
  """
  rng = np.random.default_rng(seed)
  stage = model.stage
  inputs, masks = {}, {}
  for view in stage.inputs:
    length = view.spec.length(stage.seconds)
    if view.spec.is_discrete:
      shape = (batch, length, view.num_levels)
      inputs[view.name] = rng.integers(0, view.spec.num_codes, shape, np.int32)
    else:
      shape = (batch, length, view.spec.num_features)
      inputs[view.name] = rng.standard_normal(shape, np.float32)
    masks[view.name] = np.ones((batch, view.length(stage.seconds)), np.int32)
  target = stage.target
  times = target.spec.length(stage.seconds)
  kept = times - math.ceil(steps / target.num_levels)
  return (
    inputs,
    masks,
    np.zeros((batch, kept, target.num_levels), np.int32),
    np.arange(batch, dtype=np.uint32),
    np.zeros(batch, np.int32),
    model.options,
  )


def measure(model: models.StageModel, batch: int, steps: int) -> dict[str, Any]:
  """Times the loop that makes the last positions of the target.

  Args:
    model: of a stage.
    batch: clips at once.
    steps: of the loop at least; rounded up to a whole time.

  Returns:
    What was measured; seconds, and bytes of one step.
  """
  bandwidth = memory_bandwidth()
  params = random_params(model)
  arguments = random_arguments(model, batch, steps)
  run = lambda: jax.block_until_ready(model.decode(params, *arguments))
  taken = []
  for _ in range(1 + _RUNS):
    start = time.perf_counter()
    codes = run().codes
    taken.append(time.perf_counter() - start)
  first, *others = taken
  seconds = min(others)
  prompt = arguments[2]
  num_steps = (codes.shape[1] - prompt.shape[1]) * codes.shape[2]
  music_seconds = num_steps / model.stage.target.rate_hz
  step_bytes = bytes_of_step(model, params, batch, num_steps)
  bytes_per_second = step_bytes * num_steps / seconds
  return {
    'batch': batch,
    'steps': num_steps,
    'parameters': sum(x.size for x in jax.tree.leaves(params)),
    'compile_seconds': first - seconds,
    'seconds': seconds,
    'seconds_per_step': seconds / num_steps,
    'ms_per_step': 1e3 * seconds / num_steps,
    'tokens_per_second': batch * num_steps / seconds,
    'real_time_factor': seconds / (batch * music_seconds),
    'bytes_per_step': step_bytes,
    'bytes_per_second': bytes_per_second,
    'memory_bytes_per_second': bandwidth,
    'share_of_memory_bandwidth': bytes_per_second / bandwidth,
  }


def bytes_of_step(
  model: models.StageModel, params: dict, batch: int, num_steps: int
) -> float:
  """Bytes of weights and of filled cache that a step has to read, on average.

  Args:
    model: of a stage.
    params: its parameters, or their shapes.
    batch: clips at once.
    num_steps: how many of the last positions are steps.
  """
  stage, cfg = model.stage, model.config
  weights = jax.eval_shape(
    lambda params: decoding_weights.arrange(
      model.module, params, model.weights_dtype
    ),
    params,
  )
  size = lambda tree: sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
  prefix = network.prefix_length(stage)
  positions = prefix + stage.target_length - (num_steps - 1) / 2
  if not prefix:
    positions += len(network.input_positions(stage, cfg))
  cache = 2 * batch * cfg.num_heads * cfg.head_dim * positions
  cache *= len(weights.layers) * jnp.dtype(cfg.dtype).itemsize
  # Of the levels' logits, one; of the table, a row.
  return size(weights.layers) + size(weights.heads[0]) + cache


@functools.cache
def memory_bandwidth() -> float:
  """Bytes/s at which all cores together read an array far beyond the caches."""
  # [rows, columns]: rows are what XLA hands out to threads.
  x = jnp.ones((256, _BANDWIDTH_BYTES // 256 // 4), jnp.float32)
  read = jax.jit(lambda x: jnp.max(x, axis=1))
  jax.block_until_ready(read(x))
  taken = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(read(x))
    taken.append(time.perf_counter() - start)
  return x.nbytes / min(taken)
