"""What transformers' DAC and EnCodec compute for small random weights.

`dac.npz` and `encodec.npz` were made by `python -m tests.golden.codecs` with
transformers 5.23.0 and torch 2.13.0. They hold no weights: `make_arrays` makes
them again out of their names and shapes.
"""

import json
import pathlib
import zlib

import numpy as np
import safetensors.numpy

FOLDER = pathlib.Path(__file__).resolve().parent
CODECS = ('dac', 'encodec')
HOP = 320
# Of the clips: one of many chunks of `CHUNK`, one shorter than any layer sees.
LENGTHS = (23, 1)
# DAC lags behind by more than this, EnCodec mirrors six positions at its start.
CHUNK = {'dac': 3, 'encodec': 7}
# Two blocks, to compile quickly; one stride is odd.
_CONFIGS = {
  'dac': dict(
    encoder_hidden_size=2,
    decoder_hidden_size=16,
    downsampling_ratios=[5, 64],
    n_codebooks=12,
  ),
  'encodec': dict(num_filters=2, hidden_size=8, upsampling_ratios=[64, 5]),
}


def make_arrays(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Random weights, float32, by their name and shape alone.

  Of a size at which the networks neither fade nor saturate, so that rounding is
  not amplified, and codebooks whose entries lie as far apart as in a trained
  quantiser.
  """
  return {name: _make_array(name, shape) for name, shape in shapes.items()}


def _make_array(name, shape):
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  normal = rng.standard_normal(shape)
  if name.endswith('alpha'):
    found = 0.2 + 2 * rng.uniform(size=shape)
  elif name.endswith(('inited', 'original0')):
    found = 0.5 + rng.uniform(size=shape)
  elif name.endswith(('cluster_size', 'embed_avg')):
    found = np.zeros(shape)
  elif 'bias' in name:
    found = 0.1 * normal
  elif 'codebook' in name:
    level = int(name.split('.')[2])
    found = normal if name.endswith('codebook.weight') else normal * 0.8**level
  else:
    is_transposed = 'conv_t' in name
    inputs = 2 * shape[0] if is_transposed else np.prod(shape[1:])
    gain = 0.3 if 'res_unit' in name else 0.7
    found = gain * normal / np.sqrt(inputs)
  return np.asarray(found, np.float32)


def make_waveform(length: int) -> np.ndarray:
  """Noise, float32 `[2, length * HOP]`."""
  rng = np.random.RandomState(length)
  return (0.3 * rng.standard_normal((2, length * HOP))).astype(np.float32)


def write_folder(
  folder: pathlib.Path, config: dict, arrays: dict[str, np.ndarray]
) -> pathlib.Path:
  """Writes a checkpoint as it is published."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  return folder


def read(codec: str) -> tuple[dict, dict[str, list[int]], dict]:
  """Config, shapes of the weights, and codes and waveforms by length."""
  with np.load(FOLDER / f'{codec}.npz') as npz:
    found = dict(npz)
  facts = json.loads(str(found.pop('facts')))
  return facts['config'], facts['shapes'], found


def make_model(codec: str, **dimensions):
  """transformers' model with the weights of `make_arrays`."""
  import torch
  import transformers

  kind = {'dac': 'Dac', 'encodec': 'Encodec'}[codec]
  config = getattr(transformers, f'{kind}Config')(**dimensions)
  model = getattr(transformers, f'{kind}Model')(config).eval()
  state = model.state_dict()
  arrays = make_arrays({n: list(t.shape) for n, t in state.items()})
  model.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()})
  return model, arrays


def compute(model, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Runs a model.

  Args:
    model: of `make_model`.
    waveform: float32 `[batch, samples]`.

  Returns:
    codes int32 `[batch, time, levels]`, of EnCodec at 6 kbit/s, and what they
    are decoded to, float32 `[batch, samples]`.
  """
  import torch

  with torch.inference_mode():
    sound = torch.tensor(waveform)[:, None]
    if model.config.model_type == 'dac':
      codes = model.encode(sound).audio_codes
      decoded = model.decode(audio_codes=codes).audio_values
    else:
      frames = model.encode(sound, bandwidth=6.0).audio_codes
      codes = frames[0]
      decoded = model.decode(frames, [None]).audio_values[:, 0]
  # [batch, levels, time] -> [batch, time, levels]
  return codes.numpy().swapaxes(1, 2).astype(np.int32), decoded.numpy()


def main() -> None:
  for codec in CODECS:
    model, arrays = make_model(codec, **_CONFIGS[codec])
    facts = {
      'config': model.config.to_dict(),
      'shapes': {name: list(array.shape) for name, array in arrays.items()},
    }
    found = {'facts': np.array(json.dumps(facts))}
    for length in LENGTHS:
      codes, decoded = compute(model, make_waveform(length))
      found |= {f'codes_{length}': codes, f'decoded_{length}': decoded}
    np.savez_compressed(FOLDER / f'{codec}.npz', **found)


if __name__ == '__main__':
  main()
