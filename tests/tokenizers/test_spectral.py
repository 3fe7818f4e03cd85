"""The bundled semantic tokenizer: what its features say, and its tokens."""

import numpy as np
import pytest

from tests import contracts
from v2meow_jax import errors
from v2meow_jax.tokenizers import kmeans
from v2meow_jax.tokenizers import spectral

RATE = 16000
HOP = 640


def _tone(midi, seconds, gain=0.3):
  time = np.arange(int(seconds * RATE)) / RATE
  hz = 440 * 2 ** ((midi - 69) / 12)
  return (gain * np.sin(2 * np.pi * hz * time)).astype('f4')


def _params(rng, waveform):
  """A tokenizer fit to a short recording with noise on its features."""
  points = np.tile(spectral.Spectral({}).features(waveform), (8, 1))
  points += 0.3 * rng.standard_normal(points.shape).astype('f4')
  mean, scale = spectral.Spectral({}).standardise(points)
  fit = kmeans.fit((points - mean) * scale, 512)
  return {'mean': mean, 'scale': scale, 'centres': fit.centres}


@pytest.fixture(scope='module')
def waveform():
  rng = np.random.default_rng(1)
  notes = rng.integers(45, 80, size=24)
  return np.concatenate([_tone(n, 0.25, rng.uniform(0.05, 0.4)) for n in notes])


@pytest.fixture(scope='module')
def params(waveform):
  return _params(np.random.default_rng(0), waveform)


@pytest.mark.parametrize('midi', range(54, 66))
def test_chord_names_the_pitch_class(midi):
  chord = spectral.features(_tone(midi, 1.0))['chord']
  np.testing.assert_array_equal(chord[3:-3].argmax(1), midi % 12)


@pytest.mark.parametrize('midi', range(33, 45))
def test_bass_names_the_pitch_class_under_a_chord(midi):
  mix = _tone(midi, 1.0) + sum(_tone(m, 1.0, 0.1) for m in (72, 76, 79))
  features = spectral.features(mix)
  np.testing.assert_array_equal(features['bass'][3:-3].argmax(1), midi % 12)
  top = np.sort(features['chord'][12].argsort()[-3:])
  assert set(top) & {0, 4, 7} == {0, 4, 7} or midi % 12 in top


