"""LEAF's front end in NumPy and SciPy, in float64, one channel at a time."""

import numpy as np
import scipy.signal


def front_end(waveform, params, window=401, hop=160):
  """`[samples]` to `[time, filters]`, with parameters inside their limits."""
  half = window // 2
  time = np.arange(window) - half
  channels = []
  for k, (centre, deviation) in enumerate(params['gabor'].astype(float)):
    wave = np.exp(1j * centre * time - time**2 / (2 * deviation**2))
    wave /= np.sqrt(2 * np.pi) * deviation
    padded = np.pad(waveform.astype(float), half)
    # A correlation: what SciPy conjugates is turned back.
    energy = np.abs(scipy.signal.correlate(padded, wave.conj(), 'valid')) ** 2
    width = float(params['pooling'][k]) * (window - 1) / 2
    pool = np.exp(-(time**2) / (2 * width**2))
    count = -(-len(energy) // hop)
    lacking = max(0, (count - 1) * hop + window - len(energy))
    padded = np.pad(energy, (lacking // 2, lacking - lacking // 2))
    starts = np.arange(count) * hop
    pooled = np.array([padded[s : s + window] @ pool for s in starts])
    pooled = np.maximum(pooled, 1e-5)
    pcen = {n: float(params['pcen'][n][k]) for n in params['pcen']}
    average, row = pooled[0], []
    for energy in pooled:
      average = pcen['smooth'] * energy + (1 - pcen['smooth']) * average
      level = energy / (1e-12 + average) ** pcen['alpha']
      root = 1 / pcen['root']
      row.append((level + pcen['delta']) ** root - pcen['delta'] ** root)
    channels.append(row)
  return np.array(channels).T
