"""Embedders that are a network in JAX, which hears one window at a time."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from v2meow_jax import streams
from v2meow_jax import waveforms
from v2meow_jax.embedders import base

Array = np.ndarray

_BATCH = 16  # windows that are heard at once


class Windowed(base.Embedder):
  """Cuts a clip into windows and gives them to a network, some at a time."""

  def __init__(
    self,
    stream: str,
    network: Callable[[Mapping, jax.Array], jax.Array],
    variables: Mapping,
    window: int,
    hop_seconds: float,
    labels: tuple[str, ...] = (),
  ):
    """Takes the network.

    Args:
      stream: name of the row in streams.py.
      network: `network(variables, windows)` maps float32 `[batch, window]` to
        float32 `[batch, features]`.
      variables: its parameters.
      window: samples that it hears.
      hop_seconds: from one window to the next, at most a window.
      labels: see `base.Embedder`.

    Raises:
      ValueError: unknown stream, or a hop that leaves sound out.
    """
    self.spec = streams.get(stream)
    self.window_seconds = window / self.spec.sample_rate_hz
    self.hop_seconds = hop_seconds
    self.labels = labels
    if not 0 < hop_seconds <= self.window_seconds:
      raise ValueError(
        f'Embedder `{stream}`: hop_seconds is {hop_seconds:g}, expected above '
        f'0 and at most a window of {self.window_seconds:g} s.'
      )
    self._window = window
    self._network = jax.jit(network)
    self._variables = jax.device_put(variables)

  def _embed_clip(self, waveform: Array) -> Array:
    hop = self.hop_seconds * self.spec.sample_rate_hz
    windows = waveforms.cut(waveform, self._window, hop)
    vectors = []
    for start in range(0, len(windows), _BATCH):
      part = windows[start : start + _BATCH]
      # Few sizes, as each is compiled: powers of two.
      size = min(_BATCH, 1 << (len(part) - 1).bit_length())
      padded = np.pad(part, ((0, size - len(part)), (0, 0)))
      vectors.append(self._network(self._variables, padded)[: len(part)])
    return np.concatenate(vectors)
