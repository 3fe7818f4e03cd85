"""The pictures of the toy dataset share the clock of its music."""

import dataclasses

import numpy as np
import pytest

from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import canvas as canvas_lib
from v2meow_jax.toy import painters
from v2meow_jax.toy import scene

_RATE_HZ = 20.0
_SIZE = (36, 64)


def _with(index: int, energy: float = 0.6, **changes):
  """A clip of one section and one energy."""
  clip = dataclasses.replace(
    attributes_lib.sample(9, index, changes.pop('seconds', 8.0)), **changes
  )
  section = attributes_lib.Section(0, clip.num_bars, energy, 0, ())
  return dataclasses.replace(clip, energy=energy, sections=(section,))


def _change(frames: np.ndarray) -> np.ndarray:
  """Mean absolute change of each frame from the one before, `[time - 1]`.

  Of blocks of 4 x 4 pixels: the grain changes from frame to frame, too.
  """
  time, height, width, _ = frames.shape
  blocks = frames.reshape(time, height // 4, 4, width // 4, 4, 3)
  return np.abs(np.diff(blocks.mean((2, 4)), axis=0)).mean((1, 2, 3))


def _pulse(clip, change: np.ndarray, tempo_ratio: float = 1.0) -> complex:
  """How far the change repeats with the beat: phase and share, `|.| <= 1`."""
  seconds = (np.arange(len(change)) + 0.5) / _RATE_HZ
  phase = 2j * np.pi * clip.beat_at(seconds) * tempo_ratio
  # Cuts are large and rare: they count no more than other large changes.
  change = np.minimum(change, np.percentile(change, 95))
  return np.sum(change * np.exp(-phase)) / np.sum(change)


def test_frames_are_the_same_every_time():
  clip = attributes_lib.sample(0, 3, 2.0)
  frames = scene.draw(clip, 10.0, _SIZE)
  assert frames.shape == (20, 36, 64, 3)
  assert frames.dtype == np.uint8
  scene.draw(attributes_lib.sample(0, 4, 2.0), 10.0, _SIZE)
  np.testing.assert_array_equal(scene.draw(clip, 10.0, _SIZE), frames)
  other = dataclasses.replace(clip, index=4)
  assert np.any(scene.draw(other, 10.0, _SIZE) != frames)


@pytest.mark.parametrize(
  'rate_hz, size, shape',
  [(24.0, (90, 160), (48, 90, 160, 3)), (12.5, (64, 64), (25, 64, 64, 3))],
)
def test_any_rate_and_size(rate_hz, size, shape):
  frames = scene.draw(attributes_lib.sample(0, 0, 2.0), rate_hz, size)
  assert frames.shape == shape
  assert frames.std() > 5


def test_motion_is_on_the_beat():
  strengths, controls, places = [], [], []
  for index in range(30):
    clip = attributes_lib.sample(9, index, 8.0)
    change = _change(scene.draw(clip, _RATE_HZ, _SIZE))
    pulse = _pulse(clip, change)
    strengths.append(abs(pulse))
    places.append(pulse / abs(pulse))
    # The control: a tempo that the clip does not have, and shuffled times.
    controls.append(abs(_pulse(clip, change, 1.37)))
    shuffled = np.random.default_rng(index).permutation(change)
    controls.append(abs(_pulse(clip, shuffled)))
  # Measured: 0.35 of the change repeats with the beat, 0.04 in the controls.
  assert np.median(strengths) > 5 * np.median(controls)
  assert np.mean(np.array(strengths) > np.quantile(controls, 0.95)) > 0.9
  # The change comes with the beat or just after it, in all clips alike.
  mean = np.mean(places)
  # Measured: 0.99 agree, 0.07 beats after the beat.
  assert abs(mean) > 0.95
  assert 0 < (-np.angle(mean) / (2 * np.pi)) % 1 < 0.25


def test_every_painter_and_movement_moves_on_the_beat():
  rng = np.random.default_rng(0)
  clip = _with(0, energy=0.7, start_beat=0.0)
  seconds = np.arange(160) / _RATE_HZ
  for name, paint in painters.PAINTERS.items():
    for movement in ('hop', 'step', 'swing', 'swell'):
      shot = painters.Shot(
        painter=name,
        movement=movement,
        shape='disc',
        outline=0.0,
        places=rng.uniform(-0.4, 0.4, (5, 2)),
        sizes=np.full(5, 0.1),
        turns=rng.uniform(0, 6, 5),
        targets=scene._sample_targets(rng, 5),
        colors=((200, 50, 50), (50, 200, 50), (90, 90, 250)),
      )
      # Painters that draw one thing per object need a color for each.
      shot = dataclasses.replace(shot, colors=(shot.colors * 2)[:5])
      frames = []
      for time in seconds:
        canvas = canvas_lib.Canvas(*_SIZE)
        beat = clip.beat_at(time)
        moment = scene._moment(clip, time, beat, int(beat // 4), 0)
        paint(canvas, shot, moment)
        frames.append(canvas.image)
      change = _change(np.array(frames))
      pulse = _pulse(clip, change)
      assert abs(pulse) > 0.12, (name, movement)
      # Three quarters of a beat before it is a quarter after the one before.
      place = (-np.angle(pulse) / (2 * np.pi) + 0.1) % 1
      assert place < 0.4, (name, movement)


def test_major_is_warm_and_bright():
  means = {}
  for mode in attributes_lib.MODES:
    colors = [
      scene.draw(_with(index, mode=mode, seconds=1.0), 2.0, _SIZE).mean(
        (0, 1, 2)
      )
      for index in range(40)
    ]
    means[mode] = np.array(colors)
  warmth = {m: c[:, 0] - c[:, 2] for m, c in means.items()}
  light = {m: c.mean(1) for m, c in means.items()}
  # Clear, yet with some overlap: the share of pairs in the right order.
  for values, least in ((warmth, 0.85), (light, 0.85)):
    right = values['major'][:, None] > values['minor']
    assert least < right.mean() < 0.9999


def test_energy_moves_more():
  calm, wild = [], []
  for index in range(12):
    for energy, into in ((0.1, calm), (0.9, wild)):
      frames = scene.draw(_with(index, energy, seconds=4.0), _RATE_HZ, _SIZE)
      into.append(_change(frames).mean())
  # Measured: 3.7 times, and more in every clip.
  assert np.median(wild) > 2.5 * np.median(calm)
  assert np.mean(np.array(wild) > calm) > 0.8


def test_sections_are_cuts():
  ratios = []
  for index in range(8):
    clip = _with(index, 0.3, tempo_bpm=120.0, start_beat=0.0)
    whole = clip.sections[0]
    # Two sections that only differ in where they are; the second from 4 s on.
    clip = dataclasses.replace(
      clip,
      sections=(
        dataclasses.replace(whole, num_bars=2),
        dataclasses.replace(whole, first_bar=2, num_bars=whole.num_bars - 2),
      ),
    )
    change = _change(scene.draw(clip, 10.0, _SIZE))
    ratios.append(change[39] / np.delete(change, 39).max())
  # Measured: 1.8 times the greatest of the other changes, at least 1.3.
  assert np.median(ratios) > 1.5
  assert min(ratios) > 1


def test_energetic_clips_cut_at_bars():
  assert len(scene._shot_starts(_with(0, 0.2), True)) == 1
  wild = _with(0, 0.95)
  assert scene._shot_starts(wild, True) == list(range(wild.num_bars))
  assert scene._shot_starts(wild, False) == [0]


def test_styles_differ_in_texture():
  slopes = {}
  for kind in ('smooth', 'rough', 'grid', 'stripes', 'waves'):
    texture = canvas_lib.textures(kind, 54, 96).astype(float)
    assert texture.shape == (6, 108, 192)
    slopes[kind] = [np.abs(np.diff(texture, axis=k)).mean() for k in (2, 1)]
  # Measured: 5 and 20 grey levels a pixel.
  assert slopes['rough'][0] > 3 * slopes['smooth'][0]
  assert slopes['grid'][0] > 3 * slopes['smooth'][0]
  # Stripes are upright, waves lie.
  assert slopes['stripes'][0] > 2.5 * slopes['stripes'][1]
  assert slopes['waves'][1] > 1.6 * slopes['waves'][0]
  kinds = [look.textures for look in scene._LOOKS.values()]
  assert len(set(kinds)) == len(attributes_lib.STYLES)
  assert set(scene._LOOKS) == set(attributes_lib.STYLES)


def test_canvas_draws_where_it_is_told():
  canvas = canvas_lib.Canvas(40, 80)
  canvas.disc(0.5, 0.25, 0.1, (255, 0, 0))
  rows, columns = np.nonzero(canvas.image[..., 0] > 128)
  # The origin is the middle, the unit the height.
  assert columns.mean() == pytest.approx(40 + 20, abs=0.6)
  assert rows.mean() == pytest.approx(20 + 10, abs=0.6)
  assert np.sqrt(len(rows) / np.pi) == pytest.approx(4, abs=0.8)
  canvas = canvas_lib.Canvas(40, 80)
  canvas.point_camera(0.5, 0.25, 2.0)
  canvas.disc(0.5, 0.25, 0.1, (255, 0, 0))
  rows, columns = np.nonzero(canvas.image[..., 0] > 128)
  assert columns.mean() == pytest.approx(40, abs=0.6)
  assert rows.mean() == pytest.approx(20, abs=0.6)
  assert np.sqrt(len(rows) / np.pi) == pytest.approx(8, abs=0.8)
