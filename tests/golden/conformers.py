"""What the published conformers compute for small random weights.

`w2v_bert_2.npz`, `relative.npz` and `musicfm.npz` were made by

    python -m tests.golden.conformers

with transformers 5.23.0, torch 2.13.0 and librosa 0.11.0. The weights are not
in the files but their names and shapes, of which `make_arrays` makes the same
ones again.
"""

from collections.abc import Mapping
import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = ('w2v_bert_2', 'relative', 'musicfm')

W2V_BERT_2 = dict(
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  conv_depthwise_kernel_size=5,
  left_max_position_embeddings=6,
  right_max_position_embeddings=3,
  output_hidden_size=16,
)
MUSICFM = dict(
  hidden_size=64,
  num_hidden_layers=2,
  num_attention_heads=1,
  intermediate_size=24,
  conv_depthwise_kernel_size=5,
  hidden_act='swish',
  position_embeddings_type='rotary',
  num_conv_pos_embeddings=4,
  num_conv_pos_embedding_groups=2,
)
CONV_DIM = 4
STATS = {'melspec_2048_mean': 6.5, 'melspec_2048_std': 18.5}


def make_arrays(
  shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
  """Random weights: near one where they scale, else near zero."""
  arrays = {}
  for name, shape in shapes.items():
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    array = 0.2 * rng.standard_normal(shape)
    if name.endswith('running_var'):
      array = np.abs(array) + 0.5
    elif 'norm' in name and name.endswith('weight'):
      array += 1
    arrays[name] = array.astype(np.float32)
  return arrays


def make_waveform(num_samples: int, seed: int) -> np.ndarray:
  """Noise that swells, float32 `[samples]`."""
  rng = np.random.default_rng(seed)
  swell = np.linspace(0.01, 0.5, num_samples)
  return (swell * rng.uniform(-1, 1, num_samples)).astype(np.float32)


def compute(name: str, seed: int = 0) -> dict[str, np.ndarray]:
  """Runs the published network on random weights; see the functions."""
  functions = {
    'w2v_bert_2': compute_w2v_bert_2,
    'relative': compute_relative,
    'musicfm': compute_musicfm,
  }
  return functions[name](seed)


def compute_w2v_bert_2(seed: int) -> dict[str, np.ndarray]:
  """`features` of 0.5 s, `layer_i` of them; `config`, `shapes` as JSON."""
  import transformers

  config = transformers.Wav2Vec2BertConfig(**W2V_BERT_2)
  model = transformers.Wav2Vec2BertModel(config).eval()
  extractor = transformers.SeamlessM4TFeatureExtractor()
  features = extractor(
    make_waveform(8000, seed), sampling_rate=16000, return_tensors='np'
  )['input_features']
  shapes = _fill(model, seed)
  return {
    'features': features[0],
    **_hidden_states(model, features),
    'config': _to_json(config.to_dict()),
    'shapes': _to_json(shapes),
  }


def compute_relative(seed: int) -> dict[str, np.ndarray]:
  """As `compute_w2v_bert_2`, with sinusoids, of random features."""
  import transformers

  config = transformers.Wav2Vec2BertConfig(
    **W2V_BERT_2, position_embeddings_type='relative', max_source_positions=40
  )
  model = transformers.Wav2Vec2BertModel(config).eval()
  shapes = _fill(model, seed)
  features = make_waveform(24 * 160, seed).reshape(1, 24, 160)
  return {
    'features': features[0],
    **_hidden_states(model, features),
    'shapes': _to_json(shapes),
  }


def compute_musicfm(seed: int) -> dict[str, np.ndarray]:
  """`mels` in dB of 0.4 s and `layer_i` of them; `shapes` as JSON.

  The convolutions are written out here; the mels are librosa's.
  """
  import librosa
  import torch
  from torch.nn import functional as F
  from transformers.models import wav2vec2_conformer
  from transformers.models.wav2vec2_conformer import (
    modeling_wav2vec2_conformer as modeling,
  )

  config = wav2vec2_conformer.Wav2Vec2ConformerConfig(
    **MUSICFM, attn_implementation='eager'
  )
  encoder = modeling.Wav2Vec2ConformerEncoder(config).eval()
  shapes = {
    f'conformer.{n}': tuple(x.shape)
    for n, x in encoder.state_dict().items()
    if x.is_floating_point() and 'inv_freq' not in n
  }
  for i in range(2):
    for j in (1, 2, 3):
      from_mels = i == 0 and j != 2
      prefix = f'conv.conv.{i}'
      shapes[f'{prefix}.conv{j}.weight'] = (
        CONV_DIM, 1 if from_mels else CONV_DIM, 3, 3,
      )  # fmt: skip
      shapes[f'{prefix}.conv{j}.bias'] = (CONV_DIM,)
      for part in ('weight', 'bias', 'running_mean', 'running_var'):
        shapes[f'{prefix}.bn{j}.{part}'] = (CONV_DIM,)
  shapes['conv.linear.weight'] = (64, CONV_DIM * 32)
  shapes['conv.linear.bias'] = (64,)
  shapes |= {'cls_token': (64,), 'linear.weight': (8, 64), 'linear.bias': (8,)}
  arrays = make_arrays(shapes, seed)
  tensors = {name: torch.tensor(array) for name, array in arrays.items()}
  state = {
    n.removeprefix('conformer.'): x
    for n, x in tensors.items()
    if n.startswith('conformer.')
  }
  encoder.load_state_dict(state, strict=False)

  def convolve(x, i, j, stride):
    name = f'conv.conv.{i}'
    x = F.conv2d(
      x,
      tensors[f'{name}.conv{j}.weight'],
      tensors[f'{name}.conv{j}.bias'],
      stride,
      padding=1,
    )
    norm = [
      tensors[f'{name}.bn{j}.{part}']
      for part in ('running_mean', 'running_var', 'weight', 'bias')
    ]
    return F.batch_norm(x, *norm, training=False)

  mels = librosa.feature.melspectrogram(
    y=make_waveform(9600, seed),
    sr=24000,
    n_fft=2048,
    hop_length=240,
    n_mels=128,
    htk=True,
    norm=None,
    pad_mode='reflect',
  )
  mels = 10 * np.log10(np.maximum(mels, 1e-10))[:, :-1]
  mean, deviation = STATS.values()
  states = []
  for layer in encoder.layers:
    layer.register_forward_hook(lambda *args: states.append(args[-1]))
  with torch.no_grad():
    x = torch.tensor((mels - mean) / deviation).float()[None, None]
    for i in range(2):
      inner = convolve(F.relu(convolve(x, i, 1, 2)), i, 2, 1)
      x = F.relu(convolve(x, i, 3, 2) + inner)
    # [1, features, mels, time] -> [1, time, features * mels]
    x = x.permute(0, 3, 1, 2).flatten(2)
    x = F.linear(x, tensors['conv.linear.weight'], tensors['conv.linear.bias'])
    last = encoder(x).last_hidden_state
  states = [x, *states[:-1], last]
  return {
    'mels': mels.T.astype(np.float32),
    **{f'layer_{i}': x[0].numpy() for i, x in enumerate(states)},
    'shapes': _to_json(shapes),
  }


def _fill(model, seed: int) -> dict[str, tuple]:
  """Sets random weights; returns their shapes."""
  import torch

  shapes = {n: tuple(x.shape) for n, x in model.state_dict().items()}
  arrays = make_arrays(shapes, seed)
  model.load_state_dict({n: torch.tensor(x) for n, x in arrays.items()})
  return shapes


def _hidden_states(model, features: np.ndarray) -> dict[str, np.ndarray]:
  import torch

  with torch.no_grad():
    out = model(torch.tensor(features), output_hidden_states=True)
  return {f'layer_{i}': x[0].numpy() for i, x in enumerate(out.hidden_states)}


def _to_json(value) -> np.ndarray:
  return np.array(json.dumps(value, default=str))


def read(name: str) -> dict[str, np.ndarray]:
  """Reads a file of this folder that `main` wrote."""
  with np.load(FOLDER / f'{name}.npz') as npz:
    return dict(npz)


def main() -> None:
  """Writes the files."""
  for name in NAMES:
    np.savez_compressed(FOLDER / f'{name}.npz', **compute(name))


if __name__ == '__main__':
  main()
