"""TensorBoard files of scalars and sounds, written without TensorFlow.

An event file is a series of TFRecords, each a serialised `Event` message of
TensorFlow's `event.proto`. Only the few fields that these need are written, so
that every machine that can train can also show how it went.
"""

from collections.abc import Mapping
import io
import itertools
import os
import pathlib
import socket
import struct
import time

import numpy as np
import soundfile

_files = itertools.count()  # several files may be opened in one second


class EventWriter:
  """Appends scalars and sounds to a new event file of a folder."""

  def __init__(self, folder: str | os.PathLike, step: int = 0):
    """Opens the file.

    Args:
      folder: TensorBoard shows it as one run.
      step: TensorBoard forgets what earlier files say of later steps.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = '.'.join(
      [
        'events.out.tfevents',
        f'{int(time.time()):010d}',
        socket.gethostname(),
        str(os.getpid()),
        str(next(_files)),
        'v2',
      ]
    )
    self._file = open(folder / name, 'xb')
    self._write(_bytes(3, b'brain.Event:2'), 0)
    # A SessionLog with status START at the next step.
    self._write(_bytes(7, _integer(1, 1)), step + 1)

  def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes float32 values by name; `a/b` is shown as b in group a."""
    summary = b''.join(
      _bytes(1, _bytes(1, name.encode()) + _float(2, value))
      for name, value in values.items()
    )
    self._write(_bytes(5, summary), step)
    self._file.flush()

  def write_audio(
    self, step: int, sounds: Mapping[str, np.ndarray], sample_rate_hz: int
  ) -> None:
    """Writes mono waveforms by name, float32 `[samples]` in -1..1."""
    summary = b''.join(
      _bytes(1, _bytes(1, name.encode()) + _bytes(6, audio))
      for name, audio in (
        (name, _audio(waveform, sample_rate_hz))
        for name, waveform in sounds.items()
      )
    )
    self._write(_bytes(5, summary), step)
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, what: bytes, step: int) -> None:
    event = _double(1, time.time()) + _integer(2, step) + what
    length = struct.pack('<Q', len(event))
    self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _audio(waveform: np.ndarray, sample_rate_hz: int) -> bytes:
  """An `Audio` message: 16 bits a sample, as WAV."""
  file = io.BytesIO()
  samples = np.clip(waveform, -1.0, 1.0)
  soundfile.write(file, samples, sample_rate_hz, 'PCM_16', format='WAV')
  return (
    _float(1, sample_rate_hz)
    + _integer(2, 1)
    + _integer(3, len(samples))
    + _bytes(4, file.getvalue())
    + _bytes(5, b'audio/wav')
  )


def _varint(value: int) -> bytes:
  parts = []
  while value > 0x7F:
    parts.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*parts, value])


def _integer(field: int, value: int) -> bytes:
  return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
  return _varint(field << 3 | 1) + struct.pack('<d', value)


def _bytes(field: int, value: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
  return _varint(field << 3 | 5) + struct.pack('<f', value)


def _crc_table() -> list[int]:
  table = []
  for byte in range(256):
    for _ in range(8):
      byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    table.append(byte)
  return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
  """The checksum of a TFRecord: CRC-32C, rotated and shifted."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  masked = (crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF
  return struct.pack('<I', masked)
