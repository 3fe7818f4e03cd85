"""What moves in a scene: five kinds of pictures, all on the beat.

A painter draws one frame of a shot: `painter(canvas, shot, moment)`. What it
moves, it moves most just after a beat, and most of all after the first of a
bar, by more where there is more energy.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from v2meow_jax.toy import canvas as canvas_lib


def _corners(count: int, inner: float = 1.0) -> np.ndarray:
  """Corners of a regular polygon, or of a star, complex `[corners]`."""
  angles = 2j * np.pi * np.arange(count) / count
  return np.exp(angles) * np.where(np.arange(count) % 2, inner, 1.0)


# In the plane of complex numbers a factor turns and stretches.
_POLYGONS = {
  'square': _corners(4),
  'triangle': _corners(3),
  'hexagon': _corners(6),
  'star': _corners(10, 0.45),
}
_RIBBON = np.linspace(-1, 1, 16)
_HILLS = np.linspace(-1.2, 1.2, 24)
_SIDES = np.array([-1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Moment:
  """The clock of one frame.

  Attributes:
    seconds: since the start of the clip.
    beat: beats since the start of bar 0.
    number: whole beats since the start of the shot, from 0.
    eased: 0 on the beat, close to 1 before the next: fast first.
    pulse: jumps on the beat, then fades; more on the first beat of a bar.
    energy: of the section, `[0, 1]`.
    strength: how far things move, grows with the energy.
  """

  seconds: float
  beat: float
  number: int
  eased: float
  pulse: float
  energy: float
  strength: float


@dataclasses.dataclass(frozen=True)
class Shot:
  """What is seen between two cuts.

  Attributes:
    painter: name of what paints it, one of `PAINTERS`.
    movement: `hop`, `step`, `swing` or `swell`.
    shape: `disc`, `ring`, `square`, `triangle`, `hexagon`, `star`, `ribbon`.
    outline: thickness of the lines of the shapes; 0 fills them.
    places: float `[objects, 2]`, where the objects are.
    sizes: float `[objects]`, their radii.
    turns: float `[objects]`, their angles and phases in radians.
    targets: float `[beats, objects, 2]` in `[-1, 1]`, where they go next.
    colors: one for each object.
  """

  painter: str
  movement: str
  shape: str
  outline: float
  places: np.ndarray
  sizes: np.ndarray
  turns: np.ndarray
  targets: np.ndarray
  colors: tuple[canvas_lib.Color, ...]


def _between(shot: Shot, moment: Moment) -> np.ndarray:
  """Where the objects are between two targets, float `[objects, 2]`."""
  # A shot that lasts longer than its targets goes through them again.
  last = shot.targets[moment.number % len(shot.targets)]
  following = shot.targets[(moment.number + 1) % len(shot.targets)]
  return last + moment.eased * (following - last)


def _move(shot: Shot, moment: Moment) -> tuple[np.ndarray, np.ndarray]:
  """Places `[objects, 2]` and sizes `[objects]` of the objects of a shot."""
  places, sizes = shot.places, shot.sizes
  reach = moment.strength
  if shot.movement == 'hop':
    phase = moment.beat % 1.0
    height = 4 * phase * (1 - phase) * reach * 0.35
    places = places + np.array([0.0, 0.12]) - np.array([0.0, height])
    sizes = sizes * (1 + 0.5 * reach * moment.pulse)
  elif shot.movement == 'step':
    places = places + 0.22 * reach * _between(shot, moment)
    sizes = sizes * (1 + 0.3 * reach * moment.pulse)
  elif shot.movement == 'swing':
    # Fastest on the beat, at rest between two beats.
    angles = 1.2 * reach * np.sin(np.pi * moment.beat) + shot.turns
    places = places + 0.18 * np.stack([np.sin(angles), np.cos(angles)], -1)
    sizes = sizes * (1 + 0.4 * reach * moment.pulse)
  else:  # swell
    sizes = sizes * (0.8 + (0.2 + 0.8 * reach) * moment.pulse)
  return places, sizes


def _paint_shapes(canvas, shot: Shot, moment: Moment):
  """Shapes that hop, step, swing or swell."""
  places, sizes = _move(shot, moment)
  spin = 0.5 * moment.strength * (moment.number + moment.eased)
  for place, size, turn, color in zip(
    places, sizes, shot.turns, shot.colors, strict=True
  ):
    _paint_shape(canvas, shot, place, size, turn + spin, color)


def _paint_shape(canvas, shot, place, size, turn, color, outline=None):
  outline = shot.outline if outline is None else outline
  if shot.shape in ('disc', 'ring'):
    if shot.shape == 'ring':
      outline = 0.35 * size
    canvas.disc(place[0], place[1], size, color, outline)
  elif shot.shape == 'ribbon':
    line = np.empty((1, len(_RIBBON), 2))
    line[0, :, 0] = _RIBBON
    line[0, :, 1] = np.sin(3 * _RIBBON + turn) * size + place[1]
    canvas.lines(line, color, 0.25 * size + 0.02)
  else:
    corners = _POLYGONS[shot.shape] * (size * np.exp(1j * turn))
    points = corners + complex(place[0], place[1])
    canvas.polygon(points.view(float).reshape(-1, 2), color, outline)


def _paint_dancers(canvas, shot: Shot, moment: Moment):
  """Figures that take a new pose on every beat."""
  figures = max(1, min(4, len(shot.places) // 2))
  poses = _between(shot, moment) * (0.15 + 0.85 * moment.strength)
  height = 0.75 - 0.08 * figures
  dip = (0.03 + 0.1 * moment.strength) * moment.pulse * height
  foot = 0.45
  # Lines of three points: trunk, arms, legs.
  limbs = np.empty((5, 3, 2))
  for figure in range(figures):
    sway, left = poses[figure % len(poses)]
    lean, right = poses[(figure + 1) % len(poses)]
    raised = np.array([left, right])
    x = ((figure + 0.5) / figures - 0.5) * canvas.aspect * 0.9
    hip = (x + 0.08 * sway, foot - 0.45 * height + dip)
    neck = (hip[0] + 0.12 * height * lean, hip[1] - 0.32 * height)
    limbs[0, :2], limbs[0, 2] = hip, neck
    limbs[1:3, 0], limbs[3:, 0] = neck, hip
    limbs[1:3, 1, 0] = neck[0] + 0.16 * height * _SIDES
    limbs[1:3, 1, 1] = neck[1] + height * (0.12 - 0.2 * raised)
    limbs[1:3, 2, 0] = limbs[1:3, 1, 0] + 0.12 * height * _SIDES
    limbs[1:3, 2, 1] = limbs[1:3, 1, 1] - 0.2 * height * raised
    limbs[3:, 1, 0] = hip[0] + 0.1 * height * _SIDES
    limbs[3:, 1, 1] = hip[1] + 0.22 * height - 0.5 * dip
    limbs[3:, 2, 0] = hip[0] + height * _SIDES * (0.14 + 0.1 * abs(raised))
    limbs[3:, 2, 1] = foot
    color = shot.colors[figure % len(shot.colors)]
    canvas.lines(limbs, color, 0.07 * height)
    canvas.disc(neck[0], neck[1] - 0.1 * height, 0.09 * height, color)


def _paint_bars(canvas, shot: Shot, moment: Moment):
  """A row of columns, as of an equaliser, keys or a skyline."""
  columns = 6 + 2 * len(shot.places)
  levels = np.resize(_between(shot, moment), columns)
  heights = 0.25 + 0.18 * levels * (0.2 + 0.8 * moment.strength)
  heights += 0.22 * (0.2 + 0.8 * moment.strength) * moment.pulse
  width = canvas.aspect / columns
  lefts = width * np.arange(columns) - canvas.aspect / 2
  gap = 0.85 * width
  boxes = np.empty((columns, 4, 2))
  boxes[:, :2, 0] = lefts[:, None]
  boxes[:, 2:, 0] = lefts[:, None] + gap
  boxes[:, 1:3, 1] = 0.5 - heights[:, None]
  boxes[:, ::3, 1] = 0.6
  for column in range(columns):
    color = shot.colors[column % len(shot.colors)]
    canvas.polygon(boxes[column], color, shot.outline)


def _paint_rings(canvas, shot: Shot, moment: Moment):
  """A tunnel of shapes within shapes that jumps outwards on the beat.

  Every ring takes the place and colour of the next one, so it never ends.
  """
  count = 4 + len(shot.places)
  spread = 0.9 / count
  centre = 0.15 * shot.places[0] + 0.05 * moment.strength * _between(
    shot, moment
  ).mean(0)
  if shot.shape == 'ribbon':
    shot = dataclasses.replace(shot, shape='hexagon')
  turn = shot.turns[0] + 0.1 * moment.beat * moment.strength
  for ring in range(count, -1, -1):
    radius = (
      spread
      * (ring + moment.eased)
      * (1 + 0.25 * moment.strength * moment.pulse)
      + 0.01
    )
    color = shot.colors[(ring - moment.number) % len(shot.colors)]
    _paint_shape(canvas, shot, centre, radius, turn, color, 0.4 * spread)


def _paint_country(canvas, shot: Shot, moment: Moment):
  """Hills that pass by under a sun that pulses; things hop along the road."""
  drift = (0.02 + 0.25 * moment.strength) * moment.seconds
  jump = 0.05 * moment.strength * (moment.number + moment.eased)
  radius = 0.1 * (1 + (0.2 + 0.8 * moment.strength) * moment.pulse)
  canvas.disc(0.5 * shot.places[0][0], -0.22, radius, shot.colors[0])
  hill = np.empty((len(_HILLS) + 2, 2))
  hill[:-2, 0] = _HILLS
  hill[-2:] = [[1.2, 0.7], [-1.2, 0.7]]
  for layer in range(3):
    phase = (3 - layer) * (_HILLS + (1 + layer) * (drift + jump))
    phase += shot.turns[layer % len(shot.turns)]
    hill[:-2, 1] = 0.07 * np.sin(2 * phase) + 0.04 * np.sin(5 * phase)
    hill[:-2, 1] += 0.02 + 0.13 * layer + 0.03 * moment.pulse * (layer - 1)
    canvas.polygon(hill, shot.colors[(layer + 1) % len(shot.colors)])
  places, sizes = _move(dataclasses.replace(shot, movement='hop'), moment)
  for index in range(min(3, len(places))):
    place = (places[index][0], 0.18 + 0.28 * places[index][1])
    color = shot.colors[-1 - index % len(shot.colors)]
    _paint_shape(
      canvas, shot, place, 0.8 * sizes[index], shot.turns[index], color
    )


PAINTERS = {
  'shapes': _paint_shapes,
  'dancers': _paint_dancers,
  'bars': _paint_bars,
  'rings': _paint_rings,
  'country': _paint_country,
}
