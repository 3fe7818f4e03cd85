"""The contrastive loss, over all devices, and training with it."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile

from tests import conftest
from tests import mesh_runs
from tests.embedders import mulan_examples
from v2meow_jax import crops
from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import train
from v2meow_jax import weights
from v2meow_jax.embedders import contrastive
from v2meow_jax.embedders import mulan


def _unit(rng, *shape):
  x = rng.standard_normal(shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype('f4')


def _reference(audio, text, temperature, words):
  """The loss, one clip after another."""
  losses = []
  for i in range(len(words)):
    for mine, others in ((audio[i], text), (text[i], audio)):
      scores = others @ mine / temperature
      allowed = [j == i or words[j] != words[i] for j in range(len(words))]
      total = sum(np.exp(s) for s, is_in in zip(scores, allowed) if is_in)
      losses.append(np.log(total) - scores[i])
  return np.mean(losses)


def test_loss_is_the_references(rng):
  audio, text = _unit(rng, 6, 5), _unit(rng, 6, 5)
  for words in (np.arange(6), np.array([3, 1, 3, 2, 1, 3])):
    loss, hits = contrastive.contrast(audio, text, 0.2, words)
    # Measured: 1e-7.
    np.testing.assert_allclose(
      loss, _reference(audio, text, 0.2, words), rtol=1e-6
    )
    chance = np.mean([(words == word).mean() for word in words])
    np.testing.assert_allclose(hits['recall_by_chance'], chance, rtol=1e-6)


def test_who_finds_whom():
  audio = jnp.eye(4)
  text = jnp.eye(4)[jnp.array([0, 1, 3, 2])]  # two are mixed up
  loss, hits = contrastive.contrast(audio, text, 0.1, jnp.arange(4))
  assert hits['recall_of_text'] == hits['recall_of_audio'] == 0.5
  # With the same words they are right for each other.
  _, hits = contrastive.contrast(audio, text, 0.1, jnp.array([0, 1, 2, 2]))
  assert hits['recall_of_text'] == hits['recall_of_audio'] == 1
  assert hits['recall_by_chance'] == 6 / 16
  best, _ = contrastive.contrast(audio, audio, 0.1, jnp.arange(4))
  assert best < 0.001 < loss
  # A space that has collapsed finds no more than chance.
  same = jnp.ones((4, 4)) / 2
  loss, hits = contrastive.contrast(same, same, 0.1, jnp.arange(4))
  assert hits['recall_of_text'] == hits['recall_by_chance'] == 0.25
  np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


def test_equal_texts_have_equal_hashes(rng):
  tokens = rng.integers(0, 30000, (500, 12))
  tokens[100] = tokens[7]
  tokens[200] = tokens[7][::-1]
  hashes = np.asarray(contrastive._hashes(jnp.asarray(tokens)))
  same = hashes[:, None] == hashes[None]
  assert same[7, 100]
  assert same.sum() == 502


def test_eight_devices_give_what_one_gives(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'tests.embedders.contrastive_meshes', str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=conftest.ROOT,
    env=os.environ | {'XLA_FLAGS': mesh_runs.XLA_FLAGS},
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['devices'] == 8
  for name, value in found['one'].items():
    # Measured: 1e-7. A device that saw only its own two clips would have
    # log(2) less log(16).
    assert found['eight'][name] == pytest.approx(value, rel=1e-6), name
  # Two clips have the same words.
  assert found['one']['recall_by_chance'] == pytest.approx(18 / 256)
  assert found['gradient'] > 1e-4
  # Measured: 2e-5 with as little optimisation as here.
  assert found['error'] < 1e-4 * found['gradient']


def test_captions_are_tokens(tmp_path):
  vocabulary = mulan_examples.write_vocabulary(tmp_path / 'v.txt')
  clip = functools.partial(manifests.Clip, 'a', tmp_path / 'a.wav')
  one = contrastive.Captions(vocabulary, 6)
  assert one(clip(caption='calm\npiano'))['tokens'].tolist() == [
    [2, 4, 3, 0, 0, 0]
  ]
  three = contrastive.Captions(vocabulary, 4, num_captions=3)
  tokens = three(clip(caption='calm\n\n piano '))['tokens']
  assert tokens.dtype == np.int32
  assert tokens.tolist() == [[2, 4, 3, 0], [2, 5, 3, 0], [2, 4, 3, 0]]
  with pytest.raises(errors.UserError) as error:
    one(clip(caption=' \n'))
  assert str(error.value) == (
    'Clip `a` has no caption, expected words in the column caption of its '
    'manifest. Add them or leave the clip out.'
  )


def test_a_clip_learns_all_its_captions(tmp_path):
  vocabulary = mulan_examples.write_vocabulary(tmp_path / 'v.txt')
  model = contrastive.ContrastiveModel(vocabulary, mulan_examples.make_config())
  seen = []
  model._run = lambda params, waveform, tokens, rngs: seen.append(tokens)
  tokens = np.arange(3 * 50).reshape(50, 3, 1)
  batch = {'waveform': np.zeros((50, 1)), 'tokens': jnp.asarray(tokens)}
  model.loss_fn({}, batch, jax.random.key(0))
  model.loss_fn({}, batch, jax.random.key(1))
  model.eval_fn({}, batch)
  first, second, fixed = (np.asarray(x)[:, 0] for x in seen)
  assert (first // 3 == np.arange(50)).all()
  assert set(first % 3) == {0, 1, 2}
  assert (first != second).any()
  np.testing.assert_array_equal(fixed, tokens[:, 0, 0])


def test_training_finds_words_for_music(tmp_path):
  manifest = mulan_examples.write_music(tmp_path)
  vocabulary = mulan_examples.write_vocabulary(tmp_path / 'v.txt')
  config = mulan_examples.make_config(
    resnet_blocks=(1,), text_length=8, dropout=0.0
  )
  train.train(
    contrastive.ContrastiveModel(vocabulary, config),
    functools.partial(
      crops.CropDataset,
      [manifest],
      'mulan',
      mulan_examples.SECONDS,
      annotate=contrastive.Captions(vocabulary, 8),
    ),
    optax.adam(1e-2),
    str(tmp_path / 'run'),
    train_steps=60,
    batch_size=8,
    eval_period=60,
    eval_steps=1,
  )
  records = [
    json.loads(line)
    for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  ]
  last = [r for r in records if r['split'] == 'validation'][-1]
  assert last['step'] == 60
  # Four tones with a word each.
  assert last['recall_of_text'] == 1
  assert last['recall_of_audio'] == 1
  assert last['recall_by_chance'] < 0.5
  assert last['loss'] < 0.2
  params = weights.load_params(tmp_path / 'run' / 'params.safetensors')
  embedder = mulan.Mulan(params)
  music = [
    soundfile.read(tmp_path / f'{i}.wav', dtype='float32')[0] for i in range(4)
  ]
  scores = (
    embedder.embed_audio(np.stack(music))
    @ embedder.embed_text(mulan_examples.WORDS[:4]).T
  )
  np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(4))


def test_crops_must_be_as_long_as_the_window(tmp_path):
  vocabulary = mulan_examples.write_vocabulary(tmp_path / 'v.txt')
  model = contrastive.ContrastiveModel(vocabulary, mulan_examples.make_config())
  shapes = {'waveform': (2, 8000), 'tokens': (2, 1, 8)}
  with pytest.raises(errors.UserError) as error:
    model.get_initial_variables(jax.random.key(0), shapes)
  assert str(error.value) == (
    'Crops have 8000 samples, expected 4000: 0.25 s, as the audio tower hears. '
    'Set CROP_SECONDS to mulan.Config.window_seconds.'
  )
