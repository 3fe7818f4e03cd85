"""Keeps the devices busy with the windows of pieces.

Windows that are ready are put together to calls, of one piece or of many, the
last stage first: what is nearest to sound. How windows fall into calls changes
no number of a piece (`StageRunner.rows`), so the order in which threads run
does not either.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import os
import threading
from typing import Any

import jax

from v2meow_jax import cascade
from v2meow_jax import composition


class Scheduler:
  """Runs pieces.

  Attributes:
    lock: to be held while a piece is read or changed.
  """

  def __init__(
    self,
    runners: Sequence[cascade.StageRunner],
    num_devices: int = 1,
    calls_per_device: int = 1,
  ):
    """Begins to wait for pieces.

    Args:
      runners: of the stages, in order.
      num_devices: of each runner.
      calls_per_device: calls that a device makes side by side.
    """
    self._runners = runners
    self._free = [*range(num_devices)] * calls_per_device
    self._pieces = []
    self.lock = threading.Condition()
    self._pool = concurrent.futures.ThreadPoolExecutor(
      len(self._free), 'stages'
    )

  @contextlib.contextmanager
  def running(self, piece: composition.Composition) -> Iterator[None]:
    """Runs a piece inside a `with` block; behind it, no more of it is made."""
    with self.lock:
      self._pieces.append(piece)
      self._start_calls()
    try:
      yield
    finally:
      with self.lock:
        self._pieces.remove(piece)
        piece.fail(concurrent.futures.CancelledError())

  def update(self, change: Callable[[], None]) -> None:
    """Changes a piece, and makes what can be made now."""
    with self.lock:
      change()
      self._start_calls()
      self.lock.notify_all()

  def wait(
    self, piece: composition.Composition, is_there: Callable[[], Any]
  ) -> None:
    """Waits for something that a piece shall have.

    Args:
      piece: which.
      is_there: tells whether it is there; called with the lock held.

    Raises:
      Exception: what went wrong while the piece was made.
    """
    with self.lock:
      # In short waits, or Ctrl-C would have to wait too.
      while piece.error is None and not is_there():
        self.lock.wait(0.5)
    if piece.error is not None:
      raise piece.error

  def _start_calls(self) -> None:
    try:
      while self._free and (call := self._next_call()):
        self._pool.submit(self._call, call, self._free.pop())
    except Exception as error:  # in a thread of the pool nobody would see it
      for piece in self._pieces:
        piece.fail(error)

  def _next_call(self) -> list[tuple[composition.Composition, Any]]:
    """Pieces with the windows of one call; none if nothing can be made now."""
    for index in reversed(range(len(self._runners))):
      call, kind = [], None
      for piece in self._pieces:
        while len(call) < self._runners[index].rows and piece.error is None:
          window = piece.next_window(index)
          found = window and (window.first, window.stop, piece.settings(index))
          if not window or (call and found != kind):
            break
          kind = found
          call.append((piece, piece.take(index)))
      if call:
        return call
    return []

  def _call(self, call, device: int) -> None:
    """Makes the windows of a call; in a thread of the pool."""
    try:
      piece, job = call[0]
      codes, scores = self._runners[job.index].run(
        [job.request for _, job in call],
        job.window,
        piece.settings(job.index),
        device,
      )
      with self.lock:
        for (piece, job), *made in zip(call, codes, scores, strict=True):
          piece.put(job, *made)
    except BaseException as error:  # for the threads that wait
      with self.lock:
        for piece, _ in call:
          piece.fail(error)
    with self.lock:
      self._free.append(device)
      self._start_calls()
      self.lock.notify_all()


def calls_per_device() -> int:
  """Calls that a device should make side by side.

  A CPU computes the small products of a step on one core: so as many calls as
  cores, up to where they share the memory's bandwidth. Elsewhere two, so that
  one is ready when the other ends.
  """
  if jax.default_backend() == 'cpu':
    return max(1, min(4, os.cpu_count() or 1))
  return 2
