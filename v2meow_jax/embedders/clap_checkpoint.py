"""Weights of CLAP as transformers keeps them, for clap.py."""

from collections.abc import Mapping
import dataclasses
import pathlib

import jax
import numpy as np

from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weight_files
from v2meow_jax import weights
from v2meow_jax.embedders import clap

_CONFIG = 'config.json'
_FRONT_END = 'preprocessor_config.json'
_WEIGHTS = 'model.safetensors|pytorch_model.bin'
_POSITIONS_BEFORE = 2  # RoBERTa's first position is that behind the padding's


def read_config(folder_paths: Mapping[str, pathlib.Path]) -> clap.Config:
  """Reads the dimensions of a published checkpoint.

  Args:
    folder_paths: of config.json and preprocessor_config.json.

  Raises:
    UserError: it is a checkpoint of another kind.
  """
  path = folder_paths[_CONFIG]
  found = weight_files.read_json(path)
  heard = weight_files.read_json(folder_paths[_FRONT_END])
  try:
    audio, text = found['audio_config'], found['text_config']
    facts = {
      'enable_fusion': (audio.get('enable_fusion', False), False),
      'audio hidden_act': (audio.get('hidden_act', 'gelu'), 'gelu'),
      'text hidden_act': (text.get('hidden_act', 'gelu'), 'gelu'),
      'projection_hidden_act': (
        found.get('projection_hidden_act', 'relu'),
        'relu',
      ),
      'patch_stride': (
        list(audio.get('patch_stride', (4, 4))),
        [audio.get('patch_size', 4)] * 2,
      ),
      'pad_token_id': (text.get('pad_token_id', 1), _POSITIONS_BEFORE - 1),
      'sampling_rate': (heard['sampling_rate'], clap.SPEC.sample_rate_hz),
      'truncation': (heard['truncation'], 'rand_trunc'),
      'padding': (heard['padding'], 'repeatpad'),
      'top_db': (heard.get('top_db'), None),
    }
    wrong = [
      f'{name} is {value}, expected {expected}'
      for name, (value, expected) in facts.items()
      if value != expected
    ]
    if wrong:
      raise errors.UserError(
        f'{path}: {"; ".join(wrong)}. Use a CLAP checkpoint without fusion, '
        'such as laion/larger_clap_music.'
      )
    # Theirs leaves out what is as their code has it.
    return clap.Config(
      window_seconds=float(heard['max_length_s']),
      num_bands=heard['feature_size'],
      fft=heard['fft_window_size'],
      hop=heard['hop_length'],
      lowest_hz=float(heard['frequency_min']),
      highest_hz=float(heard['frequency_max']),
      side=audio.get('spec_size', 256),
      patch=audio.get('patch_size', 4),
      window=audio.get('window_size', 8),
      patch_dim=audio.get('patch_embeds_hidden_size', 96),
      depths=tuple(audio.get('depths', (2, 2, 6, 2))),
      audio_heads=tuple(audio.get('num_attention_heads', (4, 8, 16, 32))),
      mlp_ratio=float(audio.get('mlp_ratio', 4.0)),
      has_bias=audio.get('qkv_bias', True),
      audio_epsilon=audio.get('layer_norm_eps', 1e-5),
      vocab_size=text.get('vocab_size', 50265),
      text_length=text.get('max_position_embeddings', 514) - _POSITIONS_BEFORE,
      text_dim=text.get('hidden_size', 768),
      text_layers=text.get('num_hidden_layers', 12),
      text_heads=text.get('num_attention_heads', 12),
      text_hidden=text.get('intermediate_size', 3072),
      text_epsilon=text.get('layer_norm_eps', 1e-12),
      projection_dim=found.get('projection_dim', 512),
    )
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise errors.UserError(
      f'{path}: is no config of CLAP ({type(error).__name__}: {error}), '
      'expected that of a checkpoint for transformers. Fetch the files again.'
    ) from error


