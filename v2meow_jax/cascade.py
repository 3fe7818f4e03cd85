"""A stage over a clip of any length, in windows of one shape.

A stage knows nothing longer than a crop of its training. A longer clip is made
in windows of that length: each continues from what the one before has made,
half a window by default. The fine stage adds detail to what the coarse tokens
fix: its windows stand alone, so several run at once. The last window ends with
the clip, and makes only what is left.

Lengths and places are counted in units of 1 / `grid_hz` seconds: every stream
of the system has a position at each.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import fractions
import math
from typing import Any, NamedTuple

import flax.errors
import jax
import numpy as np

from v2meow_jax import controls as controls_lib
from v2meow_jax import errors
from v2meow_jax import guidance
from v2meow_jax import sampling
from v2meow_jax import stages


@dataclasses.dataclass(frozen=True)
class Window:
  """What one call of a stage makes.

  Attributes:
    start: where the window begins in the clip.
    first: how much of it is made already: its prompt.
    stop: how far to make it.
  """

  start: int
  first: int
  stop: int


def next_window(
  made: int, heard: int, has_ended: bool, length: int, overlap: int, until: int
) -> Window | None:
  """The window that goes on from what is made.

  What windows there are follows from the clip's length alone, and not from when
  its inputs came: a clip that is read while it is made gets the same music.

  Args:
    made: how far the stage has made the clip.
    heard: how far its inputs reach.
    has_ended: whether they end there.
    length: of a window.
    overlap: how much of a window the one before has made; 0 where windows
      stand alone.
    until: how far to make it.

  Returns:
    The window; None where all is made or the inputs have yet to come.
  """
  start = max(0, made - overlap)
  if made >= until:
    return None
  if heard < start + length:
    if not has_ended:
      return None
    # The last one sees as much as any other.
    start = max(0, heard - length)
  return Window(start, made - start, min(start + length, heard, until) - start)


def window_lengths(
  stage: stages.Stage, grid_hz: fractions.Fraction, overlap: float
) -> tuple[int, int]:
  """Length of a stage's windows, and how much the one before has made.

  Args:
    stage: the stage.
    grid_hz: rate of the times at which windows may start.
    overlap: part of a window that continues the one before.
  """
  length = round(stage.seconds * grid_hz)
  if stage.name == 'fine':
    return length, 0
  return length, min(round(overlap * length), length - 1)


class Request(NamedTuple):
  """One row of a call: a window of a clip.

  Attributes:
    inputs: per stream, as `StageModel.decode` takes them, without a batch.
    masks: the same.
    prompt: int32 `[times of a window, levels]`; read up to `Window.first`.
    seed: of the clip.
    start_frame: time of the window's first position in the clip.
    negative: float32 `[features]`, style to go away from, or None.
  """

  inputs: Mapping[str, np.ndarray]
  masks: Mapping[str, np.ndarray]
  prompt: np.ndarray
  seed: int
  start_frame: int
  negative: np.ndarray | None = None


class Settings(NamedTuple):
  """What all windows of a call share.

  Attributes:
    options: of sampling.
    visual: weight of guidance by the picture; None for no guidance.
    style: the same of the style.
    has_negative: whether there is a style to go away from.
  """

  options: sampling.Options
  visual: float | None = None
  style: float | None = None
  has_negative: bool = False


def make_settings(model: Any, controls: controls_lib.Controls) -> Settings:
  """What a user's choices are for a stage.

  Args:
    model: the stage's `models.StageModel`.
    controls: the choices; the model's own where there are none.

  Raises:
    ValueError: an option of sampling is out of its range.
  """
  stage = model.stage
  names = ('temperature', 'top_k', 'top_p')
  given = {name: getattr(controls, name) for name in names}
  options = model.options._replace(
    # By place, as a system may lack a stage.
    **{k: v[stage.index] for k, v in given.items() if v is not None}
  )
  sampling.validate(options)
  weights = guidance.make(controls.visual_guidance, controls.style_guidance)
  guided = weights or guidance.Guidance()
  style = guided.style if stage.style_names else None
  return Settings(
    options,
    guided.visual if stage.visual_names else None,
    style,
    style is not None and controls.negative_text is not None,
  )


class StageRunner:
  """The compiled program of one stage, and how it goes through a clip.

  Attributes:
    model: the stage's `models.StageModel`.
    grid_hz: rate of the times at which windows may start.
    window: length of a window.
    overlap: how much of a window the one before has made.
    rows: windows that one call makes, of one clip or of many. Always the same
      number, so that the numbers of a clip do not depend on what is made with
      it; what is too many is thrown away.
    per_unit: positions of the target in a unit.
  """

  def __init__(
    self,
    model: Any,
    params: Mapping[str, Any],
    grid_hz: fractions.Fraction,
    overlap: float,
    rows: int = 1,
    devices: Sequence[Any] | None = None,
  ):
    """Takes a stage with its weights.

    Args:
      model: the stage's `models.StageModel`.
      params: its parameters.
      grid_hz: see above.
      overlap: part of a window that continues the one before.
      rows: see above.
      devices: that make windows side by side, each with all weights; the first
        by default.
    """
    stage = model.stage
    self.model = model
    self.grid_hz = grid_hz
    self.window, self.overlap = window_lengths(stage, grid_hz, overlap)
    self.rows = rows
    self.per_unit = round(stage.target.spec.rate_hz / grid_hz)
    devices = devices or jax.devices()[:1]
    self._params = [jax.device_put(params, device) for device in devices]
    self._decode = jax.jit(model.decode)

  @property
  def name(self) -> str:
    """Name of the stage."""
    return self.model.stage.name

  def compile(self, settings: Settings) -> None:
    """Compiles ahead; `run` then finds it compiled.

    Args:
      settings: of which the numbers do not matter.

    Raises:
      UserError: the weights do not fit the network.
    """
    views = self.model.stage.inputs
    nothing = {
      view.name: np.zeros((0, _width(view)), _dtype(view))
      for view in views
      if view.spec.is_timed
    }
    request = self.request(nothing, None, Window(0, 0, self.window), 0)
    if settings.has_negative:
      (name,) = self.model.stage.style_names
      request = request._replace(negative=request.inputs[name])
    try:
      self.run([request], Window(0, 0, 1), settings)
    except (flax.errors.FlaxError, KeyError) as error:
      raise errors.UserError(
        f'The weights of stage `{self.name}` do not fit its network '
        f'({str(error).splitlines()[0]}), expected those that the gin file '
        'describes. Pack the model again.'
      ) from error

  def request(
    self,
    streams: Mapping[str, np.ndarray],
    made: np.ndarray | None,
    window: Window,
    seed: int,
  ) -> Request:
    """Cuts what a window needs of a clip.

    Args:
      streams: inputs by name, float32 `[time, features]`, int32 `[time,
        levels]` or once per clip float32 `[features]`. A stream that is once
        per clip may be missing; what a timed one lacks at its end is padding.
      made: int32 `[time, levels]`, what the stage has made.
      window: which.
      seed: of the clip.
    """
    inputs, masks = cut(self.model.stage, streams, window.start, self.grid_hz)
    target = self.model.stage.target
    prompt = np.zeros((self.window * self.per_unit, target.num_levels), 'i4')
    start = window.start * self.per_unit
    length = window.first * self.per_unit
    if length:
      prompt[:length] = made[start : start + length]
    return Request(inputs, masks, prompt, seed, start)

  def run(
    self,
    requests: Sequence[Request],
    window: Window,
    settings: Settings,
    device: int = 0,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Makes windows with the same `first` and `stop`.

    Args:
      requests: one for each window, up to `rows`.
      window: their `first` and `stop`.
      settings: of all of them.
      device: which of the devices.

    Returns:
      int32 codes `[requests, time, levels]` of the positions from `first` to
      `stop`, and the log-likelihood of each, float32.
    """
    filled = [*requests, *requests[-1:] * (self.rows - len(requests))]
    stack = lambda parts: {
      name: np.stack([part[name] for part in parts]) for name in parts[0]
    }
    first, stop = (x * self.per_unit for x in (window.first, window.stop))
    # Arrays, so that another number is not compiled for anew.
    options = sampling.Options(
      np.float32(settings.options.temperature),
      np.int32(settings.options.top_k),
      np.float32(settings.options.top_p),
    )
    guide = guidance.Guidance(
      *(None if x is None else np.float32(x) for x in settings[1:3]),
      np.stack([request.negative for request in filled])
      if settings.has_negative
      else None,
    )
    codes, scores = self._decode(
      self._params[device],
      stack([request.inputs for request in filled]),
      stack([request.masks for request in filled]),
      np.stack([request.prompt for request in filled]),
      np.array([request.seed for request in filled], np.uint32),
      np.array([request.start_frame for request in filled], np.int32),
      options,
      guide,
      np.int32(first),
      np.int32(stop),
    )
    count = len(requests)
    return (
      np.asarray(codes)[:count, first:stop],
      np.asarray(scores)[:count, first:stop],
    )


