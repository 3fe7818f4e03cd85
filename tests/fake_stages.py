"""Stages without networks, whose tokens tell what they saw."""

import fractions

import jax.numpy as jnp
import numpy as np

from v2meow_jax import cascade
from v2meow_jax import sampling
from v2meow_jax import stages

GRID_HZ = fractions.Fraction(5)
SECONDS = {'semantic': 2.0, 'coarse': 2.0, 'fine': 1.0}


def stage(name: str) -> stages.Stage:
  return stages.make(
    name,
    visual=('scene',),
    style='caption',
    semantic='spectral_semantic',
    acoustic='spectral',
    seconds=SECONDS[name],
  )


class FakeModel:
  """Each token is the one before plus one; the first is the inputs'.

  The tokens of a window without a prompt begin with the sum of the first
  frame's features, so that they tell where the window was cut, plus 10,000
  times the seed. Scores are the places in the window.
  """

  def __init__(self, name: str):
    self.stage = stage(name)
    self.options = sampling.Options(1.0, 0, 1.0)
    self.num_traces = 0
    self.shapes = []
    self.seen = {}

  def decode(
    self,
    params,
    inputs,
    masks,
    prompt,
    seeds,
    start_frame,
    options,
    guidance,
    first,
    stop,
  ):
    del masks, stop
    self.num_traces += 1
    self.seen = {
      'seeds': seeds.dtype,
      'start_frame': start_frame.dtype,
      'options': [x.dtype for x in options],
      'guidance': guidance,
    }
    target = self.stage.target
    times = target.spec.length(self.stage.seconds)
    view = self.stage.inputs[0]
    begin = jnp.sum(
      inputs[view.name].reshape(len(seeds), -1)[:, : view.num_levels], axis=-1
    ).astype(jnp.int32)
    begin += seeds.astype(jnp.int32) * 10000 + params['offset']
    begin = jnp.where(first > 0, prompt[:, 0, 0], begin)
    codes = begin[:, None] + jnp.arange(times)
    codes = jnp.repeat(codes[:, :, None], target.num_levels, axis=2)
    self.shapes.append(codes.shape)
    scores = jnp.broadcast_to(jnp.arange(times)[:, None], codes.shape)
    return codes, scores.astype(jnp.float32)


def runner(name: str, overlap: float = 0.5, rows: int = 1, devices=None):
  return cascade.StageRunner(
    FakeModel(name), {'offset': np.int32(0)}, GRID_HZ, overlap, rows, devices
  )


def scene(num_frames: int) -> np.ndarray:
  """Features whose sum at time t is the position of the 25 Hz stream."""
  spec = stage('semantic').inputs[0].spec
  features = np.zeros((num_frames, spec.num_features), np.float32)
  features[:, 0] = 2.5 * np.arange(num_frames)
  return features
