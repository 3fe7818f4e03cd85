"""The model in the repository: whole, small, and it makes music, not noise."""

import numpy as np
import pytest

from tests import conftest
from v2meow_jax import bundles
from v2meow_jax import generate
from v2meow_jax.codecs import losses
from v2meow_jax.metrics import descriptors
from v2meow_jax.metrics import rhythm
from v2meow_jax.toy import attributes
from v2meow_jax.toy import clips

EXAMPLE = conftest.ROOT / 'data' / 'example.mp4'
# The most that the weights may weigh in the repository.
MOST_BYTES = 30e6


@pytest.fixture(scope='module')
def music():
  return generate.load('bundled').generate(EXAMPLE, seed=1)


def test_weights_are_small_enough_for_the_repository():
  folder = bundles.MODELS['bundled']
  sizes = [path.stat().st_size for path in folder.glob('*.safetensors')]
  assert len(sizes) == 5  # three stages, codec, tokenizer
  assert sum(sizes) < MOST_BYTES
  card = (folder / bundles.CARD).read_text()
  assert 'Trained on' in card and 'Licence' in card


def test_the_example_gets_music_and_not_noise(music):
  heard = descriptors.describe(music.waveform, music.sample_rate_hz)
  noise = np.random.default_rng(0).standard_normal(len(music.waveform))
  noise *= np.std(music.waveform)
  of_noise = descriptors.describe(noise.astype(np.float32), 16000)
  # Noise: flatness -1 dB, key clarity about .5; toy music: -21 dB, .92.
  assert heard.spectral_flatness_db < -10 < of_noise.spectral_flatness_db
  assert heard.key_clarity > 0.7
  assert heard.silence_share < 0.2
  assert heard.clipping_share == 0


def test_another_seed_makes_another_piece_of_the_same_length(music):
  model = generate.load('bundled')
  again = model.generate(EXAMPLE, seed=1, duration=3.0)
  other = model.generate(EXAMPLE, seed=2, duration=3.0)
  semantic = 'spectral_semantic'
  assert again.waveform.shape == other.waveform.shape == (48000,)
  # A shorter clip begins like the longer one: no random number depends on
  # the length.
  assert len(again.tokens[semantic]) == 75
  assert np.mean(again.tokens[semantic] != other.tokens[semantic]) > 0.5


def test_the_music_has_the_tempo_of_the_video(tmp_path):
  model = generate.load('bundled')
  wanted, heard = [], []
  for index in (19, 39, 59, 79, 99, 119):  # of the test split
    clip = clips.make_clip(0, index, 10.0, 'numpy')
    assert attributes.split(index) == 'test'
    path = tmp_path / f'{index}.mp4'
    clips.write_clip(clip, path)
    music = model.generate(path, seed=index)
    found = descriptors.describe(music.waveform, music.sample_rate_hz)
    wanted.append(clip.attributes.tempo_bpm)
    heard.append(found.tempo_bpm)
  is_right = rhythm.octave_error(heard, wanted) < np.log2(1.04)
  assert is_right.mean() >= 0.6
  # Held against another video, the same music is wrong.
  of_another = rhythm.octave_error(heard, np.roll(wanted, 1)) < np.log2(1.04)
  assert is_right.sum() > of_another.sum() + 1


def test_it_can_go_on_from_sound():
  bundle = bundles.load('bundled')
  assert bundle.tokenizer.spec == bundle.models[0].stage.target.spec


def test_codec_keeps_a_held_out_sound():
  codec = bundles.load('bundled').codec
  # The renderer without FluidSynth: sounds that the codec never heard.
  sound = clips.make_clip(0, 19, 6.0, 'numpy').waveform[None]
  codes = np.asarray(codec.encode(sound))
  written = codes[..., :8]  # by the stages
  distances = [
    float(losses.spectral_distance(sound, codec.decode(kept))[0])
    for kept in (
      codes,
      written,
      codes[..., :4],
      codes[..., :1],
      written[:, ::-1],
    )
  ]
  assert distances[1] < 0.7
  assert distances == sorted(distances)
  # Only all levels keep the waveform.
  snr_db = lambda kept: float(losses.snr_db(sound, codec.decode(kept))[0])
  assert snr_db(codes) > 2 > 0 > snr_db(written)
