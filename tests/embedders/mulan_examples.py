"""The smallest MuLan, random weights for it, and captioned noise."""

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from v2meow_jax.embedders import mulan

WORDS = ('calm', 'piano', 'fast', 'drums', 'jazz', '##s')
VOCABULARY = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', *WORDS)
SECONDS = 0.25


def make_config(**changes) -> mulan.Config:
  """A network that compiles in a moment."""
  values = {
    'window_seconds': SECONDS,
    'num_bands': 16,
    'resnet_blocks': (1, 1),
    'resnet_features': 4,
    'ast_dim': 8,
    'ast_layers': 1,
    'ast_heads': 2,
    'ast_hidden': 8,
    'vocab_size': len(VOCABULARY),
    'text_length': 32,
    'text_dim': 8,
    'text_layers': 1,
    'text_heads': 2,
    'text_hidden': 8,
  }
  return mulan.Config(**(values | changes))


def make_weights(**changes) -> dict:
  """What training would write, of random parameters."""
  config = make_config(**changes)
  shapes = jax.eval_shape(
    mulan.Network(config).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, config.num_samples), jnp.float32),
    jax.ShapeDtypeStruct((1, config.text_length), jnp.int32),
  )['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), shapes
  )
  return mulan.pack(params, config, VOCABULARY)


def write_vocabulary(path) -> str:
  """Writes the vocabulary; returns its path."""
  path.write_text('\n'.join(VOCABULARY) + '\n')
  return str(path)


def write_music(folder, captions=WORDS[:4]):
  """Writes a tone for each caption, to train and to validate on.

  Returns:
    The manifest.
  """
  rng = np.random.default_rng(0)
  lines = ['clip_id,file,split,caption']
  for i, caption in enumerate(captions):
    tone = 0.3 * np.sin(np.arange(8000) * 0.05 * 2 ** (i + 1))
    soundfile.write(
      folder / f'{i}.wav', tone + 0.01 * rng.standard_normal(8000), 16000
    )
    lines.append(f't{i},{i}.wav,train,{caption}')
    lines.append(f'v{i},{i}.wav,validation,{caption}')
  path = folder / 'music.csv'
  path.write_text('\n'.join(lines) + '\n')
  return path