@pytest.mark.parametrize('sample', [0, 320, 639, 640, 5000, 12799])
def test_an_onset_is_seen_in_the_token_that_covers_it(rng, sample):
  waveform = 1e-4 * rng.standard_normal(RATE).astype('f4')
  waveform[sample : sample + 400] += 0.3 * rng.standard_normal(400)
  onset = spectral.features(waveform)['onset'].sum(1)
  # The rise is over 20 ms, so it may peak one frame of 10 ms later.
  assert onset.argmax() in (sample // HOP, (sample + 160) // HOP)


@pytest.mark.parametrize(
  'group, low, high', [('chord', 60, 66), ('bass', 36, 42)]
)
def test_harmony_changes_in_the_token_where_it_changes(group, low, high):
  waveform = np.concatenate([_tone(low, 1.0), _tone(high, 1.0)])
  values = spectral.features(waveform)[group]
  is_high = values[:, high % 12] > values[:, low % 12]
  np.testing.assert_array_equal(is_high, np.arange(50) >= 25)


def test_bands_tell_a_kick_from_a_cymbal(rng):
  kick, hat = np.zeros((2, RATE), 'f4')
  time = np.arange(2000) / RATE
  kick[6400:8400] = 0.5 * np.sin(2 * np.pi * 55 * time) * np.exp(-20 * time)
  noise = rng.standard_normal(2000)
  hat[6400:8400] = 0.1 * np.diff(noise, n=2, prepend=[0, 0])
  noise_floor = 1e-3 * rng.standard_normal(RATE)
  token = 6400 // HOP
  kick = spectral.features(kick + noise_floor)['onset'][token]
  hat = spectral.features(hat + noise_floor)['onset'][token]
  assert kick.argmax() == 0
  assert hat.argmax() == 2
  assert kick[0] > hat[0]
  assert hat[2] > kick[2]


def test_loudness_rises_by_the_gain():
  noise = np.random.default_rng(0).standard_normal(RATE).astype('f4')
  quiet = spectral.features(0.05 * noise)['loudness']
  loud = spectral.features(0.5 * noise)['loudness']
  # Measured 0.02: the floor of the logarithm.
  np.testing.assert_allclose(loud - quiet, np.log(100), atol=0.05)


def test_features_do_not_depend_on_what_is_far_away(waveform):
  whole = spectral.features(waveform)
  cut = spectral.features(waveform[: 50 * HOP])
  for name, values in cut.items():
    # Windows reach 0.3 s, smoothing 0.36 s: 17 tokens.
    np.testing.assert_allclose(
      values[:33], whole[name][:33], rtol=1e-3, atol=1e-3, err_msg=name
    )


def test_blocks_change_nothing(waveform, monkeypatch):
  whole = spectral.features(waveform)
  monkeypatch.setattr(spectral, '_BLOCK', 7)
  blocks = spectral.features(waveform)
  for name, values in whole.items():
    np.testing.assert_allclose(
      blocks[name], values, rtol=1e-4, atol=1e-4, err_msg=name
    )


def test_tokens_have_the_shape_of_the_stream_and_repeat(waveform, params):
  tokenizer = spectral.Spectral(params)
  batch = np.stack([waveform, waveform[::-1]])
  tokens = tokenizer.encode(batch)
  assert tokens.dtype == np.int32
  assert tokens.shape == (2, tokenizer.spec.length(6.0), 1)
  assert tokens.min() >= 0
  assert tokens.max() < 512
  assert len(np.unique(tokens)) > 30
  np.testing.assert_array_equal(tokens, spectral.Spectral(params).encode(batch))
  np.testing.assert_array_equal(tokens[1], tokenizer.encode(batch[1:])[0])
  # A last position that is not full counts.
  assert tokenizer.encode(batch[:, : 10 * HOP + 1]).shape[1] == 11


def test_contract(params):
  contracts.check_tokenizer(spectral.Spectral(params))


def test_tokens_are_the_nearest_centres(waveform, params):
  tokens = spectral.Spectral(params).encode(waveform[None])[0, :, 0]
  points = np.concatenate(list(spectral.features(waveform).values()), 1)
  points = (points - params['mean']) * params['scale']
  distance = ((points[:, None] - params['centres']) ** 2).sum(-1)
  np.testing.assert_array_equal(tokens, distance.argmin(1))


def test_a_group_counts_as_much_as_its_weight(rng):
  sizes = {'chord': 12, 'bass': 12, 'onset': 3, 'loudness': 1, 'timbre': 8}
  clip = {k: rng.standard_normal((900, n)) for k, n in sizes.items()}
  # Neither units nor the number of features of a group matter.
  scaled = {k: (i + 1) * 7 * v for i, (k, v) in enumerate(clip.items())}
  points = np.concatenate(list(scaled.values()), 1)
  mean, scale = spectral.Spectral({}).standardise(points)
  spread = ((points - mean) * scale).var(0)
  first = 0
  for name, size in sizes.items():
    share = spread[first : first + size].sum()
    assert share == pytest.approx(spectral.WEIGHTS[name] ** 2, rel=0.01), name
    first += size


def test_silence_and_noise_are_legal(rng, params):
  tokenizer = spectral.Spectral(params)
  assert tokenizer.encode(np.zeros((1, 1))).shape == (1, 1, 1)
  assert np.isfinite(spectral.features(np.zeros(5000))['chord']).all()
  tokenizer.encode(rng.standard_normal((1, 5000)))


@pytest.mark.parametrize(
  'bad, message',
  [
    (np.zeros(100), 'shape \\(100,\\), expected \\[batch, samples\\]'),
    (np.zeros((1, 0)), 'Waveform of 0 samples'),
    (np.full((1, 9), np.nan), 'NaN or infinity'),
  ],
)
def test_bad_waveforms(params, bad, message):
  with pytest.raises(ValueError, match=message):
    spectral.Spectral(params).encode(bad)


def test_parameters_of_another_tokenizer(params):
  with pytest.raises(errors.UserError, match='Fit it again'):
    spectral.Spectral({**params, 'centres': params['centres'][:100]})
