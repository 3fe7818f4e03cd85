"""What every embedder offers: music or words to one vector per clip."""

import abc
from collections.abc import Sequence

import numpy as np

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
