"""MusicCoCa, the music and text embedding of Magenta RealTime, as published.

Its parts are TensorFlow Lite models (`magenta_rt/musiccoca.py`): ten seconds at
16 kHz to features, these to 768 numbers, and 128 SentencePiece tokens to 768
numbers. They run as they are; `v2meow weights convert musiccoca` only puts them
into one file, so that a model's folder has all that it needs.
"""

from collections.abc import Mapping
import functools
import pathlib
import warnings

import jax
import numpy as np

from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.embedders import shared_space

SPEC = streams.get('musiccoca')

_TOKENIZER = 'spm.model'
_TEXT = 'text_encoder.tflite'
_FRONT_END = 'audio_preprocessor.tflite'
_MUSIC = 'music_encoder.tflite'
_FILES = (_TOKENIZER, _TEXT, _FRONT_END, _MUSIC)
_MAGIC = b'TFL3'  # bytes 4 to 8 of a TensorFlow Lite file
_START = 1  # the token in front of a text
_SPACE = '\u2581'  # SentencePiece's, which is also in front of a first word
_INSTALL = (
  "Install it, or everything with pip install 'v2meow_jax[pretrained]'."
)


class _Part:
  """A TensorFlow Lite model with inputs that are told apart by their dtype."""

  def __init__(self, name: str, content: bytes):
    try:
      from ai_edge_litert import interpreter as litert

      make = litert.Interpreter
    except ImportError:
      try:
        import tensorflow as tf
      except ImportError as error:
        raise errors.UserError(
          'MusicCoCa needs the package `ai-edge-litert` or `tensorflow`. '
          f'{_INSTALL}'
        ) from error
      make = tf.lite.Interpreter
    self._name = name
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that it will move some day
        self._interpreter = make(model_content=content)
      self._interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
      text = ' '.join(str(error).split())[:200]
      raise errors.UserError(
        f'{name} cannot be run ({text}), expected a part of MusicCoCa. Convert '
        'the weights again.'
      ) from error
    self._inputs = self._interpreter.get_input_details()

  def shape(self, dtype: type) -> tuple[int, ...]:
    """Shape of the input of a dtype."""
    return tuple(map(int, self._input(dtype)['shape']))

  def _input(self, dtype: type) -> dict:
    found = [x for x in self._inputs if x['dtype'] == dtype]
    if len(found) != 1:
      listed = ', '.join(np.dtype(x['dtype']).name for x in self._inputs)
      raise errors.UserError(
        f'{self._name} has inputs of {listed}, expected one of '
        f'{np.dtype(dtype).name}. Use the parts of MusicCoCa.'
      )
    return found[0]

  def __call__(self, *arrays: np.ndarray) -> np.ndarray:
    """Runs the model on an array for each input; returns its only output."""
    for array in arrays:
      entry = self._input(array.dtype.type)
      shape = tuple(map(int, entry['shape']))
      if array.size != np.prod(shape):
        raise errors.UserError(
          f'{self._name} takes {shape}, expected room for {array.shape}. Use '
          'the parts of MusicCoCa.'
        )
      self._interpreter.set_tensor(entry['index'], array.reshape(shape))
    self._interpreter.invoke()
    output = self._interpreter.get_output_details()[0]
    return self._interpreter.get_tensor(output['index'])


