"""The command `v2meow`: generate, prepare, train, evaluate, inspect.

A command's own module is imported when the command is called, so that `--help`
answers at once. Exit status: 0 done, 1 something was wrong with the input or
its surroundings, 2 wrong usage, 130 stopped by Ctrl-C. Results go to stdout and
nothing else does.
"""

import argparse
from collections.abc import Sequence
import importlib
import math
import os
import signal
import sys

import v2meow_jax
from v2meow_jax import platforms

_SEEDS = 2**32

# Commands whose module reads its own arguments: module, then what it does.
_MODULES = {
  'prepare': ('prepare', 'make a dataset of videos with sound'),
  'train': ('train', 'train a codec or a stage'),
  'evaluate': ('evaluate', 'measure how music follows its video'),
}

_DESCRIPTION = """\
Music for silent video.

commands:
  generate   give videos music
  prepare    {prepare}
  train      {train}
  evaluate   {evaluate}
  inspect    show streams, stages, a model or a dataset

`v2meow COMMAND --help` explains a command.
""".format(**{name: summary for name, (_, summary) in _MODULES.items()})

_EXAMPLES = """\
examples:
  v2meow generate clip.mp4
  v2meow generate clip.mp4 --out music.wav --seed 7
  v2meow generate *.mp4 --out with_music/ --format both
"""

_GENERATE = """\
Gives videos music: the picture stays as it is, bit for bit, and gets a new
sound track. Prints the path of each file written.

Without --out, VIDEO's name with `.v2meow.mp4` (`.v2meow.wav`) is written into
the working folder. A picture that MP4 cannot hold goes into Matroska. Files of
an earlier run are replaced, a VIDEO never is.
"""

_GENERATE_EXAMPLES = """\
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

_INSPECT_EXAMPLES = """\
examples:
  v2meow inspect streams
  v2meow inspect stages
  v2meow inspect stages --model bundled
  v2meow inspect model bundled
  v2meow inspect records DIR --split validation --count 3
