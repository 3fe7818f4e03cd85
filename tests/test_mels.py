"""Log-mel spectrograms against librosa and against recorded ones."""

import jax
import librosa
import numpy as np
import pytest

from v2meow_jax import mels
from v2meow_jax.embedders import vggish
from v2meow_jax.embedders import yamnet


@pytest.mark.parametrize(
  'ours, theirs',
  [
    (dict(scale='slaney', is_area_one=True), dict(htk=False, norm='slaney')),
    (dict(scale='htk', power=1), dict(htk=True, norm=None, power=1.0)),
    (dict(scale='slaney', is_centred=False), dict(norm=None, center=False)),
  ],
)
def test_equals_librosa(rng, ours, theirs):
  waveform = rng.uniform(-0.5, 0.5, 16000).astype(np.float32)
  made = mels.LogMel(
    16000, 512, 160, 512, 64, 50.0, 8000.0,
    **{'is_centred': True, 'floor': 1e-10, 'is_decibel': True} | ours,
  )  # fmt: skip
  mel = librosa.feature.melspectrogram(
    y=waveform, sr=16000, n_fft=512, hop_length=160, n_mels=64, fmin=50,
    fmax=8000, **{'center': True, 'pad_mode': 'reflect'} | theirs,
  )  # fmt: skip
  expected = librosa.power_to_db(mel, amin=1e-10, top_db=None).T
  found = jax.jit(made)(waveform)
  assert len(found) == made.num_frames(16000)
  # Measured: 1e-5 dB.
  np.testing.assert_allclose(found, expected, atol=5e-5)


def test_a_window_shorter_than_the_fft_lies_in_its_middle(rng):
  waveform = rng.uniform(-0.5, 0.5, 4000).astype(np.float32)
  made = mels.LogMel(
    16000, 400, 160, 512, 40, 0.0, 8000.0, is_centred=True, floor=1e-10,
    is_decibel=True,
  )  # fmt: skip
  mel = librosa.feature.melspectrogram(
    y=waveform, sr=16000, n_fft=512, win_length=400, hop_length=160, n_mels=40,
    fmax=8000, htk=True, norm=None, pad_mode='reflect',
  )  # fmt: skip
  expected = librosa.power_to_db(mel, amin=1e-10, top_db=None).T
  np.testing.assert_allclose(jax.jit(made)(waveform), expected, atol=5e-5)


def test_a_batch_is_as_each_alone_and_silence_is_finite(rng):
  waveform = rng.uniform(-0.5, 0.5, (2, 800)).astype(np.float32)
  waveform[1] = 0
  found = np.asarray(jax.jit(vggish.LOG_MEL)(waveform))
  assert found.shape == (2, vggish.LOG_MEL.num_frames(800), 64)
  np.testing.assert_allclose(found[0], vggish.LOG_MEL(waveform[0]), atol=1e-6)
  np.testing.assert_allclose(found[1], np.log(0.01), atol=1e-6)


def test_recorded_patches(shared_data):
  recorded = np.load(shared_data / 'weights' / 'golden_yamnet_io.npz')
  found = np.asarray(jax.jit(yamnet.LOG_MEL)(recorded['pcm_16k']))
  patches = np.stack([found[48 * i : 48 * i + 96] for i in range(19)])
  error = np.abs(patches - recorded['patches'])
  # Measured: 7.6e-5 at most, where a band is nearly silent; 9.4e-7 on average.
  assert error.max() < 3e-4
  assert error.mean() < 4e-6


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(scale='bark'), 'Mel scale `bark` with slopes in `hertz`, expected'),
    (dict(slopes='octaves'), 'Mel scale `htk` with slopes in `octaves`, exp'),
    (dict(window=513), 'A window of 513 samples and an FFT of 512, expected'),
  ],
)
def test_what_is_no_spectrogram(change, message):
  settings = dict(
    sample_rate_hz=16000, window=400, hop=160, fft=512, num_mels=64,
    low_hz=0.0, high_hz=8000.0,
  )  # fmt: skip
  with pytest.raises(ValueError, match=message):
    mels.LogMel(**settings | change)
