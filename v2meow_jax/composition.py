"""A piece of music on its way through the stages.

Inputs come in as they are read, windows go out to be made and their tokens come
back: what can be made next follows from what there is. A piece knows nothing of
threads or devices; `scheduler.py` runs it.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from v2meow_jax import cascade
from v2meow_jax import scoring


class Job(NamedTuple):
  """A window to be made.

  Attributes:
    index: of the stage.
    window: which.
    request: its inputs.
  """

  index: int
  window: cascade.Window
  request: cascade.Request


class Track:
  """An array that grows along time, at its end."""

  def __init__(self, width: int, dtype: Any):
    self._room = np.zeros((256, width), dtype)
    self._length = 0

  def __len__(self) -> int:
    return self._length

  @property
  def values(self) -> np.ndarray:
    """What there is, `[time, width]`."""
    return self._room[: self._length]

  def extend(self, values: np.ndarray) -> None:
    """Adds `[time, width]`."""
    self.grow(self._length + len(values))
    self.values[len(self) - len(values) :] = values

  def grow(self, length: int) -> None:
    """Adds zeros up to `length`."""
    if length > len(self._room):
      room = np.zeros((max(length, 2 * len(self._room)), *self._room.shape[1:]))
      room = room.astype(self._room.dtype)
      room[: self._length] = self.values
      self._room = room
    self._length = max(self._length, length)


class _Progress:
  """How far a stage has come, in units.

  Attributes:
    issued: up to where windows have been given out.
    made: up to where all is made.
  """

  def __init__(self, made: int):
    self.issued = self.made = made
    self._islands = {}

  def add(self, start: int, stop: int) -> None:
    """Notes that `start` to `stop` is made, in any order."""
    self._islands[start] = stop
    while self.made in self._islands:
      self.made = self._islands.pop(self.made)


class Composition:
  """One piece.

  Attributes:
    seed: of the piece.
    seconds: its length; None until it is known.
    total: the same in units, rounded up.
    grid_hz: units in a second.
    likelihood: `scoring.Likelihood` of what the stages have made.
    num_stages: how many of the stages make it now.
    error: what went wrong, or None.
  """

  def __init__(
    self,
    runners: Sequence[cascade.StageRunner],
    settings: Sequence[cascade.Settings],
    seed: int,
    visual: Sequence[Any],
    once: Mapping[str, np.ndarray],
    negative: np.ndarray | None = None,
    tokens: Mapping[str, np.ndarray] | None = None,
    start: int = 0,
    until: int | None = None,
  ):
    """Begins a piece.

    Args:
      runners: of the stages.
      settings: of each stage.
      seed: of the piece.
      visual: `streams.StreamSpec` of each visual stream that will come.
      once: float32 `[features]` of the streams that are once per clip.
      negative: float32 `[features]`, style to go away from, or None.
      tokens: int32 `[time, levels]` of each discrete stream by name, of which
        the piece keeps what lies before `start` and from `until` on.
      start: where to begin to make, in units.
      until: where to end; None for the end of the clip.
    """
    self.seed = seed
    self.seconds = None
    self.total = None
    self.error = None
    self._runners = runners
    self._settings = settings
    self._negative = negative
    self._once = dict(once)
    self.grid_hz = runners[0].grid_hz
    self._visual = {
      spec.name: Track(spec.num_features or spec.num_levels, _dtype(spec))
      for spec in visual
    }
    self.likelihood = scoring.Likelihood()
    self.num_stages = len(runners)
    self._codes, self._progress = {}, {}
    for runner in runners:
      spec = runner.model.stage.target.spec
      view = runner.model.stage.target
      num_levels = view.first_level + view.num_levels
      self._codes[spec.name] = Track(num_levels, np.int32)
      self._progress[runner.name] = _Progress(start)
    for name, codes in (tokens or {}).items():
      track = self._codes[name]
      track.extend(codes[:, : track.values.shape[1]])
    self._start, self._until = start, until

  def feed(self, name: str, features: np.ndarray) -> None:
    """Adds `[time, width]` to the end of a visual stream."""
    self._visual[name].extend(features)

  def finish(self, seconds: float) -> None:
    """Says that the picture has ended after so many seconds."""
    self.seconds = seconds
    self.total = math.ceil(seconds * self.grid_hz - 1e-6)

  def fail(self, error: BaseException) -> None:
    """Ends the piece: who waits for it gets the error."""
    self.error = error

  @property
  def end(self) -> int | None:
    """Up to where the piece is made; None until it is known."""
    return self.total if self._until is None else self._until

  @property
  def made(self) -> int:
    """Up to where all stages that make it have made it."""
    rows = list(self._progress.values())[: self.num_stages]
    return min(progress.made for progress in rows)

  @property
  def is_done(self) -> bool:
    """Whether they have made all of it."""
    return self.end is not None and self.made >= self.end

  @property
  def reached(self) -> dict[str, int]:
    """Up to where each stage has made it, by name."""
    return {name: row.made for name, row in self._progress.items()}

  def last_codes(self, start: int, stop: int) -> np.ndarray:
    """What the stages have made for the codec, from one unit to another.

    Returns:
      int32 `[time, levels]`.
    """
    runner = self._runners[-1]
    codes = self._codes[runner.model.stage.target.name].values
    return codes[start * runner.per_unit : stop * runner.per_unit]

  @property
  def tokens(self) -> dict[str, np.ndarray]:
    """int32 `[time, levels]` of each discrete stream by name."""
    return {name: track.values for name, track in self._codes.items()}

  def settings(self, index: int) -> cascade.Settings:
    """How stage `index` samples."""
    return self._settings[index]

  def next_window(self, index: int) -> cascade.Window | None:
    """A window of stage `index` that can be made now and has not been taken."""
    if index >= self.num_stages:
      return None
    runner = self._runners[index]
    progress = self._progress[runner.name]
    heard, has_ended = self._inputs_reach(runner)
    window = cascade.next_window(
      progress.issued,
      heard,
      has_ended,
      runner.window,
      runner.overlap,
      heard if self.end is None else self.end,
    )
    # Its prompt may still be in the making.
    is_early = progress.made < progress.issued
    return None if window and window.first and is_early else window

  def take(self, index: int) -> Job:
    """Gives `next_window` out to be made."""
    runner = self._runners[index]
    window = self.next_window(index)
    self._progress[runner.name].issued = window.start + window.stop
    heard, _ = self._inputs_reach(runner)
    streams = self._once | {
      name: track.values for name, track in self._visual.items()
    }
    for view in runner.model.stage.inputs:
      if view.name in self._codes:
        # Levels that some stage has yet to make are not there.
        length = heard * round(view.spec.rate_hz / self.grid_hz)
        streams[view.name] = self._codes[view.name].values[:length]
    target = runner.model.stage.target
    made = self._codes[target.name].values[:, _levels(target)]
    request = runner.request(streams, made, window, self.seed)
    if self._settings[index].has_negative:
      request = request._replace(negative=self._negative)
    return Job(index, window, request)

  def put(self, job: Job, codes: np.ndarray, scores: np.ndarray) -> None:
    """Takes what was made.

    Args:
      job: which.
      codes: int32 `[time, levels]`, from `first` to `stop` of its window.
      scores: float32, the log-likelihood of each.
    """
    runner = self._runners[job.index]
    target = runner.model.stage.target
    start = (job.window.start + job.window.first) * runner.per_unit
    stop = (job.window.start + job.window.stop) * runner.per_unit
    track = self._codes[target.name]
    track.grow(stop)
    track.values[start:stop, _levels(target)] = codes
    self.likelihood.add(runner.name, scores)
    self._progress[runner.name].add(
      start // runner.per_unit, stop // runner.per_unit
    )

  def _inputs_reach(self, runner: cascade.StageRunner) -> tuple[int, bool]:
    """Up to where all inputs of a stage have come, and whether that is all."""
    reach = []
    for view in runner.model.stage.inputs:
      if view.name in self._visual:
        reach.append(self._seen(view.spec))
      elif view.name in self._codes:
        reach.append(self._heard(view))
    if self.total is None:
      return min(reach), False
    heard = min(self.total, *reach)
    return heard, heard >= self.total

  def _seen(self, spec: Any) -> int:
    """Up to where a visual stream has come."""
    if self.total is not None:
      return self.total  # what a stream lacks at its end is padding
    per_unit = round(spec.rate_hz / self.grid_hz)
    # The last frame may last less than a unit.
    return max(0, len(self._visual[spec.name]) - 1) // per_unit

  def _heard(self, view: Any) -> int:
    """Up to where the stages have made the levels that a stage sees."""
    last = view.first_level + view.num_levels
    made = []
    for runner in self._runners:
      target = runner.model.stage.target
      if target.name == view.name and target.first_level < last:
        made.append(self._progress[runner.name].made)
    reach = min(made)
    if self.end is not None and reach >= self.end:
      return self.total  # behind `until` is what was there before
    return reach


def _levels(view: Any) -> slice:
  return slice(view.first_level, view.first_level + view.num_levels)


def _dtype(spec: Any) -> type:
  return np.int32 if spec.is_discrete else np.float32