def cut(
  stage: stages.Stage,
  streams: Mapping[str, np.ndarray],
  start: int,
  grid_hz: fractions.Fraction,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Cuts the inputs of a window.

  Args:
    stage: which inputs, and how long a window is.
    streams: of the whole clip by name, see `StageRunner.request`.
    start: of the window.
    grid_hz: see `StageRunner`.

  Returns:
    Inputs and masks by name, as `StageModel.decode` takes them, without a
    batch.
  """
  inputs, masks = {}, {}
  for view in stage.inputs:
    spec = view.spec
    if not spec.is_timed:
      empty = np.zeros(spec.num_features, np.float32)
      inputs[view.name] = streams.get(view.name, empty)
      masks[view.name] = np.full(1, view.name in streams, np.int32)
      continue
    length = spec.length(stage.seconds)
    per_unit = round(spec.rate_hz / grid_hz)
    stream = streams[view.name][start * per_unit :][:length]
    if spec.is_discrete:
      last = view.first_level + view.num_levels
      stream = stream[:, view.first_level : last]
    room = length - len(stream)
    inputs[view.name] = np.pad(stream, ((0, room), (0, 0)))
    is_there = np.arange(length) < len(stream)
    masks[view.name] = np.repeat(is_there, view.num_levels).astype(np.int32)
  return inputs, masks


def _width(view: stages.View) -> int:
  return (
    view.spec.num_levels if view.spec.is_discrete else view.spec.num_features
  )


def _dtype(view: stages.View) -> type:
  return np.int32 if view.spec.is_discrete else np.float32


def common_rate(rates: Iterable[fractions.Fraction]) -> fractions.Fraction:
  """The largest rate that divides all of `rates`."""
  rates = list(rates)
  denominator = math.lcm(*(rate.denominator for rate in rates))
  numerator = math.gcd(*(int(rate * denominator) for rate in rates))
  return fractions.Fraction(numerator, denominator)
