"""Batches made ahead of time, in a thread."""

from collections.abc import Callable, Iterator
import itertools
import queue
import threading
import time
from typing import Any

_END = object()


class Prefetch:
  """Iterates over `transform(item)` of a source, some items ahead.

  Close it when done: the thread waits otherwise for someone to read.

  Attributes:
    waited_seconds: how long the reader has waited for items so far.
  """

  def __init__(
    self,
    source: Iterator,
    transform: Callable[[Any], Any],
    limit: int,
    size: int = 3,
  ):
    """Starts the thread.

    Args:
      source: iterator; only the thread touches it.
      transform: done in the thread, such as the copy to the device.
      limit: items to read at most.
      size: items to be ahead.
    """
    self.waited_seconds = 0.0
    self._queue = queue.Queue(maxsize=size)
    self._closed = threading.Event()
    self._thread = threading.Thread(
      target=self._run,
      args=(itertools.islice(source, max(limit, 0)), transform),
      daemon=True,
    )
    self._thread.start()

  def _run(self, source, transform):
    try:
      for item in source:
        if not self._put(transform(item)):
          return
      self._put(_END)
    except BaseException as e:  # pylint: disable=broad-except
      self._put(e)  # raised where the items are read

  def _put(self, item) -> bool:
    while not self._closed.is_set():
      try:
        self._queue.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def __iter__(self):
    return self

  def __next__(self):
    start = time.perf_counter()
    item = self._queue.get()
    self.waited_seconds += time.perf_counter() - start
    if item is _END or isinstance(item, BaseException):
      self._queue.put(item)  # the end stays the end
      raise StopIteration if item is _END else item
    return item

  def close(self, wait: bool = True) -> None:
    """Stops the thread.

    Args:
      wait: until it has ended.
    """
    self._closed.set()
    if wait:
      self._thread.join()
