"""The processes of one training: how they meet, and what each reads.

A training on several hosts is the same command on each of them. On TPU slices
and under SLURM and Open MPI the processes find one another; elsewhere each is
told where process 0 listens, how many there are and which one it is.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import os

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from v2meow_jax import errors

# Argument of `initialize`: what it is, and the variable that sets it too.
_ARGUMENTS = {
  'coordinator_address': (
    'HOST:PORT of process 0',
    'JAX_COORDINATOR_ADDRESS',
  ),
  'process_count': ('number of processes', 'JAX_NUM_PROCESSES'),
  'process_index': (
    'which process this is, counted from 0',
    'JAX_PROCESS_ID',
  ),
}


@dataclasses.dataclass(frozen=True)
class Shard:
  """The part of every batch that a process reads.

  Attributes:
    index: number of this part.
    count: number of parts; processes whose devices hold the same rows of the
      mesh share one.
    rows: rows of the mesh, along the axes that cut a batch, of this part.
    num_rows: rows of the mesh.
  """

  index: int = 0
  count: int = 1
  rows: tuple[int, ...] = (0,)
  num_rows: int = 1

  def examples(self, batch_size: int) -> np.ndarray:
    """Places in a batch of `batch_size` of the examples of this part."""
    return (
      np.arange(batch_size).reshape(self.num_rows, -1)[list(self.rows)].ravel()
    )


def make_shard(processes: np.ndarray, process_index: int) -> Shard:
  """Finds the part of a batch that one process reads.

  Args:
    processes: int `[rows, devices of a row]`, the process of each device of
      the mesh, by the part of the batch that it holds.
    process_index: the process.

  Returns:
    Its part. All processes together read each example; those whose devices
    hold the same examples read the same.

  Raises:
    UserError: some processes share a part of their rows only.
  """
  rows_of = {
    int(process): tuple(np.flatnonzero((processes == process).any(axis=1)))
    for process in np.unique(processes)
  }
  parts = sorted(set(rows_of.values()))
  if sum(map(len, parts)) != len(processes) or len(set(map(len, parts))) > 1:
    described = '; '.join(
      f'process {process} rows {", ".join(map(str, rows))}'
      for process, rows in rows_of.items()
    )
    raise errors.UserError(
      f'The mesh cuts a batch into {len(processes)} rows that overlap between '
      f'processes ({described}), expected processes with the same rows or '
      "none in common. Set another MESH_SHAPE: a 'model' axis that divides "
      'the devices of a process, or is a multiple of them.'
    )
  rows = rows_of[process_index]
  return Shard(
    parts.index(rows), len(parts), tuple(map(int, rows)), len(processes)
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds `--coordinator_address`, `--process_count` and `--process_index`."""
  group = parser.add_argument_group(
    'several processes',
    'TPU slices, SLURM and Open MPI need none of these.',
  )
  for name, (meaning, variable) in _ARGUMENTS.items():
    is_number = name != 'coordinator_address'
    group.add_argument(
      f'--{name}',
      type=int if is_number else str,
      metavar='N' if is_number else 'HOST:PORT',
      help=f'{meaning} (default: ${variable})',
    )


def initialize(
  coordinator_address: str | None = None,
  process_count: int | None = None,
  process_index: int | None = None,
  timeout_seconds: int = 300,
) -> None:
  """Meets the other processes, if there are any; before any work of JAX.

  What is None is taken from the environment: `JAX_COORDINATOR_ADDRESS`,
  `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or what a TPU slice, SLURM or Open
  MPI says. Where nothing says that there are others, nothing is done.

  Args:
    coordinator_address: 'host:port' where process 0 listens.
    process_count: number of processes.
    process_index: which of them this is.
    timeout_seconds: how long to wait for the others.

  Raises:
    UserError: only some of the three are known, or the others do not come.
  """
  if jax.distributed.is_initialized():
    return
  given = _fill(
    {
      'coordinator_address': coordinator_address,
      'process_count': process_count,
      'process_index': process_index,
    }
  )
  known = {name: value for name, value in given.items() if value is not None}
  if known:
    _check(given)
    given = {
      'coordinator_address': given['coordinator_address'],
      'num_processes': given['process_count'],
      'process_id': given['process_index'],
      # All devices of this host: nothing else says how they are shared out.
      'cluster_detection_method': 'deactivate',
    }
  elif not _is_one_of_many(os.environ):
    return
  else:
    given = {}
  try:
    jax.distributed.initialize(**given, initialization_timeout=timeout_seconds)
  except (RuntimeError, ValueError) as e:
    raise errors.UserError(
      f'The processes of this training do not meet: {_first_line(e)} '
      'Expected the same command on every host at about the same time, and '
      'a coordinator_address that all can reach.'
    ) from e
  logging.info(
    'Process %d of %d, with %d of %d devices.',
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
  )


def wait_for_all(what: str) -> None:
  """Returns when all processes have come to `what`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def _fill(given: Mapping) -> dict:
  """Takes what is None from the environment."""
  filled = dict(given)
  for name, (meaning, variable) in _ARGUMENTS.items():
    text = os.environ.get(variable)
    if filled[name] is None and text:
      filled[name] = text
      if name != 'coordinator_address':
        try:
          filled[name] = int(text)
        except ValueError as e:
          raise errors.UserError(
            f'{variable} is {text}, expected a whole number: {meaning}.'
          ) from e
  return filled


def _check(given: Mapping) -> None:
  missing = [name for name, value in given.items() if value is None]
  if missing:
    described = ' and '.join(
      f'{name} ({_ARGUMENTS[name][0]})' for name in missing
    )
    raise errors.UserError(
      f'Not set: {described}; expected all of {", ".join(given)} or none. '
      'Set it with '
      + ' '.join(f'--{n} or ${_ARGUMENTS[n][1]}' for n in missing)
      + '.'
    )
  address, count, index = given.values()
  if not address.rpartition(':')[2].isdigit() or ':' not in address:
    raise errors.UserError(
      f'coordinator_address is {address}, expected HOST:PORT of process 0.'
    )
  if not 0 <= index < count:
    raise errors.UserError(
      f'process_index is {index}, expected 0 to {count - 1} for '
      f'{count} processes.'
    )


def _is_one_of_many(environment: Mapping[str, str]) -> bool:
  """Whether the surroundings say that other processes take part."""
  if environment.get('JAX_PLATFORMS', '') != 'cpu':
    # JAX sets it when it is imported where there are TPUs and libtpu. A slice
    # of one host may be initialised like all others.
    if environment.get('TPU_ML_PLATFORM') == 'JAX':
      return True
  # Only inside a step (`srun`): a batch script alone is one process.
  is_step = 'SLURM_STEP_NODELIST' in environment
  count = environment.get('SLURM_NTASKS') if is_step else None
  count = count or environment.get('OMPI_COMM_WORLD_SIZE') or '1'
  return count.isdigit() and int(count) > 1


def _first_line(error: Exception) -> str:
  line = (str(error).splitlines() or [type(error).__name__])[0]
  return line if line.endswith('.') else f'{line}.'
