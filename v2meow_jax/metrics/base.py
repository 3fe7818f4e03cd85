"""Metric: `update` with one clip after another, `merge`, `result`."""

import abc
from typing import Any


class Metric(abc.ABC):
  """A measure over a set of clips.

  Hosts each `update` their own metric and then `merge` them. Neither the
  order of the clips nor their split over hosts changes `result`. A subclass
  adds `update(clip_id, ...)` with what it needs of a clip.
  """

  @abc.abstractmethod
  def merge(self, other: 'Metric') -> None:
    """Adds the clips that another metric of the same kind has seen.

    Raises:
      ValueError: both have seen the same clip.
    """

  @abc.abstractmethod
  def result(self) -> Any:
    """Returns the measure over all clips, as plain values ready for JSON.

    Raises:
      ValueError: too few clips.
    """


class ClipTable:
  """What is known of each clip, by its id and in the order of the ids.

  Attributes:
    rows: values by clip id.
  """

  def __init__(self):
    self.rows: dict[str, Any] = {}

  def add(self, clip_id: str, row: Any) -> None:
    """Adds a clip.

    Raises:
      ValueError: it is there already.
    """
    if clip_id in self.rows:
      raise ValueError(
        f'Clip `{clip_id}` comes twice, expected each clip once. Give the '
        'clips different names.'
      )
    self.rows[clip_id] = row

  def merge(self, other: 'ClipTable') -> None:
    """Adds all clips of another table; ValueError as in `add`."""
    for clip_id, row in other.rows.items():
      self.add(clip_id, row)

  def sorted_rows(self) -> list[Any]:
    """Values in the order of the clip ids."""
    return [self.rows[clip_id] for clip_id in sorted(self.rows)]

  def __len__(self) -> int:
    return len(self.rows)
