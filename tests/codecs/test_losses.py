"""Spectral losses against NumPy and librosa."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from v2meow_jax.codecs import losses

# Compiled once each: op by op they take seconds.
stft = jax.jit(losses.stft, static_argnums=(1, 2))
spectral_distance = jax.jit(losses.spectral_distance)
complex_distance = jax.jit(losses.complex_distance)
snr_db = jax.jit(losses.snr_db)
si_sdr_db = jax.jit(losses.si_sdr_db)


@pytest.fixture
def waveform(rng):
  time = np.arange(8000) / 16000
  tone = np.sin(2 * np.pi * 440 * time) + 0.3 * np.sin(2 * np.pi * 3000 * time)
  noise = 0.05 * rng.standard_normal((2, 8000))
  return (0.3 * tone + noise).astype('f4')


@pytest.mark.parametrize('size', losses.FFT_SIZES)
def test_stft_matches_librosa(waveform, size):
  ours = stft(jnp.asarray(waveform), size, size // 4)
  theirs = librosa.stft(
    waveform,
    n_fft=size,
    hop_length=size // 4,
    window='hann',
    center=True,
    pad_mode='constant',
  ) / (size / 2)  # the window's sum
  np.testing.assert_allclose(ours, np.swapaxes(theirs, 1, 2), atol=2e-6)


def test_full_scale_sine_has_magnitude_one_half():
  time = np.arange(16000) / 16000
  sine = np.sin(2 * np.pi * 1000 * time, dtype=np.float32)[None]
  size = np.abs(stft(jnp.asarray(sine), 512, 128))
  np.testing.assert_allclose(size[0, 60, 32], 0.5, atol=1e-4)


@pytest.mark.parametrize('size', [512, 1024, 2048])
def test_mel_filters_match_librosa(size):
  bands = losses.MEL_BANDS[size]
  theirs = librosa.filters.mel(
    sr=16000, n_fft=size, n_mels=bands, htk=True, norm=None
  ).T
  ours = losses.mel_filters(16000, size, bands)
  hit = theirs.sum(0) > 0  # librosa leaves bands between two bins empty
  np.testing.assert_allclose(
    ours[:, hit], theirs[:, hit] / theirs[:, hit].sum(0), atol=1e-5
  )
  np.testing.assert_allclose(ours.sum(0), 1, atol=1e-5)


def _distance_by_librosa(a, b):
  """The definition in the docstring, term by term."""
  terms = []
  for size in losses.FFT_SIZES:
    filters = losses.mel_filters(16000, size, losses.MEL_BANDS[size])
    bands = []
    for x in (a, b):
      spectrum = librosa.stft(
        x, n_fft=size, hop_length=size // 4, center=True, pad_mode='constant'
      ) / (size / 2)
      bands.append(np.hypot(np.abs(spectrum), losses.FLOOR).T @ filters)
    a_mel, b_mel = bands
    terms.append(
      np.abs(a_mel - b_mel).mean() / a_mel.mean()
      + np.abs(np.log10(a_mel) - np.log10(b_mel)).mean()
    )
  return np.mean(terms)


def test_spectral_distance_matches_librosa(rng, waveform):
  estimate = 0.7 * waveform + 0.02 * rng.standard_normal(waveform.shape)
  estimate = estimate.astype('f4')
  expected = [_distance_by_librosa(a, b) for a, b in zip(waveform, estimate)]
  np.testing.assert_allclose(
    spectral_distance(waveform, estimate), expected, rtol=1e-4
  )


def test_spectral_distance_is_zero_for_equal_and_ignores_common_gain(
  rng, waveform
):
  estimate = waveform + 0.02 * rng.standard_normal((2, 8000)).astype('f4')
  np.testing.assert_allclose(
    spectral_distance(waveform, waveform), 0, atol=1e-6
  )
  np.testing.assert_allclose(
    spectral_distance(0.5 * waveform, 0.5 * estimate),
    spectral_distance(waveform, estimate),
    rtol=2e-3,
  )


def test_complex_distance_sees_phase_and_is_one_for_silence(waveform):
  silence = jnp.zeros_like(waveform)
  np.testing.assert_allclose(complex_distance(waveform, silence), 1, rtol=1e-3)
  np.testing.assert_allclose(
    complex_distance(waveform, -waveform), 2, rtol=1e-3
  )
  np.testing.assert_allclose(
    spectral_distance(waveform, -waveform), 0, atol=1e-5
  )


def test_silent_clips_have_finite_gradients():
  silence = jnp.zeros((2, 8000))

  def loss(x):
    return (spectral_distance(silence, x) + complex_distance(silence, x)).sum()

  gradient = jax.jit(jax.grad(loss))(silence)
  assert np.isfinite(gradient).all()
  # An error at -80 dB of full scale is no more than a moderate distance.
  assert (spectral_distance(silence, silence + 1e-4) < 1).all()


def test_snr_and_si_sdr_match_their_definitions(rng, waveform):
  noise = rng.standard_normal(waveform.shape).astype('f4')
  noise /= np.linalg.norm(noise, axis=1, keepdims=True)
  noise *= 0.1 * np.linalg.norm(waveform, axis=1, keepdims=True)
  np.testing.assert_allclose(snr_db(waveform, waveform + noise), 20, atol=1e-3)
  # Scale and offset do not matter to SI-SDR, but do to the SNR.
  scaled = 0.5 * (waveform + noise) + 0.1
  np.testing.assert_allclose(
    si_sdr_db(waveform, scaled),
    si_sdr_db(waveform, waveform + noise),
    atol=1e-2,
  )
  np.testing.assert_allclose(
    si_sdr_db(waveform, waveform + noise), 20, atol=0.2
  )
  assert (snr_db(waveform, scaled) < 7).all()


def test_soundstream_distance_matches_numpy(waveform, rng):
  estimate = (0.8 * waveform + 0.05 * rng.standard_normal((2, 8000))).astype(
    'f4'
  )
  expected = np.zeros(2)
  for size in (64, 128, 256, 512, 1024, 2048):
    mel = []
    for x in (waveform, estimate):
      spectrum = librosa.stft(
        x.astype(float), n_fft=size, hop_length=size // 4, pad_mode='constant'
      )
      filters = losses.mel_filters(16000, size, 64)
      mel.append(np.swapaxes(np.abs(spectrum), 1, 2) @ filters)
    a, b = mel  # [clip, frame, band]
    for clip in range(2):
      for frame_a, frame_b in zip(a[clip], b[clip]):
        linear = np.abs(frame_a - frame_b).sum()
        logarithmic = np.linalg.norm(np.log(frame_a) - np.log(frame_b))
        frame = linear + np.sqrt(size / 2) * logarithmic
        expected[clip] += frame / a.shape[1]
  ours = jax.jit(losses.soundstream_distance)(waveform, estimate)
  np.testing.assert_allclose(ours, expected, rtol=3e-4)  # measured 1e-4


def test_soundstream_distance_has_a_finite_gradient(waveform):
  gradient = jax.jit(
    jax.grad(lambda x, y: losses.soundstream_distance(y, x).sum())
  )
  silence = np.zeros_like(waveform)
  # Roots have no gradient where both are equal, nor logarithms in silence.
  for pair in ((waveform, waveform), (silence, silence), (silence, waveform)):
    assert np.isfinite(gradient(*pair)).all()
