"""TRILL: a non-semantic embedding of sound, from the SavedModel of its authors.

Shor et al., "Towards learning a universal non-semantic representation of
speech" (TRILL v3 of TensorFlow Hub). TensorFlow runs the model: it brings its
own front end (16 kHz, 64 mels from 125 to 7500 Hz), silence behind a clip of
less than a second, and windows of 0.975 s about every sixth of a second.
"""

from collections.abc import Mapping
import os
import pathlib

import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax.embedders import base

Array = np.ndarray


class Trill(base.Embedder):
  """A SavedModel with TRILL's signature as an embedder."""

  spec = streams.get('trill')
  window_seconds = 0.975
  hop_seconds = 1 / 6

  def __init__(
    self,
    params: Mapping[str, Array] | None = None,
    path: str | os.PathLike | None = None,
    output: str = 'embedding',
  ):
    """Loads the model.

    Args:
      params: none; every embedder takes them.
      path: folder of the SavedModel, `model(samples=, sample_rate=)`.
      output: key of what it returns: 'embedding', or a layer of 512 features.

    Raises:
      UserError: no path, no SavedModel there, or no such output; TensorFlow is
        missing.
      ValueError: parameters were given.
    """
    if params:
      raise ValueError(
        f'Embedder `trill` was given parameters {", ".join(params)}, expected '
        'none: they are in its SavedModel. Leave them out.'
      )
    self._path, self._output = path, output
    self._model = _load(path)
    self._embed_clip(np.zeros(self.spec.sample_rate_hz, np.float32))

  def _embed_clip(self, waveform: Array) -> Array:
    rate = self.spec.sample_rate_hz
    try:
      found = self._model(samples=waveform, sample_rate=rate)
    except Exception as error:  # whatever TensorFlow raises
      text = ' '.join(str(error).split())[:200]
      raise errors.UserError(
        f'{self._path}: cannot be called ({text}), expected a SavedModel that '
        'is called with samples and sample_rate. Use that of TRILL.'
      ) from error
    if not isinstance(found, Mapping) or self._output not in found:
      keys = (
        ', '.join(sorted(found)) if isinstance(found, Mapping) else 'an array'
      )
      raise errors.UserError(
        f'{self._path}: returns {keys}, expected `{self._output}` among it. '
        'Set output to one of these, or use the SavedModel of TRILL.'
      )
    vectors = np.asarray(found[self._output], np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != self.spec.num_features:
      raise errors.UserError(
        f'{self._path}: `{self._output}` has shape {vectors.shape}, expected '
        f'[windows, {self.spec.num_features}]. Choose another output.'
      )
    return vectors


def _load(path: str | os.PathLike | None):
  if path is None or not (pathlib.Path(path) / 'saved_model.pb').is_file():
    raise errors.UserError(
      f'{path}: no SavedModel, expected the folder of TRILL (version 3 of '
      'nonsemantic-speech-benchmark/trill of TensorFlow Hub), which holds '
      'saved_model.pb. Get it and set trill.Trill.path.'
    )
  try:
    import tensorflow as tf
  except ImportError as error:
    raise errors.UserError(
      'TRILL needs the package `tensorflow`. Install it, or everything with '
      "pip install 'v2meow_jax[train]'."
    ) from error
  try:
    return tf.saved_model.load(os.fspath(path))
  except Exception as error:  # whatever TensorFlow raises
    text = ' '.join(str(error).split())[:200]
    raise errors.UserError(
      f'{path}: cannot be loaded ({text}), expected a SavedModel. Fetch it '
      'again.'
    ) from error
