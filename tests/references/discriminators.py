"""SoundStream's discriminators, one convolution after another, in SciPy."""

import librosa
import numpy as np
from scipy import signal


def _activation(x):
  return np.where(x > 0, x, 0.2 * x)


def _convolve(x, layer, strides, pads, groups=1):
  """Convolves `[*space, in]` with a kernel `[*taps, in / groups, out]`."""
  kernel, bias = np.asarray(layer['kernel'], float), np.asarray(layer['bias'])
  x = np.pad(x, (*pads, (0, 0)))
  inputs, outputs = kernel.shape[-2:]
  every = tuple(slice(None, None, stride) for stride in strides)
  made = []
  for output in range(outputs):
    first = output // (outputs // groups) * inputs
    total = sum(
      signal.correlate(x[..., first + i], kernel[..., i, output], 'valid')
      for i in range(inputs)
    )
    made.append(total[every] + bias[output])
  return np.stack(made, axis=-1)


def _same(size, taps, stride):
  """Padding so that the output has ceil(size / stride) positions."""
  total = max((-(-size // stride) - 1) * stride + taps - size, 0)
  return total // 2, total - total // 2


def wave(params, waveform, config, scale):
  """Logits `[time]` and features of a waveform `[samples]`."""
  x = np.asarray(waveform, float)
  while scale > 1:
    padded = np.pad(x, 1, constant_values=np.nan)
    x = np.array(
      [np.nanmean(padded[i : i + 4]) for i in range(0, len(padded) - 3, 2)]
    )
    scale //= 2
  x = x[:, None]
  channels = config.wave_channels
  features = []
  x = _activation(_convolve(x, params['conv_in'], [1], [(7, 7)]))
  features.append(x)
  for i, stride in enumerate(config.wave_strides):
    groups = channels // config.wave_group_size
    pad = 5 * stride
    x = _convolve(x, params[f'down_{i}'], [stride], [(pad, pad)], groups)
    features.append(x := _activation(x))
    channels = x.shape[-1]
  x = _activation(_convolve(x, params['conv_out'], [1], [(2, 2)]))
  features.append(x)
  return _convolve(x, params['logits'], [1], [(1, 1)])[:, 0], features


def stft(params, waveform, config):
  """Logits `[time]` and features of a waveform `[samples]`."""
  size = config.stft_window
  spectrum = librosa.stft(
    np.asarray(waveform, float),
    n_fft=size,
    hop_length=config.stft_hop,
    pad_mode='constant',
  )
  spectrum = spectrum[:-1].T / np.sqrt(
    np.square(signal.get_window('hann', size)).sum()
  )

  def convolve(x, layer, strides=(1, 1)):
    taps = layer['kernel'].shape[:2]
    pads = [_same(*a) for a in zip(x.shape, taps, strides)]
    return _convolve(x, layer, strides, pads)

  x = np.stack([spectrum.real, spectrum.imag], axis=-1)
  x = convolve(x, params['conv_in'])
  features = [x]
  for i in range(6):
    unit, strides = params[f'unit_{i}'], (1 + i % 2, 2)
    y = convolve(_activation(x), unit['conv'])
    y = convolve(_activation(y), unit['down'], strides)
    features.append(x := y + convolve(x, unit['skip'], strides))
  logits = _convolve(_activation(x), params['logits'], (1, 1), [(0, 0), (0, 0)])
  return logits[:, 0, 0], features
