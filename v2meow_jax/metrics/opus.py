"""Opus, the codec of calls and of the web, to compare neural codecs with."""

import io

import av
import numpy as np

from v2meow_jax import errors


def round_trip(
  waveform: np.ndarray, sample_rate_hz: int, kilobits: float
) -> tuple[np.ndarray, float]:
  """Encodes and decodes a sound.

  Args:
    waveform: float32 `[samples]`, mono.
    sample_rate_hz: 8000, 12000, 16000, 24000 or 48000.
    kilobits: bit rate to aim at, in kbit/s; libopus takes 6 to 510.

  Returns:
    float32 `[samples]`, aligned with the input, and the bit rate of the
    packets in kbit/s.

  Raises:
    UserError: PyAV was built without libopus, or it refuses the rate.
  """
  file = io.BytesIO()
  options = {'application': 'audio', 'vbr': 'constrained'}
  num_bytes = 0
  try:
    with av.open(file, 'w', format='ogg') as container:
      stream = container.add_stream(
        'libopus', rate=sample_rate_hz, options=options
      )
      stream.layout, stream.bit_rate = 'mono', round(kilobits * 1000)
      stream.codec_context.open()
      frame = av.AudioFrame.from_ndarray(
        waveform[np.newaxis].astype(np.float32), format='flt', layout='mono'
      )
      frame.sample_rate, frame.pts = sample_rate_hz, 0
      cut = av.AudioResampler(
        'flt', 'mono', sample_rate_hz, stream.codec_context.frame_size
      )
      pieces = [piece for part in (frame, None) for piece in cut.resample(part)]
      for piece in (*pieces, None):
        for packet in stream.encode(piece):
          num_bytes += packet.size
          container.mux(packet)
  except (av.FFmpegError, ValueError) as error:
    raise errors.UserError(
      f'Opus at {kilobits:g} kbit/s and {sample_rate_hz} Hz: {error}. Choose '
      'another bit rate.'
    ) from error
  file.seek(0)
  with av.open(file) as container:
    back = av.AudioResampler('flt', 'mono', sample_rate_hz)
    frames = [*container.decode(audio=0), None]
    decoded = np.concatenate(
      [piece.to_ndarray()[0] for f in frames for piece in back.resample(f)]
    )
  decoded = np.pad(decoded, (0, max(0, len(waveform) - len(decoded))))
  seconds = len(waveform) / sample_rate_hz
  return decoded[: len(waveform)], num_bytes * 8 / seconds / 1000
