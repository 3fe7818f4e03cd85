"""Signals that end a training early, on one host or on many."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopSignals:
  """Notes SIGTERM and SIGINT; a second one acts as it always does.

  All hosts stop at the same step, whichever of them gets a signal: JAX's
  preemption service, which takes SIGTERM itself, agrees on one.

  Attributes:
    signal: number of the signal that came, or None.
  """

  def __init__(self):
    self.signal = None
    self._before = {}

  def reached(self, step: int) -> bool:
    """Whether to stop when `step` steps are done; asks no device."""
    if jax.process_count() > 1:
      if not multihost_utils.reached_preemption_sync_point(step):
        return False
      self.signal = self.signal or signal.SIGTERM  # another host's
    return self.signal is not None

  def _note(self, number, unused_frame):
    self.signal = number
    signal.signal(number, self._before[number])
    if jax.process_count() > 1:
      signal.raise_signal(signal.SIGTERM)

  def __enter__(self) -> 'StopSignals':
    # Only the main thread may set handlers.
    numbers = [signal.SIGINT]
    if jax.process_count() == 1:
      numbers.append(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
      for number in numbers:
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)
