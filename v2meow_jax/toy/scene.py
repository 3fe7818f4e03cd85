"""Draws the scene of a clip on the same clock as its music.

What the picture shows of the attributes:

* tempo: things move, swell and flash on every beat, most on the first of a bar;
* mode: major is warm, bright and saturated, minor cool, dark and pale, with
  much variation and some overlap;
* energy: how far things move, how many there are, contrast, cuts at bars;
* style: the kind of shapes and the texture behind them;
* sections: a cut to another scene.

Everything else varies from clip to clip: kind of scene, camera, noise, blur,
vignette, letterbox, colours, and which of the movements are there at all.
"""

from __future__ import annotations

import colorsys
import dataclasses
import math

import cv2
import numpy as np

from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import canvas as canvas_lib
from v2meow_jax.toy import painters

_EASE_SECONDS = 0.1
_PULSE_SECONDS = 0.16
_NUM_NOISES = 8
_MAX_OBJECTS = 9
# Bars between cuts by energy; below the last there are cuts at sections only.
_CUT_BARS = ((0.8, 1), (0.55, 2), (0.35, 4))


@dataclasses.dataclass(frozen=True)
class _Look:
  """What a style looks like.

  Attributes:
    shapes: kinds of shapes.
    outline: thickness of their lines; 0 fills them.
    textures: kinds of what is behind them.
    size: factor of the size of the shapes.
    painters: how often each of `PAINTERS` is chosen.
    saturation: factor of the saturation.
    accent: hue of every third shape, in degrees from the hue of the clip.
    front: what is added to the brightness of the shapes.
  """

  shapes: tuple[str, ...]
  outline: float
  textures: tuple[str, ...]
  size: float
  painters: tuple[float, float, float, float, float]
  saturation: float = 1.0
  accent: float = 0.0
  front: float = 0.0


_LOOKS = {
  'piano': _Look(
    ('disc', 'hexagon'), 0, ('smooth',), 1.3, (4, 2, 4, 1, 2), 0.6, front=0.1
  ),
  'electronic': _Look(
    ('square',), 0.02, ('grid',), 1.0, (4, 2, 3, 4, 1), 1.25, accent=120
  ),
  'orchestra': _Look(
    ('ribbon', 'disc'), 0, ('waves',), 1.5, (4, 2, 1, 1, 5), accent=20
  ),
  'rock': _Look(
    ('star', 'triangle'), 0, ('rough',), 1.2, (4, 4, 2, 2, 1), 0.9, front=-0.25
  ),
  'jazz': _Look(
    ('ring', 'disc'), 0.015, ('stripes',), 0.7, (5, 3, 2, 2, 1), accent=-60
  ),
}
# Mean and spread of hue (degrees), saturation, brightness behind and in front.
_PALETTES = {
  'major': ((42, 28), (0.62, 0.16), (0.6, 0.13), (0.88, 0.1)),
  'minor': ((228, 30), (0.46, 0.16), (0.28, 0.11), (0.58, 0.13)),
}
# Share of clips whose hue says nothing; brightness and saturation still do.
_ODD_HUES = 0.08
# Share of clips that are as pale as most real pictures.
_PALE = 0.35


@dataclasses.dataclass(frozen=True)
class _Film:
  """What stays the same throughout a clip, whatever is shown.

  Attributes:
    hue: degrees; saturation, behind, front: mean levels of the colours.
    contrast: of the texture, `[0, 1]`.
    flash: how much brighter the beats are.
    bump: how far the camera jumps on the beat.
    shake: how far the camera trembles from frame to frame, in heights.
    drift: float `[2]`, heights a second the camera wanders.
    pan: heights a second the texture passes by; 0 is a static background.
    noise: standard deviation of the grain, in grey levels.
    blur: standard deviation in picture heights.
    vignette: how much darker the corners are.
    bars: share of the height that is black, above and below each.
    waver: amplitude of a slow change of the light that follows no beat.
    has_cuts: whether there are cuts at bars, besides those at sections.
  """

  hue: float
  saturation: float
  behind: float
  front: float
  contrast: float
  flash: float
  bump: float
  shake: float
  drift: np.ndarray
  pan: float
  noise: float
  blur: float
  vignette: float
  bars: float
  waver: float
  has_cuts: bool


