"""`v2meow generate --out -`: music to stdout while it is made, as WAV."""

import dataclasses
import sys

from v2meow_jax import audio
from v2meow_jax import bars
from v2meow_jax import errors
from v2meow_jax import generate
from v2meow_jax import orders
from v2meow_jax import video


def run(**arguments) -> int:
  """Streams the music of one video.

  Args:
    **arguments: see `orders.make`.

  Returns:
    Exit status.

  Raises:
    UserError: the video cannot be used, or there is more than one piece.
  """
  if sys.stdout.isatty():
    raise errors.UserError(
      '--out -: stdout is a terminal, expected a program or a file that takes '
      'WAV. Add, for example, `| ffplay -`.'
    )
  changes = {'out': None, 'format': 'wav', 'no_sidecar': True}
  order = orders.make(**arguments | changes)
  if len(order.pieces) != 1:
    raise errors.UserError(
      f'--out -: there are {len(order.pieces)} pieces for one stdout, expected '
      'one video and one sample. Name a folder with --out.'
    )
  (piece,) = order.pieces
  controls = dataclasses.replace(order.controls, seed=piece.seed)
  seconds = controls.duration or video.probe(piece.video).seconds
  generator = generate.load(order.model)
  bar = bars.Bar(1)
  bar.name(piece)
  tell = lambda phase, done: bar.tell(piece, seconds, phase, done)
  out = sys.stdout.buffer
  out.write(audio.wav_header(generator.bundle.codec.sample_rate_hz))
  try:
    for chunk in generator.stream(piece.video, controls, tell):
      out.write(audio.wav_samples(chunk))
      out.flush()
  finally:
    bar.close()
  return 0
