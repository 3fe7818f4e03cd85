"""The training step of a stage of the paper, for benchmarks: nothing is read.

The model, its loss and its optimizer are those that `python -m
v2meow_jax.train` builds of the same gin files; the streams are the paper's.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import gin
import jax
import numpy as np

from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import models
from v2meow_jax import partitioning
from v2meow_jax import trainer

# The paper's streams (V2Meow, Model Details), at its best visual choice.
GEOMETRY = {
  'VISUAL': ('clip', 'i3d_flow'),
  'STYLE': 'mulan',
  'SEMANTIC': 'w2v_bert',
  'ACOUSTIC': 'soundstream',
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What one step trains.

  Attributes:
    model: the model of a stage.
    optimizer: optax transformation.
    rules: logical axis to mesh axis.
    batch_size: examples of a step, over all devices.
  """

  model: models.StageModel
  optimizer: Any
  rules: Sequence[tuple[str, Any]]
  batch_size: int

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the model features of one step."""
    shapes = self.model.feature_shapes(self.batch_size)
    continuous = {
      f'encoder_{view.name}'
      for view in self.model.stage.inputs
      if not view.spec.is_discrete
    }
    return {
      name: jax.ShapeDtypeStruct(
        shape, np.float32 if name in continuous else np.int32
      )
      for name, shape in shapes.items()
    }

  def random_batch(self, seed: int = 0) -> dict[str, np.ndarray]:
    """A full batch without padding: noise, and ids of the right levels."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, spec in self.batch_shapes().items():
      if spec.dtype == np.float32:
        batch[name] = rng.standard_normal(spec.shape, np.float32)
      elif name.endswith(('_mask', '_weights')):
        batch[name] = np.ones(spec.shape, np.int32)
      else:
        batch[name] = rng.integers(2, 1026, spec.shape, np.int32)
    stage = self.model.stage
    target = stage.target
    length = stage.target_length
    codes = rng.integers(0, target.spec.num_codes, (self.batch_size, length))
    level = np.arange(length) % target.num_levels
    ids = stage.target_offset + level * target.spec.num_codes + codes
    tokens = batch['decoder_target_tokens']
    tokens[:, tokens.shape[1] - length :] = ids
    before = np.zeros((self.batch_size, 1), np.int32)
    batch['decoder_input_tokens'] = np.append(before, tokens[:, :-1], axis=1)
    prefix = tokens.shape[1] - length
    batch['decoder_loss_weights'][:, :prefix] = 0
    return batch

  def trainer(self, mesh: jax.sharding.Mesh) -> trainer.Trainer:
    """The trainer of this recipe on the devices of a mesh.

    Raises:
      UserError: the batch cannot be cut for the mesh.
    """
    partitioning.check_batch_size(self.batch_size, mesh)
    return trainer.Trainer(
      self.model, self.optimizer, self.batch_shapes(), 0, mesh, self.rules
    )


def make(
  stage: str,
  size: str,
  batch_size: int,
  gin_files: Sequence[str] = (),
  bindings: Sequence[str] = (),
) -> Recipe:
  """Builds what trains a stage.

  Args:
    stage: a file of gin/stages.
    size: a file of gin/sizes.
    batch_size: examples of a step, over all devices.
    gin_files: further files, behind those of the recipe.
    bindings: lines of gin, behind all files.

  Returns:
    The recipe.

  Raises:
    UserError: there is no such stage or size, or a file or a binding does not
      fit.
  """
  paths = [
    choose('sizes', 'size', size),
    choose('stages', 'stage', stage),
    'runs/train.gin',
    *gin_files,
  ]
  values = {
    **GEOMETRY,
    'BATCH_SIZE': batch_size,
    'TRAIN_STEPS': 1_000_000,
    'MODEL_DIR': '',
    'BATCHES': None,
  }
  lines = [f'{name} = {value!r}' for name, value in values.items()]
  try:
    configs.parse(paths, [*lines, *bindings], root='train.train')
    run = gin.get_bindings('train.train')
  finally:
    gin.clear_config()
  return Recipe(
    run['model'],
    run['optimizer'],
    run.get('logical_axis_rules', partitioning.RULES),
    batch_size,
  )


def choose(folder: str, what: str, name: str) -> str:
  """Returns the gin file `folder/name.gin`.

  Raises:
    UserError: there is no such file; `what` is the option that named it.
  """
  path = configs.folder() / folder / f'{name}.gin'
  if not path.is_file():
    names = ', '.join(sorted(x.stem for x in path.parent.glob('*.gin')))
    raise errors.UserError(
      f'Unknown {what} `{name}`, expected one of {names}. Choose one with '
      f'--{what}.'
    )
  return f'{folder}/{name}.gin'
