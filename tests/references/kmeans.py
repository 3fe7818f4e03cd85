"""Slow, obvious k-means: Lloyd's steps in NumPy loops."""

import numpy as np


def assign(points, centres):
  codes = []
  for point in points:
    distances = [np.sum((point - centre) ** 2) for centre in centres]
    codes.append(int(np.argmin(distances)))
  return np.array(codes, np.int32)


def inertia(points, centres):
  codes = assign(points, centres)
  return np.mean(
    [np.sum((point - centres[code]) ** 2) for point, code in zip(points, codes)]
  )


def step(points, centres):
  """One step: every centre to the mean of its points, if it has any."""
  codes = assign(points, centres)
  return np.stack(
    [
      points[codes == k].mean(0) if (codes == k).any() else centre
      for k, centre in enumerate(centres)
    ]
  )


def minibatch(centres, counts, batches):
  """Sculley's mini-batch k-means: each point moves its centre by 1 / count."""
  centres, counts = np.array(centres, np.float64), np.array(counts, np.float64)
  for batch in batches:
    codes = assign(batch, centres)  # of the whole batch, before it moves any
    for point, code in zip(batch, codes):
      counts[code] += 1
      centres[code] += (point - centres[code]) / counts[code]
  return centres, counts
