"""Command lines: one-line errors, and parsers of values.

Imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import math


class Parser(argparse.ArgumentParser):
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


def number(low: float, high: float, kind: type = float, above: bool = False):
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


def per_stage(parse_one, counts: tuple[int, ...]):
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
