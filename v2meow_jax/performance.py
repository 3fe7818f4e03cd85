"""A piece while it is made: its tokens, and its sound at its loudness."""

from collections.abc import Callable, Iterator
import tempfile
from typing import Any

import numpy as np

from v2meow_jax import loudness

# The waveform of a longer piece is on the disk: ten minutes at 16 kHz.
_MOST_SAMPLES_IN_MEMORY = 9_600_000


class Performance:
  """A running piece.

  Attributes:
    gains: float64, what its loudness is set with, see `loudness.Leveler`.
  """

  def __init__(
    self,
    piece: Any,
    scheduler: Any,
    codec: Any,
    prompt: Any | None,
    progress: Callable[[str, float], None],
  ):
    """Takes a piece.

    Args:
      piece: `composition.Composition`.
      scheduler: `scheduler.Scheduler` that runs it.
      codec: `codecs.base.Codec` of its last stage.
      prompt: `prompting.Prompt` that it begins with, or None.
      progress: is told what is done.
    """
    self._piece = piece
    self._scheduler = scheduler
    self._codec = codec
    self._prompt = prompt
    self._progress = progress
    self._leveler = loudness.Leveler(codec.sample_rate_hz)

  @property
  def gains(self) -> np.ndarray:
    return self._leveler.gains

  def finish(self) -> None:
    """Waits until all tokens are made."""
    piece = self._piece
    while not piece.is_done:
      before = piece.reached
      self._scheduler.wait(
        piece, lambda last=before: piece.is_done or piece.reached != last
      )
      self._tell()

  def waveform(self) -> np.ndarray:
    """All sound of a piece whose length is known, float32 `[samples]`."""
    waveform = _make_room(self._num_samples())
    done = 0
    for chunk in self.chunks():
      waveform[done : done + len(chunk)] = chunk
      done += len(chunk)
    return waveform

  def chunks(self) -> Iterator[np.ndarray]:
    """Decodes the piece as it is made.

    Yields:
      float32 `[samples]`, which may be none.
    """
    done = 0
    for chunk in self._codec.decode_chunks(self._codes()):
      raw = chunk[0]
      if self._piece.seconds is not None:
        raw = raw[: max(0, self._num_samples() - done)]
      if self._prompt is not None:
        raw = self._prompt.lay_over(raw, done)
      done += len(raw)
      yield self._leveler.push(raw)
      self._progress('sound', done / self._codec.sample_rate_hz)
    yield self._leveler.finish()

  def _codes(self) -> Iterator[np.ndarray]:
    """Codes of the last stage as they are made, int32 `[1, time, levels]`."""
    piece = self._piece
    heard = 0
    while not piece.is_done or heard < piece.end:
      self._scheduler.wait(
        piece, lambda last=heard: piece.is_done or piece.made > last
      )
      with self._scheduler.lock:
        made = piece.made
        codes = piece.last_codes(heard, made).copy()
      heard = made
      self._tell()
      if len(codes):
        yield codes[np.newaxis]

  def _tell(self) -> None:
    for name, units in self._piece.reached.items():
      self._progress(name, float(units / self._piece.grid_hz))

  def _num_samples(self) -> int:
    return max(1, round(self._piece.seconds * self._codec.sample_rate_hz))


def _make_room(num_samples: int) -> np.ndarray:
  """float32 zeros `[samples]`; those of a long piece are on the disk."""
  if num_samples <= _MOST_SAMPLES_IN_MEMORY:
    return np.zeros(num_samples, np.float32)
  with tempfile.TemporaryFile() as file:
    return np.memmap(file, np.float32, 'w+', shape=(num_samples,))
