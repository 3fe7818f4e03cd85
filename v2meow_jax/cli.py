"""The command `v2meow`: generate, prepare, train, evaluate and the others.

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
from v2meow_jax import arguments
from v2meow_jax import errors
from v2meow_jax import platforms

# Commands whose module reads its own arguments: module, then what it does.
_MODULES = {
  'generate': ('generate_command', 'give videos music'),
  'prepare': ('prepare', 'make a dataset of videos with sound'),
  'train': ('train', 'train a codec or a stage'),
  'evaluate': ('evaluate', 'measure how music follows its video'),
  'export': ('export_command', 'write a model as StableHLO programs'),
  'weights': ('weights_command', 'list, check and convert published weights'),
}

_DESCRIPTION = """\
Music for silent video.

commands:
  generate   {generate}
  prepare    {prepare}
  train      {train}
  evaluate   {evaluate}
  export     {export}
  weights    {weights}
  inspect    show streams, stages, a model or a dataset

`v2meow COMMAND --help` explains a command.
""".format(**{name: summary for name, (_, summary) in _MODULES.items()})

_EXAMPLES = """\
examples:
  v2meow generate clip.mp4
  v2meow generate clip.mp4 --out music.wav --seed 7
  v2meow generate *.mp4 --out with_music/ --format both
"""

_INSPECT_EXAMPLES = """\
examples:
  v2meow inspect streams
  v2meow inspect stages
  v2meow inspect stages --model bundled
  v2meow inspect model bundled
  v2meow inspect records DIR --split validation --count 3
"""


def _inspect_parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='v2meow inspect',
    description='Shows what there is, without changing anything.',
    epilog=_INSPECT_EXAMPLES,
  )
  parts = parser.add_subparsers(
    dest='what', metavar='WHAT', required=True, parser_class=arguments.Parser
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
    type=arguments.number(1, math.inf, int),
    default=5,
    help='clips to show (default: %(default)s)',
  )
  return parser


def _run(argv: Sequence[str]) -> int:
  """Runs one command and returns its exit status."""
  parser = arguments.Parser(
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
  if command == 'inspect':
    options = _inspect_parser().parse_args(rest)
    from v2meow_jax import inspection

    print(inspection.describe(options))
    return 0
  if command in _MODULES:
    name, _ = _MODULES[command]
    module = importlib.import_module(f'v2meow_jax.{name}')
    return module.main(rest) or 0
  commands = (*_MODULES, 'inspect')
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
  return message or errors.describe_fault(error)


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
