"""Scores of a small PaSST, computed with torch as PaSST computes them.

`passt.npz` was made by

    python -m tests.golden.passt

with torch 2.13: the spectrogram by torch.stft and Kaldi's formula of mel
filters, the network in torch's own modules where there are any.
"""

import pathlib

import numpy as np

PATH = pathlib.Path(__file__).resolve().with_suffix('.npz')
WIDTH, MLP, LAYERS, TIMES = 16, 24, 2, 11


def state(width=WIDTH, mlp=MLP, layers=LAYERS, times=TIMES) -> dict:
  """Random weights by their names."""
  rng = np.random.default_rng(0)
  arrays = {}

  def linear(name, out, inputs, shape=()):
    size = inputs * int(np.prod(shape))
    arrays[f'{name}.weight'] = rng.normal(0, size**-0.5, (out, inputs, *shape))
    arrays[f'{name}.bias'] = rng.normal(0, 0.1, out)

  def norm(name):
    arrays[f'{name}.weight'] = rng.uniform(0.5, 1.5, width)
    arrays[f'{name}.bias'] = rng.normal(0, 0.1, width)

  for name, shape in (
    ('cls_token', (1, 1, width)),
    ('dist_token', (1, 1, width)),
    ('new_pos_embed', (1, 2, width)),
    ('freq_new_pos_embed', (1, width, 12, 1)),
    ('time_new_pos_embed', (1, width, 1, times)),
  ):
    arrays[name] = rng.normal(0, 0.5, shape)
  linear('patch_embed.proj', width, 1, (16, 16))
  for i in range(layers):
    norm(f'blocks.{i}.norm1')
    linear(f'blocks.{i}.attn.qkv', 3 * width, width)
    linear(f'blocks.{i}.attn.proj', width, width)
    norm(f'blocks.{i}.norm2')
    linear(f'blocks.{i}.mlp.fc1', mlp, width)
    linear(f'blocks.{i}.mlp.fc2', width, mlp)
  norm('norm')
  norm('head.0')
  linear('head.1', 527, width)
  linear('head_dist', 527, width)
  return {name: array.astype(np.float32) for name, array in arrays.items()}


def waveform(seconds: float = 1.0) -> np.ndarray:
  rng = np.random.default_rng(1)
  time = np.arange(round(32000 * seconds)) / 32000
  chord = sum(np.sin(2 * np.pi * f * time) for f in (220, 277, 330, 9000))
  return (0.1 * time * chord + rng.normal(0, 0.02, time.shape)).astype('f4')


def _mel(hertz):
  return 1127.0 * np.log(1.0 + hertz / 700.0)


def _filters():
  """`[128, 513]`, straight sides on the mel scale, from 0 to 15 kHz."""
  step = _mel(15000.0) / 129
  filters = np.zeros((128, 513), np.float32)
  for band in range(128):
    left, centre, right = step * band, step * (band + 1), step * (band + 2)
    for k in range(512):
      mel = _mel(k * 32000 / 1024)
      if left < mel < right:
        side = (mel - left) / (centre - left)
        if mel > centre:
          side = (right - mel) / (right - centre)
        filters[band, k] = side
  return filters


def theirs(state, waveform, heads: int = 1) -> np.ndarray:
  """Scores before the sigmoid, `[527]`."""
  import torch
  from torch.nn import functional

  weights = {n: torch.tensor(a) for n, a in state.items()}
  x = torch.tensor(waveform)
  x = x[1:] - 0.97 * x[:-1]
  x = torch.stft(
    x, 1024, 320, 800, torch.hann_window(800, periodic=False),
    return_complex=True,
  )  # fmt: skip
  x = torch.tensor(_filters()) @ x.abs() ** 2
  x = (torch.log(x + 1e-5) + 4.5) / 5

  def linear(x, name):
    return functional.linear(
      x, weights[f'{name}.weight'], weights[f'{name}.bias']
    )

  def norm(x, name, epsilon=1e-6):
    gain, bias = weights[f'{name}.weight'], weights[f'{name}.bias']
    return functional.layer_norm(x, gain.shape, gain, bias, epsilon)

  x = functional.conv2d(
    x[None, None],
    weights['patch_embed.proj.weight'],
    weights['patch_embed.proj.bias'],
    stride=10,
  )
  places = weights['time_new_pos_embed']
  x = x[..., : places.shape[-1]]
  x = x + places[..., : x.shape[-1]] + weights['freq_new_pos_embed']
  x = x.flatten(2).transpose(1, 2)
  places = weights['new_pos_embed']
  one = weights['cls_token'] + places[:, :1]
  two = weights['dist_token'] + places[:, 1:]
  x = torch.cat([one, two, x], 1)
  layers = sum(name.endswith('qkv.weight') for name in state)
  for i in range(layers):
    y = norm(x, f'blocks.{i}.norm1')
    y = linear(y, f'blocks.{i}.attn.qkv')
    query, key, value = (
      part.reshape(1, y.shape[1], heads, -1).transpose(1, 2)
      for part in y.chunk(3, -1)
    )
    y = functional.scaled_dot_product_attention(query, key, value)
    y = y.transpose(1, 2).flatten(2)
    x = x + linear(y, f'blocks.{i}.attn.proj')
    y = linear(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.mlp.fc1')
    x = x + linear(functional.gelu(y), f'blocks.{i}.mlp.fc2')
  x = norm(x, 'norm')
  x = (x[:, 0] + x[:, 1]) / 2
  return linear(norm(x, 'head.0', 1e-5), 'head.1')[0].numpy()


if __name__ == '__main__':
  np.savez_compressed(
    PATH,
    second=theirs(state(), waveform()),
    longer=theirs(state(), waveform(1.5)),
  )
