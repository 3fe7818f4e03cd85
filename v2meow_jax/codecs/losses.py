"""Spectral losses of codecs and the distances that reports state.

Pure functions of waveforms, float32 `[batch, samples]` in -1..1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

FFT_SIZES = (128, 256, 512, 1024, 2048)
# Mel bands per FFT size: as many as keep at least one bin in almost each band.
MEL_BANDS = {128: 16, 256: 24, 512: 40, 1024: 64, 2048: 96}
# Window lengths and bands of the loss of SoundStream's paper.
WINDOWS = (64, 128, 256, 512, 1024, 2048)
WINDOW_BANDS = 64
# Magnitudes below this (about -100 dB of full scale) count as silence.
FLOOR = 1e-5
# Mean magnitude of a clip below which a distance counts as if it were this
# loud: a silent clip must not outweigh all others.
QUIET = 3e-4


def hann_window(size: int) -> np.ndarray:
  """Returns the periodic Hann window, float32 `[size]`."""
  return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(
    np.float32
  )


def frame(waveform: Array, size: int, hop: int) -> Array:
  """Cuts `[batch, samples]` into `[batch, frames, size]`, without padding.

  Args:
    waveform: `[batch, samples]`, at least `size` samples.
    size: samples per frame, a multiple of `hop`.
    hop: samples between the starts of two frames.

  Returns:
    `[batch, 1 + (samples - size) // hop, size]`.
  """
  num_frames = 1 + (waveform.shape[1] - size) // hop
  parts = size // hop
  num_hops = num_frames + parts - 1
  # [batch, samples] -> [batch, hops, hop]; slices are cheaper than a gather.
  hops = waveform[:, : num_hops * hop].reshape(waveform.shape[0], num_hops, hop)
  return jnp.concatenate(
    [hops[:, i : i + num_frames] for i in range(parts)], axis=-1
  )


def stft(waveform: Array, size: int, hop: int) -> Array:
  """Short-time Fourier transform with a periodic Hann window, centred frames.

  The waveform is padded with size / 2 zeros on both sides. The window sums to
  one, so that a sine of amplitude 1 has magnitude 0.5 in its bin.

  Args:
    waveform: float32 `[batch, samples]`.
    size: FFT size.
    hop: samples between frames; divides `size`.

  Returns:
    complex64 `[batch, frames, size // 2 + 1]`.
  """
  window = hann_window(size)
  padded = jnp.pad(waveform, ((0, 0), (size // 2, size // 2)))
  return jnp.fft.rfft(frame(padded, size, hop) * (window / window.sum()))


def _hertz_to_mel(hertz):
  return 2595.0 * np.log10(1.0 + np.asarray(hertz) / 700.0)


@functools.cache
def mel_filters(sample_rate_hz: int, size: int, num_bands: int) -> np.ndarray:
  """Triangular filters, equally spaced on the HTK mel scale from 0 Hz up.

  Every filter is scaled to sum to one over the bins, so that a band is a mean
  of magnitudes and bands of all FFT sizes compare. A filter that falls between
  two bins takes the nearest one.

  Returns:
    float32 `[size // 2 + 1, num_bands]`.
  """
  edges_mel = np.linspace(0.0, _hertz_to_mel(sample_rate_hz / 2), num_bands + 2)
  edges = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
  bins = np.fft.rfftfreq(size, 1.0 / sample_rate_hz)[:, None]
  rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
  falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
  filters = np.maximum(0.0, np.minimum(rising, falling))
  nearest = np.abs(bins - edges[1:-1]).argmin(axis=0)
  empty = filters.sum(axis=0) == 0
  filters[nearest[empty], np.flatnonzero(empty)] = 1.0
  return (filters / filters.sum(axis=0)).astype(np.float32)


def magnitude(spectrum: Array) -> Array:
  """Magnitude of a complex array, with a finite gradient at zero."""
  return jnp.sqrt(
    jnp.square(spectrum.real) + jnp.square(spectrum.imag) + FLOOR**2
  )


def spectral_distance(
  reference: Array,
  estimate: Array,
  sample_rate_hz: int = 16000,
  overlap: int = 4,
) -> Array:
  """Multi-resolution mel distance per clip.

  The mean over FFT sizes 128, 256, 512, 1024 and 2048 (hop a quarter) of
    mean |A - B| / mean A  +  mean |log10 A - log10 B|,
  A and B the mel magnitudes of reference and estimate (`mel_filters`,
  `MEL_BANDS`). The first term weighs what is loud, the second every band
  alike; 0 is equal. Both are ratios: a gain common to both leaves them, but
  for clips near silence (`QUIET`, `FLOOR`).

  Args:
    reference: float32 `[batch, samples]`.
    estimate: float32 `[batch, samples]`.
    sample_rate_hz: of both.
    overlap: FFT size over hop; 4 by definition. 2 costs half in training.

  Returns:
    float32 `[batch]`, without unit.
  """
  total = jnp.zeros(reference.shape[:1], jnp.float32)
  for size in FFT_SIZES:
    filters = mel_filters(sample_rate_hz, size, MEL_BANDS[size])
    # [batch, samples] -> [batch, frames, bands]
    a = magnitude(stft(reference, size, size // overlap)) @ filters
    b = magnitude(stft(estimate, size, size // overlap)) @ filters
    scale = jnp.maximum(a.mean((1, 2)), QUIET)
    linear = jnp.abs(a - b).mean((1, 2)) / scale
    logarithmic = jnp.abs(jnp.log10(a / b)).mean((1, 2))
    total += linear + logarithmic
  return total / len(FFT_SIZES)


def soundstream_distance(
  reference: Array,
  estimate: Array,
  sample_rate_hz: int = 16000,
  overlap: int = 4,
) -> Array:
  """The reconstruction loss of SoundStream's paper, per clip.

  Equations 4 and 5: the sum over windows s of 64 to 2048 samples (hop a
  quarter) of
    |A - B|_1  +  sqrt(s / 2) |log A - log B|_2,
  A and B frames of 64 bands (`mel_filters`), the window's peak 1; a mean over
  frames, where the paper has a sum, so that clips of all lengths compare. It
  is not scale-free, and a hundred times `spectral_distance` or more.

  Args:
    reference: float32 `[batch, samples]`.
    estimate: float32 `[batch, samples]`.
    sample_rate_hz: of both.
    overlap: window over hop; 4 by definition. 2 costs half in training.

  Returns:
    float32 `[batch]`.
  """
  total = jnp.zeros(reference.shape[:1], jnp.float32)
  for size in WINDOWS:
    filters = mel_filters(sample_rate_hz, size, WINDOW_BANDS)
    gain = size / 2  # the sum of the window
    # [batch, samples] -> [batch, frames, bands]
    a = gain * magnitude(stft(reference, size, size // overlap)) @ filters
    b = gain * magnitude(stft(estimate, size, size // overlap)) @ filters
    linear = jnp.abs(a - b).sum(-1)
    # The root has no gradient where both are equal.
    logarithmic = jnp.sqrt(jnp.square(jnp.log(a / b)).sum(-1) + 1e-12)
    total += (linear + (size / 2) ** 0.5 * logarithmic).mean(-1)
  return total


def complex_distance(
  reference: Array,
  estimate: Array,
  sizes: tuple[int, ...] = (512, 2048),
  overlap: int = 4,
) -> Array:
  """L1 distance of complex spectra over the reference's mean magnitude.

  Unlike the mel distance it sees phase, and so the waveform itself.

  Args:
    reference: float32 `[batch, samples]`.
    estimate: float32 `[batch, samples]`.
    sizes: FFT sizes to average over.
    overlap: FFT size over hop.

  Returns:
    float32 `[batch]`; 1 for silence against anything.
  """
  total = jnp.zeros(reference.shape[:1], jnp.float32)
  for size in sizes:
    # The same transforms as in `spectral_distance`: compiled once for both.
    a = stft(reference, size, size // overlap)
    b = stft(estimate, size, size // overlap)
    scale = jnp.maximum(magnitude(a).mean((1, 2)), QUIET)
    total += magnitude(a - b).mean((1, 2)) / scale
  return total / len(sizes)


def snr_db(reference: Array, estimate: Array) -> Array:
  """Signal-to-noise ratio of the waveform in dB, `[batch]`."""
  signal = jnp.square(reference).sum(-1)
  noise = jnp.square(reference - estimate).sum(-1)
  return 10.0 * jnp.log10((signal + 1e-9) / (noise + 1e-9))


def si_sdr_db(reference: Array, estimate: Array) -> Array:
  """Scale-invariant signal-to-distortion ratio in dB, `[batch]`.

  Le Roux et al., "SDR - half-baked or well done?": the estimate's projection
  on the reference against the rest, both without their mean.
  """
  reference = reference - reference.mean(-1, keepdims=True)
  estimate = estimate - estimate.mean(-1, keepdims=True)
  scale = (reference * estimate).sum(-1, keepdims=True) / (
    jnp.square(reference).sum(-1, keepdims=True) + 1e-9
  )
  target = scale * reference
  rest = estimate - target
  return 10.0 * jnp.log10(
    (jnp.square(target).sum(-1) + 1e-9) / (jnp.square(rest).sum(-1) + 1e-9)
  )
