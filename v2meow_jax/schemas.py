"""What JSON from outside must look like, checked by hand.

A kind is a `Leaf`, a dict of kinds by name, or one of the classes here that
hold other kinds. `check` says in a few words what is wrong first.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
import re
from typing import Any

_SHOWN = 40  # characters of a wrong value


class Mismatch(ValueError):
  """What is not as it must be: a part of a sentence."""


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One value.

  Attributes:
    expected: what it must be, in words.
    accepts: whether a value is that.
  """

  expected: str
  accepts: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Maybe:
  """`kind`, or null."""

  kind: Any


@dataclasses.dataclass(frozen=True)
class Row:
  """A list of as many values as there are kinds."""

  kinds: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Many:
  """A list of values of one kind, at most `most`."""

  kind: Any
  most: int = 1000


@dataclasses.dataclass(frozen=True)
class Table:
  """Values of one kind under names of a kind, at most `most`."""

  name: Leaf
  kind: Any
  most: int = 1000


@dataclasses.dataclass(frozen=True)
class Optional:
  """In a dict of kinds: a value that may be missing."""

  kind: Any


def number(low: float = -math.inf, high: float = math.inf) -> Leaf:
  """A finite number in `[low, high]`."""

  def accepts(value):
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and low <= value <= high and abs(value) < 1e300

  return Leaf('a number' + _span(low, high), accepts)


def whole(low: int = 0, high: int = 2**63 - 1) -> Leaf:
  """A whole number in `[low, high]`."""
  return Leaf(
    'a whole number' + _span(low, high),
    lambda value: type(value) is int and low <= value <= high,
  )


def string(most: int = 10_000) -> Leaf:
  """A text of at most `most` characters."""
  return Leaf(
    f'a text of at most {most} characters',
    lambda value: isinstance(value, str) and len(value) <= most,
  )


def matching(pattern: str, expected: str) -> Leaf:
  """A text that matches a regular expression as a whole."""
  compiled = re.compile(pattern)
  return Leaf(
    expected,
    lambda value: isinstance(value, str) and bool(compiled.fullmatch(value)),
  )


def _span(low: float, high: float) -> str:
  if low == -math.inf:
    return ''
  above = f' and at most {high}' if high < 2**63 - 1 else ''
  return f' of at least {low}{above}'


def check(kind: Any, value: Any, where: str = '') -> None:
  """Checks a value as `json.loads` makes it.

  Args:
    kind: what it must be.
    value: the value.
    where: its place, for the message.

  Raises:
    Mismatch: it is something else.
  """
  inside = lambda name: f'{where}.{name}' if where else name
  match kind:
    case Maybe():
      if value is not None:
        check(kind.kind, value, where)
    case Leaf():
      _expect(kind.accepts(value), where, value, kind.expected)
    case Row():
      is_row = isinstance(value, list) and len(value) == len(kind.kinds)
      _expect(is_row, where, value, f'a list of {len(kind.kinds)}')
      for i, (part, item) in enumerate(zip(kind.kinds, value, strict=True)):
        check(part, item, f'{where}[{i}]')
    case Many():
      is_list = isinstance(value, list) and len(value) <= kind.most
      _expect(is_list, where, value, f'a list of at most {kind.most}')
      for i, item in enumerate(value):
        check(kind.kind, item, f'{where}[{i}]')
    case Table():
      is_table = isinstance(value, dict) and len(value) <= kind.most
      _expect(is_table, where, value, f'an object of at most {kind.most}')
      for name, item in value.items():
        expected = f'names that are {kind.name.expected}'
        _expect(kind.name.accepts(name), where, name, expected)
        check(kind.kind, item, inside(name))
    case Mapping():
      _expect(isinstance(value, dict), where, value, 'an object')
      for name in value:
        if name not in kind:
          raise Mismatch(
            f'`{inside(show(name))}` is unknown, expected {", ".join(kind)}'
          )
      for name, part in kind.items():
        is_optional = isinstance(part, Optional)
        if name in value:
          check(part.kind if is_optional else part, value[name], inside(name))
        elif not is_optional:
          raise Mismatch(f'`{inside(name)}` is missing, expected it')
    case _:
      raise TypeError(f'{kind!r} is no kind')


def _expect(is_right: bool, where: str, value: Any, expected: str) -> None:
  if not is_right:
    raise Mismatch(f'`{where}` is {show(value)}, expected {expected}')


def show(value: Any) -> str:
  """A value in one line and few characters."""
  text = value if isinstance(value, str) else json.dumps(value)
  text = ''.join(c if c.isprintable() else '?' for c in text[: _SHOWN + 1])
  return text if len(text) <= _SHOWN else text[:_SHOWN] + '…'
