"""Integrated loudness as BS.1770-4 words it: one block at a time, at 48 kHz."""

import math

# The standard's tables 1 and 2: b0, b1, b2, a1, a2.
SHELF = (
  1.53512485958697,
  -2.69169618940638,
  1.19839281085285,
  -1.69065929318241,
  0.73248077421585,
)
HIGH_PASS = (1.0, -2.0, 1.0, -1.99004745483398, 0.99007225036621)


def _filter(samples, b0, b1, b2, a1, a2):
  result, x1, x2, y1, y2 = [], 0.0, 0.0, 0.0, 0.0
  for x in samples:
    y = b0 * x + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
    x1, x2, y1, y2 = x, x1, y, y1
    result.append(y)
  return result


def measure(channels, sample_rate_hz=48000):
  """Returns LUFS of lists of samples, one per channel."""
  weighted = [_filter(_filter(c, *SHELF), *HIGH_PASS) for c in channels]
  size, hop = round(0.4 * sample_rate_hz), round(0.1 * sample_rate_hz)
  powers = []
  for start in range(0, len(weighted[0]) - size + 1, hop):
    blocks = [c[start : start + size] for c in weighted]
    powers.append(sum(sum(x * x for x in b) / size for b in blocks))
  loudness = lambda power: -0.691 + 10 * math.log10(power)
  heard = [p for p in powers if p > 0 and loudness(p) > -70]
  gate = loudness(sum(heard) / len(heard)) - 10
  heard = [p for p in heard if loudness(p) > gate]
  return loudness(sum(heard) / len(heard))
