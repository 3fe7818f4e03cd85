"""Checkpoints in T5X's layout."""

import contextlib
import gc
import pathlib
import resource
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax import checkpoint as ocp
import pytest

from v2meow_jax import checkpoints
from v2meow_jax import checksums
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
  (tmp_path / '.deleted' / 'checkpoint_4' / 'metrics').mkdir(parents=True)
  assert checkpoints.find(tmp_path).name == 'checkpoint_5'
  again = checkpoints.Checkpoints(tmp_path)
  assert again.latest_step() == 5
  assert [path.name for path in tmp_path.iterdir()] == ['checkpoint_5']
  again.close()


def save_two(folder):
  """Checkpoints 5 and 7; the arrays of 7 are seven times those of 5."""
  manager = checkpoints.Checkpoints(folder)
  manager.save(make_state(), 5, loss=0.3)
  manager.save(make_state(scale=7.0), 7, loss=0.2)
  manager.close()


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
  'bytes of {} have changed': flip,
  '{} has {} bytes, not {}': cut,
  '{} is missing': pathlib.Path.unlink,
}


def test_damage_of_every_file_is_found(tmp_path):
  save_two(tmp_path)
  folder = tmp_path / 'checkpoint_7'
  paths = [path for path in folder.glob('*/**/*') if path.is_file()]
  assert {'_METADATA', '_sharding', 'metrics', 'manifest.ocdbt'} <= {
    path.name for path in paths
  }
  for path in paths:
    data = path.read_bytes()
    for text, damage in DAMAGES.items():
      damage(path)
      name = path.relative_to(folder)
      assert checksums.find_damage(folder) == text.format(
        name, len(data) - 1, len(data)
      )
      path.write_bytes(data)
  assert checksums.find_damage(folder) is None
  # orbax itself gives back another number where a byte of an array flips.
  (folder / checksums.NAME).write_text('{')
  assert checksums.find_damage(folder) == 'checksums.json cannot be read'


def contents(folder):
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('damage', DAMAGES.values())
def test_damaged_checkpoint_is_left_alone(tmp_path, damage):
  save_two(tmp_path)
  newest = tmp_path / 'checkpoint_7'
  damage(max(newest.glob('state/**/d/*'), key=lambda p: p.stat().st_size))
  before = contents(tmp_path)
  like = abstract(make_state())
  manager = checkpoints.Checkpoints(tmp_path)
  assert manager.latest_step() == 7
  with pytest.raises(errors.UserError) as error:
    manager.restore(7, like)
  message = str(error.value)
  start, command = message.split(' to go on from checkpoint_5: ')
  assert start.startswith(f'{newest}: is damaged (')
  assert start.endswith(
    '), expected the files as they were written. Nothing was changed. Copy '
    'it again, or move it away'
  )
  with pytest.raises(errors.UserError, match='checkpoint_7: is damaged'):
    checkpoints.load_params(tmp_path)
  manager.close()
  assert contents(tmp_path) == before
  # What the message says is what helps.
  program, old, new = command.split()
  assert program == 'mv'
  shutil.move(old, new)
  again = checkpoints.Checkpoints(tmp_path)
  assert again.latest_step() == again.best_step() == 5
  assert_equal(again.restore(5, like), make_state())
  again.close()


def test_damaged_loss(tmp_path):
  save_two(tmp_path)
  cut(tmp_path / 'checkpoint_5' / 'metrics' / 'metrics')
  with pytest.raises(errors.UserError) as error:
    checkpoints.Checkpoints(tmp_path)
  path = tmp_path / 'checkpoint_5'
  assert str(error.value) == (
    f'{path}: is damaged (metrics/metrics has 12 bytes, not 13), expected the '
    'files as they were written. Nothing was changed. Copy it again, or move '
    f'it away to go on without it: mv {path} {tmp_path}/damaged_checkpoint_5'
  )


def test_damage_without_checksums(tmp_path):
  manager = checkpoints.Checkpoints(tmp_path)
  manager.save(make_state(), 5)
  manager.wait()
  folder = tmp_path / 'checkpoint_5'
  (folder / checksums.NAME).unlink()  # as T5X writes it
  assert_equal(manager.restore(5, abstract(make_state())), make_state())
  (folder / 'state' / '_METADATA').write_text('{"tree')
  with pytest.raises(errors.UserError) as error:
    manager.restore(5, abstract(make_state()))
  assert str(error.value).startswith(
    f'{folder}: is damaged (JSONDecodeError: Unterminated string'
  )
  assert 'start from the beginning, as there is no other one' in str(
    error.value
  )
  shutil.rmtree(folder / 'state')
  with pytest.raises(errors.UserError, match='is damaged .FileNotFoundError'):
    checkpoints.load_params(tmp_path)
  manager.close()


@contextlib.contextmanager
def file_size_limit(num_bytes):
  """As on a full disk, a write beyond the limit fails."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# orbax drops what it has begun when one of its writes fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited')
def test_write_that_fails(tmp_path, rng):
  manager = checkpoints.Checkpoints(tmp_path, keep=1, keep_best=0)
  manager.save(make_state(), 5)
  manager.wait()
  before = contents(tmp_path)
  noise = {'noise': jnp.asarray(rng.standard_normal(50_000), jnp.float32)}
  with file_size_limit(100_000):
    manager.save(make_state(mutables=noise), 6)
    with pytest.raises(errors.UserError) as error:
      manager.wait()
  assert str(error.value) == (
    f'{tmp_path}/checkpoint_6: cannot be written (File too large), expected a '
    'folder with space for it. All older checkpoints are as they were: make '
    'space, or make the folder writable, and run the same command again; it '
    'goes on from checkpoint_5.'
  )
  manager.close()
  gc.collect()  # now, and not in another test
  after = contents(tmp_path)
  assert {path: after[path] for path in before} == before
  again = checkpoints.Checkpoints(tmp_path, keep=1, keep_best=0)
  assert contents(tmp_path) == before  # what was half written has gone
  again.save(make_state(mutables=noise), 6)
  again.close()
  assert [path.name for path in tmp_path.iterdir()] == ['checkpoint_6']


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
