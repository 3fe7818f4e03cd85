"""Videos for tests: those of ../shared/data, and small ones made here."""

import fractions
import hashlib

import av
import numpy as np

from v2meow_jax import video

SECONDS_OF_HEAVY_FILES = 1.0
# What is in ../shared/data: name, seconds, width, height, codec, has_audio, and
# whether it is light enough to be decoded in full.
VIDEOS = {
  'video/bbb_0_30_music.webm': (29.999, 1280, 720, 'vp8', True, False),
  'video/bbb_23_44_music.mp4': (20.833, 640, 360, 'h264', True, False),
  'video/bottles_static.mp4': (39.855, 640, 360, 'h264', False, False),
  'video/claymation_music.mp4': (29.997, 480, 270, 'h264', True, False),
  'video/cockatoo.mp4': (14.0, 1280, 720, 'h264', True, False),
  'video/dance_densepose.mp4': (4.0, 512, 512, 'h264', False, True),
  'video/dance_mocap_stick.mp4': (10.08, 480, 480, 'h264', False, False),
  'video/dog_play.mp4': (9.643, 1280, 720, 'h264', True, False),
  'video/flower_timelapse.mp4': (5.005, 960, 540, 'h264', True, False),
  'video/football_juggle.mp4': (10.292, 1280, 720, 'h264', False, False),
  'video/kids_jumping.mp4': (6.667, 960, 540, 'h264', False, False),
  'video/nasa_two_streams.mp4': (13.013, 480, 270, 'h264', True, True),
  'video/person_moves.mp4': (4.0, 576, 576, 'h264', False, True),
  'video/slideshow_nature.mp4': (16.0, 640, 360, 'h264', False, False),
  'video/squats_portrait.mp4': (13.0, 720, 1280, 'h264', False, True),
  'video/still_image.mp4': (8.0, 960, 540, 'h264', False, False),
  'video/tears_of_steel_battle.webm': (70.458, 798, 332, 'vp8', True, False),
  'video_edge/anamorphic_sar2.mp4': (5.0, 1280, 360, 'h264', False, True),
  'video_edge/av1_short.mkv': (5.0, 640, 360, 'av1', False, True),
  'video_edge/gesture_noaudio.mkv': (1.933, 640, 480, 'h264', False, True),
  'video_edge/hevc_short.mp4': (1.0, 128, 128, 'hevc', False, True),
  'video_edge/nonzero_start.mp4': (0.4, 199, 112, 'h264', False, True),
  'video_edge/odd_321x241_vp9.mp4': (1.0, 321, 241, 'vp9', False, True),
  'video_edge/portrait_dog_10fps.mp4': (1.1, 320, 568, 'h264', True, True),
  'video_edge/rotated_180.mov': (0.1, 568, 320, 'h264', False, True),
  'video_edge/rotated_270.mov': (0.1, 320, 568, 'h264', False, True),
  'video_edge/rotated_90.mov': (0.1, 320, 568, 'h264', False, True),
  'video_edge/rotated_bunny_1080p.mp4': (
    1.875,
    1080,
    1920,
    'h264',
    True,
    True,
  ),
  'video_edge/rotated_nasa.mp4': (0.567, 270, 480, 'h264', False, True),
  'video_edge/rotation_none.mov': (0.1, 568, 320, 'h264', False, True),
  'video_edge/vfr_screen.mp4': (8.726, 3026, 1386, 'h264', False, True),
  # Declared lengths; what decodes is in DAMAGED.
  'video_edge/bitflipped.mp4': (5.005, 960, 540, 'h264', True, False),
  'video_edge/corrupt_upstream.mp4': (5.0, 1280, 720, 'h264', False, False),
  'video_edge/truncated_moov_first.mp4': (5.005, 960, 540, 'h264', True, False),
}
# Seconds that decode, frames at 10 Hz, and the warning behind the path.
DAMAGED = {
  'bitflipped.mp4': (
    5.005,
    51,
    'is damaged, 99 of its pictures do not decode in full. '
    'What decodes is used.',
  ),
  'corrupt_upstream.mp4': (
    5.0,
    50,
    'is damaged, 2 of its pictures do not decode in full. '
    'What decodes is used.',
  ),
  'truncated_moov_first.mp4': (
    2.669,
    27,
    'breaks off after 2.7 s of 5.0 s. What decodes is used.',
  ),
}
UNUSABLE = {
  'video_edge/audio_only.mp4': (
    'holds no moving picture, expected a video. Choose a file with a '
    'moving picture.'
  ),
  'video_edge/truncated_no_moov.mp4': (
    'breaks off before its index and cannot be opened, expected a complete '
    'file. Copy or download it again.'
  ),
}
COVER = 'music/jazz_lounge_vibe_ace.ogg'  # a cover picture and sound


def read(path, rate_hz=10, size=(64, 64), **kwargs):
  reader = video.FrameReader(path, rate_hz, size, **kwargs)
  return np.concatenate(list(reader)), reader


# Nearly lossless, and out of order: two pictures rest on a later one.
ENCODER = {
  'crf': '4',
  'g': '10',
  'bf': '2',
  'b_strategy': '0',
  'sc_threshold': '0',
}


def write(
  path, images, times=None, unit='1/25', codec='libx264', fmt=None, **options
):
  """Writes pictures at given times, in units of a clock, as H.264."""
  options = options or ENCODER
  with av.open(str(path), 'w', format=fmt) as target:
    rate = fractions.Fraction(unit)
    height, width = images.shape[1:3]
    track = target.add_stream(
      codec,
      rate=25,
      width=width,
      height=height,
      pix_fmt='yuv444p',
      time_base=rate,
    )
    track.options = options
    for k, image in enumerate(images):
      frame = av.VideoFrame.from_ndarray(image, 'rgb24')
      frame = frame.reformat(format='yuv444p')
      frame.pts = k if times is None else times[k]
      frame.time_base = rate
      target.mux(track.encode(frame))
    target.mux(track.encode(None))
  return str(path)


def grey(levels, size=(32, 48)):
  """Pictures whose mean tells their level, uint8 `[time, height, width, 3]`."""
  texture = np.random.default_rng(0).integers(-10, 11, (1, *size, 1))
  texture -= round(texture.mean())
  levels = np.array(levels)[:, None, None, None]
  return (levels + texture + np.zeros(3)).clip(0, 255).astype(np.uint8)


def levels(frames):
  return frames.mean(axis=(1, 2, 3))


def packets(path, count=None):
  """Digests of the packets of the main picture."""
  with av.open(path) as source:
    stream = source.streams.best('video')
    packets = [p for p in source.demux(stream) if p.size and not p.is_corrupt]
    return [hashlib.sha256(bytes(p)).hexdigest() for p in packets][:count]


def times(path):
  """When the file itself says that each picture is shown, in seconds."""
  with av.open(path) as source:
    return [frame.time for frame in source.decode(video=0)]


def noise(seconds, rate=16000):
  rng = np.random.default_rng(0)
  noise = rng.standard_normal(round(seconds * rate)).astype(np.float32)
  return np.convolve(0.1 * noise, np.ones(4) / 2, 'same').astype(np.float32)
