"""`v2meow generate`: its arguments."""

import argparse
from collections.abc import Sequence
import math

from v2meow_jax import arguments

_SEEDS = 2**32

_DESCRIPTION = """\
Gives videos music: the picture stays as it is, bit for bit, and gets a new
sound track. Prints the path of each file written.

Without --out, VIDEO's name with `.v2meow.mp4` (`.v2meow.wav`) is written into
the working folder. A picture that MP4 cannot hold goes into Matroska. Files of
an earlier run are replaced, a VIDEO never is.
"""

_EXAMPLES = """\
examples:
  v2meow generate clip.mp4
  v2meow generate clip.mp4 --out music.wav --seed 7
  v2meow generate clip.mp4 --text 'calm piano' --samples 3
  v2meow generate *.mp4 --out with_music/ --format both

environment:
  V2MEOW_CACHE   folder of compiled code, `off` for none
                 (default: $XDG_CACHE_HOME/v2meow or ~/.cache/v2meow)
  V2MEOW_DEBUG   1 shows where an error comes from
"""


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='v2meow generate',
    description=_DESCRIPTION,
    epilog=_EXAMPLES,
  )
  add = parser.add_argument
  add('videos', metavar='VIDEO', nargs='+', help='video file')
  add(
    '--out',
    metavar='PATH',
    help='file to write (.mp4, .mkv or .wav), or a folder, which is made '
    'if missing',
  )
  add(
    '--format',
    choices=('mp4', 'wav', 'both'),
    help='video with music, 16-bit WAV, or both (default: what PATH says, '
    'else mp4)',
  )
  add('--text', metavar='T', help='what the music should be like, in words')
  add(
    '--model',
    metavar='NAME_OR_DIR',
    default='bundled',
    help='name or folder of a trained model (default: %(default)s)',
  )
  add(
    '--seed',
    metavar='N',
    type=arguments.number(0, _SEEDS - 1, int),
    default=0,
    help='another seed, another piece; every video gets the same one, so '
    'that it gets alone what it gets in a batch (default: %(default)s)',
  )
  add(
    '--samples',
    metavar='N',
    type=arguments.number(1, math.inf, int),
    default=1,
    help='pieces for each video, with seeds N, N + 1, …, which then stand in '
    'the names of the files (default: %(default)s)',
  )
  add(
    '--duration',
    metavar='S',
    type=arguments.number(0, math.inf, above=True),
    help='stop after S seconds of the video (default: all of it)',
  )
  add(
    '--temperature',
    metavar='T1,T2,T3',
    type=arguments.per_stage(arguments.number(0, math.inf), (3,)),
    help='randomness of the stages semantic, coarse, fine; 0 takes the most '
    "likely token (default: the model's, as in the paper 1.0,0.95,0.4)",
  )
  add(
    '--top_k',
    metavar='K',
    type=arguments.per_stage(arguments.number(0, math.inf, int), (1, 3)),
    help='draw from the K most likely tokens only, 0 for all; one number or '
    "one for each stage (default: the model's)",
  )
  add(
    '--top_p',
    metavar='P',
    type=arguments.per_stage(arguments.number(0, 1, above=True), (1, 3)),
    help='draw from the most likely tokens that together reach this '
    'probability, 1 for all; one number or one for each stage (default: the '
    "model's)",
  )
  return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = _parser()
  options = parser.parse_args(argv)
  if options.seed + options.samples > _SEEDS:
    parser.error(
      f'--samples: {options.samples} seeds from {options.seed} on go beyond '
      f'{_SEEDS - 1}, expected smaller ones'
    )
  return options


def main(argv: Sequence[str]) -> int:
  """Runs `v2meow generate` and returns its exit status."""
  options = parse(argv)
  from v2meow_jax import service

  return service.run(**vars(options))
