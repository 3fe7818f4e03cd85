"""What T5X's example networks compute for small random weights.

`t5x_encoder_decoder.npz` and `t5x_decoder_only.npz` were made by

    PYTHONPATH=T5X python -m tests.golden.t5x

where T5X is a checkout of https://github.com/google-research/t5x at cc342d4
without its `t5x/__init__.py` (which imports much more than the examples
need), with jax 0.10.2 and flax 0.12.8.
"""

import importlib
import pathlib

from flax import traverse_util
import jax
import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
ARCHITECTURES = ('encoder_decoder', 'decoder_only')
# Two streams of one second per token: long enough for buckets of more than
# one distance.
LENGTH = 24
NUM_INPUT_CODES = 10
NUM_TARGET_CODES = 12
TARGET_OFFSET = 2 + NUM_INPUT_CODES
VOCAB_SIZE = TARGET_OFFSET + NUM_TARGET_CODES
DIMENSIONS = dict(
  num_heads=2, head_dim=4, mlp_dim=12, mlp_activations=('gelu', 'linear')
)
EMBED_DIM = 8
NUM_LAYERS = 2


def make_tokens(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids of inputs and targets, int32 `[2, LENGTH]`, the second ones shorter."""
  rng = np.random.default_rng(seed)
  inputs = rng.integers(2, TARGET_OFFSET, (2, LENGTH), 'i4')
  targets = rng.integers(TARGET_OFFSET, VOCAB_SIZE, (2, LENGTH), 'i4')
  inputs[1, LENGTH - 5 :] = 0
  targets[1, LENGTH - 3 :] = 0
  return inputs, targets


def shift_right(tokens: np.ndarray) -> np.ndarray:
  """Moves `[batch, length]` right by one behind a 0."""
  return np.pad(tokens[:, :-1], ((0, 0), (1, 0)))


def compute(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
  """Runs T5X on random weights.

  Args:
    architecture: one of `ARCHITECTURES`.
    seed: of weights and tokens.

  Returns:
    `inputs` and `targets` (see `make_tokens`), `logits` float32
    `[2, LENGTH, VOCAB_SIZE]` of the targets, `params/…` and, as text,
    `axes/…` under T5X's names.
  """
  name = {'encoder_decoder': 't5', 'decoder_only': 'decoder_only'}
  network = importlib.import_module(
    f't5x.examples.{name[architecture]}.network'
  )
  inputs, targets = make_tokens(seed)
  dimensions = DIMENSIONS | {
    'vocab_size': VOCAB_SIZE,
    'emb_dim': EMBED_DIM,
    'dropout_rate': 0.0,
  }
  if architecture == 'encoder_decoder':
    config = network.T5Config(
      num_encoder_layers=NUM_LAYERS,
      num_decoder_layers=NUM_LAYERS,
      **dimensions,
    )
    module = network.Transformer(config)
    arguments = (inputs, shift_right(targets), targets)
    keywords = {}
  else:
    config = network.TransformerConfig(num_layers=NUM_LAYERS, **dimensions)
    module = network.DecoderWrapper(config)
    joined = np.concatenate([inputs, targets], axis=1)
    arguments = (shift_right(joined), joined)
    is_prefix = np.concatenate(
      [np.ones_like(inputs), np.zeros_like(targets)], axis=1
    )
    keywords = {'decoder_causal_attention': is_prefix}
  variables = module.init(
    jax.random.PRNGKey(seed), *arguments, enable_dropout=False
  )
  rng = np.random.default_rng(seed)
  # Also what starts as a constant gets a value of its own.
  params = jax.tree.map(
    lambda x: np.asarray(x) + 0.1 * rng.standard_normal(x.shape, 'f4'),
    variables['params'],
  )
  logits = module.apply(
    {'params': params}, *arguments, enable_dropout=False, **keywords
  )
  flat_params = traverse_util.flatten_dict(params, sep='/')
  flat_axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  return (
    {'inputs': inputs, 'targets': targets}
    | {'logits': np.asarray(logits[:, -LENGTH:])}
    | {f'params/{name}': value for name, value in flat_params.items()}
    | {
      f'axes/{name}': np.array(value.names) for name, value in flat_axes.items()
    }
  )


if __name__ == '__main__':
  for architecture in ARCHITECTURES:
    np.savez_compressed(
      FOLDER / f't5x_{architecture}.npz', **compute(architecture)
    )
