"""Sound: read from any media file, resample, measure and set loudness, write.

Samples are float32 in [-1, 1]. Loudness is that of ITU-R BS.1770-4 in LUFS.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import wave

import av
import numpy as np
from scipy import ndimage
from scipy import signal
import soxr

from v2meow_jax import errors
from v2meow_jax import files

TARGET_LUFS = -16.0
PEAK_DBFS = -1.0
# Sound that strays less than this from its time stamps is taken as it comes.
_JITTER_SECONDS = 0.05
_CHUNK = 1 << 18
# The limiter turns down over this long on both sides of a peak.
_LIMITER_SECONDS = 0.06
_ROUNDS = 4
_TOLERANCE_LU = 0.1
# Quieter sound than this is silence, which no gain makes louder.
_SILENCE_LUFS = -70.0


@dataclasses.dataclass(frozen=True)
class Waveform:
  """Sound with its sample rate.

  Attributes:
    samples: float32 `[samples, channels]`, full scale is 1.
    sample_rate_hz: samples a second.
  """

  samples: np.ndarray
  sample_rate_hz: int

  @property
  def seconds(self) -> float:
    """Length."""
    return len(self.samples) / self.sample_rate_hz

  @property
  def peak(self) -> float:
    """Greatest absolute sample; 0 of no samples."""
    return float(np.abs(self.samples).max(initial=0))

  def to_mono(self) -> 'Waveform':
    """Returns the mean of the channels."""
    mono = self.samples.mean(axis=1, keepdims=True, dtype=np.float32)
    return dataclasses.replace(self, samples=mono)

  def resample(self, sample_rate_hz: int) -> 'Waveform':
    """Returns the same sound at another rate, band-limited."""
    samples = self.samples
    if sample_rate_hz != self.sample_rate_hz:
      samples = soxr.resample(samples, self.sample_rate_hz, sample_rate_hz)
    return Waveform(samples, sample_rate_hz)

  def measure_loudness(self) -> float:
    """Returns the integrated loudness in LUFS; see `measure_loudness`."""
    return measure_loudness(self.samples, self.sample_rate_hz)

  def normalize_loudness(self, target_lufs: float = TARGET_LUFS) -> 'Waveform':
    """Returns it at a loudness and below full scale; see the function."""
    samples = normalize_loudness(self.samples, self.sample_rate_hz, target_lufs)
    return dataclasses.replace(self, samples=samples)


def read(
  path: str, start_seconds: float = 0.0, end_seconds: float | None = None
) -> Waveform:
  """Reads the sound of an audio or video file.

  Time 0 is the first picture of a video, so that sound and frames of the same
  seconds belong together, and the first sample of any other file. Where the
  file has no sound for a while there is silence.

  Args:
    path: a local media file.
    start_seconds: where to start.
    end_seconds: where to stop; None reads to the end of the sound.

  Returns:
    All channels of the main sound track, at its own rate.

  Raises:
    UserError: the file cannot be opened or has no sound in that time.
  """
  chunks, rates = zip(*_decode(path, start_seconds, end_seconds), strict=True)
  return Waveform(np.concatenate(chunks), rates[0])


def read_mono(
  path: str,
  sample_rate_hz: int,
  start_seconds: float = 0.0,
  end_seconds: float | None = None,
) -> np.ndarray:
  """Reads the sound of a file as one channel at a given rate.

  Args:
    path: a local media file.
    sample_rate_hz: of the result.
    start_seconds: where to start; see `read` for time 0.
    end_seconds: where to stop; None reads to the end of the sound.

  Returns:
    float32 `[samples]`.

  Raises:
    UserError: as `read`.
  """
  chunks = []
  for chunk, rate in _decode(path, start_seconds, end_seconds):
    waveform = Waveform(chunk, rate).to_mono()
    chunks.append(waveform.samples)
  waveform = dataclasses.replace(waveform, samples=np.concatenate(chunks))
  return waveform.resample(sample_rate_hz).samples[:, 0]


def _decode(
  path: str, start_seconds: float, end_seconds: float | None
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields float32 `[samples, channels]` without gaps, and the rate."""
  num_damaged = 0
  with files.open_media(path) as container:
    stream = container.streams.best('audio')
    if stream is None or stream.codec_context is None:
      raise errors.UserError(
        f'{path}: has no sound, expected a file with a sound track. Choose '
        'another one or leave it out.'
      )
    picture = files.find_picture(container)
    timed = stream if picture is None else picture
    origin = float((timed.start_time or 0) * timed.time_base)
    rate = stream.codec_context.sample_rate
    # Planar float of the channels as they are; no change of rate.
    converter = av.AudioResampler('fltp', rate=rate)
    first = round(start_seconds * rate)
    last = np.inf if end_seconds is None else round(end_seconds * rate)
    position = first  # of the next sample, counted from time 0
    packets = container.demux(stream)
    while position < last:
      try:
        frames = next(packets).decode()
        parts = [(f.pts, p) for f in frames for p in converter.resample(f)]
      except (StopIteration, av.EOFError):
        break
      except (av.FFmpegError, ValueError):  # the latter: another layout
        num_damaged += 1
        continue
      for pts, part in parts:
        samples = part.to_ndarray().T
        shift = 0
        if pts is not None:
          time = float(pts * stream.time_base) - origin
          shift = round(time * rate) - position
        if abs(shift) < _JITTER_SECONDS * rate and position > first:
          shift = 0
        if shift > 0:
          silence = np.zeros((shift, samples.shape[1]), np.float32)
          samples = np.concatenate([silence, samples])
        samples = samples[max(0, -shift) :]
        if position + len(samples) > last:
          samples = samples[: last - position]
        if len(samples):
          position += len(samples)
          yield samples, rate
  if position == first:
    raise errors.UserError(
      f'{path}: has no sound after {start_seconds:g} s, expected some. '
      'Choose another part or leave it out.'
    )
  if num_damaged:
    errors.warn(f'{path}: its sound is damaged. What decodes is used.')


