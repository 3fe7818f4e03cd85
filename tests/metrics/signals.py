"""Sounds with known answers, float32 `[samples]` at 16 kHz."""

import numpy as np

RATE_HZ = 16000


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
  """White noise."""
  rng = np.random.default_rng(seed)
  count = round(seconds * RATE_HZ)
  return (level * rng.standard_normal(count)).astype(np.float32)


def tone(seconds: float, hertz: float = 440.0, level: float = 0.5):
  """A steady sine."""
  times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
  return (level * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def clicks(times: np.ndarray, seconds: float, seed: int = 0) -> np.ndarray:
  """Short bursts of noise at given seconds, over faint hiss."""
  sound = noise(seconds, seed, 1e-4)
  burst = noise(0.03, seed + 1, 0.5) * np.exp(-np.arange(480) / 100)
  for time in times:
    first = round(time * RATE_HZ)
    part = sound[first : first + len(burst)]
    part += burst[: len(part)]
  return sound


def click_track(
  tempo_bpm: float, seconds: float = 10.0, first: float = 0.2
) -> np.ndarray:
  """A click on every beat."""
  return clicks(np.arange(first, seconds, 60 / tempo_bpm), seconds)


def chords(
  tonic: int, mode: str, seconds_each: float = 0.7, repeats: int = 3
) -> np.ndarray:
  """Tonic, subdominant, dominant, tonic; notes with six partials.

  Args:
    tonic: 0 (C) to 11.
    mode: 'major' or 'minor'; the dominant is major in both.
    seconds_each: length of a chord.
    repeats: how often they come.
  """
  third = 4 if mode == 'major' else 3
  triads = [(0, third), (5, third), (7, 4), (0, third)]
  times = np.arange(round(seconds_each * RATE_HZ)) / RATE_HZ
  parts = []
  for root, third in triads * repeats:
    sound = np.zeros(len(times))
    for interval in (root - 12, root, root + third, root + 7):
      hertz = 440 * 2 ** ((60 + tonic + interval - 69) / 12)
      for partial in range(1, 7):
        sound += np.sin(2 * np.pi * hertz * partial * times) / partial
    parts.append(sound * np.exp(-2 * times))
  whole = np.concatenate(parts)
  return (0.5 * whole / np.abs(whole).max()).astype(np.float32)
