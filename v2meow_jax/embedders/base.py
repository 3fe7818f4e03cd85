"""What every embedder offers: music or words to one vector per clip.

An embedder hears windows of a fixed length, one after another; its vector of a
clip is their mean. Metrics take the windows one by one (`embed_windows`).
"""

import abc
from collections.abc import Sequence

import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax import waveforms

Array = np.ndarray


class Embedder(abc.ABC):
  """Maps music, text or both to one vector per clip.

  One that hears has `window_seconds` and overrides `_embed_clip`; one that
  reads overrides `embed_text`.

  Attributes:
    spec: the row of streams.py that the vectors fill; once per clip.
    window_seconds: length of the windows that it hears; None for one that only
      reads.
    hop_seconds: from one window to the next.
    is_unit_length: whether vectors have length 1, as in a space that music and
      text share.
    labels: of a classifier: the name of each feature, which is then the score
      of a class before softmax or sigmoid; () for an embedding.
  """

  spec: streams.StreamSpec
  window_seconds: float | None = None
  hop_seconds: float | None = None
  is_unit_length: bool = False
  labels: tuple[str, ...] = ()

  def embed_text(
    self, texts: Sequence[str], allow_unknown: bool = False
  ) -> Array:
    """Maps texts to vectors.

    Args:
      texts: one per clip.
      allow_unknown: whether a text that says nothing to this embedder gets
        the zero vector; it is an error otherwise.

    Returns:
      float32 `[batch, features]`.

    Raises:
      UserError: a text says nothing to this embedder.
      ValueError: this embedder only hears.
    """
    del texts, allow_unknown
    raise ValueError(
      f'Embedder `{self.spec.name}` only hears audio, expected one that reads '
      'text. Choose another style stream or give audio.'
    )

  def mix_texts(self, texts: Sequence[tuple[str, float]]) -> Array:
    """Maps several texts to the one vector that lies between them.

    Args:
      texts: words and weights, 0 or more; only their ratios count.

    Returns:
      float32 `[features]`; that of the text where there is one.

    Raises:
      UserError: a text says nothing to this embedder, a weight is below 0 or
        no number, all are 0, or the texts cancel each other.
    """
    words, weights = zip(*texts)
    listed = ', '.join(f'{w:g}' for w in weights)
    if not (np.isfinite(weights).all() and min(weights) >= 0 < max(weights)):
      raise errors.UserError(
        f'The weights of the texts are {listed}, expected 0 or more and not '
        'all 0. Say what the music should be unlike with --negative_text.'
      )
    vectors = self.embed_text(words)
    if len(texts) == 1:
      return vectors[0]
    weights = np.asarray(weights) / np.sum(weights)
    return self._mix(words, vectors, weights).astype(np.float32)

  def _mix(self, texts: Sequence[str], vectors: Array, weights: Array) -> Array:
    """The mean direction, as long as the vectors are on average.

    So vectors of unit length, as those of a space of texts and music, give one
    of unit length. An embedder whose space is another replaces this.

    Args:
      texts: what the vectors are of.
      vectors: float32 `[texts, features]`.
      weights: float64 `[texts]`, their sum is 1.

    Returns:
      `[features]`.
    """
    mean = weights @ vectors
    length = weights @ np.linalg.norm(vectors, axis=1)
    found = np.linalg.norm(mean)
    if found < 1e-3 * length:
      raise errors.UserError(
        f'The texts {", ".join(f"`{text}`" for text in texts)} cancel each '
        'other, expected some that can be heard together. Change their weights.'
      )
    return mean * (length / max(found, 1e-9))

  def embed_windows(self, waveform: Array) -> Array:
    """Maps clips to the vectors of their windows.

    Args:
      waveform: float32 `[batch, samples]` at `spec.sample_rate_hz`, about
        [-1, 1]. A clip shorter than a window is followed by silence; what is
        left behind the last whole window is the embedder's own choice.

    Returns:
      float32 `[batch, windows, features]`, at least one window.

    Raises:
      ValueError: this embedder only reads, or the waveform has another rank,
        is empty or is not finite.
    """
    if self.window_seconds is None:
      raise ValueError(
        f'Embedder `{self.spec.name}` only reads text, expected one that hears '
        'audio. Choose another style stream or give captions.'
      )
    waveform = waveforms.check(waveform)
    vectors = np.stack([self._embed_clip(clip) for clip in waveform])
    return vectors.astype(np.float32)

  def embed_audio(self, waveform: Array) -> Array:
    """Maps clips to vectors: the mean over their windows.

    Args:
      waveform: as in `embed_windows`.

    Returns:
      float32 `[batch, features]`, of length 1 where `is_unit_length`.

    Raises:
      ValueError: as in `embed_windows`.
    """
    mean = self.embed_windows(waveform).mean(axis=1)
    if self.is_unit_length:
      # Windows that cancel each other have no direction; they stay near 0.
      mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
    return mean

  def _embed_clip(self, waveform: Array) -> Array:
    """Maps float32 `[samples]`, checked, to `[windows, features]`."""
    raise NotImplementedError(f'{type(self).__name__} has window_seconds')
