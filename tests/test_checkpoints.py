"""Checkpoints in T5X's layout."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax import checkpoint as ocp
import pytest

from v2meow_jax import checkpoints
from v2meow_jax import errors
from v2meow_jax import optimizers

OPTIMIZERS = {
  'adamw': optimizers.adamw(optimizers.rsqrt(), weight_decay=0.1),
  'adafactor': optimizers.adafactor(optimizers.rsqrt(), clip_norm=1.0),
  'sgd': optax.sgd(0.1),  # whose state holds nothing
}


def make_state(optimizer='adamw', mutables=None, scale=1.0, width=3):
  params = {
    'decoder': {'kernel': jnp.arange(4.0 * width).reshape(4, width) * scale},
    'bias': jnp.full([width], 7.0 * scale, jnp.bfloat16),
  }
  return checkpoints.TrainState(
    step=jnp.asarray(5, jnp.int32),
    params=params,
    opt_state=OPTIMIZERS[optimizer].init(params),
    mutables=mutables or {},
  )


def abstract(state):
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
    state,
  )


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('mutables', [{}, {'codes': {'sum': jnp.ones(2)}}])
def test_restores_what_was_saved(tmp_path, optimizer, mutables):
  state = make_state(optimizer, mutables)
  manager = checkpoints.Checkpoints(tmp_path)
  assert manager.latest_step() is None
  manager.save(state, 5)
  manager.close()
  again = checkpoints.Checkpoints(tmp_path)
  assert again.latest_step() == again.best_step() == 5
  restored = again.restore(5, abstract(make_state(optimizer, mutables)))
  again.close()
  assert_equal(restored, state)


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_layout_is_that_of_t5x(tmp_path):
  state = make_state(mutables={'codes': {'sum': jnp.ones(2)}})
  manager = checkpoints.Checkpoints(tmp_path)
  manager.save(state, 5, loss=0.25)
  manager.close()
  # As any orbax program would read it, knowing nothing of ours.
  tree = ocp.PyTreeCheckpointer().restore(tmp_path / 'checkpoint_5' / 'state')
  assert set(tree) == {'target', 'state', 'flax_mutables'}
  assert set(tree['state']) == {'step', 'param_states'}
  assert tree['state']['step'] == 5
  assert_equal(tree['target'], state.params)
  flat = flax.traverse_util.flatten_dict(
    tree['state']['param_states'], keep_empty_nodes=True
  )
  assert not any(v == {} for v in flat.values() if isinstance(v, dict))
  mu = [v for k, v in flat.items() if 'mu' in k and k[-1] == 'kernel']
  assert len(mu) == 1
  assert mu[0].shape == (4, 3)
  # T5X restores parameters alone like this.
  target = {'target': jax.tree.map(np.zeros_like, tree['target'])}
  read = ocp.CheckpointManager(
    tmp_path,
    item_names=('state',),
    options=ocp.CheckpointManagerOptions(
      step_prefix='checkpoint', read_only=True
    ),
  ).restore(
    5,
    args=ocp.args.Composite(
      state=ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
      )
    ),
  )
  assert_equal(read['state']['target'], state.params)


def test_keeps_newest_and_best(tmp_path):
  manager = checkpoints.Checkpoints(tmp_path, keep=2, keep_best=1)
  losses = {1: 0.5, 2: 0.2, 3: 0.4, 4: None, 5: 0.9, 6: 0.3}
  for step, loss in losses.items():
    manager.save(make_state(scale=step), step, loss)
  manager.wait()
  assert manager.best_step() == 2
  assert manager.latest_step() == 6
  manager.close()
  names = lambda: {path.name for path in tmp_path.iterdir()}
  assert names() == {'checkpoint_2', 'checkpoint_5', 'checkpoint_6'}
  params = checkpoints.load_params(tmp_path / 'checkpoint_2')
  assert_equal(params, jax.device_get(make_state(scale=2).params))
  params = checkpoints.load_params(tmp_path)  # the newest
  assert_equal(params, jax.device_get(make_state(scale=6).params))
  assert checkpoints.load_mutables(tmp_path) == {}
  again = checkpoints.Checkpoints(tmp_path, keep=1, keep_best=1)
  again.save(make_state(), 7, 0.6)
  again.wait()
  assert again.best_step() == 2  # as the run before has measured
  again.close()
  assert names() == {'checkpoint_2', 'checkpoint_7'}


def test_unfinished_checkpoints_do_not_count(tmp_path):
  manager = checkpoints.Checkpoints(tmp_path)
  manager.save(make_state(), 5)
  manager.close()
  broken = tmp_path / 'checkpoint_9.orbax-checkpoint-tmp' / 'state'
  broken.mkdir(parents=True)
  assert checkpoints.find(tmp_path).name == 'checkpoint_5'
  again = checkpoints.Checkpoints(tmp_path)
  assert again.latest_step() == 5
  again.close()


def test_other_model_or_optimizer(tmp_path):
  manager = checkpoints.Checkpoints(tmp_path)
  manager.save(make_state(), 5)
  manager.wait()
  start = (
    f'{tmp_path}/checkpoint_5: holds another model or optimizer than the '
    'gin files describe. Weights do not fit the model: '
  )
  end = (
    ' Use the weights and the gin files that belong together. Or use '
    'another MODEL_DIR.'
  )
  with pytest.raises(errors.UserError) as error:
    manager.restore(5, abstract(make_state('sgd')))
  message = str(error.value)
  assert message.startswith(start)
  assert message.endswith(end)
  assert '; unexpected `state/param_states/1/0/mu/decoder/kernel`' in message
  with pytest.raises(errors.UserError) as error:
    manager.restore(5, abstract(make_state(width=2)))
  assert '`target/bias` has shape (3,), expected (2,)' in str(error.value)
  manager.close()


def test_no_checkpoint(tmp_path):
  with pytest.raises(errors.UserError) as error:
    checkpoints.load_params(tmp_path)
  assert str(error.value) == (
    f'{tmp_path}: no checkpoint, expected a folder `checkpoint_<step>`, a '
    'folder that holds some, or a .safetensors file.'
  )
