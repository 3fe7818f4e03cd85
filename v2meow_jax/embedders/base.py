"""What every embedder offers: music or words to one vector per clip."""

import abc
from collections.abc import Sequence

import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams

Array = np.ndarray


class Embedder(abc.ABC):
  """Maps text, and audio where it can, to one vector per clip.

  Attributes:
    spec: the row of streams.py that the vectors fill; once per clip.
  """

  spec: streams.StreamSpec

  @abc.abstractmethod
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
    """

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

  def embed_audio(self, waveform: Array) -> Array:
    """Maps float32 `[batch, samples]` to float32 `[batch, features]`.

    Raises:
      ValueError: this embedder only reads text.
    """
    del waveform
    raise ValueError(
      f'Embedder `{self.spec.name}` only reads text, expected one that hears '
      'audio. Choose another style stream or give captions.'
    )
