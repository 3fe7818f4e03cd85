"""Residual vector quantiser, slow and obvious: one vector at a time."""

import numpy as np


def encode(latents, codebooks):
  """Codes `[..., levels]` of latents `[..., features]`."""
  flat = latents.reshape(-1, latents.shape[-1])
  codes = np.zeros((len(flat), len(codebooks)), np.int32)
  for i, vector in enumerate(flat):
    rest = vector.astype(np.float64)
    for level, codebook in enumerate(codebooks):
      distances = [np.sum((rest - entry) ** 2) for entry in codebook]
      codes[i, level] = int(np.argmin(distances))
      rest = rest - codebook[codes[i, level]]
  return codes.reshape(*latents.shape[:-1], len(codebooks))


def decode(codes, codebooks):
  """Latents `[..., features]` of the codes `[..., levels]`."""
  flat = codes.reshape(-1, codes.shape[-1])
  latents = np.zeros((len(flat), codebooks.shape[-1]))
  for i, row in enumerate(flat):
    for level, code in enumerate(row):
      latents[i] += codebooks[level][code]
  return latents.reshape(*codes.shape[:-1], -1)


def update_ema(codebooks, counts, sums, latents, decay, num_levels):
  """One step of the moving averages; returns codebooks, counts and sums.

  Args:
    codebooks: `[levels, codes, features]`, before the step.
    counts: `[levels, codes]`.
    sums: `[levels, codes, features]`.
    latents: `[batch, time, features]`.
    decay: weight of the past.
    num_levels: per clip, how many levels it may move.
  """
  counts, sums = counts.astype(np.float64), sums.astype(np.float64)
  new_counts, new_sums = np.zeros_like(counts), np.zeros_like(sums)
  codes = encode(latents, codebooks)
  for clip, length in enumerate(num_levels):
    for time in range(latents.shape[1]):
      rest = latents[clip, time].astype(np.float64)
      for level in range(length):
        code = codes[clip, time, level]
        new_counts[level, code] += 1
        new_sums[level, code] += rest
        rest = rest - codebooks[level, code]
  counts = decay * counts + (1 - decay) * new_counts
  sums = decay * sums + (1 - decay) * new_sums
  return sums / counts[..., None], counts, sums
