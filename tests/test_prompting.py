"""Given sound becomes the tokens of its seconds, or one line of error."""

import dataclasses
import fractions

import numpy as np
import pytest

from tests import toy
from v2meow_jax import audio
from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import prompting
from v2meow_jax import streams

GRID_HZ = fractions.Fraction(5)


@pytest.fixture(scope='module')
def bundle(tiny_model):
  return bundles.load(tiny_model)


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  """1.5 s of stereo at another rate than the system's."""
  path = tmp_path_factory.mktemp('sound') / 'sound.wav'
  rng = np.random.default_rng(0)
  samples = rng.uniform(-0.5, 0.5, (33075, 2)).astype(np.float32)
  audio.write_wav(str(path), samples, 22050)
  return path


def test_tokens_are_those_of_the_whole_sound_cut_to_units(bundle, sound):
  prompt = prompting.read(sound, bundle, GRID_HZ, 2.0)
  assert prompt.units == 7  # 1.4 s
  heard = audio.read_mono(str(sound), 16000)
  assert prompt.waveform.dtype == np.float32
  np.testing.assert_array_equal(prompt.waveform, heard[:22400])
  assert list(prompt.tokens) == ['spectral_semantic', 'spectrogram']
  for name, encoder, levels in (
    ('spectral_semantic', bundle.tokenizer, 1),
    ('spectrogram', bundle.codec, 8),
  ):
    codes = prompt.tokens[name]
    assert codes.shape == (35, levels)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, encoder.encode(heard[None])[0, :35])


def test_codec_with_finer_levels_than_the_stages_make(bundle, sound):
  class Codec:
    spec = streams.get('layered')
    sample_rate_hz = 16000

    def encode(self, waveform):
      times = -(-waveform.shape[1] // self.spec.hop)
      return np.tile(np.arange(26), (1, times, 1))

  finer = dataclasses.replace(bundle, codec=Codec())
  codes = prompting.read(sound, finer, GRID_HZ, 2.0).tokens['spectrogram']
  np.testing.assert_array_equal(codes, np.tile(np.arange(8), (35, 1)))


def test_system_without_semantic_stage_needs_no_tokenizer(bundle, sound):
  models = bundle.models[1:]
  direct = dataclasses.replace(bundle, models=models, tokenizer=None)
  prompt = prompting.read(sound, direct, GRID_HZ, 2.0)
  assert list(prompt.tokens) == ['spectrogram']


def _message(*args) -> str:
  with pytest.raises(errors.UserError) as caught:
    prompting.read(*args)
  return str(caught.value)


def test_system_that_cannot_go_on_from_sound(bundle, sound):
  deaf = dataclasses.replace(bundle, tokenizer=None)
  assert _message(sound, deaf, GRID_HZ, 2.0) == (
    'Model tiny cannot go on from sound: it has no tokenizer of '
    '`spectral_semantic`, expected one. Pack it with a file of gin/tokenizers '
    'and --tokenizer.'
  )


@pytest.mark.parametrize('seconds', [1.0, 1.4, 1.39])
def test_sound_that_leaves_nothing_to_make(bundle, sound, seconds):
  assert _message(sound, bundle, GRID_HZ, seconds) == (
    f'{sound}: its sound is as long as the music, {seconds:.2f} s, or longer, '
    'expected less, so that there is something to go on with. Cut it.'
  )


def test_a_unit_is_enough_to_go_on_with(bundle, sound):
  assert prompting.read(sound, bundle, GRID_HZ, 1.41).units == 7


def test_sound_that_says_nothing(bundle, tmp_path):
  path = tmp_path / 'silence.wav'
  audio.write_wav(str(path), np.zeros(8000, np.float32), 16000)
  assert _message(path, bundle, GRID_HZ, 2.0) == (
    f'{path}: is silent for its 0.50 s, expected sound to go on from. Choose '
    'another file.'
  )
  audio.write_wav(str(path), np.ones(3000, np.float32), 16000)
  assert _message(path, bundle, GRID_HZ, 2.0) == (
    f'{path}: lasts 0.19 s, expected at least 0.2 s of sound to go on from. '
    'Choose another file.'
  )


def test_files_without_sound(bundle, tmp_path):
  path = tmp_path / 'notes.txt'
  path.write_text('do re mi')
  assert _message(path, bundle, GRID_HZ, 2.0).startswith(f'{path}: ')
  path = toy.make_video(tmp_path / 'mute.mp4', seconds=1.0)
  assert _message(path, bundle, GRID_HZ, 2.0) == (
    f'{path}: has no sound, expected a file with a sound track. Choose another '
    'one or leave it out.'
  )
