"""VGGish in NumPy, in float64, written for reading and not for speed."""

import numpy as np


def _mel(hertz):
  return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)


def log_mel(waveform, offset):
  """Frames of 400 samples every 160, 64 mels from 125 to 7500 Hz."""
  edges = np.linspace(_mel(125), _mel(7500), 66)
  filters = np.zeros((257, 64))
  for k in range(257):
    mel = _mel(k * 16000 / 512)
    for band in range(64):
      low, centre, high = edges[band : band + 3]
      side = min((mel - low) / (centre - low), (high - mel) / (high - centre))
      filters[k, band] = max(0.0, side)
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
  rows = []
  for start in range(0, len(waveform) - 400 + 1, 160):
    spectrum = np.abs(np.fft.rfft(waveform[start : start + 400] * window, 512))
    rows.append(np.log(spectrum @ filters + offset))
  return np.array(rows)


def _convolve(x, kernel, bias):
  """`[time, mels, in]` with `[3, 3, in, out]`, zeros around, then ReLU."""
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  y = np.zeros((*x.shape[:2], kernel.shape[-1]))
  for i in range(3):
    for j in range(3):
      y += padded[i : i + x.shape[0], j : j + x.shape[1]] @ kernel[i, j]
  return np.maximum(y + bias, 0)


def _halve(x):
  time, mels, channels = x.shape
  return x.reshape(time // 2, 2, mels // 2, 2, channels).max((1, 3))


def embed(patch, params):
  """Embedding `[128]` of a patch `[96, 64]`, before any activation."""
  x = patch[..., None]
  for names in (('conv1',), ('conv2',), ('conv3_1', 'conv3_2'),
                ('conv4_1', 'conv4_2')):  # fmt: skip
    for name in names:
      x = _convolve(x, params[name]['kernel'], params[name]['bias'])
    x = _halve(x)
  x = x.reshape(-1)
  for name in ('fc1_1', 'fc1_2'):
    x = np.maximum(x @ params[name]['kernel'] + params[name]['bias'], 0)
  return x @ params['fc2']['kernel'] + params['fc2']['bias']
