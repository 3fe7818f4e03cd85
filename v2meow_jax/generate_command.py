"""`v2meow generate`: its arguments."""

import argparse
from collections.abc import Sequence
import dataclasses
import math
import re

from v2meow_jax import arguments
from v2meow_jax import controls

_DESCRIPTION = """\
Gives videos music: the picture stays as it is, bit for bit, and gets a new
sound track. Prints the path of each file written.

Without --out, VIDEO's name with `.v2meow.mp4` (`.v2meow.wav`) is written into
the working folder. A picture that MP4 cannot hold goes into Matroska. Files of
an earlier run are replaced, a VIDEO never is. Beside them a sidecar,
`.v2meow.json`, notes all that the piece follows from: --from makes it again.

Of a folder, all videos directly in it are taken. What goes wrong with one does
not stop the others: it is said at the end, and the exit status is 1.
"""

_EXAMPLES = """\
examples:
  v2meow generate clip.mp4
  v2meow generate clip.mp4 --out music.wav --seed 7
  v2meow generate clip.mp4 --text 'calm piano' --samples 3
  v2meow generate clip.mp4 --text 'calm piano:0.7' --text 'strings:0.3' \\
    --negative_text drums --style_guidance 3
  v2meow generate clip.mp4 --prompt_audio intro.wav --best_of 4
  v2meow generate clip.mp4 --seed 7 --replace 12.0-20.0
  v2meow generate *.mp4 --out with_music/ --format both
  v2meow generate videos/ --out with_music/ --skip_existing
  v2meow generate --from clip.v2meow.json --out again.mp4
  v2meow generate clip.mp4 --out - | ffplay -

environment:
  V2MEOW_CACHE   folder of compiled code, `off` for none
                 (default: $XDG_CACHE_HOME/v2meow or ~/.cache/v2meow)
  V2MEOW_DEBUG   1 shows where an error comes from
"""


def _span(text: str) -> tuple[float, float, int | None]:
  """Parses `12.0-20.0`, or `12-20:7` with a seed."""
  found = re.fullmatch(r'(\d*\.?\d+)-(\d*\.?\d+)(?::(\d+))?', text)
  if not found:
    raise argparse.ArgumentTypeError(
      f'is `{text}`, expected START-END in seconds, as 12.0-20.0, or with a '
      'seed, as 12-20:7'
    )
  start, end, seed = found.groups()
  return float(start), float(end), None if seed is None else int(seed)


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='v2meow generate',
    description=_DESCRIPTION,
    epilog=_EXAMPLES,
  )
  add = parser.add_argument
  add('videos', metavar='VIDEO', nargs='*', help='video file, or a folder')
  add(
    '--from',
    metavar='SIDECAR',
    dest='origin',
    help='make the piece of a sidecar again; options beside it change the '
    'piece, VIDEO says where its video is now, and --model where its model is',
  )
  add(
    '--out',
    metavar='PATH',
    help='file to write (.mp4, .mkv or .wav), or a folder, which is made '
    'if missing; - for WAV to stdout while the music is made',
  )
  add(
    '--format',
    choices=('mp4', 'wav', 'both'),
    help='video with music, 16-bit WAV, or both (default: what PATH says, '
    'else mp4)',
  )
  add(
    '--text',
    metavar='T[:W]',
    action='append',
    help='what the music should be like, in words; repeat it, with weights, '
    'for music between several texts',
  )
  add(
    '--negative_text',
    metavar='T',
    help='what the music should be unlike; needs --style_guidance',
  )
  add(
    '--visual_guidance',
    metavar='W',
    type=arguments.number(0, math.inf),
    default=1.0,
    help='how closely to follow the picture: 1 as the model does by itself, 0 '
    'not at all, 3 much more; takes longer (default: %(default)g)',
  )
  add(
    '--style_guidance',
    metavar='W',
    type=arguments.number(0, math.inf),
    default=1.0,
    help='the same for --text, and away from --negative_text (default: '
    '%(default)g)',
  )
  add(
    '--model',
    metavar='NAME_OR_DIR',
    default='bundled',
    help='name or folder of a trained model (default: %(default)s)',
  )
  add(
    '--seed',
    metavar='N',
    type=arguments.number(0, controls.SEEDS - 1, int),
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
    '--best_of',
    metavar='N',
    type=arguments.number(1, math.inf, int),
    default=1,
    help='make N pieces for each one and keep the one with the highest score '
    '(default: %(default)s)',
  )
  add(
    '--prompt_audio',
    metavar='FILE',
    help='sound that the music begins with and goes on from',
  )
  add(
    '--replace',
    metavar='S-E[:SEED]',
    type=_span,
    action='append',
    default=[],
    help='make seconds S to E of the piece anew and leave all else as it is; '
    'repeat it for more spans or another try (default seed: the next)',
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
  add(
    '--no_sidecar',
    action='store_true',
    help='write no JSON beside the outputs',
  )
  add(
    '--skip_existing',
    action='store_true',
    help='make no piece again whose files are there, unchanged, with a sidecar '
    'of the same model, video and options; the version that made it does not '
    'count',
  )
  add(
    '--shard',
    metavar='I/N',
    type=_parse_shard,
    default=(0, 1),
    help='take every N-th video, from the I-th on (0 to N - 1): one process '
    'for each I shares the work out',
  )
  return parser


def _parse_shard(text: str) -> tuple[int, int]:
  found = re.fullmatch(r'(\d{1,9})/(\d{1,9})', text, re.ASCII)
  index, count = map(int, found.groups()) if found else (0, 0)
  if index >= count:
    raise argparse.ArgumentTypeError(
      f'is `{text}`, expected I/N with I from 0 to N - 1'
    )
  return index, count


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Parses a command line; `given` names the options that stand in it."""
  parser = _parser()
  options = parser.parse_args(argv)
  # Where all options are None, argparse sets no default.
  absent = argparse.Namespace(**dict.fromkeys(vars(options)))
  found = vars(parser.parse_args(argv, absent))
  options.given = frozenset(k for k, v in found.items() if v is not None)
  if not options.videos and not options.origin:
    parser.error('the following arguments are required: VIDEO')
  if len(options.videos) > 1 and options.origin:
    parser.error(
      f'--from: {len(options.videos)} videos for one sidecar, expected one or '
      'none'
    )
  if options.no_sidecar and options.skip_existing:
    parser.error(
      '--skip_existing: reads sidecars, expected it without --no_sidecar'
    )
  for name, default in (('samples', 1), ('best_of', 1), ('replace', [])):
    if options.out == '-' and getattr(options, name) != default:
      parser.error(
        f'--{name}: needs the whole piece, expected a file or folder and not '
        '`--out -`'
      )
  if options.out == '-' and options.format not in (None, 'wav'):
    parser.error(f'--format: is {options.format}, but `--out -` is WAV')
  num_seeds = options.samples * options.best_of
  if options.seed + num_seeds > controls.SEEDS:
    parser.error(
      f'--samples: {num_seeds} seeds from {options.seed} on go beyond '
      f'{controls.SEEDS - 1}, expected smaller ones'
    )
  names = {field.name for field in dataclasses.fields(controls.Controls)}
  chosen = {k: v for k, v in vars(options).items() if k in names}
  try:
    controls.Controls(**chosen)
  except ValueError as error:
    parser.error(f'--{error}')
  return options


def main(argv: Sequence[str]) -> int:
  """Runs `v2meow generate` and returns its exit status."""
  options = parse(argv)
  if options.out == '-':
    from v2meow_jax import streaming

    return streaming.run(**vars(options))
  from v2meow_jax import service

  return service.run(**vars(options))
