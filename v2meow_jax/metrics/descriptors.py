"""What analysis hears in one clip: rhythm, key, timbre and level.

Only the waveform is used; nothing here knows of a model, of its tokens or of
its training. librosa and SciPy do the work, about 0.2 s for a clip of 10 s.
"""

import dataclasses
import functools
import os

import librosa
import numpy as np

from v2meow_jax.metrics import loudness
from v2meow_jax.metrics import rhythm
from v2meow_jax.metrics import tonality

# All clips are analysed at one rate, so that a file with more treble than the
# model can make is not judged by it.
SAMPLE_RATE_HZ = 16000
_HOP = SAMPLE_RATE_HZ // rhythm.RATE_HZ
_NUM_FFT = 1024
_WINDOW = 512
_NUM_MELS = 80
_MIN_SECONDS = 1.0
# Frames this far below the loudest one are pauses: their timbre is hiss.
_PAUSE_DB = -40.0
# Frames and bands over which harmonic and percussive parts are smooth, at 50
# frames a second.
_HPSS_KERNEL = (11, 17)


@dataclasses.dataclass(frozen=True)
class Description:
  """What was heard in a clip.

  Attributes:
    seconds: length.
    spectral_flatness_db: 0 for equal power in all bins; white noise -2.5 dB.
    pulse_clarity: how regular the pulse is, 0 to 1.
    tempo_bpm: in `[75, 150)`, octaves folded.
    onset_rate_hz: notes that start, a second.
    onset_rise_db: mean of the onset envelope: how much goes on.
    key_clarity: correlation with the best key profile, to 1.
    tonic: 0 (C) to 11.
    mode_score: above 0 major, below 0 minor.
    spectral_centroid_hz: where the middle of the spectrum is.
    percussiveness: share of percussive in harmonic and percussive, 0 to 1.
    loudness_lufs: integrated loudness.
    loudness_range_lu: loudness range.
    clipping_share: share of samples that are clipped, 0 to 1.
    silence_share: share of time below -60 dB of full scale, 0 to 1.
    onset_envelope: float32 `[time]` at 100 Hz.
  """

  seconds: float
  spectral_flatness_db: float
  pulse_clarity: float
  tempo_bpm: float
  onset_rate_hz: float
  onset_rise_db: float
  key_clarity: float
  tonic: int
  mode_score: float
  spectral_centroid_hz: float
  percussiveness: float
  loudness_lufs: float
  loudness_range_lu: float
  clipping_share: float
  silence_share: float
  onset_envelope: np.ndarray

  def save(self, path: str | os.PathLike) -> None:
    """Writes an .npz file."""
    with open(path, 'wb') as file:
      np.savez(file, **dataclasses.asdict(self))

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Description':
    """Reads what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
      values = {
        name: arrays[name] if arrays[name].ndim else arrays[name].item()
        for name in arrays.files
      }
    return cls(**values)


@functools.cache
def _mel_filters() -> np.ndarray:
  """float32 `[bands, bins]`."""
  return librosa.filters.mel(
    sr=SAMPLE_RATE_HZ, n_fft=_NUM_FFT, n_mels=_NUM_MELS
  )


def describe(waveform: np.ndarray, sample_rate_hz: int) -> Description:
  """Analyses a clip.

  Args:
    waveform: float32 `[samples]`, one channel, at least 1 s.
    sample_rate_hz: its rate.

  Returns:
    The description. Of a silent clip all is 0, the tempo is the middle of its
    range and the loudness -70 LUFS.

  Raises:
    ValueError: the waveform has another shape, is too short, or holds samples
      that are no numbers.
  """
  waveform = np.asarray(waveform, np.float32)
  if waveform.ndim != 1 or len(waveform) < _MIN_SECONDS * sample_rate_hz:
    raise ValueError(
      f'Waveform of shape {list(waveform.shape)} at {sample_rate_hz} Hz, '
      f'expected [samples] of at least {_MIN_SECONDS:g} s. Mix to mono, or '
      'leave the clip out.'
    )
  if not np.isfinite(waveform).all():
    raise ValueError(
      f'{np.count_nonzero(~np.isfinite(waveform))} samples are NaN or '
      'infinite, expected numbers. Make the clip again.'
    )
  clipping = loudness.clipping_share(waveform)
  if sample_rate_hz != SAMPLE_RATE_HZ:
    waveform = librosa.resample(
      waveform, orig_sr=sample_rate_hz, target_sr=SAMPLE_RATE_HZ
    )
  lufs = loudness.integrated(waveform, SAMPLE_RATE_HZ)
  loudness_range = loudness.loudness_range(waveform, SAMPLE_RATE_HZ)
  silence = loudness.silence_share(waveform, SAMPLE_RATE_HZ)
  peak = float(np.abs(waveform).max())
  if peak > 0:  # what follows does not depend on level
    waveform = waveform / peak
  # [bins, time]
  spectrum = np.abs(
    librosa.stft(waveform, n_fft=_NUM_FFT, win_length=_WINDOW, hop_length=_HOP)
  )
  mel = _mel_filters() @ np.square(spectrum)
  envelope = rhythm.onset_envelope(mel)
  flatness_db, centroid = _timbre(spectrum)
  tonic, key_clarity, mode_score = tonality.key(
    tonality.pitch_classes(waveform)
  )
  seconds = len(waveform) / SAMPLE_RATE_HZ
  return Description(
    seconds=seconds,
    spectral_flatness_db=flatness_db,
    pulse_clarity=rhythm.pulse_clarity(envelope),
    tempo_bpm=rhythm.tempo(envelope),
    onset_rate_hz=len(rhythm.onset_times(envelope)) / seconds,
    onset_rise_db=float(envelope.mean()),
    key_clarity=key_clarity,
    tonic=tonic,
    mode_score=mode_score,
    spectral_centroid_hz=centroid,
    percussiveness=_percussiveness(mel),
    loudness_lufs=lufs,
    loudness_range_lu=loudness_range,
    clipping_share=clipping,
    silence_share=silence,
    onset_envelope=envelope,
  )


def _timbre(spectrum: np.ndarray) -> tuple[float, float]:
  """Flatness in dB (median) and centroid in Hz (mean) of what sounds.

  Args:
    spectrum: float32 `[bins, time]`, magnitudes.
  """
  power = np.square(spectrum).sum(axis=0)
  heard = spectrum[:, power > power.max() * 10 ** (_PAUSE_DB / 10)]
  if not heard.size:
    return 0.0, 0.0
  floor = float(np.square(heard).max()) * 1e-10
  flatness = librosa.feature.spectral_flatness(S=heard, amin=floor)
  centroid = librosa.feature.spectral_centroid(
    S=heard, sr=SAMPLE_RATE_HZ, n_fft=_NUM_FFT
  )
  return float(10 * np.log10(np.median(flatness))), float(centroid.mean())


def _percussiveness(mel: np.ndarray) -> float:
  """Share of the percussive part in the amplitude of the mel spectrogram."""
  # Half of the frames are enough for filters of 0.2 s.
  harmonic, percussive = librosa.decompose.hpss(
    np.sqrt(mel[:, ::2]), kernel_size=_HPSS_KERNEL
  )
  total = harmonic.sum() + percussive.sum()
  return float(percussive.sum() / total) if total > 0 else 0.0
