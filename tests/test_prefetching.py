"""Batches made ahead of time: their order, their errors, the wait for them."""

import itertools
import threading

import pytest

from v2meow_jax import prefetching


def test_order_limit_and_end():
  feed = prefetching.Prefetch(itertools.count(), lambda n: n * n, limit=5)
  assert list(feed) == [0, 1, 4, 9, 16]
  assert list(feed) == []
  feed.close()


def test_error_of_the_source_is_raised_where_it_is_read():
  def source():
    yield 1
    raise ValueError('clip c7')

  feed = prefetching.Prefetch(source(), lambda n: n, limit=5)
  assert next(feed) == 1
  for _ in range(2):
    with pytest.raises(ValueError, match='clip c7'):
      next(feed)
  feed.close()


def test_counts_the_wait_for_a_slow_source(monkeypatch):
  # A clock that the source moves on: 2 s for every item.
  clock = [0.0]
  asked = threading.Semaphore(0)

  def source():
    for number in itertools.count():
      asked.acquire()
      clock[0] += 2.0
      yield number

  monkeypatch.setattr(prefetching.time, 'perf_counter', lambda: clock[0])
  feed = prefetching.Prefetch(source(), lambda n: n, limit=3)
  get = feed._queue.get

  def get_slowly():
    asked.release()  # only now, when somebody waits, is an item made
    return get()

  monkeypatch.setattr(feed._queue, 'get', get_slowly)
  assert [next(feed) for _ in range(3)] == [0, 1, 2]
  assert feed.waited_seconds == 6.0
  feed.close()
