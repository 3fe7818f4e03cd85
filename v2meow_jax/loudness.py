"""Loudness of sound: measured, and set while the sound is being made.

Samples are float32 in [-1, 1]. Loudness is that of ITU-R BS.1770-4 in LUFS.
"""

import functools

import numpy as np

TARGET_LUFS = -16.0
PEAK_DBFS = -1.0
# Quieter sound than this is silence, which no gain makes louder.
_SILENCE_LUFS = -70.0
_HOP_SECONDS = 0.1
_HOPS_PER_BLOCK = 4
_CHUNK = 1 << 18
# The gain of a moment knows the sound up to this much later.
_AHEAD_HOPS = 40
# The limiter turns down over this long on both sides of a peak; what lies more
# than twice as far away has no influence.
_LIMITER_SECONDS = 0.06
_LIMITER_HOPS = 2


def measure(samples: np.ndarray, sample_rate_hz: int) -> float:
  """Returns the integrated loudness (ITU-R BS.1770-4).

  Args:
    samples: float32 `[samples]` or `[samples, channels]`; all channels weigh
      the same, as in mono and stereo.
    sample_rate_hz: samples a second.

  Returns:
    LUFS, or -inf of silence. Sound shorter than a block of 0.4 s counts as one.
  """
  meter = _Meter(sample_rate_hz, samples.shape[1:])
  for start in range(0, len(samples), _CHUNK):
    meter.push(samples[start : start + _CHUNK])
  meter.finish()
  return meter.measure()


@functools.cache
def k_weighting(sample_rate_hz: int) -> np.ndarray:
  """Returns the filters before the measurement of loudness.

  BS.1770-4 prints the coefficients for 48 kHz. They are two analog filters
  behind a bilinear transform, which gives them for every rate: a shelf of
  +4 dB above 1.7 kHz for the head, and a high-pass at 38 Hz.

  Args:
    sample_rate_hz: rate to filter at.

  Returns:
    float64 `[2, 6]`, second-order sections as `scipy.signal` takes them.
  """
  shelf_hz, shelf_q = 1681.974450955533, 0.7071752369554196
  k = np.tan(np.pi * shelf_hz / sample_rate_hz)
  high = 10 ** (3.999843853973347 / 20)
  band = high**0.4996667741545416
  a0 = 1 + k / shelf_q + k * k
  shelf = [
    (high + band * k / shelf_q + k * k) / a0,
    2 * (k * k - high) / a0,
    (high - band * k / shelf_q + k * k) / a0,
    1,
    2 * (k * k - 1) / a0,
    (1 - k / shelf_q + k * k) / a0,
  ]
  pass_hz, pass_q = 38.13547087602444, 0.5003270373238773
  k = np.tan(np.pi * pass_hz / sample_rate_hz)
  a0 = 1 + k / pass_q + k * k
  high_pass = [
    1,
    -2,
    1,
    1,
    2 * (k * k - 1) / a0,
    (1 - k / pass_q + k * k) / a0,
  ]
  return np.array([shelf, high_pass])


def hop(sample_rate_hz: int) -> int:
  """Samples from one gain of `Leveler` to the next: a tenth of a second."""
  return round(_HOP_SECONDS * sample_rate_hz)


@functools.cache
def _k_response(sample_rate_hz: int, size: int) -> np.ndarray:
  """Spectrum of the first `size` samples of the filters' response.

  After a tenth of a second it is below 1e-10: what is filtered by it is what
  the recursion gives, but for rounding.

  Args:
    sample_rate_hz: samples a second.
    size: samples of a step of 0.1 s.

  Returns:
    complex128 `[bins]` of `2 * size` samples.
  """
  bins = np.exp(-2j * np.pi * np.fft.rfftfreq(8 * size))
  response = np.ones(len(bins), complex)
  for b0, b1, b2, _, a1, a2 in k_weighting(sample_rate_hz):
    response *= (b0 + (b1 + b2 * bins) * bins) / (1 + (a1 + a2 * bins) * bins)
  return np.fft.rfft(np.fft.irfft(response)[:size], 2 * size)


