"""Weights of TFLite models, read without TensorFlow.

A TFLite model is a FlatBuffer. Of its schema (`schema.fbs`, version 3, of
LiteRT) only what leads to the constants is known here: their names, shapes,
types and scales. Quantised ones are made float32 again.
"""

import os
import struct

import flatbuffers
import flatbuffers.number_types
import flatbuffers.table
import numpy as np

Array = np.ndarray

_IDENTIFIER = b'TFL3'
# Numbers of the fields, in the order of the schema.
_MODEL_OPERATIONS, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_SUBGRAPH_TENSORS = 0
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION = range(5)
_BUFFER_DATA = 0
_SCALE, _ZERO_POINT, _DIMENSION = 2, 3, 6
_TYPES = {
  0: np.float32,
  1: np.float16,
  2: np.int32,
  3: np.uint8,
  4: np.int64,
  6: np.bool_,
  7: np.int16,
  9: np.int8,
  10: np.float64,
}


def read(path: str | os.PathLike) -> dict[str, Array]:
  """Reads the constants of the first graph of a TFLite model.

  Args:
    path: the file.

  Returns:
    Arrays by name; quantised ones as float32, scaled by what the file says.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no TFLite model, is cut short, or holds a constant of a
      type that is not known here.
  """
  with open(path, 'rb') as file:
    data = bytearray(file.read())
  if data[4:8] != _IDENTIFIER:
    raise ValueError(
      f'bytes 4 to 8 are {bytes(data[4:8])!r}, not {_IDENTIFIER!r}'
    )
  try:
    return dict(_constants(data))
  except (struct.error, IndexError, TypeError, OverflowError) as error:
    raise ValueError(f'it is cut short or damaged: {error}') from error


class _Table:
  """A table of a FlatBuffer, whose fields are known by number."""

  def __init__(self, data: bytearray, position: int):
    self._table = flatbuffers.table.Table(data, position)

  def _offset(self, number):
    return self._table.Offset(4 + 2 * number)

  def scalar(self, number, flags, default=0):
    offset = self._offset(number)
    if not offset:
      return default
    return self._table.Get(flags, self._table.Pos + offset)

  def table(self, number):
    offset = self._offset(number)
    if not offset:
      return None
    return _Table(
      self._table.Bytes, self._table.Indirect(self._table.Pos + offset)
    )

  def tables(self, number):
    offset = self._offset(number)
    if not offset:
      return []
    start = self._table.Vector(offset)
    return [
      _Table(self._table.Bytes, self._table.Indirect(start + 4 * i))
      for i in range(self._table.VectorLen(offset))
    ]

  def vector(self, number, dtype):
    offset = self._offset(number)
    if not offset:
      return np.zeros(0, dtype)
    return np.frombuffer(
      self._table.Bytes,
      dtype,
      self._table.VectorLen(offset),
      self._table.Vector(offset),
    )

  def text(self, number):
    return self._table.String(self._table.Pos + self._offset(number)).decode()


def _constants(data):
  model = _Table(data, int.from_bytes(data[:4], 'little'))
  buffers = [
    b.vector(_BUFFER_DATA, np.uint8) for b in model.tables(_MODEL_BUFFERS)
  ]
  flags = flatbuffers.number_types
  for operation in model.tables(_MODEL_OPERATIONS):
    operation.scalar(0, flags.Int8Flags)  # at the end of a file that is whole
  for tensor in model.tables(_MODEL_SUBGRAPHS)[0].tables(_SUBGRAPH_TENSORS):
    raw = buffers[tensor.scalar(_BUFFER, flags.Uint32Flags)]
    if not raw.size:  # what the graph computes
      continue
    kind = tensor.scalar(_TYPE, flags.Int8Flags)
    name = tensor.text(_NAME)
    if kind not in _TYPES:
      raise ValueError(f'`{name}` is of type {kind}, which is not known')
    array = np.frombuffer(raw.tobytes(), _TYPES[kind])
    array = array.reshape(tensor.vector(_SHAPE, np.int32))
    yield name, _dequantize(array, tensor.table(_QUANTIZATION))


def _dequantize(array: Array, quantization: _Table | None) -> Array:
  if quantization is None or array.dtype.kind == 'f':
    return array
  scale = quantization.vector(_SCALE, np.float32)
  if not scale.size:
    return array
  zero = quantization.vector(_ZERO_POINT, np.int64)
  shape = [1] * array.ndim
  if scale.size > 1:  # one for each index of a dimension
    axis = quantization.scalar(_DIMENSION, flatbuffers.number_types.Int32Flags)
    shape[axis] = -1
  zero = zero.reshape(shape) if zero.size else 0
  # In float64: an int32 bias has more digits than float32.
  return ((array - zero) * scale.reshape(shape).astype(np.float64)).astype(
    np.float32
  )
