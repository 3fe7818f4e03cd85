"""Key: how clear it is, and whether it is major or minor.

Pitch classes come from the peaks of long spectra, each counted for its own
note and for the notes of which it may be an overtone, as in Gomez, "Tonal
description of music audio signals" (2006). Keys are the 24 profiles of
Krumhansl and Kessler (1982).
"""

import librosa
import numpy as np
import scipy.ndimage

SAMPLE_RATE_HZ = 16000
_NUM_FFT = 8192
_HOP = 2048
_MIN_HZ, _MAX_HZ = 60.0, 2000.0
# A peak counts as far as it stands out of the median of its surroundings, so
# that drums and hiss, which are broad, do not count.
_SURROUNDING_BINS = 41
_FLOOR_GAIN = 2.0
_COMPRESSION = 0.5
# Semitones above a note of its third and its fifth partial, modulo an octave,
# and the weight with which a peak there speaks for the note.
_OVERTONES = {0: 1.0, 7: 0.33, 4: 0.2}
_MIN_FRAME_DB = -40.0

MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def pitch_classes(waveform: np.ndarray) -> np.ndarray:
  """Measures how much each pitch class sounds.

  Args:
    waveform: float32 `[samples]` at 16 kHz.

  Returns:
    float64 `[12]` from C on, the mean over frames that are not silent, of which
    each has a maximum of 1; all 0 where nothing has a pitch.
  """
  spectrum = np.abs(librosa.stft(waveform, n_fft=_NUM_FFT, hop_length=_HOP))
  # One bin more at either end, so that every bin in between has neighbours.
  hertz_per_bin = SAMPLE_RATE_HZ / _NUM_FFT
  first = int(_MIN_HZ / hertz_per_bin)
  last = int(_MAX_HZ / hertz_per_bin) + 1
  below, here, above = (
    spectrum[first + shift : last + shift] for shift in (-1, 0, 1)
  )
  floor = scipy.ndimage.median_filter(here, size=(_SURROUNDING_BINS, 1))
  is_peak = (here > below) & (here >= above) & (here > _FLOOR_GAIN * floor)
  if not is_peak.any():
    return np.zeros(12)
  rows, times = np.nonzero(is_peak)
  strength = (here - _FLOOR_GAIN * floor)[rows, times] ** _COMPRESSION
  # The top of a parabola through the logarithms of three bins.
  low, mid, high = (
    np.log(part[rows, times] + 1e-12) for part in (below, here, above)
  )
  offset = 0.5 * (low - high) / (low - 2 * mid + high - 1e-12)
  semitones = librosa.hz_to_midi((first + rows + offset) * hertz_per_bin)
  nearest = np.round(semitones).astype(int)
  # A peak between two notes speaks for neither.
  strength *= np.cos(np.pi * (semitones - nearest)) ** 2
  # [12, time]
  frames = np.zeros((12, spectrum.shape[1]))
  for interval, weight in _OVERTONES.items():
    np.add.at(frames, ((nearest - interval) % 12, times), weight * strength)
  power = np.square(spectrum).sum(axis=0)
  heard = power > power.max() * 10 ** (_MIN_FRAME_DB / 10)
  heard &= frames.max(axis=0) > 0
  if not heard.any():
    return np.zeros(12)
  frames = frames[:, heard]
  return (frames / frames.max(axis=0)).mean(axis=1)


def key_scores(classes: np.ndarray) -> np.ndarray:
  """Correlates pitch classes with the profiles of all keys.

  Args:
    classes: float `[12]` from C on.

  Returns:
    float64 `[2, 12]`: major and minor keys from C on, each -1 to 1; all 0
    where the pitch classes are equal.
  """
  centred = classes - np.mean(classes)
  size = np.linalg.norm(centred)
  if size < 1e-9:
    return np.zeros((2, 12))
  scores = []
  for profile in (np.array(MAJOR), np.array(MINOR)):
    profile = profile - profile.mean()
    profile /= np.linalg.norm(profile)
    scores.append([centred @ np.roll(profile, key) for key in range(12)])
  return np.array(scores) / size


def key(classes: np.ndarray) -> tuple[int, float, float]:
  """Finds the key.

  Args:
    classes: float `[12]` from C on.

  Returns:
    The tonic, 0 (C) to 11; the clarity of the key, the correlation with the
    best profile; and the mode, the score of major minus that of minor at the
    tonic: above 0 in major, below in minor, 0 if there is no telling.
  """
  scores = key_scores(classes)
  tonic = int(scores.max(axis=0).argmax())
  major, minor = scores[:, tonic]
  return tonic, float(scores.max()), float(major - minor)
