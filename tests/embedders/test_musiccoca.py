"""MusicCoCa's road, with small parts of the same signatures."""

import io

import numpy as np
import pytest

from tests import contracts
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weights
from v2meow_jax.embedders import musiccoca

_WIDTH = 128  # tokens of a text


def _to_tflite(tf, function, *shapes):
  specs = [tf.TensorSpec(shape, dtype) for shape, dtype in shapes]
  traced = tf.function(function, input_signature=specs).get_concrete_function()
  converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
  return converter.convert()


@pytest.fixture(scope='module')
def arrays():
  """What the parts multiply with."""
  rng = np.random.default_rng(0)
  return {
    'music': rng.standard_normal((100, 768)).astype('f4'),
    'text': rng.standard_normal((50, 768)).astype('f4'),
  }


@pytest.fixture(scope='module')
def folder(arrays, tmp_path_factory):
  tf = pytest.importorskip('tensorflow')
  sentencepiece = pytest.importorskip('sentencepiece')
  folder = tmp_path_factory.mktemp('musiccoca')

  def front_end(waveform):  # [1, 160000] -> [1, 100, 1]: loudness
    power = tf.reshape(tf.square(waveform), (1, 100, 1600))
    return tf.math.log(tf.reduce_mean(power, axis=2, keepdims=True) + 1e-3)

  def music(features):
    return tf.linalg.matmul(features[..., 0], arrays['music'])

  def text(tokens, is_padding):
    seen = tf.one_hot(tokens, 50) * (1 - is_padding)[..., None]
    return tf.linalg.matmul(tf.reduce_sum(seen, axis=1), arrays['text'])

  parts = {
    'audio_preprocessor': (front_end, ((1, 160000), tf.float32)),
    'music_encoder': (music, ((1, 100, 1), tf.float32)),
    'text_encoder': (
      text, ((1, _WIDTH), tf.int32), ((1, _WIDTH), tf.float32),
    ),
  }  # fmt: skip
  for name, part in parts.items():
    (folder / f'{name}.tflite').write_bytes(_to_tflite(tf, *part))
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['calm piano', 'fast drums', 'loud jazz'] * 3),
    model_writer=model,
    vocab_size=40,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  (folder / 'spm.model').write_bytes(model.getvalue())
  return folder


@pytest.fixture(scope='module')
def embedder(folder):
  return musiccoca.MusicCoca(pretrained.load('musiccoca', folder))


def _unit(x):
  return x / np.linalg.norm(x)


def test_contracts(embedder):
  contracts.check_hearing(embedder)
  contracts.check_embedder(embedder, ['calm piano', 'fast drums'])


def test_parts_get_what_they_expect(embedder, arrays, rng):
  waveform = rng.uniform(-0.5, 0.5, (1, 160000)).astype('f4')
  power = np.square(waveform).reshape(100, 1600).mean(axis=1)
  # Measured: 1e-7.
  np.testing.assert_allclose(
    embedder.embed_audio(waveform)[0],
    _unit(np.log(power + 1e-3) @ arrays['music']),
    atol=1e-6,
  )
  tokens = embedder._tokenizer.encode('calm piano')
  seen = [1, *tokens]  # a start in front, nothing of the padding
  np.testing.assert_allclose(
    embedder.embed_text(['Calm Piano'])[0],
    _unit(arrays['text'][seen].sum(axis=0)),
    atol=1e-6,
  )
  # Of a long text the first 127 tokens.
  tokens = embedder._tokenizer.encode('calm ' * 10_000)[: _WIDTH - 1]
  np.testing.assert_allclose(
    embedder.embed_text(['calm ' * 10_000])[0],
    _unit(arrays['text'][[1, *tokens]].sum(axis=0)),
    atol=1e-6,
  )


def test_texts_that_say_nothing(embedder):
  for text in ('', '🎹♪'):
    with pytest.raises(errors.UserError, match='no word that embedder `musicc'):
      embedder.embed_text([text])
    assert not embedder.embed_text([text], allow_unknown=True).any()


def test_parts_travel_in_a_file(folder, embedder, tmp_path):
  path = tmp_path / 'musiccoca.safetensors'
  params = pretrained.load('musiccoca', folder)
  weights.save_params(path, params, 'bfloat16')
  params = weights.load_params(path)
  row = pretrained.get_checkpoint('musiccoca')
  pretrained.check(row, params)
  np.testing.assert_array_equal(
    musiccoca.MusicCoca(params).embed_text(['calm']),
    embedder.embed_text(['calm']),
  )
  params['music_encoder.tflite'] = params['music_encoder.tflite'][:-1]
  with pytest.raises(
    errors.UserError, match='`music_encoder.tflite` has shape'
  ):
    pretrained.check(row, params)


def test_parts_that_are_none(folder, embedder, tmp_path):
  with pytest.raises(
    errors.UserError, match='`musiccoca` was not given its we'
  ):
    musiccoca.MusicCoca({})
  with pytest.raises(
    errors.UserError, match='spm.model and text_encoder.tflite'
  ):
    pretrained.load('musiccoca', tmp_path)
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / 'music_encoder.tflite').write_bytes(b'not a model')
  with pytest.raises(errors.UserError) as error:
    pretrained.load('musiccoca', tmp_path)
  assert str(error.value) == (
    f'{tmp_path / "music_encoder.tflite"}: is no TensorFlow Lite model, '
    'expected a part of MusicCoCa. Fetch the file again.'
  )
  silence = np.zeros((1, 10), 'f4')
  swapped = dict(embedder.params)
  swapped['music_encoder.tflite'] = swapped['audio_preprocessor.tflite']
  with pytest.raises(
    errors.UserError, match=r'takes \(1, 160000\), expected ro'
  ):
    musiccoca.MusicCoca(swapped).embed_audio(silence)
  swapped = dict(embedder.params)
  swapped['text_encoder.tflite'] = swapped['music_encoder.tflite']
  with pytest.raises(
    errors.UserError, match='has inputs of float32, expected o'
  ):
    musiccoca.MusicCoca(swapped).embed_text(['calm'])
  cut = dict(embedder.params)
  cut['audio_preprocessor.tflite'] = cut['audio_preprocessor.tflite'][:400]
  with pytest.raises(
    errors.UserError, match='audio_preprocessor.tflite cannot'
  ):
    musiccoca.MusicCoca(cut).embed_audio(silence)
  cut['spm.model'] = cut['spm.model'][:100]
  with pytest.raises(errors.UserError, match='spm.model cannot be read'):
    musiccoca.MusicCoca(cut).embed_text(['calm'])