class _Meter:
  """Measures sound that comes piece by piece.

  Attributes:
    hop: samples of a step of 0.1 s.
    energies: of the weighted sound in each step.
  """

  def __init__(self, sample_rate_hz: int, channels: tuple[int, ...] = ()):
    self.hop = hop(sample_rate_hz)
    self.energies = np.zeros(0)
    self._response = _k_response(sample_rate_hz, self.hop)
    # Of the step before, and samples of a step that is not whole.
    self._last = np.zeros((self.hop, *channels))
    self._rest = np.zeros((0, *channels))
    self._num_samples = 0

  def push(self, samples: np.ndarray) -> None:
    """Takes `[samples]` or `[samples, channels]`, one after the other."""
    self._num_samples += len(samples)
    samples = np.concatenate([self._rest, samples])
    count = len(samples) // self.hop
    whole = samples[: count * self.hop]
    self._rest = samples[count * self.hop :]
    if count:
      self._measure(whole.reshape(count, self.hop, *whole.shape[1:]))

  def _measure(self, steps: np.ndarray) -> None:
    """Adds the energies of whole steps, `[steps, hop, …]`."""
    before = np.concatenate([self._last[np.newaxis], steps[:-1]])
    self._last = steps[-1]
    # The end of a circular product is that of a straight one.
    spectra = np.fft.rfft(np.concatenate([before, steps], axis=1), axis=1)
    response = self._response.reshape(-1, *[1] * (steps.ndim - 2))
    weighted = np.fft.irfft(spectra * response, axis=1)[:, self.hop :]
    energies = np.square(weighted).reshape(len(steps), -1).sum(axis=1)
    self.energies = np.concatenate([self.energies, energies])

  def finish(self) -> None:
    """Ends the sound: what is left is a step of its own."""
    left = len(self._rest)
    if left:
      room = ((0, self.hop - left), *[(0, 0)] * (self._rest.ndim - 1))
      step = np.pad(self._rest, room)
      self._rest = self._rest[:0]
      self._measure(step[np.newaxis])

  def measure(self, count: int | None = None) -> float:
    """Integrated loudness of the first `count` steps, of all by default."""
    steps = self.energies[:count]
    whole = min(self._num_samples // self.hop, len(steps))
    if whole >= _HOPS_PER_BLOCK:
      last = whole - _HOPS_PER_BLOCK + 1
      blocks = sum(steps[i : last + i] for i in range(_HOPS_PER_BLOCK))
      blocks = blocks / (_HOPS_PER_BLOCK * self.hop)
    else:
      num_samples = min(self._num_samples, len(steps) * self.hop)
      blocks = steps.sum(keepdims=True) / max(1, num_samples)
    blocks = blocks[blocks > 10 ** ((_SILENCE_LUFS + 0.691) / 10)]
    if len(blocks):
      blocks = blocks[blocks > blocks.mean() / 10]  # 10 LU below what is heard
    if not len(blocks):
      return -np.inf
    return float(-0.691 + 10 * np.log10(blocks.mean()))


class Leveler:
  """Brings sound to a loudness while it is made, with peaks below full scale.

  The gain of a moment is what brings all sound up to 4 s later to the target,
  so sound that is no longer gets one gain, as if it were known before, and the
  gain of long sound settles. A limiter turns down around peaks that would stand
  over. How the sound is cut to pieces changes nothing.

  Attributes:
    gains: float64, of each tenth of a second: between two of them the gain
      goes straight from one to the other.
  """

  def __init__(
    self,
    sample_rate_hz: int,
    target_lufs: float = TARGET_LUFS,
    peak_dbfs: float = PEAK_DBFS,
  ):
    """Begins sound.

    Args:
      sample_rate_hz: samples a second.
      target_lufs: integrated loudness to reach.
      peak_dbfs: greatest sample of the result, in dB of full scale.
    """
    self.gains = np.zeros(0)
    self._target_lufs = target_lufs
    self._peak_dbfs = peak_dbfs
    self._rate = sample_rate_hz
    self._meter = _Meter(sample_rate_hz)
    # Samples from step `_first` on; those before are no longer needed.
    self._samples = np.zeros(0, np.float32)
    self._first = 0
    self._num_given = 0
    self._gain = 1.0  # the last one

  def push(self, samples: np.ndarray) -> np.ndarray:
    """Takes sound, and gives what is ready.

    Args:
      samples: float32 `[samples]`, of any length.

    Returns:
      float32 `[samples]`, which may be none.
    """
    self._samples = np.concatenate([self._samples, samples])
    self._meter.push(samples)
    return self._give(len(self._meter.energies) - _AHEAD_HOPS - 1)

  def finish(self) -> np.ndarray:
    """Ends the sound, and gives the rest of it, float32 `[samples]`."""
    self._meter.finish()
    return self._give(None)

  def _give(self, num_gains: int | None) -> np.ndarray:
    """Gives what the first `num_gains` gains say; None for all."""
    hop = self._meter.hop
    end = self._first * hop + len(self._samples)
    is_last = num_gains is None
    if is_last:
      num_gains = -(-end // hop) + 1
    new = []
    for number in range(len(self.gains), num_gains):
      heard = self._meter.measure(number + 1 + _AHEAD_HOPS)
      if heard > -np.inf:
        self._gain = 10 ** ((self._target_lufs - heard) / 20)
      new.append(self._gain)
    self.gains = np.concatenate([self.gains, new])
    stop = end if is_last else (num_gains - 1 - _LIMITER_HOPS) * hop
    if stop <= self._num_given:
      return np.zeros(0, np.float32)
    start = self._first * hop
    reach = min(end, (num_gains - 1) * hop)
    amplified = amplify(self._samples[: reach - start], start, self.gains, hop)
    limited = limit_peaks(amplified, self._rate, self._peak_dbfs)
    given = limited[self._num_given - start : stop - start]
    self._num_given = stop
    first = max(0, stop // hop - _LIMITER_HOPS)
    self._samples = self._samples[(first - self._first) * hop :]
    self._first = first
    return given.astype(np.float32)


def amplify(
  samples: np.ndarray, start: int, gains: np.ndarray, hop: int
) -> np.ndarray:
  """Sound times gains as those of `Leveler`.

  Args:
    samples: float32 `[samples]`.
    start: which sample of the whole is the first.
    gains: float64, at each `hop` samples of the whole.
    hop: samples from one gain to the next.
  """
  places = (start + np.arange(len(samples))) / hop
  curve = np.interp(places, np.arange(len(gains)), gains)
  return (samples * curve).astype(np.float32)


def limit_peaks(
  samples: np.ndarray, sample_rate_hz: int, peak_dbfs: float = PEAK_DBFS
) -> np.ndarray:
  """Sound without samples above a peak, in dB of full scale."""
  reach = round(_LIMITER_SECONDS * sample_rate_hz)
  return samples * limit(samples, 10 ** (peak_dbfs / 20), reach)


def limit(samples: np.ndarray, ceiling: float, reach: int) -> np.ndarray:
  """Returns a smooth gain `[samples]` that keeps them all below `ceiling`.

  The mean over `reach` on both sides of what the loudest sample within `reach`
  allows: as each of these is at most what the sample itself allows, so is it.

  Args:
    samples: float32 `[samples]`.
    ceiling: greatest absolute sample allowed.
    reach: samples.
  """
  allowed = ceiling / np.maximum(np.abs(samples, dtype=float), ceiling)
  width = 2 * reach + 1
  lowest = _lowest(np.pad(allowed, reach, mode='edge'), width)
  total = np.cumsum(np.pad(lowest, (reach + 1, reach), mode='edge'))
  return (total[width:] - total[:-width]) / width


def _lowest(values: np.ndarray, width: int) -> np.ndarray:
  """Least of each `width` values in a row, in a few passes over all.

  Each row of values lies in two blocks of `width`: it is the end of one and the
  beginning of the next (van Herk, 1992; Gil and Werman, 1993).
  """
  count = len(values) - width + 1
  blocks = np.pad(values, (0, -len(values) % width), mode='edge')
  blocks = blocks.reshape(-1, width)
  beginnings = np.minimum.accumulate(blocks, axis=1).ravel()
  ends = np.minimum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
  return np.minimum(ends[:count], beginnings[width - 1 :][:count])
