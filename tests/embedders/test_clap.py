"""CLAP against transformers on random weights; checkpoints that are none."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests import contracts
from tests import missing
from tests.golden import clap as golden_clap
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weights
from v2meow_jax.embedders import clap
from v2meow_jax.embedders import htsat


@pytest.fixture(scope='module')
def golden():
  with np.load(golden_clap.PATH) as npz:
    return {name: npz[name] for name in npz.files}


@pytest.fixture(scope='module')
def folder(golden, tmp_path_factory):
  return golden_clap.write_checkpoint(
    tmp_path_factory.mktemp('clap'),
    json.loads(golden['shapes'].tobytes()),
    golden['tokenizer'].tobytes(),
  )


@pytest.fixture(scope='module')
def embedder(folder):
  return clap.Clap(pretrained.load('clap_music', folder))


def test_spectrogram_is_that_of_transformers(golden, embedder):
  for waveform, expected in zip(
    golden_clap.make_waveforms(), golden['spectrograms']
  ):
    filled = embedder._fill(waveform, 48000)
    found = clap.log_mel(filled, embedder.config)
    # Measured: 4e-6 dB of -100 to 20, in float32.
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_music_is_embedded_as_by_transformers(golden, embedder):
  for waveform, expected in zip(golden_clap.make_waveforms(), golden['audio']):
    found = embedder.embed_audio(waveform[None])[0]
    # Measured: 7e-8 of vectors of length 1.
    np.testing.assert_allclose(found, expected, atol=5e-7)


def test_text_is_embedded_as_by_transformers(golden, embedder):
  for i, expected in enumerate(golden['text']):
    tokens = golden[f'tokens_{i}'][None]
    mask = np.ones(tokens.shape, bool)
    found = embedder._embed_text(embedder.params, tokens, mask)[0]
    # Measured: 1e-7 of vectors of length 1.
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_transformers_says_the_same_live(embedder, folder):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  pytest.importorskip('tokenizers')
  model, _ = golden_clap.make_model()
  made = golden_clap.embed(model, (folder / 'tokenizer.json').read_bytes())
  waveforms = golden_clap.make_waveforms()
  audio = [embedder.embed_audio(waveform[None])[0] for waveform in waveforms]
  np.testing.assert_allclose(audio, made['audio'], atol=1e-6)
  texts = list(golden_clap.TEXTS)
  np.testing.assert_allclose(
    embedder.embed_text(texts), made['text'], atol=1e-6
  )


def test_contracts(embedder):
  # Measured: one window alone or among eight differs by 8e-8.
  contracts.check_hearing(embedder, atol=8e-7)


def test_texts_of_all_kinds(embedder):
  pytest.importorskip('tokenizers')
  contracts.check_embedder(embedder, ['calm piano', 'loud drums'])
  long = embedder.embed_text(['calm ' * 10_000, 'calm ' * 9_000])
  np.testing.assert_array_equal(long[0], long[1])
  assert np.isfinite(embedder.embed_text(['\x00 ♪ 🎹', 'a'])).all()
  for text in ('', ' \n'):
    with pytest.raises(
      errors.UserError, match='holds no word that embedder `c'
    ):
      embedder.embed_text([text])
    assert not embedder.embed_text([text], allow_unknown=True).any()


def test_the_package_that_reads_text_is_named(folder, monkeypatch):
  embedder = clap.Clap(pretrained.load('clap_music', folder))
  monkeypatch.setattr('sys.meta_path', missing.meta_path('tokenizers'))
  for name in [n for n in sys.modules if n.startswith('tokeniz')]:
    monkeypatch.delitem(sys.modules, name)
  with pytest.raises(errors.UserError) as error:
    embedder.embed_text(['calm'])
  assert str(error.value) == (
    'The text tower of CLAP needs the package `tokenizers`. Install it, or '
    "everything with pip install 'v2meow_jax[pretrained]'."
  )


def test_stretching_keeps_ends_and_what_does_not_change():
  x = np.full((1, 21, 2), 3, np.float32)
  np.testing.assert_allclose(htsat.stretch(x, 64), 3, atol=1e-6)
  x[0, 0], x[0, -1] = (1, 2), (5, 6)
  found = np.asarray(htsat.stretch(x, 64))
  np.testing.assert_allclose(found[0, [0, -1]], x[0, [0, -1]], atol=1e-6)
  assert htsat.stretch(x, 21) is x


def test_converted_weights_are_a_file(tmp_path, folder, embedder):
  path = tmp_path / 'clap.safetensors'
  weights.save_params(path, pretrained.load('clap_music', folder))
  params = weights.load_params(path)
  pretrained.check(pretrained.get_checkpoint('clap_music'), params)
  again = clap.Clap(params)
  assert again.config == embedder.config
  waveform = golden_clap.make_waveforms()[0][None]
  np.testing.assert_array_equal(
    again.embed_audio(waveform), embedder.embed_audio(waveform)
  )


def test_checkpoints_of_another_kind(tmp_path, golden):
  shapes = json.loads(golden['shapes'].tobytes())
  tokenizer = golden['tokenizer'].tobytes()
  write = lambda **changes: golden_clap.write_checkpoint(
    tmp_path, shapes, tokenizer, **changes
  )
  config, front_end = golden_clap.CONFIG, golden_clap.FRONT_END
  fused = {**config['audio_config'], 'enable_fusion': True}
  with pytest.raises(errors.UserError) as error:
    pretrained.load(
      'clap_music',
      write(
        config={**config, 'audio_config': fused},
        front_end={**front_end, 'truncation': 'fusion'},
      ),
    )
  assert str(error.value) == (
    f'{tmp_path / "config.json"}: enable_fusion is True, expected False; '
    'truncation is fusion, expected rand_trunc. Use a CLAP checkpoint without '
    'fusion, such as laion/larger_clap_music.'
  )
  with pytest.raises(
    errors.UserError, match="is no config of CLAP .KeyError: 'a"
  ):
    pretrained.load('clap_music', write(config={'model_type': 'bert'}))
  deep = {**config['audio_config'], 'depths': [2, 4]}
  with pytest.raises(errors.UserError, match='missing `audio_model.audio_enc'):
    pretrained.load(
      'clap_music', write(config={**config, 'audio_config': deep})
    )
  wide = {**config['text_config'], 'vocab_size': 301}
  with pytest.raises(
    errors.UserError,
    match=re.escape('`params/text/words/embedding` has shape (300, 12), expec'),
  ):
    pretrained.load('clap_music', write(config={**config, 'text_config': wide}))
  path = write() / 'model.safetensors'
  arrays = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({**arrays, 'what': np.zeros(3)}, path)
  with pytest.raises(
    errors.UserError, match=r'unexpected `what` of shape \(3,'
  ):
    pretrained.load('clap_music', tmp_path)
  path.write_bytes(path.read_bytes()[:5000])
  with pytest.raises(errors.UserError, match='expected a safetensors file'):
    pretrained.load('clap_music', tmp_path)
  path.unlink()
  with pytest.raises(errors.UserError, match='of weights `clap_music` missing'):
    pretrained.load('clap_music', tmp_path)


def test_weights_that_are_none(folder):
  with pytest.raises(
    errors.UserError, match='`clap_music` was not given its w'
  ):
    clap.Clap({})
  params = pretrained.load('clap_music', folder)
  config = dataclasses.asdict(clap.Config())
  with pytest.raises(
    errors.UserError, match='Weights do not fit the model: mi'
  ):
    clap.Clap(weights.add_config(weights.without_config(params), config))
