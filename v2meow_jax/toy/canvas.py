"""A picture to draw on, with a camera: heights of the picture as unit."""

from __future__ import annotations

import functools

import cv2
import numpy as np

# Coordinates are given to OpenCV in sixteenths of a pixel.
_SHIFT = 4
_UNIT = 1 << _SHIFT
_NUM_TEXTURES = 6

Color = tuple[int, int, int]


class Canvas:
  """One picture; the origin is its centre, y points down.

  Attributes:
    image: uint8 `[height, width, 3]`, RGB.
    aspect: width divided by height.
  """

  def __init__(self, height: int, width: int):
    self.image = np.zeros((height, width, 3), np.uint8)
    self.aspect = width / height
    self._height = height
    self._middle = (width / 2, height / 2)
    self.point_camera(0.0, 0.0, 1.0)

  def point_camera(self, x: float, y: float, zoom: float):
    """Looks at `(x, y)` with a magnification; for what is drawn from now on."""
    scale = self._height * zoom
    self._scale = scale
    self._units = scale * _UNIT
    # A half is added because the fractions are cut off afterwards.
    self._left = (self._middle[0] - scale * x) * _UNIT + 0.5
    self._top = (self._middle[1] - scale * y) * _UNIT + 0.5
    self._corner = np.array([self._left, self._top])

  def paint_texture(self, texture: np.ndarray, x: float, y: float, zoom: float):
    """Fills the picture with a part of a texture of twice its size.

    Args:
      texture: uint8 `[2 height, 2 width, 3]`.
      x: place of the middle of the picture on the texture, in heights.
      y: the same downwards. The texture repeats itself mirrored.
      zoom: magnification.
    """
    height, width = self.image.shape[:2]
    scale = 1.0 / zoom
    left = width + x * height - scale * width / 2
    top = height + y * height - scale * height / 2
    matrix = np.array([[scale, 0, left], [0, scale, top]])
    cv2.warpAffine(
      texture,
      matrix,
      (width, height),
      dst=self.image,
      flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
      borderMode=cv2.BORDER_REFLECT,
    )

  def polygon(self, points: np.ndarray, color: Color, outline: float = 0.0):
    """Fills a polygon, float `[points, 2]`, or draws its outline."""
    pixels = self._pixels(points)
    if outline:
      thickness = self._thickness(outline)
      cv2.polylines(
        self.image, [pixels], True, color, thickness, cv2.LINE_AA, _SHIFT
      )
    else:
      cv2.fillPoly(self.image, [pixels], color, cv2.LINE_AA, _SHIFT)

  def lines(self, lines: np.ndarray, color: Color, thickness: float):
    """Draws open lines, float `[lines, points, 2]`."""
    cv2.polylines(
      self.image,
      list(self._pixels(lines)),
      False,
      color,
      self._thickness(thickness),
      cv2.LINE_AA,
      _SHIFT,
    )

  def disc(
    self,
    x: float,
    y: float,
    radius: float,
    color: Color,
    outline: float = 0.0,
  ):
    """Draws a disc, or a ring of the thickness `outline`."""
    centre = (
      int(self._left + self._units * x),
      int(self._top + self._units * y),
    )
    cv2.circle(
      self.image,
      centre,
      max(1, int(radius * self._units)),
      color,
      self._thickness(outline) if outline else cv2.FILLED,
      cv2.LINE_AA,
      _SHIFT,
    )

  def _pixels(self, points: np.ndarray) -> np.ndarray:
    """Maps float `[..., 2]` to int32 sixteenths of pixels."""
    return (self._corner + self._units * points).astype(np.int32)

  def _thickness(self, thickness: float) -> int:
    return max(1, round(thickness * self._scale))


@functools.lru_cache(32)
def textures(kind: str, height: int, width: int) -> np.ndarray:
  """Grey textures of a kind, the same for every clip.

  Args:
    kind: `smooth`, `rough`, `grid`, `stripes` or `waves`.
    height: pixels down of the picture.
    width: pixels across of the picture.

  Returns:
    uint8 `[textures, 2 height, 2 width]`.
  """
  rng = np.random.default_rng([height, width, sum(kind.encode())])
  made = []
  for _ in range(_NUM_TEXTURES):
    x = np.arange(2 * width) / height
    y = np.arange(2 * height)[:, None] / height
    ground = _noise(rng, height, width, 3) + 0.5 * _noise(rng, height, width, 6)
    if kind == 'rough':
      ground += 0.9 * _noise(rng, height, width, 14)
      ground += 0.7 * _noise(rng, height, width, 28)
    elif kind == 'grid':
      pitch = rng.uniform(0.12, 0.3)
      near = np.minimum(x % pitch, y % pitch) / pitch
      ground = 0.5 * ground + 2.5 * (near < 0.1)
    elif kind == 'stripes':
      pitch, slant = rng.uniform(0.15, 0.4), rng.uniform(-0.3, 0.3)
      ground = ground + 1.5 * np.sin(2 * np.pi * (x + slant * y) / pitch)
    elif kind == 'waves':
      bend = 0.15 * np.sin(2 * np.pi * (0.6 * x + rng.uniform()))
      ground = ground + 1.5 * np.sin(2 * np.pi * (y + bend) / 0.4)
    low, high = np.percentile(ground, (2, 98))
    made.append(np.clip(255 * (ground - low) / (high - low), 0, 255))
  return np.array(made).astype(np.uint8)


def _noise(rng, height: int, width: int, cells: int) -> np.ndarray:
  """Smooth noise with features of `1 / cells` heights, float32."""
  size = (max(2, round(2 * cells * width / height)), 2 * cells)
  values = rng.standard_normal(size[::-1]).astype(np.float32)
  return cv2.resize(
    values, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC
  )
