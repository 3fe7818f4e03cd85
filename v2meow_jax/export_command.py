"""`v2meow export`: its arguments."""

import argparse
from collections.abc import Sequence
import math

from v2meow_jax import arguments

_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')

_DESCRIPTION = """\
Writes a model as programs that run without this package: each stage and the
decoder of the codec as StableHLO, their weights as safetensors, and
manifest.json, which says how to call them. docs/export.md explains it. Prints
the folder.

The folder appears when it is whole. One of an earlier export is replaced.
"""

_EXAMPLES = """\
examples:
  v2meow export exported/
  v2meow export --model my_model --batch 8 exported/
  v2meow export --platforms cpu exported/
"""


def _platforms(text: str) -> tuple[str, ...]:
  """Parses `cpu,cuda`."""
  names = tuple(text.split(','))
  if not set(names) <= set(_PLATFORMS) or len(set(names)) < len(names):
    raise argparse.ArgumentTypeError(
      f'is `{text}`, expected some of {", ".join(_PLATFORMS)}, each once, '
      'separated by commas'
    )
  return names


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='v2meow export', description=_DESCRIPTION, epilog=_EXAMPLES
  )
  add = parser.add_argument
  add('out', metavar='OUT_DIR', help='folder to write')
  add(
    '--model',
    metavar='NAME_OR_DIR',
    default='bundled',
    help='name or folder of a trained model (default: %(default)s)',
  )
  add(
    '--batch',
    metavar='N',
    type=arguments.number(1, math.inf, int),
    default=1,
    help='windows that one call makes (default: %(default)s)',
  )
  add(
    '--platforms',
    metavar='NAMES',
    type=_platforms,
    default='cpu,cuda,tpu',
    help='that the programs can run on; with one, they have no argument that '
    'says which (default: %(default)s)',
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Runs `v2meow export` and returns its exit status."""
  options = _parser().parse_args(argv)
  from v2meow_jax import exporting

  exporting.save(options.out, options.model, options.platforms, options.batch)
  print(options.out)
  return 0
