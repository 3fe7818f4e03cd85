"""The bundled visual stream: what music follows in any video, without weights.

Ten times a second: brightness, colour, texture, motion from optical flow, cuts
and flashes, and how strongly the picture beats at each tempo from 60 to 180
beats a minute. `FEATURES` names them all with units and scales.

A frame is 64 x 64 pixels whatever the picture's shape, so lengths are in
picture sides: a motion of 1 to the right crosses the picture in one second.
Every feature looks back only, the first frame counts as unchanged, and a static
picture has motion and changes of exactly 0.
"""

from collections.abc import Iterable, Iterator
import dataclasses

import cv2
import numpy as np

from v2meow_jax import streams
from v2meow_jax.visual import base

_SIDE = 64
_RATE_HZ = 10.0
LIMIT = 4.0  # features lie within [-LIMIT, LIMIT]
TEMPOS_BPM = tuple(60.0 * 3 ** (k / 15) for k in range(16))  # 60 to 180

# Where luma changes less than this (of 1) nothing moves: noise and coding.
_STILL = 0.008
_MOVING = 0.024
_CUT_SCORE = 0.38
_SLOW_SECONDS = 4.0
_PULSE_SECONDS = 2.5
_TINY = 1e-6


@dataclasses.dataclass(frozen=True)
class Feature:
  """One feature of the stream: `clip((raw - offset) / scale)`.

  Attributes:
    name: its name.
    unit: unit of the raw value.
    offset: raw value that becomes 0.
    scale: change of the raw value that becomes 1.
    meaning: what it is and what a positive value says.
  """

  name: str
  unit: str
  offset: float
  scale: float
  meaning: str


def _rows(*rows) -> tuple[Feature, ...]:
  return tuple(Feature(*row) for row in rows)


_SPEED = 'ln(1 + sides/s / 0.02)'
FEATURES = _rows(
  # Brightness. Luma is 0 (black) to 1 (white).
  ('brightness', 'luma', 0.4, 0.2, 'mean'),
  ('brightness_spread', 'luma', 0.2, 0.08, 'standard deviation: contrast'),
  ('brightness_low', 'luma', 0.15, 0.2, '10th percentile: shadows'),
  ('brightness_high', 'luma', 0.65, 0.2, '90th percentile: lights'),
  ('brightness_top', 'luma', 0.0, 0.15, 'upper half less lower half'),
  ('brightness_left', 'luma', 0.0, 0.1, 'left half less right half'),
  ('brightness_centre', 'luma', 0.0, 0.15, 'middle quarter less the rest'),
  # Colour. Chroma is 0 (grey) to 1 (pure); hue is an angle, red at 0.
  ('chroma', 'chroma', 0.2, 0.12, 'mean: colourfulness'),
  ('chroma_spread', 'chroma', 0.12, 0.08, 'standard deviation'),
  ('warmth', 'red - blue', 0.05, 0.15, 'mean: orange against blue'),
  ('greenness', 'green - magenta', 0.0, 0.08, 'mean: green against magenta'),
  ('hue_red', 'cosine', 0.0, 0.6, 'mean hue, weighted by chroma: red > cyan'),
  ('hue_lime', 'sine', 0.0, 0.6, 'the same a quarter on: lime > violet'),
  ('share_red', 'share', 0.17, 0.25, 'share of the chroma near red'),
  ('share_yellow', 'share', 0.17, 0.25, 'share of the chroma near yellow'),
  ('share_green', 'share', 0.17, 0.25, 'share of the chroma near green'),
  ('share_cyan', 'share', 0.17, 0.25, 'share of the chroma near cyan'),
  ('share_blue', 'share', 0.17, 0.25, 'share of the chroma near blue'),
  ('share_magenta', 'share', 0.17, 0.25, 'share of the chroma near magenta'),
  # Texture and shapes.
  ('edges', 'luma/pixel', 0.035, 0.02, 'mean slope of luma'),
  ('edges_upright', 'share', 0.0, 0.4, 'upright edges less level ones'),
  ('edges_diagonal', 'share', 0.0, 0.2, 'edges along \\\\ less along /'),
  ('corners', 'luma/pixel', 0.02, 0.015, 'root mean lesser slope: corners'),
  ('detail', 'luma', 0.02, 0.012, 'mean distance from the blurred picture'),
  ('symmetry', 'correlation', 0.2, 0.4, 'left half against mirrored right'),
  # Motion, from optical flow. x points right and y down.
  ('motion', _SPEED, 0.8, 1.0, 'mean speed'),
  ('motion_spread', _SPEED, 1.0, 1.0, 'standard deviation of the speed'),
  ('motion_peak', _SPEED, 1.5, 1.5, '95th percentile of the speed'),
  ('motion_area', 'share', 0.25, 0.35, 'share of the picture that moves'),
  ('motion_x', 'asinh(sides/s / 0.02)', 0.0, 1.0, 'mean, to the right'),
  ('motion_y', 'asinh(sides/s / 0.02)', 0.0, 1.0, 'mean, downwards'),
  ('motion_centre_x', 'sides', 0.0, 0.15, 'where it moves, to the right'),
  ('motion_centre_y', 'sides', 0.0, 0.15, 'where it moves, downwards'),
  ('expansion', 'asinh(1/s / 0.2)', 0.0, 0.5, 'mean divergence: zoom in'),
  ('rotation', 'asinh(1/s / 0.2)', 0.0, 0.5, 'mean curl: clockwise'),
  ('acceleration', _SPEED, 0.0, 0.4, 'mean speed less that before'),
  ('turn', 'ln(1 + sides/s2 / 0.2)', 0.8, 1.0, 'mean change of velocity'),
  # Changes since the last frame.
  ('change', 'luma', 0.03, 0.04, 'mean absolute change'),
  ('flash', 'luma', 0.0, 0.03, 'change of the mean: brighter'),
  ('colour_change', 'chroma', 0.02, 0.03, 'how far the mean colour moves'),
  ('cut_score', 'score', 0.1, 0.2, 'other colours in another layout, 0 to 1'),
  ('cut', 'flag', 0.0, 1.0, '1 where a new shot starts'),
  ('onset', 'onset', 0.15, 0.3, 'visual accent: it speeds up, flashes, cuts'),
  # What lasts: means over the last seconds, weighted by exp(-age / 4 s).
  ('slow_motion', _SPEED, 0.8, 1.0, 'recent mean of motion'),
  ('slow_brightness', 'luma', 0.4, 0.2, 'recent mean of brightness'),
  ('slow_onset', 'onset', 0.15, 0.15, 'recent mean of onset: busyness'),
  ('cut_rate', 'cuts/s', 0.1, 0.3, 'recent number of cuts'),
  ('pulse', 'share', 0.3, 0.2, 'greatest of the shares below'),
  # Share of the recent onsets that repeats at a tempo.
  *(
    (f'pulse_{bpm:.0f}', 'share', 0.15, 0.2, f'{bpm:.0f} beats a minute')
    for bpm in TEMPOS_BPM
  ),
)
NAMES = tuple(f.name for f in FEATURES)
_OFFSETS = np.array([f.offset for f in FEATURES])
_SCALES = np.array([f.scale for f in FEATURES])