def measure_loudness(samples: np.ndarray, sample_rate_hz: int) -> float:
  """Returns the integrated loudness (ITU-R BS.1770-4).

  Args:
    samples: float32 `[samples]` or `[samples, channels]`; all channels weigh
      the same, as in mono and stereo.
    sample_rate_hz: samples a second.

  Returns:
    LUFS, or -inf of silence. Sound shorter than a block of 0.4 s counts as one.
  """
  hop = round(0.1 * sample_rate_hz)
  # Energy of the weighted sound in steps of 0.1 s; four make a block.
  steps = np.concatenate([*_energies(samples, sample_rate_hz, hop), []])
  if len(samples) >= 4 * hop:
    whole = len(samples) // hop
    blocks = sum(steps[i : whole - 3 + i] for i in range(4)) / (4 * hop)
  else:
    blocks = steps.sum(keepdims=True) / max(1, len(samples))
  gate = 10 ** ((_SILENCE_LUFS + 0.691) / 10)
  blocks = blocks[blocks > gate]
  if len(blocks):
    blocks = blocks[blocks > blocks.mean() / 10]  # 10 LU below what is heard
  if not len(blocks):
    return -np.inf
  return float(-0.691 + 10 * np.log10(blocks.mean()))


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


def _energies(
  samples: np.ndarray, sample_rate_hz: int, hop: int
) -> Iterator[np.ndarray]:
  """Yields the energy of the weighted sound per `hop` samples."""
  sections = k_weighting(sample_rate_hz)
  state = np.zeros((len(sections), 2, *samples.shape[1:]))
  size = hop * max(1, _CHUNK // hop)
  for start in range(0, len(samples), size):
    chunk = np.asarray(samples[start : start + size], np.float64)
    weighted, state = signal.sosfilt(sections, chunk, axis=0, zi=state)
    energy = np.square(weighted).reshape(len(chunk), -1).sum(axis=1)
    energy = np.pad(energy, (0, -len(energy) % hop))
    yield energy.reshape(-1, hop).sum(axis=1)


def normalize_loudness(
  samples: np.ndarray,
  sample_rate_hz: int,
  target_lufs: float = TARGET_LUFS,
  peak_dbfs: float = PEAK_DBFS,
) -> np.ndarray:
  """Brings sound to a loudness, with its peaks below full scale.

  One gain for all, and a limiter that turns down around the peaks which would
  stand over. What the limiter takes is made good by more gain, within reason:
  sound that is nothing but peaks stays below the target.

  Args:
    samples: float32 `[samples]` or `[samples, channels]`.
    sample_rate_hz: samples a second.
    target_lufs: integrated loudness to reach.
    peak_dbfs: greatest sample of the result, in dB of full scale.

  Returns:
    float32 of the same shape; silence stays as it is.
  """
  result = np.array(samples, np.float32)
  gain = 1.0
  for _ in range(_ROUNDS):
    missing = target_lufs - measure_loudness(result, sample_rate_hz)
    if not _TOLERANCE_LU < abs(missing) < np.inf:
      break
    gain *= 10 ** (missing / 20)
    _amplify(samples, result, gain, 10 ** (peak_dbfs / 20), sample_rate_hz)
  return result


def _amplify(
  samples: np.ndarray,
  result: np.ndarray,
  gain: float,
  ceiling: float,
  sample_rate_hz: int,
) -> None:
  """Writes `samples` times `gain`, kept below `ceiling`, to `result`."""
  reach = round(_LIMITER_SECONDS * sample_rate_hz)
  for start in range(0, len(samples), _CHUNK):
    stop = min(start + _CHUNK, len(samples))
    # What lies more than twice the reach away has no influence.
    first = max(0, start - 2 * reach)
    around = np.asarray(samples[first : stop + 2 * reach], np.float32) * gain
    limited = (around.T * _limit(around, ceiling, reach)).T
    result[start:stop] = limited[start - first :][: stop - start]


def _limit(samples: np.ndarray, ceiling: float, reach: int) -> np.ndarray:
  """Returns a smooth gain `[samples]` that keeps them all below `ceiling`.

  The mean over `reach` on both sides of what the loudest sample within `reach`
  allows: as each of these is at most what the sample itself allows, so is it.
  """
  peaks = np.abs(samples).reshape(len(samples), -1).max(axis=1)
  allowed = ceiling / np.maximum(peaks, ceiling)
  width = 2 * reach + 1
  lowest = ndimage.minimum_filter1d(allowed, width, mode='nearest')
  return ndimage.uniform_filter1d(lowest, width, mode='nearest')


def write_wav(
  path: str, samples: np.ndarray | Iterable[np.ndarray], sample_rate_hz: int
) -> None:
  """Writes a 16-bit WAV file; the same samples give the same bytes.

  Args:
    path: where to; a file there is replaced when the new one is whole.
    samples: float32 `[samples]` or `[samples, channels]`, or an iterable of
      such arrays, one after the other. Beyond full scale they are clipped.
    sample_rate_hz: samples a second.

  Raises:
    UserError: the file cannot be written.
  """
  chunks = [samples] if isinstance(samples, np.ndarray) else samples
  with files.replace(path) as temporary, wave.open(temporary, 'wb') as f:
    f.setsampwidth(2)
    f.setframerate(sample_rate_hz)
    f.setnchannels(1)
    for number, chunk in enumerate(chunks):
      if not number:
        f.setnchannels(chunk.shape[1] if chunk.ndim == 2 else 1)
      for start in range(0, len(chunk), _CHUNK):
        scaled = np.rint(chunk[start : start + _CHUNK] * 32767.0)
        f.writeframes(np.clip(scaled, -32767, 32767).astype('<i2').tobytes())
