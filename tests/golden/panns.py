"""Scores of a small Cnn14, computed with torch as PANNs computes them.

`panns.npz` was made by

    python -m tests.golden.panns

with torch 2.13 and librosa 0.11. The spectrogram is librosa's, as that of
torchlibrosa is; the network is written here in torch's functions.
"""

import pathlib

import numpy as np

PATH = pathlib.Path(__file__).resolve().with_suffix('.npz')
CHANNELS = (2, 3, 4, 5, 6, 7)


def state(channels=CHANNELS) -> dict[str, np.ndarray]:
  """Random weights by their names."""
  rng = np.random.default_rng(0)
  arrays = {}

  def norm(name, size):
    arrays[f'{name}.weight'] = rng.uniform(0.5, 1.5, size)
    arrays[f'{name}.bias'] = rng.normal(0, 0.1, size)
    arrays[f'{name}.running_mean'] = rng.normal(0, 0.1, size)
    arrays[f'{name}.running_var'] = rng.uniform(0.5, 1.5, size)
    arrays[f'{name}.num_batches_tracked'] = np.array(3)

  norm('bn0', 64)
  # What dB are is taken off, or the first layers see nothing else.
  arrays['bn0.running_mean'] = rng.normal(-20, 5, 64)
  arrays['bn0.running_var'] = rng.uniform(50, 150, 64)
  inputs = 1
  for i, size in enumerate(channels, 1):
    for j in (1, 2):
      kernel = rng.normal(0, np.sqrt(2 / 9 / inputs), (size, inputs, 3, 3))
      arrays[f'conv_block{i}.conv{j}.weight'] = kernel
      norm(f'conv_block{i}.bn{j}', size)
      inputs = size
  for name, size in (('fc1', inputs), ('fc_audioset', 527)):
    kernel = rng.normal(0, np.sqrt(2 / inputs), (size, inputs))
    arrays[f'{name}.weight'] = kernel
    arrays[f'{name}.bias'] = rng.normal(0, 0.1, size)
  arrays['spectrogram_extractor.stft.conv_real.weight'] = np.zeros((3, 1, 4))
  arrays['logmel_extractor.melW'] = np.zeros((3, 4))
  return {
    name: array.astype(np.int64 if array.ndim == 0 else np.float32)
    for name, array in arrays.items()
  }


def waveform(sample_rate_hz: int) -> np.ndarray:
  """One second: a chord that swells, and noise."""
  rng = np.random.default_rng(1)
  time = np.arange(sample_rate_hz) / sample_rate_hz
  chord = sum(np.sin(2 * np.pi * f * time) for f in (220, 277, 330, 3000))
  return (0.1 * time * chord + rng.normal(0, 0.02, time.shape)).astype('f4')


def theirs(state, waveform, sample_rate_hz: int) -> np.ndarray:
  """Scores before the sigmoid, `[527]`."""
  import librosa
  import torch
  from torch.nn import functional

  window, hop, high = {
    16000: (512, 160, 8000),
    32000: (1024, 320, 14000),
  }[sample_rate_hz]
  mel = librosa.feature.melspectrogram(
    y=waveform, sr=sample_rate_hz, n_fft=window, hop_length=hop, n_mels=64,
    fmin=50, fmax=high, pad_mode='reflect',
  )  # fmt: skip
  decibel = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
  weights = {n: torch.tensor(a) for n, a in state.items()}

  def norm(x, name):
    of = lambda part: weights[f'{name}.{part}']
    return functional.batch_norm(
      x, of('running_mean'), of('running_var'), of('weight'), of('bias')
    )

  # [mels, time] -> [1, mels, time, 1] -> [1, 1, time, mels]
  x = torch.tensor(decibel, dtype=torch.float32)[None, :, :, None]
  x = norm(x, 'bn0').transpose(1, 3)
  blocks = sum(name.endswith('conv1.weight') for name in state)
  for i in range(1, blocks + 1):
    for j in (1, 2):
      name = f'conv_block{i}.conv{j}.weight'
      x = functional.conv2d(x, weights[name], padding=1)
      x = torch.relu(norm(x, f'conv_block{i}.bn{j}'))
    if i < blocks:
      x = functional.avg_pool2d(x, 2)
  x = x.mean(3)
  x = x.amax(2) + x.mean(2)
  linear = lambda x, name: functional.linear(
    x, weights[f'{name}.weight'], weights[f'{name}.bias']
  )
  return linear(torch.relu(linear(x, 'fc1')), 'fc_audioset')[0].numpy()


if __name__ == '__main__':
  np.savez_compressed(
    PATH,
    **{
      str(rate): theirs(state(), waveform(rate), rate)
      for rate in (16000, 32000)
    },
  )
