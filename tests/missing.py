"""Packages that are there, but look as if they were not installed."""

import sys


class _Finder:
  """A finder of modules that does not find some packages."""

  def __init__(self, finder, packages):
    self._finder = finder
    self._packages = packages

  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in self._packages:
      return None
    return self._finder.find_spec(name, path, target)


def meta_path(*packages: str) -> list:
  """Returns a `sys.meta_path` that does not find these packages."""
  return [_Finder(finder, packages) for finder in sys.meta_path]
