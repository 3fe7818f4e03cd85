"""Makes ast_tower.npz: what transformers' ASTModel says of a spectrogram.

  PYTHONPATH=. python tests/golden/ast_tower.py

Needs torch and transformers 5. Weights and spectrogram follow from a seed.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax.embedders import spectrogram_transformer

PATH = pathlib.Path(__file__).with_suffix('.npz')
FRAMES, BANDS = 36, 26  # 3 x 2 patches
DIM, LAYERS, HEADS, HIDDEN = 12, 2, 3, 20


def make_tower() -> spectrogram_transformer.SpectrogramTransformer:
  """Our tower."""
  return spectrogram_transformer.SpectrogramTransformer(
    DIM, LAYERS, HEADS, HIDDEN
  )


def make_spectrogram() -> np.ndarray:
  """float32 `[2, FRAMES, BANDS]`."""
  rng = np.random.default_rng(1)
  return rng.standard_normal((2, FRAMES, BANDS)).astype(np.float32)


def make_params() -> dict:
  """Random parameters of our tower."""
  shapes = jax.eval_shape(
    make_tower().init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, FRAMES, BANDS), jnp.float32),
  )['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), shapes
  )


def embed() -> np.ndarray:
  """What transformers makes of it, float32 `[2, DIM]`."""
  import torch
  import transformers

  config = transformers.ASTConfig(
    hidden_size=DIM,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=HIDDEN,
    frequency_stride=10,
    time_stride=10,
    max_length=FRAMES,
    num_mel_bins=BANDS,
  )
  model = transformers.ASTModel(config).eval()
  params = make_params()
  state = {
    'embeddings.cls_token': params['tokens'][None, :1],
    'embeddings.distillation_token': params['tokens'][None, 1:],
    'embeddings.position_embeddings': params['positions'][None],
    'embeddings.patch_embeddings.projection.weight': params['patches'][
      'kernel'
    ].transpose(3, 2, 0, 1),
    'embeddings.patch_embeddings.projection.bias': params['patches']['bias'],
    'layernorm.weight': params['norm']['scale'],
    'layernorm.bias': params['norm']['bias'],
  }
  for i in range(LAYERS):
    layer, name = params[f'layer_{i}'], f'layers.{i}'
    for part in ('query', 'key', 'value'):
      dense = layer['attention'][part]
      theirs = f'{name}.attention.{part[0]}_proj'
      state[f'{theirs}.weight'] = dense['kernel'].reshape(DIM, DIM).T
      state[f'{theirs}.bias'] = dense['bias'].reshape(DIM)
    output = layer['attention']['output']
    theirs = f'{name}.attention.o_proj'
    state[f'{theirs}.weight'] = output['kernel'].reshape(DIM, DIM).T
    state[f'{theirs}.bias'] = output['bias']
    for ours, theirs in (('hidden', 'mlp.fc1'), ('output', 'mlp.fc2')):
      state[f'{name}.{theirs}.weight'] = layer['mlp'][ours]['kernel'].T
      state[f'{name}.{theirs}.bias'] = layer['mlp'][ours]['bias']
    for ours, theirs in (('attention', 'before'), ('mlp', 'after')):
      norm = layer[f'{ours}_norm']
      state[f'{name}.layernorm_{theirs}.weight'] = norm['scale']
      state[f'{name}.layernorm_{theirs}.bias'] = norm['bias']
  model.load_state_dict(
    {
      name: torch.tensor(np.ascontiguousarray(value))
      for name, value in state.items()
    }
  )
  with torch.no_grad():
    return model(torch.tensor(make_spectrogram())).pooler_output.numpy()


if __name__ == '__main__':
  np.savez_compressed(PATH, embedding=embed())
