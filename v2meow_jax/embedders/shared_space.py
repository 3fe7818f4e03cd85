"""What embedders of music and text into one space have in common.

They hear windows of a fixed length and read one text at a time; their vectors
have length 1.
"""

import abc
from collections.abc import Sequence

import numpy as np

from v2meow_jax import errors
from v2meow_jax.embedders import base

Array = np.ndarray

# Windows of a call; the last few go one by one, so that clips of any length
# need two compiled functions.
_BATCH = 8


class SharedSpace(base.Embedder):
  """An embedder that hears and reads; see the module."""

  is_unit_length = True

  @abc.abstractmethod
  def _embed_windows(self, pieces: Array) -> Array:
    """Maps float32 `[windows, samples]`, whole ones, to `[windows, features]`.

    It is called with 8 windows or with one.
    """

  @abc.abstractmethod
  def _embed_one(self, text: str) -> Array | None:
    """Maps a text to `[features]`, or to None where it says nothing."""

  def _fill(self, waveform: Array, num_samples: int) -> Array:
    """Makes a clip shorter than a window as long as one: silence follows."""
    return np.pad(waveform, (0, num_samples - len(waveform)))

  def _embed_clip(self, waveform: Array) -> Array:
    rate = self.spec.sample_rate_hz
    num_samples = round(self.window_seconds * rate)
    if len(waveform) < num_samples:
      waveform = self._fill(waveform, num_samples)
    pieces = cut(waveform, num_samples, round(self.hop_seconds * rate))
    made, first = [], 0
    while first < len(pieces):
      count = _BATCH if len(pieces) - first >= _BATCH else 1
      made.append(self._embed_windows(pieces[first : first + count]))
      first += count
    return np.concatenate(made)

  def embed_text(
    self, texts: Sequence[str], allow_unknown: bool = False
  ) -> Array:
    vectors = []
    for text in texts:
      vector = self._embed_one(text)
      if vector is None:
        if not allow_unknown:
          raise errors.UserError(
            f'Text `{text[:40]}` holds no word that embedder '
            f'`{self.spec.name}` knows, expected words about music. Say it '
            'in other words.'
          )
        vector = np.zeros(self.spec.num_features)
      vectors.append(vector)
    return np.asarray(vectors, np.float32)


def cut(waveform: Array, window: int, hop: int) -> Array:
  """Cuts a clip into windows.

  Args:
    waveform: float32 `[samples]`, at least a window.
    window: samples of a window.
    hop: samples from one window to the next.

  Returns:
    `[windows, window]`. Where a rest is left behind the last, one more window
    ends with the clip, so that all of it is heard.
  """
  last = len(waveform) - window
  starts = [*range(0, last + 1, hop)]
  if starts[-1] < last:
    starts.append(last)
  return np.stack([waveform[start : start + window] for start in starts])


def unit(vectors: Array) -> Array:
  """Makes vectors `[…, features]` as long as 1."""
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(length, 1e-6)


def no_weights(name: str, expected: str) -> errors.UserError:
  """The error of an embedder that was given none, or others."""
  return errors.UserError(
    f'Embedder `{name}` was not given its weights, expected {expected}. Name '
    'it with --embedder of `v2meow prepare`, or with --style where a model is '
    'packed; without text set EMBEDDER = None.'
  )
