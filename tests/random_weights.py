"""Random weights whose activations stay about as large as their input."""

import jax
import numpy as np


def like(shapes, seed: int = 0) -> dict:
  """Draws float32 arrays of the shapes of a nested dict of parameters.

  Kernels have inputs before the last axis; a variance is above 0.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key in ('var', 'scale'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    deviation = 0.1
    if len(leaf.shape) > 1:
      deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return rng.normal(0, deviation, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, dict(shapes))
