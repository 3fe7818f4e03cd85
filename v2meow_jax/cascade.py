"""The stages over a clip of any length, in windows of one shape.

A stage knows nothing longer than a crop of its training. A longer clip is made
in windows of that length: each continues from what the one before has made,
half a window by default. The fine stage adds detail to what the coarse tokens
fix: its windows stand alone, so several run at once. The last window ends with
the clip and only a clip shorter than a window is padded, so that nothing is
compiled for one clip's length.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import fractions
import math
from typing import Any

import flax.errors
import jax
import numpy as np

from v2meow_jax import errors
from v2meow_jax import sampling
from v2meow_jax import stages

# Windows of the fine stage that are decoded together: four of 3 s cover a clip
# of 10 s.
FINE_BATCH = 4


class StageRunner:
  """Runs one stage. Lengths are counted in units of 1 / `grid_hz` seconds.

  Attributes:
    model: the stage's `models.StageModel`.
    grid_hz: rate of the times at which windows may start: every stream of the
      system has a position there.
    window: length of a window.
    overlap: how much of a window the one before has made; 0 where windows
      stand alone.
    batch_size: windows that are decoded together.
  """

  def __init__(
    self,
    model: Any,
    params: Mapping[str, Any],
    grid_hz: fractions.Fraction,
    overlap: float,
  ):
    """Takes a stage with its weights.

    Args:
      model: the stage's `models.StageModel`.
      params: its parameters.
      grid_hz: see above.
      overlap: part of a window that continues the one before.
    """
    stage = model.stage
    self.model = model
    self.grid_hz = grid_hz
    self.window = round(stage.seconds * grid_hz)
    self.overlap, self.batch_size = 0, FINE_BATCH
    if stage.name != 'fine':
      self.overlap = min(round(overlap * self.window), self.window - 1)
      self.batch_size = 1
    self._params = jax.device_put(params)
    self._decode = jax.jit(model.decode)
    self._per_unit = round(stage.target.spec.rate_hz / grid_hz)

  def prompts(self, total: int) -> list[int]:
    """The lengths of prompts, of which each is compiled for, in order."""
    is_long = self.overlap and total > self.window
    return [0, self.overlap] if is_long else [0]

  def compile(self, prompt: int) -> None:
    """Compiles for one length of prompt; `run` then finds it compiled.

    Raises:
      UserError: the weights do not fit the network.
    """
    stage = self.model.stage
    streams = {
      view.name: np.zeros((0, _width(view)), _dtype(view))
      for view in stage.inputs
      if view.spec.is_timed
    }
    codes = np.zeros((self.window * self._per_unit, stage.target.num_levels))
    starts = [0] * self.batch_size
    arguments = self._arguments(
      streams, codes.astype(np.int32), starts, prompt, 0, self.model.options
    )
    try:
      self._decode.lower(*arguments).compile()
    except (flax.errors.FlaxError, KeyError) as error:
      raise errors.UserError(
        f'The weights of stage `{stage.name}` do not fit its network '
        f'({str(error).splitlines()[0]}), expected those that the gin file '
        'describes. Pack the model again.'
      ) from error

  def run(
    self,
    streams: Mapping[str, np.ndarray],
    total: int,
    seed: int,
    options: sampling.Options,
    progress: Callable[[float], None] = lambda seconds: None,
  ) -> np.ndarray:
    """Makes the stage's tokens for a whole clip.

    Args:
      streams: inputs by name, float32 `[time, features]`, int32 `[time,
        levels]` or once per clip float32 `[features]`. A stream that is once
        per clip may be missing; what a timed one lacks at its end is padding.
      total: length of the clip.
      seed: of the clip.
      options: of sampling.
      progress: is told the seconds that are done.

    Returns:
      int32 `[time, levels]`.
    """
    window = self.window * self._per_unit
    codes = np.zeros(
      (
        max(total * self._per_unit, window),
        self.model.stage.target.num_levels,
      ),
      np.int32,
    )
    starts = window_starts(total, self.window, self.window - self.overlap)
    for first in range(0, len(starts), self.batch_size):
      batch = starts[first : first + self.batch_size]
      # Filled up to the same shape; what is too much is thrown away.
      filled = batch + batch[-1:] * (self.batch_size - len(batch))
      prompt = self.overlap if first else 0
      made = self._decode(
        *self._arguments(streams, codes, filled, prompt, seed, options)
      )
      for start, part in zip(batch, np.asarray(made)):
        codes[start * self._per_unit :][:window] = part
      done = min(batch[-1] + self.window, total)
      progress(float(done / self.grid_hz))
    return codes[: total * self._per_unit]

  def _arguments(self, streams, codes, starts, prompt, seed, options) -> tuple:
    """Arguments of `StageModel.decode` for windows that start at `starts`."""
    inputs, masks = _cut(self.model.stage, streams, starts, self.grid_hz)
    times = [start * self._per_unit for start in starts]
    length = prompt * self._per_unit
    return (
      self._params,
      inputs,
      masks,
      np.stack([codes[time : time + length] for time in times]),
      np.full(len(starts), seed, np.uint32),
      np.array(times, np.int32),
      # Arrays, so that another number is not compiled for anew.
      sampling.Options(
        np.float32(options.temperature),
        np.int32(options.top_k),
        np.float32(options.top_p),
      ),
    )


def _width(view: stages.View) -> int:
  return view.num_levels if view.spec.is_discrete else view.spec.num_features


def _dtype(view: stages.View) -> type:
  return np.int32 if view.spec.is_discrete else np.float32


def _cut(
  stage: stages.Stage,
  streams: Mapping[str, np.ndarray],
  starts: Sequence[int],
  grid_hz: fractions.Fraction,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Cuts the inputs of windows.

  Args:
    stage: which inputs, and how long a window is.
    streams: whole streams by name, see `StageRunner.run`.
    starts: of the windows, in units of 1 / `grid_hz`.
    grid_hz: see `StageRunner`.

  Returns:
    Inputs and masks by name, as `StageModel.decode` takes them.
  """
  inputs, masks = {}, {}
  for view in stage.inputs:
    if not view.spec.is_timed:
      shape = (len(starts), view.spec.num_features)
      row = streams.get(view.name, np.zeros(1, np.float32))
      inputs[view.name] = np.broadcast_to(row, shape)
      masks[view.name] = np.full((len(starts), 1), view.name in streams)
      continue
    length = view.spec.length(stage.seconds)
    per_unit = round(view.spec.rate_hz / grid_hz)
    stream = streams[view.name]
    if view.spec.is_discrete:
      last = view.first_level + view.num_levels
      stream = stream[:, view.first_level : last]
    cuts = [stream[start * per_unit :][:length] for start in starts]
    inputs[view.name] = np.stack(
      [np.pad(cut, ((0, length - len(cut)), (0, 0))) for cut in cuts]
    )
    masks[view.name] = np.stack(
      [np.repeat(np.arange(length) < len(cut), view.num_levels) for cut in cuts]
    )
  return inputs, {name: mask.astype(np.int32) for name, mask in masks.items()}


def window_starts(total: int, window: int, hop: int) -> list[int]:
  """Starts of the windows that cover a clip.

  Windows follow one another by `hop`. The last one ends with the clip, so it
  may overlap the one before by more.

  Args:
    total: length of the clip.
    window: length of a window.
    hop: from one window to the next.
  """
  last = max(0, total - window)
  return [*range(0, last, hop), last]


def common_rate(rates: Iterable[fractions.Fraction]) -> fractions.Fraction:
  """The largest rate that divides all of `rates`."""
  rates = list(rates)
  denominator = math.lcm(*(rate.denominator for rate in rates))
  numerator = math.gcd(*(int(rate * denominator) for rate in rates))
  return fractions.Fraction(numerator, denominator)
