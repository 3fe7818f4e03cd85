"""Progress and timings of generation."""

from collections.abc import Callable
import sys
import threading
import time

import tqdm

from v2meow_jax import generate
from v2meow_jax import outputs


class Bar:
  """Progress over all pieces, with the time left; only on a terminal."""

  # About how the time is spent.
  _SHARES = (0.15, 0.1, 0.35, 0.35, 0.05)

  def __init__(self, total: int):
    self._parts, self._phases = {}, {}
    self._total, self._num_done, self._num_failed = total, 0, 0
    self._lock = threading.Lock()
    self._bar = tqdm.tqdm(
      total=total,
      disable=not sys.stderr.isatty(),
      leave=False,
      bar_format='{desc} {percentage:3.0f} %|{bar}| {elapsed} + {remaining}',
    )

  def tell(
    self, piece: outputs.Piece, total: float, phase: str, seconds: float
  ) -> None:
    """Notes how far a piece is: `seconds` of `total` through a phase."""
    # Phases run side by side.
    with self._lock:
      phases = self._phases.setdefault(piece, {})
      phases[phase] = min(1.0, seconds / max(total, 1e-3))
      part = sum(
        share * phases.get(name, 0.0)
        for name, share in zip(generate.PHASES, self._SHARES)
      )
    self._set(piece, part)

  def name(self, piece: outputs.Piece) -> None:
    """Shows which piece is made."""
    text = piece.paths[0].name
    if self._total > 1:
      text += f' {self._num_done}/{self._total}'
    if self._num_failed:
      text += f', {self._num_failed} failed'
    self._bar.set_description_str(text)

  def end(self, piece: outputs.Piece, has_failed: bool) -> None:
    """Counts a piece."""
    with self._lock:
      self._num_done += 1
      self._num_failed += has_failed
    self._set(piece, 1.0)

  def leave_out(self) -> None:
    """Counts a piece that takes no time, which is no measure for others."""
    with self._lock:
      self._num_done += 1
      self._bar.total -= 1

  def _set(self, piece: outputs.Piece, part: float) -> None:
    with self._lock:
      before = self._parts.get(piece, 0.0)
      if part > before:
        self._parts[piece] = part
        self._bar.update(part - before)

  def close(self) -> None:
    """Takes the bar away."""
    self._bar.close()


class Clock:
  """Measures the phases that it is told of, and tells them on.

  Attributes:
    seconds: of each phase by name.
  """

  def __init__(self, tell: Callable[[str, float], None]):
    self.seconds = {}
    self._tell = tell
    self._last = time.perf_counter()

  def __call__(self, phase: str, seconds: float) -> None:
    now = time.perf_counter()
    self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
    self._last = now
    self._tell(phase, seconds)
