"""MusicCoCa's SavedModel, with a small one of the same signatures."""

import io
import shutil

import numpy as np
import pytest

from tests import contracts
from v2meow_jax import errors
from v2meow_jax.embedders import musiccoca
from v2meow_jax.embedders import musiccoca_saved_model


@pytest.fixture(scope='module')
def arrays():
  """What the model multiplies with."""
  rng = np.random.default_rng(0)
  return {
    'music': rng.standard_normal((100, 768)).astype('f4'),
    'text': rng.standard_normal((50, 768)).astype('f4'),
  }


@pytest.fixture(scope='module')
def folder(arrays, tmp_path_factory):
  tf = pytest.importorskip('tensorflow', reason='missing: TensorFlow')
  sentencepiece = pytest.importorskip(
    'sentencepiece', reason='missing: sentencepiece'
  )
  folder = tmp_path_factory.mktemp('magenta')

  class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 160000), tf.float32)])
    def music(self, inputs_0):
      power = tf.reshape(tf.square(inputs_0), (1, 100, 1600))
      loudness = tf.math.log(tf.reduce_mean(power, axis=2) + 1e-3)
      return {'contrastive_music_embed': loudness @ arrays['music']}

    @tf.function(
      input_signature=[
        tf.TensorSpec((1, 128), tf.int32, 'inputs_0'),
        tf.TensorSpec((1, 128), tf.float32, 'inputs_0_1'),
      ]
    )
    def text(self, inputs_0, inputs_0_1):
      seen = tf.one_hot(inputs_0, 50) * (1 - inputs_0_1)[..., None]
      summed = tf.reduce_sum(seen, axis=1)
      return {'contrastive_txt_embed': summed @ arrays['text']}

  model = Model()
  tf.saved_model.save(
    model,
    str(folder / musiccoca_saved_model.MODEL),
    {'embed_music': model.music, 'embed_text': model.text},
  )
  pieces = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['calm piano', 'fast drums', 'loud jazz'] * 3),
    model_writer=pieces,
    vocab_size=40,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  path = folder / musiccoca_saved_model.VOCABULARY
  path.parent.mkdir()
  path.write_bytes(pieces.getvalue())
  return folder


@pytest.fixture(scope='module')
def embedder(folder):
  return musiccoca_saved_model.MusicCocaSavedModel(path=folder)


def _unit(x):
  return x / np.linalg.norm(x)


def test_contracts(embedder):
  contracts.check_hearing(embedder)
  contracts.check_embedder(embedder, ['calm piano', 'fast drums'])


def test_signatures_get_what_they_expect(embedder, arrays, rng):
  waveform = rng.uniform(-0.5, 0.5, (1, 160000)).astype('f4')
  power = np.square(waveform).reshape(100, 1600).mean(axis=1)
  np.testing.assert_allclose(
    embedder.embed_audio(waveform)[0],
    _unit(np.log(power + 1e-3) @ arrays['music']),
    atol=1e-6,  # measured 1e-7
  )
  path = embedder._path / musiccoca_saved_model.VOCABULARY
  tokenizer = musiccoca.read_tokenizer(path.read_bytes(), '')
  for text in ('Calm Piano', 'calm ' * 10_000):
    tokens = [1, *tokenizer.encode(text.lower())[:127]]
    np.testing.assert_allclose(
      embedder.embed_text([text])[0],
      _unit(arrays['text'][tokens].sum(axis=0)),
      atol=1e-6,
    )
  with pytest.raises(errors.UserError, match='no word that embedder `musicc'):
    embedder.embed_text(['🎹♪'])


def test_what_is_missing_or_damaged(folder, tmp_path):
  make = musiccoca_saved_model.MusicCocaSavedModel
  with pytest.raises(errors.UserError) as error:
    make(path=tmp_path)
  assert str(error.value) == (
    f'{tmp_path}: {musiccoca_saved_model.MODEL}/saved_model.pb and '
    f'{musiccoca_saved_model.VOCABULARY} missing, expected the folder of '
    "Magenta RealTime's first release. Get it and set MUSICCOCA_PATH."
  )
  with pytest.raises(errors.UserError, match='None: savedmodels'):
    make()
  with pytest.raises(ValueError, match='was given parameters a, expected none'):
    make({'a': 1}, folder)
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  (copy / musiccoca_saved_model.VOCABULARY).write_bytes(b'nothing')
  with pytest.raises(errors.UserError, match='expected a SentencePiece model'):
    make(path=copy).embed_text(['calm'])
  path = copy / musiccoca_saved_model.MODEL / 'saved_model.pb'
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(errors.UserError, match='cannot be loaded'):
    make(path=copy)
