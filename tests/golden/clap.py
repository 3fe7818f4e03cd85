"""Makes clap.npz: what transformers' ClapModel says of a tiny checkpoint.

  PYTHONPATH=. python tests/golden/clap.py

Needs torch, transformers and tokenizers. The weights are no part of the file:
they follow from their names, their shapes and a seed.
"""

import json
import pathlib

import numpy as np
import safetensors.numpy

PATH = pathlib.Path(__file__).with_suffix('.npz')
TEXTS = ('Calm piano', 'a fast, LOUD jazz tune — très vite ♪', '🎹')
# Shorter than a window, as long, and a bit of it.
NUM_SAMPLES = (20000, 48000, 900)
FRONT_END = {
  'feature_size': 16,
  'sampling_rate': 48000,
  'hop_length': 480,
  'max_length_s': 1,
  'fft_window_size': 1024,
  'frequency_min': 50,
  'frequency_max': 14000,
  'top_db': None,
  'truncation': 'rand_trunc',
  'padding': 'repeatpad',
}
CONFIG = {
  'projection_dim': 512,
  'audio_config': {
    'window_size': 4,
    'num_mel_bins': 16,
    'spec_size': 64,
    'patch_size': 4,
    'patch_stride': [4, 4],
    'hidden_size': 16,
    'depths': [2, 2],
    'num_attention_heads': [2, 4],
    'patch_embeds_hidden_size': 8,
    'num_hidden_layers': 2,
  },
  'text_config': {
    'vocab_size': 300,
    'hidden_size': 12,
    'num_hidden_layers': 2,
    'num_attention_heads': 3,
    'intermediate_size': 20,
    'max_position_embeddings': 66,
  },
}


def make_arrays(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Random weights by their names, in any process the same."""
  rng = np.random.default_rng(0)
  arrays = {}
  for name in sorted(shapes):
    array = rng.standard_normal(shapes[name]) * 0.3
    if name.endswith('running_var'):
      array = np.abs(array) + 0.5
    arrays[name] = np.asarray(array, np.float32)
  return arrays


def make_waveforms() -> list[np.ndarray]:
  """A chord that fades, with some noise; of several lengths."""
  rng = np.random.default_rng(1)
  waveforms = []
  for count in NUM_SAMPLES:
    time = np.arange(count) / 48000
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (220, 277, 1200, 9000))
    noise = rng.standard_normal(count)
    waveform = 0.1 * chord * np.exp(-2 * time) + 0.003 * noise
    waveforms.append(waveform.astype(np.float32))
  return waveforms


def write_checkpoint(
  folder: pathlib.Path,
  shapes: dict[str, list[int]],
  tokenizer: bytes,
  config: dict = CONFIG,
  front_end: dict = FRONT_END,
) -> pathlib.Path:
  """Writes the files that the hub would have; returns their folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'preprocessor_config.json').write_text(json.dumps(front_end))
  (folder / 'tokenizer.json').write_bytes(tokenizer)
  path = folder / 'model.safetensors'
  safetensors.numpy.save_file(make_arrays(shapes), path)
  return folder


def make_model(config: dict = CONFIG):
  """The ClapModel with the random weights, and their shapes."""
  import torch
  import transformers

  model = transformers.ClapModel(transformers.ClapConfig(**config)).eval()
  shapes = {
    name: list(tensor.shape)
    for name, tensor in model.state_dict().items()
    if tensor.dtype == torch.float32
  }
  arrays = make_arrays(shapes)
  state = {name: torch.tensor(array) for name, array in arrays.items()}
  model.load_state_dict(state, strict=False)
  return model, shapes


def make_tokenizer() -> bytes:
  """A byte-level BPE with RoBERTa's frame, learned from a few words."""
  import tokenizers
  from tokenizers import processors

  special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
  bpe = tokenizers.ByteLevelBPETokenizer()
  words = ['calm piano', 'fast loud jazz tune with drums'] * 3
  bpe.train_from_iterator(words, vocab_size=300, special_tokens=special)
  made = tokenizers.Tokenizer.from_str(bpe.to_str())
  made.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
  return made.to_str().encode()


def embed(model, tokenizer: bytes, front_end: dict = FRONT_END) -> dict:
  """What transformers makes of the waveforms and the texts."""
  import tokenizers
  import torch
  import transformers

  extractor = transformers.ClapFeatureExtractor(**front_end)
  spectrograms = np.concatenate(
    [
      extractor(x.astype(np.float64), sampling_rate=48000)['input_features'][0]
      for x in make_waveforms()
    ]
  )
  encoder = tokenizers.Tokenizer.from_str(tokenizer.decode())
  made = {'spectrograms': spectrograms.astype(np.float32)}
  with torch.no_grad():
    made['audio'] = model.get_audio_features(
      torch.tensor(made['spectrograms'])[:, None]
    ).pooler_output.numpy()
    made['text'] = np.concatenate(
      [
        model.get_text_features(
          torch.tensor([encoder.encode(text).ids])
        ).pooler_output.numpy()
        for text in TEXTS
      ]
    )
  for i, text in enumerate(TEXTS):
    made[f'tokens_{i}'] = np.array(encoder.encode(text).ids, np.int32)
  return made


def main() -> None:
  model, shapes = make_model()
  tokenizer = make_tokenizer()
  np.savez_compressed(
    PATH,
    shapes=np.frombuffer(json.dumps(shapes).encode(), np.uint8),
    tokenizer=np.frombuffer(tokenizer, np.uint8),
    **embed(model, tokenizer),
  )


if __name__ == '__main__':
  main()
