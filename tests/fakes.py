"""A tiny model object and data for it, for tests of the training loop."""

from clu import metrics
import flax
from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np


class LinearModel:
  """Predicts one of 4 classes from 8 features; dropout on the features."""

  def __init__(self, dropout_rate: float = 0.1, counts: bool = False):
    self._dropout_rate = dropout_rate
    self._counts = counts  # whether there is a mutable collection

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    assert input_types['x'] == np.float32
    num_features = input_shapes['x'][-1]
    variables = {
      'params': {
        'dense': {
          'kernel': jax.random.normal(rng, (num_features, 4)) * 0.1,
          'bias': jnp.zeros(4),
        }
      },
      'params_axes': {
        'dense': {
          'kernel_axes': partitioning.AxisMetadata(('embed', 'mlp')),
          'bias_axes': partitioning.AxisMetadata(('mlp',)),
        }
      },
    }
    if self._counts:
      variables['counts'] = {'seen': jnp.zeros([], jnp.int32)}
    return variables

  def _loss(self, params, batch, rng):
    x = batch['x']
    if rng is not None:
      keep = jax.random.bernoulli(rng, 1 - self._dropout_rate, x.shape)
      x = x * keep
    dense = params['dense']
    logits = jax.nn.log_softmax(x @ dense['kernel'] + dense['bias'])
    losses = -jnp.take_along_axis(logits, batch['y'][:, None], axis=1)
    right = jnp.argmax(logits, axis=-1) == batch['y']
    return jnp.mean(losses), {
      'accuracy': metrics.Average(
        total=jnp.sum(right, dtype=jnp.float32),
        count=jnp.asarray(len(right), jnp.float32),
      )
    }

  def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
    loss, values = self._loss(params, batch, dropout_rng)
    if not self._counts:
      return loss, values
    seen = flax_mutables['counts']['seen'] + len(batch['y'])
    return loss, (values, flax.core.freeze({'counts': {'seen': seen}}))

  def eval_fn(self, params, batch, flax_mutables=None):
    loss, values = self._loss(params, batch, None)
    return (loss, (values, flax_mutables)) if self._counts else (loss, values)


class Examples:
  """Batches whose class follows from their features, or does not."""

  def __init__(
    self,
    split='train',
    batch_size=16,
    seed=0,
    shuffled=False,
    bad_steps=(),
    on_step=None,
  ):
    self._key = [seed, {'train': 0, 'validation': 1}[split]]
    self._split = split
    self._batch_size = batch_size
    self._shuffled = shuffled
    self._bad_steps = bad_steps
    self._on_step = on_step

  def batch(self, step):
    rng = np.random.default_rng([*self._key, step])
    x = rng.standard_normal((self._batch_size, 8), 'f4')
    y = np.argmax(x[:, :4], axis=1).astype(np.int32)
    if self._shuffled:
      y = rng.permutation(y)
    if self._split == 'train' and step in self._bad_steps:
      x[0] = np.nan
    return {'x': x, 'y': y, 'clip_id': np.array(['a'] * self._batch_size)}

  def iterator(self, start_step=0):
    step = start_step
    while True:
      if self._on_step is not None and self._split == 'train':
        self._on_step(step)
      yield self.batch(step)
      step += 1
