"""Checkpoints in T5X's layout: save, restore, exact resume.

A step is `checkpoint_<step>/state`, an orbax tree of
`{'target': params, 'state': {'step', 'param_states'}}`, and `flax_mutables`
where the model has further collections. T5X reads and writes the same.
"""

from collections.abc import Mapping
import os
import pathlib
import re
from typing import Any

from etils import epath
import flax
import jax
import numpy as np
from orbax import checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from v2meow_jax import errors
from v2meow_jax import weights

PyTree = Any
_PREFIX = 'checkpoint'


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

    Args:
      model_dir: folder of the checkpoints.
      keep: newest checkpoints to keep.
      keep_best: best checkpoints to keep beside them.
    """
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
    self._manager = ocp.CheckpointManager(
      epath.Path(model_dir).absolute(),
      item_names=('state',),
      options=ocp.CheckpointManagerOptions(
        step_prefix=_PREFIX,
        preservation_policy=policy,
        best_fn=lambda metrics: metrics['loss'],
        best_mode='min',
      ),
    )

  def latest_step(self) -> int | None:
    """Returns the newest step, or None where there is no checkpoint."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the lowest validation loss; the newest if none."""
    return self._manager.best_step() or self._manager.latest_step()

  def path(self, step: int) -> pathlib.Path:
    """Returns the folder of the checkpoint of `step`."""
    return pathlib.Path(self._manager.directory) / f'{_PREFIX}_{step}'

  def save(
    self, state: TrainState, step: int, loss: float | None = None
  ) -> None:
    """Saves `state`; `loss` is that of the validation split, if known."""
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(to_tree(state))),
      metrics=None if loss is None else {'loss': float(loss)},
      force=True,
    )

  def restore(self, step: int, like: TrainState) -> TrainState:
    """Restores the whole state.

    Args:
      step: which checkpoint.
      like: state of arrays or `ShapeDtypeStruct`, with shardings.

    Raises:
      UserError: the checkpoint holds another model or optimizer.
    """
    tree = to_tree(like)
    saved = _metadata(self.path(step) / 'state')
    try:
      # Before orbax does: its message does not name what differs.
      weights.check_params(tree, saved)
    except errors.UserError as e:
      raise errors.UserError(
        f'{self.path(step)}: holds another model or optimizer than the gin '
        f'files describe. {e} Or use another MODEL_DIR.'
      ) from e
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(tree)),
    )
    return from_tree(restored['state'], like)

  def wait(self) -> None:
    """Returns when everything is written."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and closes."""
    self._manager.close()


def find(path: str | os.PathLike) -> pathlib.Path:
  """Returns the newest `checkpoint_<step>` of a folder, or `path` if it is one.

  Raises:
    UserError: there is none.
  """
  path = pathlib.Path(path)
  if (path / 'state').is_dir():
    return path
  steps = {}
  for child in path.glob(f'{_PREFIX}_*/state'):
    match = re.fullmatch(rf'{_PREFIX}_(\d+)', child.parent.name)
    if match:
      steps[int(match[1])] = child.parent
  if not steps:
    raise errors.UserError(
      f'{path}: no checkpoint, expected a folder `{_PREFIX}_<step>`, a '
      'folder that holds some, or a .safetensors file.'
    )
  return steps[max(steps)]


def newest_step(model_dir: str | os.PathLike) -> int:
  """Returns the step of the newest checkpoint of a folder; 0 if none."""
  try:
    return int(find(model_dir).name.removeprefix(f'{_PREFIX}_'))
  except errors.UserError:
    return 0


def load_params(path: str | os.PathLike) -> PyTree:
  """Loads only the parameters of a checkpoint, as NumPy arrays.

  Args:
    path: `checkpoint_<step>` or a folder that holds some (the newest).

  Raises:
    UserError: there is no checkpoint.
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
  folder = find(path).absolute() / 'state'
  saved = _metadata(folder)
  if item not in saved:
    return {}
  wanted = {item: saved[item]}
  restored = ocp.PyTreeCheckpointHandler().restore(
    epath.Path(folder),
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
