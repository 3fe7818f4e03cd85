"""Training of a classifier of sounds, on labels as AudioSet has them.

A clip has any number of classes. The loss is the cross entropy of each class
apart; validation reports label-weighted label-ranking average precision.
"""

from collections.abc import Mapping
import json

import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import streams
from v2meow_jax.embedders import audioset

Array = jax.Array


def read_labels(clip: manifests.Clip) -> dict[str, np.ndarray]:
  """Reads the classes of a clip from its row, for `crops.CropDataset`.

  Args:
    clip: a row whose attributes hold `"labels"`: a list of ids (`/m/04rlf`) or
      names (`Music`) of AudioSet.

  Returns:
    `labels`, float32 `[527]`, 1 for each class of the clip.

  Raises:
    UserError: the row has no such list, or a label is no class.
  """
  labels = json.loads(clip.attributes).get('labels')
  if not isinstance(labels, list):
    raise errors.UserError(
      f'Clip `{clip.clip_id}` has no list `labels` among its attributes, '
      'expected {"labels": ["Music", …]}. Add it to the manifest.'
    )
  try:
    return {'labels': audioset.multi_hot(map(str, labels))}
  except errors.UserError as error:
    raise errors.UserError(f'Clip `{clip.clip_id}`: {error}') from error


def ranking_precision(scores: Array, labels: Array) -> tuple[Array, Array]:
  """Label-weighted label-ranking average precision, to be summed up.

  For each class that an example has: of the classes that score at least as
  much, the share that the example has, too. The mean over all these is the
  metric (lwlrap), so sums of several batches give that of all.

  Args:
    scores: float32 `[batch, classes]`.
    labels: float32 `[batch, classes]`, 0 or 1.

  Returns:
    The sum of these shares and their number, both float32 scalars.
  """

  def of_one(scores, labels):
    # [classes, classes]: whether the second scores at least as much.
    above = scores[None] >= scores[:, None]
    share = (above * labels).sum(1) / above.sum(1)
    return (share * labels).sum()

  return jax.vmap(of_one)(scores, labels).sum(), labels.sum()


def _cross_entropy(scores: Array, labels: Array) -> Array:
  """Of each class apart, `[batch, classes]`; finite for any score."""
  return jax.nn.softplus(scores) - scores * labels


class ClassifierModel:
  """A classifier under training, with the protocol of `train.py`.

  A batch is `{'waveform': float32 [batch, samples], 'labels': float32 [batch,
  classes]}`.

  Attributes:
    module: network with `module(waveform, is_training)`, such as
      `leaf.Network`; it normalises by batches.
    spec: the stream of the scores.
    loss_is_mean: True: over the batch, so that a step has no microbatches.
  """

  loss_is_mean = True

  def __init__(self, module, stream: str, optimizer_def=None):
    """Makes a model.

    Args:
      module: the network.
      stream: name of the row in streams.py.
      optimizer_def: an optax transformation; kept for the trainer.
    """
    self.module = module
    self.spec = streams.get(stream)
    self.optimizer_def = optimizer_def

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple],
    input_types: Mapping[str, jnp.dtype] | None = None,
  ) -> dict:
    """Returns `params` and `batch_stats`.

    Args:
      rng: random key.
      input_shapes: shapes of a batch.
      input_types: unused; a waveform is float32.
    """
    del input_types
    waveform = jnp.zeros((1, input_shapes['waveform'][1]), jnp.float32)
    return dict(self.module.init(rng, waveform))

  def loss_fn(
    self,
    params: dict,
    batch: Mapping[str, Array],
    dropout_rng: Array | None,
    flax_mutables: dict | None = None,
  ):
    """Mean loss of a training batch.

    Args:
      params: of the network.
      batch: see the class.
      dropout_rng: random key.
      flax_mutables: `{'batch_stats': …}`.

    Returns:
      `(loss, (metrics, new flax_mutables))`.
    """
    scores, mutables = self.module.apply(
      {'params': params, **(flax_mutables or {})},
      batch['waveform'],
      is_training=True,
      rngs={'dropout': dropout_rng},
      mutable=['batch_stats'],
    )
    loss, metrics = self._evaluate(scores, batch['labels'])
    return loss, (metrics, mutables)

  def eval_fn(
    self,
    params: dict,
    batch: Mapping[str, Array],
    flax_mutables: dict | None = None,
  ):
    """As `loss_fn`, with the averages and without dropout."""
    scores = self.module.apply(
      {'params': params, **(flax_mutables or {})}, batch['waveform']
    )
    loss, metrics = self._evaluate(scores, batch['labels'])
    return loss, (metrics, flax_mutables)

  def export_variables(
    self, params: dict, flax_mutables: dict | None = None
  ) -> dict:
    """Returns what the embedder's weights file holds."""
    return {'params': params, **(flax_mutables or {})}

  def _evaluate(self, scores, labels):
    from clu import metrics  # inference never needs it

    # Summed over classes, as they are independent.
    losses = _cross_entropy(scores, labels).sum(-1)
    total, count = ranking_precision(scores, labels)
    one = jnp.ones((), jnp.float32)
    return losses.mean(), {
      'loss': metrics.Average(total=losses.mean(), count=one),
      'lwlrap': metrics.Average(total=total, count=count),
    }
