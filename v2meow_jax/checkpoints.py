"""Checkpoints in T5X's layout: save, restore, exact resume.

A step is `checkpoint_<step>/state`, an orbax tree of
`{'target': params, 'state': {'step', 'param_states'}}`, and `flax_mutables`
where the model has further collections. T5X reads and writes the same.

A checkpoint has its name only when all of it and its checksums are on the disk;
an older one loses its name before its files go. So what has a name is whole or
was damaged later, and then nothing falls back to another one by itself.
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import functools
import logging as python_logging
import os
import pathlib
import re
import shutil
import sys
from typing import Any

from absl import logging
from etils import epath
import flax
import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax import checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from v2meow_jax import checksums
from v2meow_jax import errors
from v2meow_jax import weights

PyTree = Any
_PREFIX = 'checkpoint'
_TRASH = '.deleted'
# What a full or read-only disk says, behind whatever orbax says of it.
_STORAGE_ERRORS = [
  os.strerror(number)
  for number in (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
  )
]


@flax.struct.dataclass
class TrainState:
  """All that a training step changes.

  Attributes:
    step: int32 scalar, steps done.
    params: nested dict of parameters.
    opt_state: state of the optax transformation.
    mutables: further collections of the model; empty for most.
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  mutables: PyTree


def to_tree(state: TrainState) -> dict:
  """Maps a state to the nested dict that is saved, without empty dicts."""
  tree = {
    'target': flax.core.unfreeze(state.params),
    'state': {
      'step': state.step,
      'param_states': _drop_empty(
        flax.serialization.to_state_dict(state.opt_state)
      ),
    },
  }
  if state.mutables:
    tree['flax_mutables'] = flax.core.unfreeze(state.mutables)
  return tree


def from_tree(tree: Mapping, like: TrainState) -> TrainState:
  """Inverse of `to_tree`; `like` gives the structure."""
  opt_state = flax.serialization.from_state_dict(
    like.opt_state,
    _add_empty(
      tree['state'].get('param_states', {}),
      flax.serialization.to_state_dict(like.opt_state),
    ),
  )
  return TrainState(
    step=tree['state']['step'],
    params=tree['target'],
    opt_state=opt_state,
    mutables=tree.get('flax_mutables', like.mutables),
  )


def _drop_empty(tree):
  # T5X saves no empty dicts, and orbax trees differ with and without them.
  if not isinstance(tree, Mapping):
    return tree
  kept = {key: _drop_empty(value) for key, value in tree.items()}
  return {k: v for k, v in kept.items() if not _is_empty(v)}


def _is_empty(value) -> bool:
  return value is None or (isinstance(value, Mapping) and not value)


def _add_empty(tree, like):
  if not isinstance(like, Mapping):
    return tree
  return {
    key: _add_empty(tree.get(key, {}), value) if not _is_empty(value) else value
    for key, value in like.items()
  }


