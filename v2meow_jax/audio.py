"""Sound: read from any media file, resample, write.

Samples are float32 in [-1, 1].
"""

from collections.abc import Iterable, Iterator
import dataclasses
import struct
import wave

import av
import numpy as np
import soxr

from v2meow_jax import errors
from v2meow_jax import files

# Sound that strays less than this from its time stamps is taken as it comes.
_JITTER_SECONDS = 0.05
_CHUNK = 1 << 18


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
    # Float of the channels as they are; no change of rate. Not planar: PyAV
    # miscounts the planes of eight channels and more, and crashes.
    converter = av.AudioResampler('flt', rate=rate)
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
        # [1, samples * channels] -> [samples, channels]
        samples = part.to_ndarray().reshape(-1, part.layout.nb_channels)
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


def wav_header(sample_rate_hz: int) -> bytes:
  """Header of a 16-bit mono WAV of unknown length, as pipes carry it."""
  unknown = 0xFFFFFFFF
  return struct.pack(
    '<4sI4s4sIHHIIHH4sI',
    b'RIFF',
    unknown,
    b'WAVE',
    b'fmt ',
    16,  # bytes of this part
    1,  # PCM
    1,  # channel
    sample_rate_hz,
    2 * sample_rate_hz,  # bytes a second
    2,  # bytes a sample
    16,  # bits a sample
    b'data',
    unknown,
  )


def wav_samples(samples: np.ndarray) -> bytes:
  """float32 samples as a 16-bit WAV holds them; clipped beyond full scale."""
  scaled = np.rint(samples * 32767.0)
  return np.clip(scaled, -32767, 32767).astype('<i2').tobytes()


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
        f.writeframes(wav_samples(chunk[start : start + _CHUNK]))
