"""MusicCoCa as the first release of Magenta RealTime has it: a SavedModel.

`musiccoca.py` runs the TensorFlow Lite parts of later releases; this is the
same space. TensorFlow runs the model, with its signatures `embed_music` and
`embed_text`.
"""

from collections.abc import Mapping
import functools
import os
import pathlib

import numpy as np

from v2meow_jax import errors
from v2meow_jax.embedders import musiccoca
from v2meow_jax.embedders import shared_space

Array = np.ndarray

MODEL = 'savedmodels/musiccoca_mv212f_cpu_novocab'
VOCABULARY = 'vocabularies/musiccoca_mv212f_vocab.model'
_TEXT_LENGTH = 128  # tokens


class MusicCocaSavedModel(shared_space.SharedSpace):
  """MusicCoCa in a SavedModel and a SentencePiece model."""

  spec = musiccoca.SPEC
  window_seconds = 10.0

  def __init__(
    self,
    params: Mapping[str, Array] | None = None,
    path: str | os.PathLike | None = None,
    hop_seconds: float | None = None,
  ):
    """Loads the model.

    Args:
      params: none; every embedder takes them.
      path: folder that holds `MODEL` and `VOCABULARY`.
      hop_seconds: from one window to the next; a window if None.

    Raises:
      UserError: they are not there or cannot be loaded, or TensorFlow is
        missing.
      ValueError: parameters were given.
    """
    if params:
      raise ValueError(
        f'Embedder `musiccoca` was given parameters {", ".join(params)}, '
        'expected none: they are in its SavedModel. Leave them out.'
      )
    self.hop_seconds = hop_seconds or self.window_seconds
    self._path = pathlib.Path(path or '')
    self._model = _load(path)

  @functools.cached_property
  def _tokenizer(self):
    path = self._path / VOCABULARY
    return musiccoca.read_tokenizer(path.read_bytes(), str(path))

  def _call(self, name: str, output: str, *inputs: Array) -> Array:
    """Calls a signature on a batch of one; returns one of its outputs."""
    import tensorflow as tf

    names = ('inputs_0', 'inputs_0_1')
    given = {k: tf.constant(x[np.newaxis]) for k, x in zip(names, inputs)}
    try:
      vectors = np.asarray(self._model.signatures[name](**given)[output])
    except Exception as error:  # whatever TensorFlow raises
      text = ' '.join(str(error).split())[:200]
      raise errors.UserError(
        f'{self._path / MODEL}: `{name}` cannot be called ({text}), expected '
        f'{", ".join(given)} to give `{output}`. Use the SavedModel of '
        'MusicCoCa.'
      ) from error
    return musiccoca.check_vector(f'`{name}` of {self._path / MODEL}', vectors)

  def _embed_windows(self, pieces: Array) -> Array:
    # The model takes one at a time.
    return np.stack(
      [
        self._call('embed_music', 'contrastive_music_embed', piece)
        for piece in pieces.astype(np.float32)
      ]
    )

  def _embed_one(self, text: str) -> Array | None:
    found = musiccoca.encode_text(self._tokenizer, text, _TEXT_LENGTH)
    if found is None:
      return None
    return self._call('embed_text', 'contrastive_txt_embed', *found)


def _load(path: str | os.PathLike | None):
  folder = pathlib.Path(path or '')
  missing = [
    name
    for name in (f'{MODEL}/saved_model.pb', VOCABULARY)
    if path is None or not (folder / name).is_file()
  ]
  if missing:
    raise errors.UserError(
      f'{path}: {" and ".join(missing)} missing, expected the folder of '
      "Magenta RealTime's first release. Get it and set MUSICCOCA_PATH."
    )
  try:
    import tensorflow as tf
  except ImportError as error:
    raise errors.UserError(
      'MusicCoCa as a SavedModel needs the package `tensorflow`. Install it, '
      "or everything with pip install 'v2meow_jax[pretrained]'."
    ) from error
  try:
    return tf.saved_model.load(str(folder / MODEL))
  except Exception as error:  # whatever TensorFlow raises
    text = ' '.join(str(error).split())[:200]
    raise errors.UserError(
      f'{folder / MODEL}: cannot be loaded ({text}), expected a SavedModel. '
      'Fetch it again.'
    ) from error
