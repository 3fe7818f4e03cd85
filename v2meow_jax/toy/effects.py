"""What both renderers share after the notes: a room, and the level."""

from __future__ import annotations

import functools

import numpy as np
import scipy.signal

_ROOM_SECONDS = 0.9
_ROOM_GAIN = 0.12
# Seconds from wall to wall; earlier echoes would colour the sound itself.
_PRE_DELAY_SECONDS = 0.012
_PEAK = 0.9
_RMS = 0.1


@functools.cache
def _impulse_response(sample_rate_hz: int) -> np.ndarray:
  """Decaying noise that darkens with time, float32 `[samples]`."""
  num_samples = round(_ROOM_SECONDS * sample_rate_hz)
  seconds = np.arange(num_samples) / sample_rate_hz
  noise = np.random.default_rng(0).standard_normal(num_samples)
  dark = scipy.signal.lfilter([0.25], [1, -0.75], noise)
  mix = np.exp(-seconds / 0.06) * noise + np.exp(-seconds / 0.2) * dark
  response = np.concatenate(
    [np.zeros(round(_PRE_DELAY_SECONDS * sample_rate_hz)), mix]
  )
  return (response / np.sqrt(np.sum(response**2))).astype(np.float32)


def add_room(sound: np.ndarray, sample_rate_hz: int) -> np.ndarray:
  """Adds the reverberation of a small hall to float32 `[samples]`."""
  wet = scipy.signal.oaconvolve(sound, _impulse_response(sample_rate_hz))
  return sound + _ROOM_GAIN * wet[: len(sound)].astype(np.float32)


def normalise(sound: np.ndarray) -> np.ndarray:
  """Brings a clip to the level of all others: energy is not loudness.

  Args:
    sound: float32 `[samples]`.

  Returns:
    float32 `[samples]` with an RMS of 0.1, or less where peaks forbid it; the
    peak is at most 0.9. Silence stays silence.
  """
  rms = float(np.sqrt(np.mean(sound**2))) if sound.size else 0.0
  if rms == 0.0:
    return sound
  gain = min(_RMS / rms, _PEAK / float(np.max(np.abs(sound))))
  return (sound * gain).astype(np.float32)
