"""Things that are finished behind the main thread."""

from collections.abc import Callable
import contextlib
import queue
import threading

from v2meow_jax import files


class Worker:
  """Does things in a thread, one after the other."""

  def __init__(self):
    """Starts the thread."""
    self._queue = queue.Queue(maxsize=1)
    self._halt = files.Halt()
    self._is_stopped = False
    self._error = None
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def put(self, do: Callable[[], None]) -> None:
    """Waits for room and hands over what to do; raises what was raised."""
    self._queue.put(do)
    self._check()

  def close(self) -> None:
    """Waits until all is done; raises what was raised."""
    self._queue.put(None)
    self._thread.join()
    self._check()

  def stop(self) -> None:
    """Lets the thread end; what is not whole by now is not there."""
    self._is_stopped = True
    self._halt.now()
    with contextlib.suppress(queue.Full):  # then it need not be woken
      self._queue.put_nowait(None)

  def join(self) -> None:
    """Waits until the thread has ended."""
    self._thread.join()

  def _check(self) -> None:
    if self._error:
      raise self._error

  def _run(self) -> None:
    with self._halt:
      while (do := self._queue.get()) and not self._is_stopped:
        try:
          if not self._error:
            do()
        except BaseException as error:
          self._error = error