def _sample_film(attributes: attributes_lib.Attributes, rng) -> _Film:
  hue, saturation, behind, front = _PALETTES[attributes.mode]
  energy = attributes.energy

  def sometimes(chance: float, value: float) -> float:
    return value if rng.uniform() < chance else 0.0

  angle = rng.uniform(0, 2 * np.pi)
  base_hue = rng.normal(*hue)
  if rng.uniform() < _ODD_HUES:
    base_hue = rng.uniform(0, 360)
  base_saturation = rng.normal(*saturation)
  base_saturation *= _LOOKS[attributes.style].saturation
  if rng.uniform() < _PALE:
    base_saturation *= rng.uniform(0.3, 0.7)
  return _Film(
    hue=base_hue,
    saturation=base_saturation,
    behind=rng.normal(*behind),
    front=rng.normal(*front) + _LOOKS[attributes.style].front,
    contrast=float(np.clip(rng.normal(0.3 + 0.4 * energy, 0.08), 0.15, 0.85)),
    flash=rng.uniform(0.0, 0.06) + 0.3 * energy * rng.uniform(0.3, 1.0),
    bump=sometimes(0.6, rng.uniform(0.03, 0.06) * (0.2 + 1.2 * energy)),
    shake=sometimes(0.5, 0.012 * energy**2),
    drift=np.array([math.cos(angle), 0.4 * math.sin(angle)])
    * rng.uniform(0, 0.03),
    pan=sometimes(0.6, rng.uniform(0.02, 0.08) * (0.2 + 1.6 * energy)),
    noise=sometimes(0.6, rng.uniform(1.0, 7.0)),
    blur=sometimes(0.3, rng.uniform(0.008, 0.02)),
    vignette=sometimes(0.5, rng.uniform(0.2, 0.6)),
    bars=sometimes(0.15, rng.uniform(0.06, 0.14)),
    waver=sometimes(0.4, rng.uniform(0.02, 0.08)),
    has_cuts=rng.uniform() < 0.75,
  )


def _color(
  hue: float, saturation: float, brightness: float
) -> canvas_lib.Color:
  """RGB 0..255 of a hue in degrees, saturation and brightness in `[0, 1]`."""
  clipped = np.clip((saturation, brightness), 0.03, 1.0)
  rgb = colorsys.hsv_to_rgb((hue % 360) / 360, *clipped)
  return tuple(round(255 * part) for part in rgb)


def _shot_starts(
  attributes: attributes_lib.Attributes, has_cuts: bool
) -> list[int]:
  """Bars that start a shot, in order; bar 0 is one of them."""
  starts = []
  for section in attributes.sections:
    period = section.num_bars
    if has_cuts:
      for energy, bars in _CUT_BARS:
        if section.energy >= energy:
          period = bars
          break
    starts += range(
      section.first_bar, section.first_bar + section.num_bars, period
    )
  return starts


def _sample_shot(
  attributes: attributes_lib.Attributes,
  section: attributes_lib.Section,
  film: _Film,
  aspect: float,
  rng,
) -> painters.Shot:
  look = _LOOKS[attributes.style]
  names = tuple(painters.PAINTERS)
  chances = np.array(look.painters) / sum(look.painters)
  count = round(1 + section.energy * (_MAX_OBJECTS - 1) + rng.uniform(-1, 1))
  count = max(2, min(_MAX_OBJECTS, count))
  places = np.stack(
    [
      rng.permutation((np.arange(count) + 0.5) / count - 0.5) * aspect * 0.9,
      rng.uniform(-0.3, 0.3, count),
    ],
    -1,
  )
  colors = tuple(
    _color(
      film.hue + rng.normal() * 18 + (look.accent if index % 3 == 1 else 0),
      film.saturation + rng.normal() * 0.1,
      film.front + rng.normal() * 0.1,
    )
    for index in range(count)
  )
  return painters.Shot(
    painter=names[rng.choice(len(names), p=chances)],
    movement=('hop', 'step', 'swing', 'swell')[rng.integers(4)],
    shape=look.shapes[rng.integers(len(look.shapes))],
    outline=look.outline,
    places=places,
    sizes=look.size * rng.uniform(0.07, 0.14, count) * (3 / count) ** 0.3,
    turns=rng.uniform(0, 2 * np.pi, count),
    targets=_sample_targets(rng, count),
    colors=colors,
  )


def _sample_targets(rng, count: int) -> np.ndarray:
  """Targets that are far from one another, float `[beats, count, 2]`."""
  # From one half of the picture to the other: every beat is a real move.
  signs = rng.choice((-1, 1), (1, count, 2))
  signs = signs * np.array([1, -1])[np.arange(16) % 2, None, None]
  return signs * rng.uniform(0.4, 1.0, (16, count, 2))


def _sample_texture(attributes, film: _Film, size, rng) -> np.ndarray:
  """The picture behind a shot, uint8 `[2 height, 2 width, 3]`."""
  kinds = _LOOKS[attributes.style].textures
  greys = canvas_lib.textures(kinds[rng.integers(len(kinds))], *size)
  grey = greys[rng.integers(len(greys))]
  hue = film.hue + rng.normal() * 14
  spread = 0.45 * film.contrast
  ends = np.array(
    [
      _color(hue - 12, film.saturation + 0.05, film.behind - spread),
      _color(hue + 12, film.saturation - 0.05, film.behind + spread),
    ],
    np.float32,
  )
  levels = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
  table = np.round(ends[0] + levels * (ends[1] - ends[0])).astype(np.uint8)
  return table[grey]