def _table(config: clap.Config) -> dict[str, weights.Entry]:
  """Where each of our parameters is in theirs."""
  table = {}

  def dense(ours, theirs, has_bias=True):
    table[f'{ours}/kernel'] = (f'{theirs}.weight', np.transpose)
    if has_bias:
      table[f'{ours}/bias'] = f'{theirs}.bias'

  def norm(ours, theirs):
    table[f'{ours}/scale'] = f'{theirs}.weight'
    table[f'{ours}/bias'] = f'{theirs}.bias'

  def attention(ours, theirs, num_heads, has_bias=True):
    # [features, heads * size] -> [features, heads, size]
    for part in ('query', 'key', 'value'):
      table[f'{ours}/{part}/kernel'] = (
        f'{theirs}.self.{part}.weight',
        lambda x: x.T.reshape(x.shape[1], num_heads, -1),
      )
      if has_bias:
        table[f'{ours}/{part}/bias'] = (
          f'{theirs}.self.{part}.bias',
          lambda x: x.reshape(num_heads, -1),
        )
    table[f'{ours}/output/kernel'] = (
      f'{theirs}.output.dense.weight',
      lambda x: x.T.reshape(num_heads, -1, len(x)),
    )
    table[f'{ours}/output/bias'] = f'{theirs}.output.dense.bias'

  theirs = 'audio_model.audio_encoder'
  statistics = [
    f'{theirs}.batch_norm.{name}'
    for name in ('weight', 'running_var', 'bias', 'running_mean')
  ]
  scale = lambda weight, variance: weight / np.sqrt(variance + 1e-5)
  table['audio/band_scale'] = (statistics[:2], scale)
  table['audio/band_shift'] = (
    statistics,
    lambda weight, variance, bias, mean: bias - mean * scale(weight, variance),
  )
  table['audio/patches/kernel'] = (
    f'{theirs}.patch_embed.proj.weight',
    lambda x: x.transpose(2, 3, 1, 0),
  )
  table['audio/patches/bias'] = f'{theirs}.patch_embed.proj.bias'
  norm('audio/patch_norm', f'{theirs}.patch_embed.norm')
  norm('audio/norm', f'{theirs}.norm')
  for stage, depth in enumerate(config.depths):
    for i in range(depth):
      ours = f'audio/stage_{stage}_layer_{i}'
      layer = f'{theirs}.layers.{stage}.blocks.{i}'
      attention(
        f'{ours}/attention',
        f'{layer}.attention',
        config.audio_heads[stage],
        config.has_bias,
      )
      table[f'{ours}/position_bias'] = (
        f'{layer}.attention.self.relative_position_bias_table'
      )
      norm(f'{ours}/attention_norm', f'{layer}.layernorm_before')
      norm(f'{ours}/mlp_norm', f'{layer}.layernorm_after')
      dense(f'{ours}/mlp/hidden', f'{layer}.intermediate.dense')
      dense(f'{ours}/mlp/output', f'{layer}.output.dense')
    if stage:
      merge = f'{theirs}.layers.{stage - 1}.downsample'
      norm(f'audio/merge_norm_{stage}', f'{merge}.norm')
      dense(f'audio/merge_{stage}', f'{merge}.reduction', has_bias=False)

  theirs = 'text_model.embeddings'
  table['text/words/embedding'] = f'{theirs}.word_embeddings.weight'
  # All tokens of a text are of the first type.
  table['text/positions'] = (
    (
      f'{theirs}.position_embeddings.weight',
      f'{theirs}.token_type_embeddings.weight',
    ),
    lambda positions, types: positions[_POSITIONS_BEFORE:] + types[0],
  )
  norm('text/norm', f'{theirs}.LayerNorm')
  for i in range(config.text_layers):
    ours, layer = f'text/layer_{i}', f'text_model.encoder.layer.{i}'
    attention(f'{ours}/attention', f'{layer}.attention', config.text_heads)
    norm(f'{ours}/attention_norm', f'{layer}.attention.output.LayerNorm')
    dense(f'{ours}/mlp/hidden', f'{layer}.intermediate.dense')
    dense(f'{ours}/mlp/output', f'{layer}.output.dense')
    norm(f'{ours}/mlp_norm', f'{layer}.output.LayerNorm')
  dense('pooler', 'text_model.pooler.dense')
  for tower in ('audio', 'text'):
    for i in range(2):
      ours, layer = f'{tower}_projection/dense_{i}', f'linear{i + 1}'
      dense(ours, f'{tower}_projection.{layer}')
  return table


# Buffers, and the temperatures of the loss.
_UNUSED = (
  r'.*\.relative_position_index',
  r'.*\.num_batches_tracked',
  r'.*\.(position|token_type)_ids',
  r'logit_scale_[at]',
)


def convert(paths: Mapping[str, pathlib.Path]) -> dict:
  """Makes weights of `clap.Clap` out of a checkpoint for transformers.

  Args:
    paths: of its files, by the names in `CHECKPOINTS`.

  Raises:
    UserError: they are those of another network.
  """
  config = read_config(paths)
  path = paths[_WEIGHTS]
  params = weights.translate(
    weight_files.read(path), _table(config), _UNUSED, f'{path}'
  )
  tokenizer = np.frombuffer(paths[clap.TOKENIZER].read_bytes(), np.uint8)
  config = dataclasses.replace(config, tokenizer_bytes=len(tokenizer))
  return weights.add_config(
    {'params': params, clap.TOKENIZER: tokenizer}, dataclasses.asdict(config)
  )


def _expected(config: Mapping) -> Mapping:
  found = weights.configure(clap.Config(), weights.add_config({}, config))
  tokenizer = jax.ShapeDtypeStruct((found.tokenizer_bytes,), np.uint8)
  return {'params': clap.parameter_shapes(found), clap.TOKENIZER: tokenizer}


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='clap_music',
    summary='music and text in one space, 512 features, 48 kHz',
    licence='Apache-2.0',
    files=(_CONFIG, _FRONT_END, clap.TOKENIZER, _WEIGHTS),
    convert=convert,
    expected=_expected,
    repository='laion/larger_clap_music',
  ),
)
