"""`v2meow weights`: lists, checks and converts what others publish."""

import argparse
from collections.abc import Sequence
import pathlib

from v2meow_jax import arguments

_DESCRIPTION = """\
Weights that others publish, for the networks of this package. Files are looked
for in --path, else in $V2MEOW_WEIGHTS/NAME or v2meow/weights/NAME of the cache
folder; they are downloaded only with --download.
"""

_EXAMPLES = """\
examples:
  v2meow weights list
  v2meow weights check dac_16khz --path ~/models/dac_16khz
  v2meow weights convert dac_16khz --download --out dac.safetensors
  v2meow weights check dac.safetensors
"""


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='v2meow weights', description=_DESCRIPTION, epilog=_EXAMPLES
  )
  actions = parser.add_subparsers(
    dest='action',
    metavar='ACTION',
    required=True,
    parser_class=arguments.Parser,
  )
  actions.add_parser(
    'list',
    help='what there is, its licence, and whether it is here',
    description='Prints a table of all weights that can be converted.',
  )
  check = actions.add_parser(
    'check',
    help='compare files with what the network expects',
    description='Verifies checksums and the name and shape of every parameter.',
  )
  check.add_argument(
    'name', metavar='NAME_OR_FILE', help='of the list, or a converted file'
  )
  convert = actions.add_parser(
    'convert',
    help="write them as this package's safetensors",
    description='Writes one safetensors file, and prints its path.',
  )
  convert.add_argument('name', metavar='NAME', help='of the list')
  convert.add_argument(
    '--out', metavar='FILE', required=True, help='safetensors file to write'
  )
  convert.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='of the stored arrays (default: %(default)s)',
  )
  for command in (check, convert):
    command.add_argument(
      '--path', metavar='PATH', help='folder of the files, or the only file'
    )
    command.add_argument(
      '--download',
      action='store_true',
      help='fetch what is missing from the Hugging Face hub',
    )
  return parser


def _table() -> str:
  """What can be converted, a line each."""
  from v2meow_jax import errors
  from v2meow_jax import pretrained

  rows = [('name', 'licence', 'here', 'from', 'what')]
  for name, row in sorted(pretrained.checkpoints().items()):
    try:
      pretrained.find(row)
      here = 'yes'
    except errors.UserError:
      here = 'no'
    source = row.repository or row.origin
    rows.append((name, row.licence, here, source, row.summary))
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  )


def _count(params) -> int:
  from v2meow_jax import weights

  flat = weights.flatten(weights.without_config(params))
  return sum(array.size for array in flat.values())


def _check(options: argparse.Namespace) -> None:
  """Prints what was found right; raises where something is not."""
  from v2meow_jax import pretrained
  from v2meow_jax import weights

  if pathlib.Path(options.name).suffix == '.safetensors':
    params = weights.load_params(options.name)
    name = weights.read_config(params).get(pretrained.SOURCE)
    if name is None:
      raise pretrained.not_converted(options.name)
    params = pretrained.check(pretrained.get_checkpoint(name), params)
    print(f'{options.name}: {name}, {_count(params):,} parameters, all fit')
    return
  row = pretrained.get_checkpoint(options.name)
  paths = pretrained.find(row, options.path, options.download)
  for name, digest in pretrained.verify(row, paths).items():
    state = 'as published' if name in row.sha256 else 'not known before'
    print(f'{name}: SHA-256 {digest}, {state}')
  params = pretrained.check(row, row.convert(paths))
  print(f'{row.name}: {_count(params):,} parameters, all fit')


def main(argv: Sequence[str]) -> int:
  """Runs `v2meow weights` and returns its exit status."""
  options = _parser().parse_args(argv)
  if options.action == 'list':
    print(_table())
  elif options.action == 'check':
    _check(options)
  else:
    from v2meow_jax import pretrained
    from v2meow_jax import weights

    params = pretrained.load(options.name, options.path, options.download)
    weights.save_params(options.out, params, options.dtype)
    print(options.out)
  return 0