"""


class _Parser(argparse.ArgumentParser):
  """Reports wrong usage in one line, as every other error."""

  def __init__(self, **kwargs):
    super().__init__(
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      **kwargs,
    )

  def error(self, message: str):
    message = message.removeprefix('argument ').rstrip('.')
    self.exit(2, f'error: {message}. See `{self.prog} --help`.\n')


def _number(low: float, high: float, kind: type = float, above: bool = False):
  """Makes a parser of one number in `[low, high]`, or above `low`."""
  name = 'whole number' if kind is int else 'number'
  span = f'above {low}' if above else f'of at least {low}'
  if high < math.inf:
    span += f' and at most {high}'

  def parse(text: str):
    try:
      value = kind(text)
    except ValueError:
      value = math.nan
    if not low <= value <= high or math.isinf(value):
      value = math.nan
    if math.isnan(value) or (above and value == low):
      raise argparse.ArgumentTypeError(f'is `{text}`, expected a {name} {span}')
    return value

  return parse


def _per_stage(parse_one, counts: tuple[int, ...]):
  """Makes a parser of one value for each stage, separated by commas."""

  def parse(text: str):
    parts = text.split(',')
    if len(parts) not in counts:
      expected = ' or '.join(map(str, counts))
      raise argparse.ArgumentTypeError(
        f'is `{text}`, expected {expected} numbers separated by commas, for '
        'the stages semantic, coarse and fine'
      )
    values = tuple(map(parse_one, parts))
    return values * 3 if len(values) == 1 else values

  return parse


def _generate_parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='v2meow generate',
    description=_GENERATE,
    epilog=_GENERATE_EXAMPLES,
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
    type=_number(0, _SEEDS - 1, int),
    default=0,
    help='another seed, another piece; every video gets the same one, so '
    'that it gets alone what it gets in a batch (default: %(default)s)',
  )
  add(
    '--samples',
    metavar='N',
    type=_number(1, math.inf, int),
    default=1,
    help='pieces for each video, with seeds N, N + 1, …, which then stand in '
    'the names of the files (default: %(default)s)',
  )
  add(
    '--duration',
    metavar='S',
    type=_number(0, math.inf, above=True),
    help='stop after S seconds of the video (default: all of it)',
  )
  add(
    '--temperature',
    metavar='T1,T2,T3',
    type=_per_stage(_number(0, math.inf), (3,)),
    help='randomness of the stages semantic, coarse, fine; 0 takes the most '
    "likely token (default: the model's, as in the paper 1.0,0.95,0.4)",
  )
  add(
    '--top_k',
    metavar='K',
    type=_per_stage(_number(0, math.inf, int), (1, 3)),
    help='draw from the K most likely tokens only, 0 for all; one number or '
    "one for each stage (default: the model's)",
  )
  add(
    '--top_p',
    metavar='P',
    type=_per_stage(_number(0, 1, above=True), (1, 3)),
    help='draw from the most likely tokens that together reach this '
    'probability, 1 for all; one number or one for each stage (default: the '
    "model's)",
  )
  return parser


def _parse_generate(argv: Sequence[str]) -> argparse.Namespace:
  parser = _generate_parser()
  options = parser.parse_args(argv)
  if options.seed + options.samples > _SEEDS:
    parser.error(
      f'--samples: {options.samples} seeds from {options.seed} on go beyond '
      f'{_SEEDS - 1}, expected smaller ones'
    )
  return options


def _inspect_parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='v2meow inspect',
    description='Shows what there is, without changing anything.',
    epilog=_INSPECT_EXAMPLES,
  )
  parts = parser.add_subparsers(
    dest='what', metavar='WHAT', required=True, parser_class=_Parser
  )
  part = parts.add_parser(
    'streams',
    help='rates, widths and codebooks of all streams',
    description='Prints the table of all streams.',
  )
  part = parts.add_parser(
    'stages',
    help='inputs, lengths and vocabularies of the three stages',
    description='Prints what conditions and what is predicted in each stage.',
  )
  part.add_argument(
    '--model',
    metavar='NAME_OR_DIR',
    help="a trained model's stages (default: the paper's)",
  )
  part = parts.add_parser(
    'model',
    help='the card and the sizes of a trained model',
    description='Prints the card of a trained model and what it is made of.',
  )
  part.add_argument(
    'model',
    metavar='NAME_OR_DIR',
    nargs='?',
    default='bundled',
    help='name or folder of a trained model (default: %(default)s)',
  )
  part = parts.add_parser(
    'records',
    help='the clips of a dataset',
    description='Prints the streams of the first clips of a dataset.',
  )
  part.add_argument('dir', metavar='DIR', help='what `v2meow prepare` wrote')
  part.add_argument(
    '--split', default='train', help='part of it (default: %(default)s)'
  )
  part.add_argument(
    '--count',
    metavar='N',
    type=_number(1, math.inf, int),
    default=5,
    help='clips to show (default: %(default)s)',
  )
  return parser


def _run(argv: Sequence[str]) -> int:
  """Runs one command and returns its exit status."""
  parser = _Parser(
    prog='v2meow',
    usage='v2meow COMMAND …',
    description=_DESCRIPTION,
    epilog=_EXAMPLES,
  )
  parser.add_argument(
    '--version', action='version', version=v2meow_jax.__version__
  )
  if not argv:
    parser.print_help()
    return 0
  command, *rest = argv
  if command.startswith('-'):
    parser.parse_args([command])
  if command == 'generate':
    options = _parse_generate(rest)
    from v2meow_jax import generate

    return generate.run(**vars(options))
  if command == 'inspect':
    options = _inspect_parser().parse_args(rest)
    from v2meow_jax import inspection

    print(inspection.describe(options))
    return 0
  if command in _MODULES:
    name, _ = _MODULES[command]
    module = importlib.import_module(f'v2meow_jax.{name}')
    return module.main(rest) or 0
  commands = ('generate', *_MODULES, 'inspect')
  parser.error(
    f'unknown command `{command}`, expected one of {", ".join(commands)}'
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `v2meow` and returns its exit status.

  Args:
    argv: arguments without the name of the program; those of the process by
      default.
  """
  platforms.settle()
  try:
    status = _run(sys.argv[1:] if argv is None else list(argv))
    sys.stdout.flush()
    return status
  except KeyboardInterrupt as stop:
    number = stop.args[0] if stop.args else signal.SIGINT
    print('stopped', file=sys.stderr)
    return 128 + number
  except BrokenPipeError:
    # The reader of our output has gone, as `v2meow … | head` does.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except Exception as error:
    if os.environ.get('V2MEOW_DEBUG') == '1':
      raise
    print(f'error: {_explain(error)}', file=sys.stderr)
    return 1


def _explain(error: Exception) -> str:
  """Returns one line that says what was wrong and what to do."""
  if isinstance(error, ModuleNotFoundError):
    return (
      f'{error}, expected all that this command needs. Install it, or '
      "everything with pip install 'v2meow_jax[train]'."
    )
  from v2meow_jax import configs

  message = configs.one_line(error)
  if message:
    return message
  text = ' '.join(str(error).split())
  return (
    f'{type(error).__name__}: {text}. This is a fault of the program: please '
    'report it, with what V2MEOW_DEBUG=1 shows.'
  )


def _stop(number: int, frame) -> None:
  """Treats a service manager's stop as Ctrl-C: temporary files go."""
  del frame
  raise KeyboardInterrupt(number)


def run() -> None:
  """The console script: `main`, then the end of the process."""
  signal.signal(signal.SIGTERM, _stop)
  status = main()
  if status > 128:
    # Threads that compile would keep a stopped process for seconds.
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


if __name__ == '__main__':
  run()
