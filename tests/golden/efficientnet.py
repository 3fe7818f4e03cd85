"""Features of a small EfficientNet, as transformers' makes them.

`efficientnet.npz` was made by

    python -m tests.golden.efficientnet

with torch 2.13 and transformers 5.23: seeded random weights, 32 x 32 pictures.
Sizes are powers of two, where its padding is ours.
"""

import pathlib

import numpy as np

from tests import random_weights

PATH = pathlib.Path(__file__).resolve().with_suffix('.npz')
# Widening, channels, blocks, stride, kernel; a quarter of B0 in width.
GROUPS = (
  (1, 16, 1, 1, 3),
  (6, 8, 2, 2, 3),
  (6, 16, 2, 2, 5),
  (4, 24, 1, 1, 5),
)
SETTINGS = dict(stem=8, head=320, drop_path=0.0)


def picture() -> np.ndarray:
  return np.random.default_rng(1).normal(0, 1, (2, 32, 32, 1)).astype('f4')


def variables(network) -> dict:
  """Random weights of our network, `network.init` of a picture's shape."""
  import jax

  shapes = jax.eval_shape(network.init, jax.random.PRNGKey(0), picture())
  return random_weights.like(shapes)


def theirs(variables, groups=GROUPS, **settings) -> np.ndarray:
  """Maps of features of transformers, `[batch, height, width, head]`."""
  import torch
  import transformers

  widen, channels, repeats, strides, kernels = zip(*groups)
  config = transformers.EfficientNetConfig(
    num_channels=1,
    image_size=32,
    width_coefficient=settings.get('stem', 32) / 32,
    depth_coefficient=1.0,
    # They round these as they do the stem.
    in_channels=[c * 32 // settings['stem'] for c in (8, *channels[:-1])]
    if settings['stem'] != 32
    else [32, *channels[:-1]],
    out_channels=[c * 32 // settings['stem'] for c in channels],
    kernel_sizes=list(kernels),
    strides=list(strides),
    num_block_repeats=list(repeats),
    expand_ratios=list(widen),
    depthwise_padding=[],
    hidden_dim=settings['head'],
    drop_connect_rate=0.0,
  )
  model = transformers.EfficientNetModel(config).eval()
  state = model.state_dict()
  mine = {}
  params, stats = variables['params'], variables['batch_stats']

  def conv(prefix, name, block):
    kernel = params[block][name] if block else params[name]
    mine[f'{prefix}.weight'] = kernel['kernel'].transpose(3, 2, 0, 1)
    if 'bias' in kernel:
      mine[f'{prefix}.bias'] = kernel['bias']

  def norm(prefix, name, block):
    find = lambda tree: (tree[block] if block else tree)[name]['norm']
    mine[f'{prefix}.weight'] = find(params)['scale']
    mine[f'{prefix}.bias'] = find(params)['bias']
    mine[f'{prefix}.running_mean'] = find(stats)['mean']
    mine[f'{prefix}.running_var'] = find(stats)['var']

  conv('embeddings.convolution', 'stem', None)
  norm('embeddings.batchnorm', 'stem_norm', None)
  conv('encoder.top_conv', 'head', None)
  norm('encoder.top_bn', 'head_norm', None)
  for number in range(sum(repeats)):
    block, to = f'block_{number}', f'encoder.blocks.{number}'
    if 'expand' in params[block]:
      conv(f'{to}.expansion.expand_conv', 'expand', block)
      norm(f'{to}.expansion.expand_bn', 'expand_norm', block)
    conv(f'{to}.depthwise_conv.depthwise_conv', 'depthwise', block)
    norm(f'{to}.depthwise_conv.depthwise_norm', 'depthwise_norm', block)
    conv(f'{to}.squeeze_excite.reduce', 'reduce', block)
    conv(f'{to}.squeeze_excite.expand', 'excite', block)
    conv(f'{to}.projection.project_conv', 'project', block)
    norm(f'{to}.projection.project_bn', 'project_norm', block)
  lacking = {n for n in state if not n.endswith('tracked')} - mine.keys()
  assert not lacking and mine.keys() <= state.keys(), lacking
  model.load_state_dict(
    {n: torch.tensor(np.ascontiguousarray(a)) for n, a in mine.items()},
    strict=False,
  )
  with torch.no_grad():
    found = model(torch.tensor(picture().transpose(0, 3, 1, 2)))
  return found.last_hidden_state.numpy().transpose(0, 2, 3, 1)


if __name__ == '__main__':
  from v2meow_jax.embedders import efficientnet

  network = efficientnet.EfficientNet(
    efficientnet.Config(groups=GROUPS, **SETTINGS)
  )
  np.savez_compressed(PATH, features=theirs(variables(network), **SETTINGS))