class Scene(base.Extractor):
  """Extractor of the stream `scene`; `FEATURES` lists what it gives."""

  spec = streams.get('scene')
  frame_rate_hz = _RATE_HZ
  frame_size = (_SIDE, _SIDE)

  def stream(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Maps uint8 frames to float32 `[time, features]`, one by one."""
    state = _State()
    for frames in chunks:
      # The pictures are so small that handing them around costs the most.
      num_threads = cv2.getNumThreads()
      cv2.setNumThreads(1)
      try:
        raw = [_describe(frame, state) for frame in frames]
      finally:
        cv2.setNumThreads(num_threads)
      raw = np.array(raw).reshape(-1, len(FEATURES))
      scaled = np.clip((raw - _OFFSETS) / _SCALES, -LIMIT, LIMIT)
      yield scaled.astype(np.float32)


class _State:
  """What one frame leaves to the next."""

  def __init__(self):
    # Finer settings cost three times as much and measure pans no better.
    self.flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    self.flow.setFinestScale(1)
    self.flow.setPatchSize(8)
    self.flow.setPatchStride(3)
    self.flow.setGradientDescentIterations(12)
    self.picture = None  # _Picture of the last frame
    self.velocity = np.zeros((_SIDE, _SIDE, 2), np.float32)
    self.speed = 0.0
    self.cut_score = 0.0
    self.slow = np.zeros(4)
    self.pulses = np.zeros(len(TEMPOS_BPM), np.complex128)
    self.pulse_sum = 0.0


class _Picture:
  """One frame in the forms that the features are made from."""

  def __init__(self, frame: np.ndarray):
    self.grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    self.luma = self.grey.astype(np.float32) / 255
    self.mean, self.deviation = _moments(self.luma)
    red, green, blue = cv2.split(frame.astype(np.float32) / 255)
    self.colour = np.array(cv2.mean(red) + cv2.mean(green) + cv2.mean(blue))
    self.colour = self.colour[::4]  # cv2.mean gives four numbers each
    # Hue and chroma are the angle and length of a vector: red at angle 0.
    self.alpha = red - (green + blue) / 2
    self.beta = (green - blue) * np.float32(0.75**0.5)
    self.chroma = _length(self.alpha, self.beta)
    red, green, blue = cv2.split(frame >> 6)
    index = red * 16 + green * 4 + blue
    self.histogram = np.bincount(index.ravel(), minlength=64) / index.size


# Position of a pixel in the picture, in sides from the middle.
_X = np.tile((np.arange(_SIDE, dtype=np.float32) + 0.5) / _SIDE - 0.5, (64, 1))
_Y = _X.T.copy()
_SQUARED_RADIUS = float(np.mean(_X**2 + _Y**2))
_ROTATIONS = np.exp(2j * np.pi * np.array(TEMPOS_BPM) / 60 / _RATE_HZ)


def _describe(frame: np.ndarray, state: _State) -> list[float]:
  """Returns the raw features of a frame, and moves `state` on to it."""
  picture = _Picture(frame)
  before = state.picture or picture
  motion = _describe_motion(picture, before, state)
  speed, acceleration, flash, cut = (motion[i] for i in (0, 10, 13, 16))
  tint = picture.colour - before.colour
  tint = np.linalg.norm(tint - tint.mean())
  accent = max(0, acceleration) + 20 * max(0, flash - 0.005, tint - 0.02) + cut
  if state.picture is None:
    state.slow[1] = picture.mean
  state.picture = picture
  return [
    *_describe_brightness(picture),
    *_describe_colour(picture),
    *_describe_texture(picture),
    *motion,
    accent,
    *_describe_rhythm(speed, picture.mean, accent, cut, state),
  ]


def _describe_brightness(picture: _Picture) -> list[float]:
  quarters = cv2.resize(picture.luma, (2, 2), interpolation=cv2.INTER_AREA)
  (top_left, top_right), (low_left, low_right) = quarters.tolist()
  inner = slice(_SIDE // 4, -_SIDE // 4)
  centre, _ = _moments(picture.luma[inner, inner])
  levels = np.bincount(picture.grey.ravel(), minlength=256).cumsum()
  shadow, light = np.searchsorted(levels, np.array([0.1, 0.9]) * levels[-1])
  return [
    picture.mean,
    picture.deviation,
    shadow / 255,
    light / 255,
    (top_left + top_right - low_left - low_right) / 2,
    (top_left - top_right + low_left - low_right) / 2,
    (centre - picture.mean) * 4 / 3,
  ]


def _describe_colour(picture: _Picture) -> list[float]:
  mean, deviation = _moments(picture.chroma)
  red, green, blue = picture.colour
  # A grey picture has no hue: the constant outweighs what noise colours it.
  total = mean + 0.01
  chroma = picture.chroma.ravel() / np.float32(_SIDE**2)
  sixth = cv2.phase(picture.alpha, picture.beta).ravel() * np.float32(3 / np.pi)
  lower = sixth.astype(np.int32)
  upper_part = (sixth - lower) * chroma
  shares = np.bincount(lower, chroma - upper_part, 8)
  shares[1:] += np.bincount(lower, upper_part, 7)
  shares[:2] += shares[6:]  # a full turn is none
  return [
    mean,
    deviation,
    red - blue,
    green - (red + blue) / 2,
    cv2.mean(picture.alpha)[0] / total,
    cv2.mean(picture.beta)[0] / total,
    *(shares[:6] / total),
  ]


def _describe_texture(picture: _Picture) -> list[float]:
  luma = picture.luma
  across = cv2.Sobel(luma, cv2.CV_32F, 1, 0, scale=1 / 8)
  down = cv2.Sobel(luma, cv2.CV_32F, 0, 1, scale=1 / 8)
  xx, yy, xy = across * across, down * down, across * down
  xx_mean, yy_mean, xy_mean = (cv2.mean(p)[0] for p in (xx, yy, xy))
  # The constant is the slope of noise: a blank picture has no direction.
  total = xx_mean + yy_mean + 1e-5
  # Lesser eigenvalue of the structure tensor: slopes in both directions.
  xx, yy, xy = (cv2.blur(p, (5, 5)) for p in (xx, yy, xy))
  lesser = (xx + yy - _length(xx - yy, 2 * xy)) / 2
  half = _SIDE // 2
  return [
    cv2.mean(_length(across, down))[0],
    (xx_mean - yy_mean) / total,
    -2 * xy_mean / total,
    cv2.mean(np.sqrt(np.maximum(lesser, 0)))[0],
    cv2.mean(np.abs(luma - cv2.blur(luma, (3, 3))))[0],
    _correlate(luma[:, :half], np.ascontiguousarray(luma[:, : half - 1 : -1])),
  ]


def _describe_motion(
  picture: _Picture, before: _Picture, state: _State
) -> list[float]:
  difference = picture.luma - before.luma
  mean, deviation = _moments(difference)
  difference = np.abs(difference)
  other_colours = np.abs(picture.histogram - before.histogram).sum() / 2
  other_layout = 1 - max(0.0, _correlate(picture.luma, before.luma))
  # A flash lights the whole picture up, a cut parts of it and others not.
  other_layout *= deviation / (np.hypot(mean, deviation) + _TINY)
  cut_score = (other_colours * other_layout) ** 0.5
  # Wild motion scores high for long, a cut once.
  cut = cut_score > max(_CUT_SCORE, 1.5 * state.cut_score)

  velocity = state.velocity
  if not cut:  # no motion leads across a cut: the one before it goes on
    flow = state.flow.calc(before.grey, picture.grey, None)
    blurred = cv2.blur(difference, (5, 5))
    moves = np.clip((blurred - _STILL) / (_MOVING - _STILL), 0, 1)
    velocity = flow * (moves * np.float32(_RATE_HZ / _SIDE))[..., None]
  x, y = cv2.split(velocity)
  speeds = _length(x, y)
  mean, deviation = _moments(speeds)
  rank = speeds.size * 95 // 100
  peak = np.partition(speeds, rank, axis=None)[rank]
  speed = np.log1p(mean / 0.02)
  turn = cv2.mean(_length(*cv2.split(velocity - state.velocity)))[0]
  acceleration = speed - state.speed
  state.velocity, state.speed, state.cut_score = velocity, speed, cut_score
  return [
    speed,
    np.log1p(deviation / 0.02),
    np.log1p(peak / 0.02),
    np.count_nonzero(speeds > 0.05) / speeds.size,
    np.arcsinh(cv2.mean(x)[0] / 0.02),
    np.arcsinh(cv2.mean(y)[0] / 0.02),
    cv2.mean(speeds * _X)[0] / (mean + 0.01),
    cv2.mean(speeds * _Y)[0] / (mean + 0.01),
    np.arcsinh(cv2.mean(x * _X + y * _Y)[0] / _SQUARED_RADIUS / 0.2),
    np.arcsinh(cv2.mean(y * _X - x * _Y)[0] / _SQUARED_RADIUS / 0.2),
    acceleration,
    np.log1p(turn * _RATE_HZ / 0.2),
    cv2.mean(difference)[0],
    picture.mean - before.mean,
    np.linalg.norm(picture.colour - before.colour),
    cut_score,
    float(cut),
  ]


def _describe_rhythm(
  speed: float, luma: float, accent: float, cut: float, state: _State
) -> list[float]:
  keep = np.exp(-1 / (_SLOW_SECONDS * _RATE_HZ))
  now = np.array([speed, luma, accent, cut * _RATE_HZ])
  state.slow = keep * state.slow + (1 - keep) * now
  # One decaying resonator per tempo: accents in step with it add up.
  keep = np.exp(-1 / (_PULSE_SECONDS * _RATE_HZ))
  state.pulses = keep * state.pulses * _ROTATIONS + (1 - keep) * accent
  state.pulse_sum = keep * state.pulse_sum + (1 - keep) * accent
  pulses = np.abs(state.pulses) / (state.pulse_sum + 0.01)
  return [*state.slow, pulses.max(), *pulses]


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns the length of vectors.

  Unlike those of NumPy and OpenCV for it, which round by where the arrays lie
  in memory, the same in every run.
  """
  return np.sqrt(x * x + y * y)


def _moments(plane: np.ndarray) -> tuple[float, float]:
  """Returns mean and standard deviation."""
  mean, deviation = cv2.meanStdDev(plane)
  return mean[0, 0], deviation[0, 0]


def _correlate(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the correlation of two pictures, 0 where one is blank."""
  (mean_a, deviation_a), (mean_b, deviation_b) = _moments(a), _moments(b)
  covariance = cv2.mean(a * b)[0] - mean_a * mean_b
  return covariance / (deviation_a * deviation_b + 1e-4)