class MusicCoca(shared_space.SharedSpace):
  """MusicCoCa with its published parts."""

  spec = SPEC
  window_seconds = 10.0

  def __init__(self, params: Mapping, hop_seconds: float | None = None):
    """Takes the parts.

    Args:
      params: as `convert` makes them.
      hop_seconds: from one window to the next; a window if None.

    Raises:
      UserError: parts are missing.
    """
    if not set(_FILES) <= params.keys():
      raise shared_space.no_weights(
        'musiccoca', 'the file that `v2meow weights convert musiccoca` wrote'
      )
    self.hop_seconds = hop_seconds or self.window_seconds
    self.params = {name: np.asarray(params[name], np.uint8) for name in _FILES}
    self._parts = {}  # made when they are asked for

  def _part(self, name: str) -> _Part:
    if name not in self._parts:
      self._parts[name] = _Part(name, self.params[name].tobytes())
    return self._parts[name]

  @functools.cached_property
  def _tokenizer(self):
    return read_tokenizer(self.params[_TOKENIZER].tobytes(), _TOKENIZER)

  def _embed_windows(self, pieces: np.ndarray) -> np.ndarray:
    made = []
    for piece in pieces:
      features = self._part(_FRONT_END)(piece.astype(np.float32))
      made.append(check_vector(_MUSIC, self._part(_MUSIC)(features)))
    return np.stack(made)

  def _embed_one(self, text: str) -> np.ndarray | None:
    encoder = self._part(_TEXT)
    length = int(np.prod(encoder.shape(np.int32)))
    found = encode_text(self._tokenizer, text, length)
    return None if found is None else check_vector(_TEXT, encoder(*found))


def read_tokenizer(content: bytes, name: str):
  """Reads the SentencePiece model of the texts.

  Args:
    content: of its file.
    name: of its file, for an error.

  Raises:
    UserError: it is none, or the package is missing.
  """
  try:
    import sentencepiece
  except ImportError as error:
    raise errors.UserError(
      f'MusicCoCa needs the package `sentencepiece`. {_INSTALL}'
    ) from error
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=content)
  except RuntimeError as error:
    raise errors.UserError(
      f'{name} cannot be read ({error}), expected a SentencePiece model. Fetch '
      'it again, or convert the weights again.'
    ) from error


def encode_text(
  tokenizer, text: str, length: int
) -> tuple[np.ndarray, np.ndarray] | None:
  """Makes what the text encoder reads.

  Args:
    tokenizer: as `read_tokenizer` returns it.
    text: any.
    length: tokens that the encoder reads; the rest of a long text is left out.

  Returns:
    Tokens, int32 `[length]`, and 1 where they are padding, float32 `[length]`;
    None for a text without any known word.
  """
  known = tokenizer.encode(text.lower())
  unknown = {tokenizer.unk_id(), tokenizer.piece_to_id(_SPACE)}
  if unknown.issuperset(known):
    return None
  used = [_START, *known[: length - 1]]
  tokens = np.zeros(length, np.int32)
  tokens[: len(used)] = used
  return tokens, (np.arange(length) >= len(used)).astype(np.float32)


def check_vector(name: str, vector: np.ndarray) -> np.ndarray:
  """Returns a vector of the space, of length 1.

  Raises:
    UserError: what `name` has made has another size.
  """
  if vector.size != SPEC.num_features:
    raise errors.UserError(
      f'{name} makes {vector.size} numbers, expected {SPEC.num_features}. Use '
      'the parts of MusicCoCa.'
    )
  return shared_space.unit(vector.reshape(-1).astype(np.float32))


def convert(paths: Mapping[str, pathlib.Path]) -> dict:
  """Puts the published parts into one tree.

  Args:
    paths: of the files.

  Raises:
    UserError: one of them is no such part.
  """
  parts = {}
  for name in _FILES:
    content = paths[name].read_bytes()
    if name != _TOKENIZER and content[4:8] != _MAGIC:
      raise errors.UserError(
        f'{paths[name]}: is no TensorFlow Lite model, expected a part of '
        'MusicCoCa. Fetch the file again.'
      )
    parts[name] = np.frombuffer(content, np.uint8)
  return weights.add_config(parts, {name: len(x) for name, x in parts.items()})


def _expected(config: Mapping) -> dict:
  """The sizes of the files, so that a file that was cut is found."""
  return {
    name: jax.ShapeDtypeStruct((config.get(name, 0),), np.uint8)
    for name in _FILES
  }


CHECKPOINTS = (
  pretrained.Checkpoint(
    name='musiccoca',
    summary='music and text in one space, 768 features, 16 kHz (TFLite)',
    licence='CC-BY-4.0',
    files=_FILES,
    convert=convert,
    expected=_expected,
    origin='https://github.com/magenta/magenta-realtime',
  ),
)
