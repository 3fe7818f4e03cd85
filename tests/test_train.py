"""The training loop: it learns, resumes exactly and stops clearly."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

from clu import metrics
import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from tests import fakes
from tests import missing
from v2meow_jax import arrays
from v2meow_jax import checkpoints
from v2meow_jax import errors
from v2meow_jax import losses
from v2meow_jax import optimizers
from v2meow_jax import prefetching
from v2meow_jax import progress
from v2meow_jax import streams
from v2meow_jax import train
from v2meow_jax import weights

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope='module')
def compile_once(tmp_path_factory):
  """Every run here compiles the same few steps: keep them."""
  options = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('cache')),
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def run(model_dir, model=None, examples=None, **kwargs):
  """Trains the tiny model for 20 steps."""
  options = {
    'train_steps': 20,
    'batch_size': 16,
    'eval_period': 10,
    'eval_steps': 4,
    'stats_period': 5,
    'seed': 3,
  }
  return train.train(
    model or fakes.LinearModel(),
    examples or fakes.Examples,
    optimizers.adamw(optimizers.constant(0.05)),
    model_dir,
    **(options | kwargs),
  )


def metrics_of(model_dir, split):
  lines = (pathlib.Path(model_dir) / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  return {line['step']: line for line in lines if line['split'] == split}


def assert_equal_trees(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_learns_what_can_be_learnt_and_nothing_else(tmp_path):
  run(tmp_path / 'a', train_steps=150, eval_period=150)
  shuffled = functools.partial(fakes.Examples, shuffled=True)
  run(tmp_path / 'b', examples=shuffled, train_steps=150, eval_period=150)
  learnt = metrics_of(tmp_path / 'a', 'validation')[150]
  control = metrics_of(tmp_path / 'b', 'validation')[150]
  assert learnt['loss'] < 0.5  # 0.35 measured; ln 4 = 1.39 by chance
  assert learnt['accuracy'] > 0.8
  assert control['loss'] > 1.3
  first = metrics_of(tmp_path / 'a', 'train')[5]
  assert first['loss'] > 1.0
  assert first['learning_rate'] == pytest.approx(0.05)


def test_resume_is_exact(tmp_path):
  model = fakes.LinearModel(counts=True)
  whole = run(tmp_path / 'whole', model)
  run(tmp_path / 'parts', model, train_steps=10)
  parts = run(tmp_path / 'parts', model)
  assert parts.step == whole.step == 20
  assert_equal_trees(parts.state, whole.state)
  assert int(parts.state.mutables['counts']['seen']) == 20 * 16
  for split in ('train', 'validation'):
    a = metrics_of(tmp_path / 'parts', split)
    b = metrics_of(tmp_path / 'whole', split)
    assert a.keys() == b.keys()
    for step in a:
      assert a[step]['loss'] == b[step]['loss']
      assert a[step]['accuracy'] == b[step]['accuracy']


def test_what_it_is_made_of_stands_beside_the_checkpoints(tmp_path):
  run(tmp_path, train_steps=10)
  table = (tmp_path / 'parameters.txt').read_text()
  assert table == (
    '36 parameters:\n'
    '  dense/bias: float32 [4]\n'
    '  dense/kernel: float32 [8, 4]\n'
  )
  run(tmp_path)
  (entry,) = json.loads((tmp_path / 'versions.json').read_text())
  assert entry['step'] == 0
  assert entry['versions']['jax'] == jax.__version__


def test_listener_is_asked_at_each_evaluation(tmp_path, monkeypatch):
  written = []
  monkeypatch.setattr(
    progress.MetricWriter,
    'write_audio',
    lambda self, *arguments: written.append(arguments),
  )

  class Listener:
    sample_rate_hz = 8000

    def open(self, model, batch_size, mesh):
      assert batch_size == 16

    def listen(self, training, batch):
      assert batch.keys() >= {'x', 'y'}
      return {'sample/0': int(training.state.step)}

  run(tmp_path, listener=Listener())
  assert written == [
    (step, 'validation', {'sample/0': step}, 8000) for step in (10, 20)
  ]


def test_resume_drops_metrics_of_steps_done_again(tmp_path):
  run(tmp_path, train_steps=10)
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 15, "split": "train", "loss": 99.0}\n{"step": 1')
  run(tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == [5, 10, 10, 15, 20, 20]
  assert metrics_of(tmp_path, 'train')[15]['loss'] < 99


def test_done_training_only_exports(tmp_path):
  run(tmp_path)
  (tmp_path / 'params.safetensors').unlink()
  assert run(tmp_path).step == 20
  assert (tmp_path / 'params.safetensors').exists()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_resume_is_exact(tmp_path, number):
  whole = run(tmp_path / 'whole')

  def stop(step):
    if step == 7:
      os.kill(os.getpid(), number)

  stopping = functools.partial(fakes.Examples, on_step=stop)
  before = signal.getsignal(number)
  first = run(tmp_path / 'parts', examples=stopping)
  assert signal.getsignal(number) == before
  assert first.signal == number
  assert 0 < first.step < 20
  assert not (tmp_path / 'parts' / 'params.safetensors').exists()
  second = run(tmp_path / 'parts')
  assert second.signal is None
  assert_equal_trees(second.state, whole.state)


@pytest.mark.parametrize('period', [5, 100])
def test_stops_on_a_loss_that_is_not_finite(tmp_path, period):
  bad = functools.partial(fakes.Examples, bad_steps=(6,))
  with pytest.raises(errors.UserError) as error:
    run(tmp_path, examples=bad, eval_period=5, stats_period=period)
  # Batch 6 is the batch of step 7; its update spoils what follows.
  assert str(error.value).startswith(
    'The loss or its gradient is not finite at steps 7 (loss nan), 8 (loss nan)'
  )
  assert [p.name for p in tmp_path.glob('checkpoint_*')] == ['checkpoint_5']
  params = checkpoints.load_params(tmp_path)
  assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))


def test_stops_on_a_gradient_that_is_not_finite(tmp_path):
  class Model(fakes.LinearModel):
    def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
      loss, values = self._loss(params, batch, dropout_rng)
      # sqrt(0): the value is finite, the slope is not.
      zero = jax.numpy.sqrt(0.0 * params['dense']['bias'][0])
      return loss + zero, values

  with pytest.raises(errors.UserError, match=r'steps 1 \(loss 1\.'):
    run(tmp_path, Model())


def test_every_step_has_its_own_random_numbers(tmp_path):
  class Model(fakes.LinearModel):
    def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
      loss, values = self._loss(params, batch, dropout_rng)
      values['draw'] = metrics.Average(
        total=jax.random.uniform(dropout_rng), count=jax.numpy.ones([])
      )
      return loss, values

  run(tmp_path, Model(), train_steps=3, stats_period=1, eval_split=None)
  draws = [line['draw'] for line in metrics_of(tmp_path, 'train').values()]
  _, key = jax.random.split(jax.random.PRNGKey(3))  # as T5X does
  np.testing.assert_array_equal(
    draws,
    [jax.random.uniform(jax.random.fold_in(key, step)) for step in range(3)],
  )


def test_microbatches_are_parts_of_one_step(tmp_path):
  """Sums of loss and gradient, a key for each, mutables one after another."""
  sizes = []

  class Model(fakes.LinearModel):
    def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
      loss, (values, mutables) = super().loss_fn(
        params, batch, None, flax_mutables
      )
      sizes.append(len(batch['y']))
      loss *= len(batch['y'])  # T5X's rule: a sum, not a mean
      values['draw'] = metrics.Average(
        total=jax.random.uniform(dropout_rng), count=jax.numpy.ones([])
      )
      values['loss'] = losses.PerStep(loss, jax.numpy.ones([]))
      return loss, (values, mutables)

  options = {'train_steps': 3, 'stats_period': 1, 'eval_split': None}
  model = Model(counts=True)
  result = run(tmp_path / 'four', model, microbatches=4, **options)
  assert set(sizes) == {4}
  assert int(result.state.mutables['counts']['seen']) == 3 * 16
  found = metrics_of(tmp_path / 'four', 'train')
  _, step_key = jax.random.split(jax.random.PRNGKey(3))
  for step in range(3):
    key = jax.random.fold_in(step_key, step)
    draws = [
      jax.random.uniform(jax.random.fold_in(key, number)) for number in range(4)
    ]
    # One rounding of the mean.
    assert found[step + 1]['draw'] == pytest.approx(np.mean(draws), rel=1e-6)
  whole = run(tmp_path / 'whole', model, **options)
  expected = metrics_of(tmp_path / 'whole', 'train')
  # Sums of another order: 0 measured in metrics, 3e-8 in parameters.
  for step in (1, 2, 3):
    for name in ('loss', 'gradient_norm', 'accuracy'):
      assert found[step][name] == pytest.approx(expected[step][name], rel=2e-7)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7),
    result.state.params,
    whole.state.params,
  )


def test_evaluates_fixed_batches_without_dropout(tmp_path):
  model = fakes.LinearModel(dropout_rate=0.5)
  result = run(tmp_path, model)
  data = fakes.Examples('validation', 16, 3)
  batches = [data.batch(step) for step in range(4)]
  expected = np.mean(
    [model.eval_fn(result.state.params, batch)[0] for batch in batches]
  )
  measured = metrics_of(tmp_path, 'validation')[20]['loss']
  assert measured == pytest.approx(expected, rel=1e-5)


def test_exports_the_best_checkpoint(tmp_path):
  # With a huge learning rate from step 10 on, the first checkpoint is best.
  rate = lambda step: jax.numpy.where(step < 10, 0.02, 50.0)
  train.train(
    fakes.LinearModel(),
    fakes.Examples,
    optimizers.adamw(rate),
    tmp_path,
    train_steps=30,
    batch_size=16,
    eval_period=10,
    keep=1,
    export_path=str(tmp_path / 'out' / 'best.safetensors'),
  )
  losses = metrics_of(tmp_path, 'validation')
  assert min(losses, key=lambda step: losses[step]['loss']) == 10
  kept = sorted(path.name for path in tmp_path.glob('checkpoint_*'))
  assert kept == ['checkpoint_10', 'checkpoint_30']
  assert_equal_trees(
    weights.load_params(tmp_path / 'out' / 'best.safetensors'),
    checkpoints.load_params(tmp_path / 'checkpoint_10'),
  )


def test_exports_mutables_beside_params(tmp_path):
  run(tmp_path, fakes.LinearModel(counts=True))
  tree = weights.load_params(tmp_path / 'params.safetensors')
  assert set(tree) == {'params', 'counts'}
  assert tree['counts']['seen'] == 320


def test_warm_start(tmp_path):
  first = run(tmp_path / 'a')
  for path in ('a', 'a/checkpoint_20', 'a/params.safetensors'):
    frozen = train.train(
      fakes.LinearModel(),
      fakes.Examples,
      optimizers.adamw(optimizers.constant(0.0)),
      tmp_path / path.replace('/', '_') / 'warm',
      train_steps=1,
      batch_size=16,
      eval_split=None,
      initial_checkpoint_path=tmp_path / path,
    )
    assert_equal_trees(frozen.state.params, first.state.params)


def test_warm_start_from_another_model(tmp_path):
  path = tmp_path / 'other.safetensors'
  weights.save_params(path, {'dense': {'kernel': np.zeros((8, 3))}})
  with pytest.raises(errors.UserError) as error:
    run(tmp_path, initial_checkpoint_path=path)
  assert str(error.value) == (
    f'{path}: Weights do not fit the model: missing `dense/bias`; '
    '`dense/kernel` has shape (8, 3), expected (8, 4). Use the weights and '
    'the gin files that belong together.'
  )


def test_batch_that_cannot_be_cut_and_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='MODEL_DIR .*file cannot be made'):
    run(tmp_path / 'file')
  with pytest.raises(errors.UserError, match='gs://a/b is an address, expect'):
    run('gs://a/b')
  with pytest.raises(errors.UserError, match='TRAIN_STEPS is 0, expected at'):
    run(tmp_path, train_steps=0)
  with pytest.raises(
    errors.UserError, match=r'mesh_shape is \(3, 1, 1\), expe'
  ):
    run(tmp_path, mesh_shape=(3, 1, 1))


def test_data_that_fails_is_reported(tmp_path):
  def fail(step):
    if step == 3:
      raise errors.UserError('clip c7: gone')

  failing = functools.partial(fakes.Examples, on_step=fail)
  with pytest.raises(errors.UserError, match='clip c7: gone'):
    run(tmp_path, examples=failing)


_TWO_DEVICES = """
import sys, jax
from tests import test_train
assert jax.device_count() == 2
result = test_train.run(sys.argv[1] + '/data', mesh_shape=(2, 1, 1))
kernel = result.state.params['dense']['kernel']
assert len(kernel.sharding.device_set) == 2
assert kernel.sharding.is_fully_replicated
result = test_train.run(sys.argv[1] + '/model', mesh_shape=(1, 1, 2))
kernel = result.state.params['dense']['kernel']
moment = jax.tree.leaves(result.state.opt_state)
assert kernel.addressable_shards[0].data.shape == (8, 2)
assert any(m.addressable_shards[0].data.shape == (8, 2) for m in moment)
"""


def test_two_devices_give_the_losses_of_one(tmp_path):
  run(tmp_path / 'one')
  environment = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
  }
  subprocess.run(
    [sys.executable, '-c', _TWO_DEVICES, str(tmp_path)],
    env=environment,
    check=True,
    cwd=ROOT,
  )
  for split in ('train', 'validation'):
    one = metrics_of(tmp_path / 'one', split)
    for mesh in ('data', 'model'):
      two = metrics_of(tmp_path / mesh, split)
      assert one.keys() == two.keys()
      for step in one:
        # 2e-7 measured
        np.testing.assert_allclose(
          one[step]['loss'], two[step]['loss'], rtol=2e-6
        )


def write_arrays(folder):
  """Clips of 3 s whose tokens say how bright the scene is."""
  rng = np.random.default_rng(0)
  specs = [streams.get(n) for n in ('scene', 'spectral_semantic', 'spectral')]
  for split in ('train', 'validation'):
    with arrays.ArrayWriter(folder, split, specs) as writer:
      for number in range(8):
        clip = {
          spec.name: np.full(
            spec.example_shape(spec.length(3)), number % 2, np.int32
          )
          for spec in specs
        }
        noise = rng.normal(scale=0.1, size=clip['scene'].shape)
        clip['scene'] = clip['scene'] * 2.0 - 1.0 + noise
        writer.add(f'clip{number}', clip, 3.0)


def command(folder, *bindings):
  """Arguments that train a tiny semantic stage on arrays."""
  files = (
    'sizes/tiny',
    'visual/scene',
    'codecs/spectral',
    'tokenizers/spectral',
    'style/none',
    'datasets/toy',
    'datasets/arrays',
    'stages/semantic',
    'runs/train',
  )
  return [
    *(f'--gin_file={file}.gin' for file in files),
    f"--gin.ARRAYS='{folder}/arrays'",
    f"--gin.MODEL_DIR='{folder}/run'",
    '--gin.stages.make.seconds=1.0',
    '--gin.BATCH_SIZE=4',
    '--gin.WARMUP_STEPS=0',
    '--gin.LEARNING_RATE=0.01',
    '--gin.EVAL_STEPS=2',
    *bindings,
  ]


_WITHOUT_TENSORFLOW = """
import sys
from tests import missing
sys.meta_path = missing.meta_path(
    'tensorflow', 'seqio', 'tensorflow_datasets', 'torch'
)
import v2meow_jax.train
sys.exit(v2meow_jax.train.main(sys.argv[1:]))
"""


def test_command_line_needs_no_tensorflow(tmp_path):
  write_arrays(tmp_path / 'arrays')
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      _WITHOUT_TENSORFLOW,
      *command(tmp_path, '--gin.TRAIN_STEPS=20', '--gin.EVAL_PERIOD=10'),
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == ''
  for part in (
    'decoder/logits_dense/kernel: float32 [16, 512]',
    'encoder_scene: float32 [4, 10, ',
    'MODEL/network.Config.embed_dim = 16',
    'Wrote the parameters of checkpoint_20 to',
  ):
    assert part in done.stderr
  assert 'orbax' not in done.stderr
  validation = metrics_of(tmp_path / 'run', 'validation')
  loss = 'loss_per_nonpadding_target_token'
  assert validation[20][loss] < validation[10][loss] < np.log(512)
  config = (tmp_path / 'run' / 'config.gin').read_text()
  assert 'MODEL/network.Config.embed_dim = 16' in config
  assert (tmp_path / 'run' / 'validation').is_dir()  # TensorBoard's
  params = weights.load_params(tmp_path / 'run' / 'params.safetensors')
  assert params['decoder']['logits_dense']['kernel'].shape == (16, 512)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--gin.TRAIN_STEPS=0'], 'TRAIN_STEPS is 0, expected at least 1.'),
    (
      ["--gin.VISUAL=('dog',)"],
      'Unknown stream `dog`, expected one of clip, ',
    ),
    (['--gin.MODEL_DIR=%NOWHERE'], 'Not set in the gin files: NOWHERE.'),
    (['--gin.train.no=1'], 'Cannot use the gin files: '),
  ],
)
def test_mistakes_on_the_command_line(tmp_path, capsys, arguments, message):
  write_arrays(tmp_path / 'arrays')
  assert train.main(command(tmp_path, *arguments)) == 1
  *_, line = capsys.readouterr().err.splitlines()
  assert line.startswith(f'error: {message}')


def test_wrong_usage(capsys):
  with pytest.raises(SystemExit) as stop:
    train.main(['--steps', '5'])
  assert stop.value.code == 2
  assert capsys.readouterr().err == (
    'error: unknown argument --steps, expected --gin_file=FILE or '
    '--gin.NAME=VALUE. See `v2meow train --help`.\n'
  )


def test_missing_package_is_named(tmp_path, capsys, monkeypatch):
  write_arrays(tmp_path / 'arrays')
  for name in [n for n in sys.modules if n.split('.')[0] == 'clu']:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setattr(sys, 'meta_path', missing.meta_path('clu'))
  assert train.main(command(tmp_path)) == 1
  *_, line = capsys.readouterr().err.splitlines()
  assert line == (
    'error: Package `clu` is not installed, expected all that training '
    "needs. Install it, or everything with pip install 'v2meow_jax[train]'."
  )


def test_launcher(tmp_path):
  write_arrays(tmp_path / 'arrays')
  launcher = ['bash', str(ROOT / 'launch' / 'train.sh')]
  run_launcher = functools.partial(
    subprocess.run, capture_output=True, text=True, check=False
  )
  done = run_launcher([*launcher, '--help'])
  assert done.returncode == 0
  assert done.stdout.startswith('Trains one stage;')
  for arguments, message in (
    ([], 'no stage, expected a file of gin/stages, such as semantic.'),
    (['fine'], 'no --model_dir, expected a folder to write to.'),
    (['fine', '--model_dir'], '--model_dir has no value, expected one.'),
    (['fine', 'coarse'], 'two stages, fine and coarse, expected one.'),
    (['fine', '--depth', '3'], 'unknown option --depth.'),
    (
      ['fine', '--model_dir=a', '--engine=jax'],
      'unknown engine jax, expected v2meow or t5x.',
    ),
  ):
    done = run_launcher([*launcher, *arguments])
    assert done.returncode == 2
    assert done.stderr == (
      f'error: {message} See `bash launch/train.sh --help`.\n'
    )
  # All files are found and all macros set: it only stops at this value.
  done = run_launcher(
    [
      *launcher,
      'semantic',
      '--size=tiny',
      *('--arrays', str(tmp_path / 'arrays')),
      *('--model_dir', str(tmp_path / 'run')),
      *('--style', 'none'),
      '--gin.TRAIN_STEPS=0',
    ]
  )
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == (
    'error: TRAIN_STEPS is 0, expected at least 1.'
  )


@pytest.mark.parametrize('slow', [False, True])
def test_reports_the_wait_for_data(tmp_path, monkeypatch, slow):
  # The training's own clock: a step takes 1 s, a slow batch 3 s more.
  clock = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
  make_next = prefetching.Prefetch.__next__

  def wait(self):
    clock[0] += 4.0 if slow else 1.0
    item = make_next(self)
    self.waited_seconds = 3.0 * (clock[0] / 4.0) if slow else 0.0
    return item

  monkeypatch.setattr(prefetching.Prefetch, '__next__', wait)
  run(tmp_path, train_steps=10, eval_split=None)
  shares = [
    line['input_wait_share'] for line in metrics_of(tmp_path, 'train').values()
  ]
  assert shares == [0.75 if slow else 0.0] * 2
