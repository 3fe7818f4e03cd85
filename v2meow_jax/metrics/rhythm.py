"""Pulse: when notes start, how regularly, and at what tempo.

All of it is read off the onset envelope, the mean rise of the log-mel
spectrogram (librosa's onset strength) at 100 Hz. Tempi that differ by a factor
of two are one tempo here, since which of them is "the" tempo is a matter of
taste: estimates lie in `[75, 150)` BPM and errors are taken modulo an octave.
"""

import librosa
import numpy as np
import scipy.ndimage
import scipy.signal

RATE_HZ = 100
MIN_TEMPO_BPM = 75.0
# Decibels below the loudest bin that still count: hiss under it has no onsets.
_RANGE_DB = 60.0
# An onset stands out of the second around it and of the dip before it.
_MIN_ABOVE_MEAN_DB = 1.0
_MIN_PROMINENCE_DB = 1.5
_MIN_GAP_SECONDS = 0.05
_SURROUNDING_SECONDS = 1.0
# Spread of the envelope below which it counts as constant: a steady tone has
# ripples of some hundredths of a dB, and they are periodic. Music has 0.5 dB.
_STEADY_DB = 0.1
_PULSE_WINDOW_SECONDS = 6.0
_PULSE_HOP_SECONDS = 1.0
_PULSE_LAGS_SECONDS = (0.25, 1.5)
_TEMPI_PER_OCTAVE = 300
# Weights of the autocorrelation at multiples of the beat: powers of two only,
# because three beats (or two thirds of one) would be another tempo. Long lags
# make the estimate exact.
_BEAT_WEIGHTS = {0.5: 0.5, 1.0: 1.0, 2.0: 1.0, 4.0: 1.0, 8.0: 0.5}
# Tolerance of beats: librosa and mir_eval call beats within 70 ms correct.
BEAT_TOLERANCE_SECONDS = 0.07


def onset_envelope(mel: np.ndarray) -> np.ndarray:
  """Measures how strongly notes start.

  Args:
    mel: float32 `[bands, time]`, mel power spectrogram at 100 Hz.

  Returns:
    float32 `[time]`: rise in dB against the frame before, averaged over bands;
    at least 0, and all 0 for silence.
  """
  peak = float(mel.max(initial=0.0))
  if peak == 0.0:
    return np.zeros(mel.shape[1], np.float32)
  log_mel = librosa.power_to_db(
    mel, ref=peak, amin=peak * 1e-12, top_db=_RANGE_DB
  )
  return librosa.onset.onset_strength(
    S=log_mel, sr=RATE_HZ, hop_length=1, center=False
  ).astype(np.float32)


def onset_times(envelope: np.ndarray) -> np.ndarray:
  """Finds the notes that start.

  Args:
    envelope: float32 `[time]` at 100 Hz.

  Returns:
    float64 `[onsets]`, seconds.
  """
  around = scipy.ndimage.uniform_filter1d(
    envelope, round(_SURROUNDING_SECONDS * RATE_HZ)
  )
  peaks, _ = scipy.signal.find_peaks(
    envelope,
    height=around + _MIN_ABOVE_MEAN_DB,
    prominence=_MIN_PROMINENCE_DB,
    distance=round(_MIN_GAP_SECONDS * RATE_HZ),
  )
  return peaks / RATE_HZ


def _autocorrelation(envelope: np.ndarray) -> np.ndarray:
  """Autocorrelation over lags, 1 at lag 0, mean over the overlap.

  Args:
    envelope: float `[time]`, dB.

  Returns:
    float64 `[lag]` for lags up to nine tenths of the length; near 0 where the
    envelope is all but constant.
  """
  centred = envelope.astype(np.float64) - envelope.mean()
  num_times = len(centred)
  longest = max(1, int(0.9 * num_times))
  power = np.abs(np.fft.rfft(centred, 2 * num_times)) ** 2
  correlation = np.fft.irfft(power)[:longest]
  overlap = 1 - np.arange(longest) / num_times
  scale = correlation[0] + num_times * _STEADY_DB**2
  return correlation / scale / overlap


def tempo(envelope: np.ndarray) -> float:
  """Estimates the tempo.

  The candidate whose beat and its multiples by powers of two have the largest
  autocorrelation.

  Args:
    envelope: float32 `[time]` at 100 Hz.

  Returns:
    Beats per minute in `[75, 150)`; the middle of that octave, 106, where
    nothing is periodic at all.
  """
  # A pulse is as sharp as its player is exact: widen it by some 30 ms.
  window = np.hanning(7)
  smooth = np.convolve(envelope, window / window.sum(), mode='same')
  correlation = _autocorrelation(smooth)
  octaves = np.arange(_TEMPI_PER_OCTAVE) / _TEMPI_PER_OCTAVE
  candidates = MIN_TEMPO_BPM * 2**octaves
  lags = np.arange(len(correlation))
  score = np.zeros(_TEMPI_PER_OCTAVE)
  for multiple, weight in _BEAT_WEIGHTS.items():
    wanted = multiple * 60 / candidates * RATE_HZ
    if wanted.max() < len(correlation):
      score += weight * np.interp(wanted, lags, correlation)
  if not score.any():
    return float(MIN_TEMPO_BPM * np.sqrt(2))
  return float(candidates[score.argmax()])


def octave_error(estimate_bpm, true_bpm) -> np.ndarray:
  """Error of a tempo in octaves, where a factor of two is none.

  Args:
    estimate_bpm: float `[...]`.
    true_bpm: float `[...]`.

  Returns:
    float64 `[...]` in `[0, 0.5]`; 0.057 is 4 %.
  """
  octaves = np.log2(np.asarray(estimate_bpm) / np.asarray(true_bpm))
  return np.abs(octaves - np.round(octaves))


def pulse_clarity(envelope: np.ndarray) -> float:
  """Measures how regular the pulse is.

  The highest peak of the autocorrelation tempogram (windows of 6 s, averaged)
  at lags of 0.25 to 1.5 s, as in Lartillot et al., "Multi-feature modeling of
  pulse clarity" (ISMIR 2008). A slope without a peak is no pulse.

  Args:
    envelope: float32 `[time]` at 100 Hz.

  Returns:
    0 (no pulse) to 1 (every window repeats exactly).
  """
  length = min(len(envelope), round(_PULSE_WINDOW_SECONDS * RATE_HZ))
  hop = round(_PULSE_HOP_SECONDS * RATE_HZ)
  starts = range(0, len(envelope) - length + 1, hop)
  tempogram = np.mean(
    [_autocorrelation(envelope[s : s + length]) for s in starts], axis=0
  )
  first, last = (round(s * RATE_HZ) for s in _PULSE_LAGS_SECONDS)
  peaks, _ = scipy.signal.find_peaks(tempogram[: last + 2])
  heights = tempogram[peaks[peaks >= first]]
  return float(np.clip(heights.max(initial=0.0), 0.0, 1.0))


def beat_profile(envelope: np.ndarray) -> np.ndarray:
  """Prepares an envelope for scoring beats against it.

  Args:
    envelope: float32 `[time]` at 100 Hz.

  Returns:
    float32 `[time]`: the strongest onset within 70 ms, in standard deviations
    from its mean over the clip. The mean over beats that have nothing to do
    with the music is therefore 0.
  """
  width = 2 * round(BEAT_TOLERANCE_SECONDS * RATE_HZ) + 1
  strongest = scipy.ndimage.maximum_filter1d(envelope, width)
  spread = float(strongest.std())
  if spread < 1e-6:
    return np.zeros_like(strongest)
  return (strongest - strongest.mean()) / spread
