"""Training of classifiers: labels, the ranking metric, a whole run."""

import json
import re
import shlex

import gin
import numpy as np
import pytest
import soundfile

from tests import conftest
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import train
from v2meow_jax import weights
from v2meow_jax.embedders import classifiers
from v2meow_jax.embedders import efficientnet
from v2meow_jax.embedders import leaf

BINDINGS = [
  'leaf.Config.num_filters = 8',
  'leaf.Config.window_seconds = 0.2',
  'leaf.Config.dropout = 0.0',
  'efficientnet.Config.stem = 4',
  'efficientnet.Config.groups = ((1, 4, 1, 1, 3), (2, 8, 1, 2, 3))',
  'efficientnet.Config.head = 16',
  'efficientnet.Config.drop_path = 0.0',
  'efficientnet.Config.momentum = 0.8',
  'CROP_SECONDS = 0.2',
  'BATCH_SIZE = 8',
  'LEARNING_RATE = 1e-2',
  'WARMUP_STEPS = 5',
  'EVAL_PERIOD = 40',
  'EVAL_STEPS = 2',
]


def _slow_ranking(scores, labels):
  """Ranks every class of every example; the mean over what they have."""
  shares = []
  for row, has in zip(scores, labels):
    for c in np.flatnonzero(has):
      above = row >= row[c]
      shares.append(has[above].sum() / above.sum())
  return np.mean(shares)


def test_ranking_precision_merges_over_batches(rng):
  scores = rng.normal(0, 1, (12, 9)).astype(np.float32)
  scores[:, 3] = scores[:, 4]  # equal scores count as above
  labels = (rng.random((12, 9)) < 0.3).astype(np.float32)
  labels[5] = 0  # an example without any
  parts = [
    classifiers.ranking_precision(scores[i : i + 5], labels[i : i + 5])
    for i in (0, 5, 10)
  ]
  total, count = np.sum(parts, axis=0)
  expected = _slow_ranking(scores, labels)
  assert 0.2 < expected < 0.8
  assert total / count == pytest.approx(expected, rel=1e-6)
  total, count = classifiers.ranking_precision(labels, labels)
  assert total == count == labels.sum()


def test_labels_of_a_row(tmp_path):
  clip = manifests.Clip('a', tmp_path, attributes='{"labels": ["Jazz"]}')
  assert np.flatnonzero(classifiers.read_labels(clip)['labels']) == [235]
  for attributes, message in (
    ('{}', 'Clip `a` has no list `labels` among its attributes, expected '),
    ('{"labels": "Jazz"}', 'Clip `a` has no list `labels` among its attribut'),
    ('{"labels": ["Jaz"]}', 'Clip `a`: Label `Jaz` is no class of AudioSet'),
  ):
    clip = manifests.Clip('a', tmp_path, attributes=attributes)
    with pytest.raises(errors.UserError, match=message):
      classifiers.read_labels(clip)


def test_the_command_of_the_docs_is_set():
  text = (conftest.ROOT / 'docs' / 'audio.md').read_text()
  text = text[text.index('### Training LEAF') :]
  text = text.replace('\\\n', ' ')
  command, more = re.findall('```sh\n(.*?)```', text, re.DOTALL)[:2]
  words = shlex.split(command)
  assert words[:3] == ['python', '-m', 'v2meow_jax.train']
  for extra, steps in ([], 100_000), (shlex.split(more), 160):
    arguments = train.parse_arguments(words[3:] + extra)
    try:
      configs.parse(
        arguments.gin_file, arguments.gin_bindings, root='train.train'
      )
      values = gin.get_bindings('train.train')
    finally:
      gin.clear_config()
    assert values['train_steps'] == steps
    assert values['model'].spec.name == 'leaf'
  encoder = values['model'].module.config.encoder
  assert encoder == efficientnet.Config(
    stem=16,
    groups=((1, 16, 1, 1, 3), (4, 24, 1, 2, 3), (4, 40, 1, 2, 5)),
    head=128,
    momentum=0.9,
  )


def test_a_run_tells_high_from_low(tmp_path):
  """And its weights are those that the embedder hears with."""
  seconds = np.arange(32000) / 16000
  rows = ['clip_id,file,split,attributes']
  sounds = {'Whistle': 3000, 'Hum': 150}
  for label, hertz in sounds.items():
    tone = 0.5 * np.sin(2 * np.pi * hertz * seconds)
    soundfile.write(tmp_path / f'{label}.wav', tone, 16000)
    attributes = json.dumps({'labels': [label]}).replace('"', '""')
    for split in ('train', 'validation'):
      rows.append(f'{label}_{split},{label}.wav,{split},"{attributes}"')
  manifest = tmp_path / 'clips.csv'
  manifest.write_text('\n'.join(rows) + '\n')
  arguments = [
    '--gin_file=embedders/leaf.gin',
    '--gin_file=runs/train.gin',
    '--gin_file=embedders/train_leaf.gin',
    f'--gin.MANIFESTS=("{manifest}",)',
    f'--gin.MODEL_DIR="{tmp_path / "run"}"',
    '--gin.TRAIN_STEPS=40',
    *(f'--gin.{line.replace(" = ", "=")}' for line in BINDINGS),
  ]
  try:
    assert train.main(arguments) == 0
  finally:
    gin.clear_config()
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  measured = [json.loads(line) for line in lines]
  last = [m for m in measured if 'validation' in str(m)][-1]
  assert _find(last, 'lwlrap') > 0.9, measured
  tiny = efficientnet.Config(
    stem=4, groups=((1, 4, 1, 1, 3), (2, 8, 1, 2, 3)), head=16
  )
  config = leaf.Config(num_filters=8, window_seconds=0.2, encoder=tiny)
  params = weights.load_params(tmp_path / 'run' / 'params.safetensors')
  embedder = leaf.Leaf(params, config)
  for label, hertz in sounds.items():
    tone = 0.5 * np.sin(2 * np.pi * hertz * seconds)[None]
    scores = embedder.embed_audio(tone.astype(np.float32))[0]
    assert embedder.labels[scores.argmax()] == label


def _find(tree, name):
  if isinstance(tree, dict):
    for key, value in tree.items():
      if key.endswith(name):
        return value
      found = _find(value, name)
      if found is not None:
        return found
  return None