class Checkpoints:
  """The checkpoints of one model folder.

  Keeps the newest few and the best by validation loss; writes while training
  goes on.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike,
    keep: int = 2,
    keep_best: int = 1,
  ):
    """Opens or makes `model_dir`.

    What a run that was killed has left half written or half deleted goes.

    Args:
      model_dir: folder of the checkpoints.
      keep: newest checkpoints to keep.
      keep_best: best checkpoints to keep beside them.

    Raises:
      UserError: a checkpoint is damaged, or the folder cannot be written.
    """
    self._folder = pathlib.Path(model_dir).absolute()
    _silence_late_callbacks()
    self._writing = None  # step of the checkpoint that is being written
    if jax.process_index() == 0:
      _sweep(self._folder)
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics['loss'],
          reverse=True,  # the last of the order are kept
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    try:
      self._manager = ocp.CheckpointManager(
        epath.Path(self._folder),
        item_names=('state',),
        options=ocp.CheckpointManagerOptions(
          step_prefix=_PREFIX,
          preservation_policy=policy,
          best_fn=lambda metrics: metrics['loss'],
          best_mode='min',
          todelete_subdir=_TRASH,  # rmtree may be killed halfway, rename not
          async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        ),
      )
    except (OSError, ValueError, LookupError):
      for folder in _steps(self._folder).values():
        _check(folder)  # orbax reads all losses and says not which it cannot
      raise

  def latest_step(self) -> int | None:
    """Returns the newest step, or None where there is no checkpoint."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the lowest validation loss; the newest if none."""
    return self._manager.best_step() or self._manager.latest_step()

  def path(self, step: int) -> pathlib.Path:
    """Returns the folder of the checkpoint of `step`."""
    return self._folder / f'{_PREFIX}_{step}'

  def save(
    self, state: TrainState, step: int, loss: float | None = None
  ) -> None:
    """Starts to save `state`, which may change as soon as this returns.

    Args:
      state: the state.
      step: steps done.
      loss: that of the validation split, if known.

    Raises:
      UserError: this checkpoint or the one before cannot be written.
    """
    if step in self._manager.all_steps():
      return
    self.wait()
    self._writing = step
    with self._explained():
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(to_tree(state))),
        metrics=None if loss is None else {'loss': float(loss)},
        force=True,
      )

  def _seal(self) -> None:
    """Called when all is written and the folder has not its name yet."""
    name = f'{_PREFIX}_{self._writing}'
    for folder in self._folder.glob(f'{name}.*tmp*'):
      checksums.write(folder)
    _empty_trash(self._folder)

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError, RuntimeError) as e:
      reason = _storage_error(e)
      if reason is None:
        raise
      kept = [s for s in _steps(self._folder) if s != self._writing]
      goes_on = f'{_PREFIX}_{max(kept)}' if kept else 'the beginning'
      raise errors.UserError(
        f'{self.path(self._writing)}: cannot be written ({reason}), expected '
        'a folder with space for it. All older checkpoints are as they were: '
        'make space, or make the folder writable, and run the same command '
        f'again; it goes on from {goes_on}.'
      ) from e

  def restore(self, step: int, like: TrainState) -> TrainState:
    """Restores the whole state.

    Args:
      step: which checkpoint.
      like: state of arrays or `ShapeDtypeStruct`, with shardings.

    Raises:
      UserError: the checkpoint is damaged or holds another model or optimizer.
    """
    tree = to_tree(like)
    _check_on_one_host(self.path(step))
    with _explain_damage(self.path(step)):
      saved = _metadata(self.path(step) / 'state')
    try:
      # Before orbax does: its message does not name what differs.
      weights.check_params(tree, saved)
    except errors.UserError as e:
      raise errors.UserError(
        f'{self.path(step)}: holds another model or optimizer than the gin '
        f'files describe. {e} Or use another MODEL_DIR.'
      ) from e
    with _explain_damage(self.path(step)):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(tree)),
      )
    return from_tree(restored['state'], like)

  def check(self) -> None:
    """Raises UserError if a write has failed by now; waits for nothing."""
    if self._writing is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when everything is written.

    Raises:
      UserError: it cannot be written.
    """
    with self._explained():
      self._manager.wait_until_finished()
    self._writing = None

  def close(self) -> None:
    """Waits and closes.

    Raises:
      UserError: what was to be written cannot be.
    """
    with self._explained():
      self._manager.close()
    self._writing = None
    if jax.process_index() == 0:
      _empty_trash(self._folder)


def find(path: str | os.PathLike) -> pathlib.Path:
  """Returns the newest `checkpoint_<step>` of a folder, or `path` if it is one.

  Raises:
    UserError: there is none.
  """
  path = pathlib.Path(path)
  if (path / 'state').is_dir():
    return path
  steps = _steps(path)
  if not steps:
    raise errors.UserError(
      f'{path}: no checkpoint, expected a folder `{_PREFIX}_<step>`, a '
      'folder that holds some, or a .safetensors file.'
    )
  return steps[max(steps)]


@functools.cache
def _silence_late_callbacks() -> None:
  """Leaves out what orbax's writes say after one of them has failed.

  The others call back into an event loop that has been closed, which Python
  prints as an ignored exception, or have failed for the same reason, which it
  logs with a traceback each; the failure itself is raised.
  """
  others = sys.unraisablehook

  def hook(unraisable):
    error = unraisable.exc_value
    is_late = isinstance(error, RuntimeError)
    if not (is_late and str(error) == 'Event loop is closed'):
      others(unraisable)

  sys.unraisablehook = hook

  def is_news(record):
    error = record.exc_info and record.exc_info[1]
    is_late = 'exception was never retrieved' in record.getMessage()
    return not (is_late and error and _storage_error(error))

  python_logging.getLogger('asyncio').addFilter(is_news)


def _storage_error(error: BaseException) -> str | None:
  """What a full or read-only disk has said in `error`; None if nothing."""
  return next((r for r in _STORAGE_ERRORS if r in str(error)), None)


def newest_step(model_dir: str | os.PathLike) -> int:
  """Returns the step of the newest checkpoint of a folder; 0 if none."""
  try:
    return int(find(model_dir).name.removeprefix(f'{_PREFIX}_'))
  except errors.UserError:
    return 0


def _steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
  """Returns all checkpoints of a folder, damaged ones too."""
  matches = [
    (re.fullmatch(rf'{_PREFIX}_(\d+)', path.name), path)
    for path in folder.glob(f'{_PREFIX}_*')
  ]
  return {int(match[1]): path for match, path in matches if match}


def _sweep(folder: pathlib.Path) -> None:
  """Removes what is half written or half deleted."""
  for path in folder.glob(f'{_PREFIX}_*.orbax-checkpoint-tmp*'):
    logging.warning(
      '%s: removed; its writing was broken off before it was whole.', path
    )
    shutil.rmtree(path)
  _empty_trash(folder)


def _empty_trash(folder: pathlib.Path) -> None:
  shutil.rmtree(folder / _TRASH, ignore_errors=True)


def _damaged(folder: pathlib.Path, what: str) -> errors.UserError:
  """Returns the error that says how to go on without a checkpoint."""
  step = int(folder.name.rpartition('_')[2])
  steps = [other for other in _steps(folder.parent) if other != step]
  if any(other > step for other in steps):
    result = 'go on without it'
  elif steps:
    result = f'go on from {_PREFIX}_{max(steps)}'
  else:
    result = 'start from the beginning, as there is no other one'
  away = folder.with_name(f'damaged_{folder.name}')
  return errors.UserError(
    f'{folder}: is damaged ({what}), expected the files as they were written. '
    f'Nothing was changed. Copy it again, or move it away to {result}: '
    f'mv {folder} {away}'
  )


def _check(folder: pathlib.Path) -> None:
  if not checksums.are_in(folder):
    logging.warning(
      '%s: has no %s, so flipped bytes in it would not be noticed.',
      folder,
      checksums.NAME,
    )
  if damage := checksums.find_damage(folder):
    raise _damaged(folder, damage)


def _check_on_one_host(folder: pathlib.Path) -> None:
  """Checks the files once, however many hosts are about to read them."""
  if jax.process_count() == 1:
    _check(folder)
    return
  error = None
  if jax.process_index() == 0:
    try:
      _check(folder)
    except errors.UserError as e:
      error = e
  # Else the other hosts would wait for one that has gone.
  if multihost_utils.broadcast_one_to_all(np.int32(error is not None)):
    raise error or _damaged(folder, 'as process 0 says')


@contextlib.contextmanager
def _explain_damage(folder: pathlib.Path) -> Iterator[None]:
  """Where there are no checksums: what cannot be read is damaged."""
  try:
    yield
  except errors.UserError:
    raise
  except (OSError, ValueError, LookupError, TypeError) as e:
    if checksums.are_in(folder):
      raise  # then the files are as they were, and something else is wrong
    first = (str(e).splitlines() or [''])[0][:200]
    raise _damaged(folder, f'{type(e).__name__}: {first}') from e


def load_params(path: str | os.PathLike) -> PyTree:
  """Loads only the parameters of a checkpoint, as NumPy arrays.

  Args:
    path: `checkpoint_<step>` or a folder that holds some (the newest).

  Raises:
    UserError: there is no checkpoint, or it is damaged.
  """
  return _load(path, 'target')


def load_mutables(path: str | os.PathLike) -> PyTree:
  """Loads the further collections of a checkpoint; `{}` if it has none."""
  return _load(path, 'flax_mutables')


def match_params(params: PyTree, like: PyTree, path: Any) -> PyTree:
  """Puts loaded parameters on the devices.

  Args:
    params: nested dict of arrays.
    like: nested dict of `ShapeDtypeStruct` with shardings.
    path: where `params` come from, for the message.

  Raises:
    UserError: names or shapes differ; the message lists them.
  """
  try:
    weights.check_params(like, params)
  except errors.UserError as e:
    raise errors.UserError(f'{path}: {e}') from e
  return jax.tree.map(
    lambda leaf, array: jax.device_put(
      np.asarray(array).astype(leaf.dtype), leaf.sharding
    ),
    like,
    params,
  )


def _load(path, item):
  folder = find(path).absolute()
  _check(folder)
  with _explain_damage(folder):
    saved = _metadata(folder / 'state')
    if item not in saved:
      return {}
    wanted = {item: saved[item]}
    restored = ocp.PyTreeCheckpointHandler().restore(
      epath.Path(folder / 'state'),
      args=ocp.args.PyTreeRestore(
        item=jax.tree.map(lambda _: 0, wanted),
        restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
        ),
        partial_restore=True,
      ),
    )
    return restored[item]


def _metadata(folder: pathlib.Path) -> dict:
  """Returns names and shapes of what is saved in a folder `state`."""
  return ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree
