"""MuLan as an embedder: contracts, towers, and weights that are none."""

import re

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from tests import contracts
from tests.embedders import mulan_examples
from tests.golden import ast_tower
from v2meow_jax import errors
from v2meow_jax import weights
from v2meow_jax.embedders import mulan
from v2meow_jax.embedders import resnet
from v2meow_jax.embedders import shared_space


@pytest.fixture(scope='module')
def embedder():
  return mulan.Mulan(mulan_examples.make_weights())


def test_contracts(embedder):
  # Measured: one window alone or among eight differs by 1e-7.
  contracts.check_hearing(embedder, atol=1e-6)
  contracts.check_embedder(embedder, ['calm piano', 'fast drums'])


def test_ast_contracts():
  params = mulan_examples.make_weights(audio_tower='ast')
  contracts.check_hearing(mulan.Mulan(params, hop_seconds=0.1), atol=1e-6)


def test_windows_reach_the_end():
  clip = np.arange(25, dtype=np.float32)
  cut = lambda length, hop: [
    (int(w[0]), int(w[-1])) for w in shared_space.cut(clip[:length], 10, hop)
  ]
  assert cut(10, 10) == [(0, 9)]
  assert cut(20, 10) == [(0, 9), (10, 19)]
  assert cut(25, 10) == [(0, 9), (10, 19), (15, 24)]
  assert cut(25, 5) == [(0, 9), (5, 14), (10, 19), (15, 24)]
  assert cut(11, 1) == [(0, 9), (1, 10)]


def test_embedding_is_the_mean_of_windows(embedder, rng):
  clip = rng.standard_normal((1, 10 * 4000)).astype('f4') * 0.1
  windows = embedder.embed_windows(clip)[0]
  assert windows.shape == (10, 128)  # eight at once and two alone
  alone = [
    embedder.embed_audio(part[None])[0] for part in clip[0].reshape(10, -1)
  ]
  np.testing.assert_allclose(windows, alone, atol=1e-6)
  mean = windows.mean(axis=0)
  np.testing.assert_allclose(
    embedder.embed_audio(clip)[0], mean / np.linalg.norm(mean), atol=1e-6
  )


def test_log_mel_is_that_of_librosa(rng):
  waveform = rng.standard_normal(16000).astype('f4') * 0.1
  waveform[8000:] = 0
  power = librosa.feature.melspectrogram(
    y=waveform, sr=16000, n_fft=512, hop_length=160, win_length=512,
    window=np.pad(np.hanning(401)[:-1], (0, 112)), center=False, power=2.0,
    n_mels=64, fmin=60, fmax=7800, norm=None,
  )  # fmt: skip
  expected = (np.log(power.T + 1e-4) + 4) / 4
  found = mulan.log_mel(waveform[None], 64)[0]
  assert found.shape == (98, 64)  # 1 + (16000 - 400) // 160
  # Measured: 2e-7. Frames of librosa are longer, so the last one lacks here.
  np.testing.assert_allclose(found[: len(expected)], expected, atol=2e-6)
  assert mulan.log_mel(np.zeros((1, 160000), 'f4'), 64).shape == (1, 998, 64)


def test_resnet_is_resnet_50():
  shapes = jax.eval_shape(
    resnet.ResNet().init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 998, 64), jnp.float32),
  )
  # 25,557,032 of ResNet-50, less 2,049,000 of its classifier and two of three
  # colours in its first convolution.
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == 25_557_032 - 2_049_000 - 2 * 7 * 7 * 64


def test_padding_changes_nothing(embedder):
  tokens = np.full((2, 16), 0, np.int32)
  tokens[:, :4] = [2, 4, 5, 3]
  tokens[1, 4:] = 7  # noise behind the end
  found = embedder.network.apply(
    {'params': embedder.params},
    tokens,
    np.arange(16)[None] < [[4], [4]],
    method='embed_text',
  )
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_allclose(
    found[0], embedder.embed_text(['calm piano'])[0], atol=1e-6
  )
  # An order has a meaning.
  assert np.abs(found[0] - embedder.embed_text(['piano calm'])[0]).max() > 1e-3


def test_texts_of_all_kinds(embedder):
  long = embedder.embed_text(['calm ' * 10_000])
  np.testing.assert_array_equal(long, embedder.embed_text(['calm ' * 30]))
  partly = embedder.embed_text(['calm zither'])
  assert np.isfinite(partly).all()
  for text in ('', ' \n', 'zither', '♪ 🎹', '\x00'):
    with pytest.raises(errors.UserError) as error:
      embedder.embed_text(['calm', text])
    assert str(error.value) == (
      f'Text `{text}` holds no word that embedder `mulan` knows, expected '
      'words about music. Say it in other words.'
    )
    vectors = embedder.embed_text(['calm', text], allow_unknown=True)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
    assert not vectors[1].any()


def test_weights_travel_in_a_file(tmp_path, embedder):
  path = tmp_path / 'mulan.safetensors'
  params = mulan_examples.make_weights()
  weights.save_params(path, params, 'bfloat16')
  again = mulan.Mulan(weights.load_params(path))
  assert again.config == embedder.config
  np.testing.assert_allclose(
    again.embed_text(['fast jazz']),
    embedder.embed_text(['fast jazz']),
    atol=0.02,
  )


def test_weights_that_are_none(tmp_path):
  with pytest.raises(errors.UserError) as error:
    mulan.Mulan({})
  assert str(error.value) == (
    'Embedder `mulan` was not given its weights, expected the safetensors file '
    'that training MuLan wrote. Name it with --embedder of `v2meow prepare`, '
    'or with --style where a model is packed; without text set EMBEDDER = None.'
  )
  good = mulan_examples.make_weights()
  bare = {**good, 'params': {**good['params']}}
  del bare['params']['text_projection']
  missing = 'missing `text_projection/bias`; missing `text_projection/kernel`'
  with pytest.raises(errors.UserError, match=re.escape(missing)):
    mulan.Mulan(bare)
  other = mulan_examples.make_weights(resnet_features=8)
  key = 'config.json'
  with pytest.raises(errors.UserError, match='has shape'):
    mulan.Mulan({**other, key: good[key]})
  config = mulan_examples.make_config(vocab_size=9)
  changed = mulan.pack(good['params'], config, mulan_examples.VOCABULARY)
  with pytest.raises(errors.UserError, match='has 10 pieces, expected 9 as'):
    mulan.Mulan(changed)
  path = tmp_path / 'mulan.safetensors'
  weights.save_params(path, good)
  path.write_bytes(path.read_bytes()[:2000])
  with pytest.raises(errors.UserError, match='expected a safetensors file'):
    weights.load_params(path)
  with pytest.raises(ValueError, match='Unknown audio tower `vgg`, expected r'):
    mulan_examples.make_config(audio_tower='vgg')


def test_ast_is_that_of_transformers():
  found = ast_tower.make_tower().apply(
    {'params': ast_tower.make_params()}, ast_tower.make_spectrogram()
  )
  with np.load(ast_tower.PATH) as golden:
    # Measured: 1e-7 of numbers up to 0.7.
    np.testing.assert_allclose(found, golden['embedding'], atol=1e-6)


def test_transformers_says_the_same_of_ast_live():
  pytest.importorskip('torch')
  pytest.importorskip('transformers', minversion='5')
  with np.load(ast_tower.PATH) as golden:
    np.testing.assert_allclose(
      ast_tower.embed(), golden['embedding'], atol=1e-6
    )