def draw(
  attributes: attributes_lib.Attributes,
  frame_rate_hz: float = 10.0,
  size: tuple[int, int] = (54, 96),
) -> np.ndarray:
  """Draws the scene of a clip.

  Args:
    attributes: what the clip is about. The same attributes give the same
      frames.
    frame_rate_hz: frames a second; frame `k` shows `k / frame_rate_hz` s.
    size: height and width of a frame in pixels.

  Returns:
    uint8 `[time, height, width, 3]`, RGB.
  """
  height, width = size
  rng = attributes_lib.generator(attributes.seed, attributes.index, 'scene')
  film = _sample_film(attributes, rng)
  starts = _shot_starts(attributes, film.has_cuts)
  aspect = width / height
  shots = [
    (
      _sample_shot(
        attributes, attributes.section_at_bar(bar), film, aspect, rng
      ),
      _sample_texture(attributes, film, size, rng),
      rng.uniform(-0.4, 0.4, 2),
    )
    for bar in starts
  ]
  num_frames = math.ceil(attributes.seconds * frame_rate_hz - 1e-6)
  frames = np.empty((num_frames, height, width, 3), np.uint8)
  gains = np.empty(num_frames, np.float32)
  canvas = canvas_lib.Canvas(height, width)
  bars_of_shots = np.array(starts)
  tremble = rng.standard_normal((num_frames, 2))
  for index in range(num_frames):
    seconds = index / frame_rate_hz
    beat = attributes.beat_at(seconds)
    bar = int(beat // attributes_lib.BEATS_PER_BAR)
    number = int(np.searchsorted(bars_of_shots, bar, 'right')) - 1
    shot, texture, corner = shots[number]
    first_beat = starts[number] * attributes_lib.BEATS_PER_BAR
    moment = _moment(attributes, seconds, beat, bar, first_beat)
    camera = film.drift * seconds + film.shake * tremble[index]
    jump = film.bump * moment.pulse
    pan = np.array([film.pan * (seconds + 1.5 * moment.strength * beat), 0])
    canvas.paint_texture(texture, *(corner + pan + camera), 1 + 2 * jump)
    canvas.point_camera(camera[0], camera[1] - 0.5 * jump, 1 + 2 * jump)
    painters.PAINTERS[shot.painter](canvas, shot, moment)
    frames[index] = canvas.image
    gains[index] = (
      1
      + film.flash * (moment.pulse - 0.3)
      + film.waver * math.sin(0.9 * seconds + 6 * film.waver)
    )
  _develop(frames, gains, film, rng)
  return frames


def _moment(attributes, seconds, beat, bar, first_beat) -> painters.Moment:
  section = attributes.section_at_bar(bar)
  whole = math.floor(beat)
  since = (beat - whole) * attributes.seconds_per_beat
  accent = 1.0 if whole % attributes_lib.BEATS_PER_BAR == 0 else 0.72
  return painters.Moment(
    seconds=seconds,
    beat=beat,
    number=whole - first_beat,
    eased=1 - math.exp(-since / _EASE_SECONDS),
    pulse=accent * math.exp(-since / _PULSE_SECONDS),
    energy=section.energy,
    strength=0.12 + 0.88 * section.energy,
  )


def _develop(frames: np.ndarray, gains: np.ndarray, film: _Film, rng):
  """Light, lens and grain, in place, on uint8 `[time, height, width, 3]`."""
  height, width = frames.shape[1:3]
  y = np.linspace(-1, 1, height)[:, None]
  x = np.linspace(-1, 1, width)
  mask = 1 - film.vignette * np.clip((x**2 + y**2) / 2, 0, 1)
  rows = round(film.bars * height)
  mask[:rows] = 0
  mask[height - rows :] = 0
  mask = np.repeat(np.round(255 * mask).astype(np.uint8)[..., None], 3, -1)
  grain = rng.standard_normal((_NUM_NOISES, *frames.shape[1:])) * film.noise
  grain = np.clip(np.round(128 + grain), 0, 255).astype(np.uint8)
  order = rng.integers(_NUM_NOISES, size=len(frames))
  for frame, gain, place in zip(frames, gains, order, strict=True):
    if film.blur:
      cv2.GaussianBlur(frame, (0, 0), film.blur * height, dst=frame)
    cv2.multiply(frame, mask, dst=frame, scale=float(gain) / 255)
    if film.noise:
      cv2.addWeighted(frame, 1, grain[place], 1, -128, dst=frame)
