"""T5X's own drivers on this project's models: the same losses, both ways.

Needs T5X, airio and jestimator on the path, see docs/t5x.md; skipped elsewhere.
`pytest -s` prints the losses of both runners side by side.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import gin
import jax
import numpy as np
import pytest
import seqio

from tests import conftest
from v2meow_jax import checkpoints
from v2meow_jax import configs
from v2meow_jax import train

pytestmark = [pytest.mark.t5x, pytest.mark.slow]
SETTINGS = (
  '--gin.BATCH_SIZE=4',
  '--gin.EVAL_PERIOD=2',
  '--gin.EVAL_STEPS=1',
  '--gin.WARMUP_STEPS=2',
  '--gin.RANDOM_SEED=5',
  '--gin.stages.make.seconds=2.0',
)
LOSSES = ('loss', 'accuracy', 'loss_per_nonpadding_target_token')


@pytest.fixture(autouse=True, scope='module')
def installed():
  """Skips where T5X, or a package that it needs, is missing."""
  why = 'No checkout on PYTHONPATH'
  if importlib.util.find_spec('t5x'):
    done = subprocess.run(
      [sys.executable, '-c', 'import t5x.train'],
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode == 0:
      return
    why = done.stderr.splitlines()[-1]
  pytest.skip(f'missing: t5x (docs/t5x.md): {why}')


@pytest.fixture(autouse=True)
def clear():
  yield
  gin.clear_config()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Toy clips, as records and as arrays."""
  folder = tmp_path_factory.mktemp('data')
  command = ['prepare', '--toy', '20', '--renderer', 'numpy']
  for more in ((), ('--arrays',)):
    call('v2meow_jax.cli', *command, '--out', str(folder), *more)
  return folder


def call(module, *arguments):
  """Runs a module in a process of its own; returns what it logged."""
  code = f'import sys; from {module} import run; sys.exit(run())'
  program = ['-m', module] if module.startswith('t5x') else ['-c', code]
  done = subprocess.run(
    [sys.executable, *program, *arguments],
    cwd=conftest.ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-5000:]
  return done.stderr


def recipe(stage, road, data, run, *bindings):
  """Arguments of either runner."""
  files = (
    'sizes/tiny',
    'visual/scene',
    'codecs/spectrogram',
    'tokenizers/spectral',
    'style/caption',
    'datasets/toy',
    f'datasets/{road}',
    f'stages/{stage}',
    *run,
  )
  folder = 'ARRAYS' if road == 'arrays' else 'DATA_DIR'
  return [
    *(f'--gin_file=gin/{file}.gin' for file in files),
    f"--gin.{folder}='{data}'",
    *SETTINGS,
    *(f'--gin.{binding}' for binding in bindings),
  ]


def t5x(driver, *arguments):
  """Runs one of T5X's drivers; returns its log."""
  return call(
    f't5x.{driver}', f'--gin_search_paths={conftest.ROOT / "gin"}', *arguments
  )


def train_t5x(stage, road, data, model_dir, steps, *bindings, more=()):
  """Trains with T5X; returns values by collection and step."""
  log = t5x(
    'train',
    *recipe(
      stage,
      road,
      data,
      ('t5x/train', *more),
      f"MODEL_DIR='{model_dir}'",
      f'TRAIN_STEPS={steps}',
      'train.stats_period=1',
      *bindings,
    ),
  )
  found = {'train': {}, 'validation': {}}
  for step, split, line in re.findall(
    r'\[(\d+)\] collection=(?:training_eval/)?(train|validation) (.*)', log
  ):
    values = dict(re.findall(r'([\w/]+)=([-\d.e]+)', line))
    if 'loss' in values:  # other lines hold times
      found[split][int(step)] = {n: float(values[n]) for n in LOSSES}
  return found


def train_ours(stage, road, data, model_dir, steps, *bindings):
  """Trains with our own runner; returns the same."""
  arguments = recipe(
    stage,
    road,
    data,
    ('runs/train',),
    f"MODEL_DIR='{model_dir}'",
    f'TRAIN_STEPS={steps}',
    'train.stats_period=1',
    *bindings,
  )
  assert train.main(arguments) == 0
  found = {'train': {}, 'validation': {}}
  for line in (model_dir / 'metrics.jsonl').read_text().splitlines():
    line = json.loads(line)
    found[line['split']][line['step']] = {n: line[n] for n in LOSSES}
  return found


def show(title, first, second):
  """Prints losses side by side."""
  print(f'\n{title}: step, loss of v2meow_jax.train, loss of t5x.train')
  for split in first:
    for step in sorted(first[split].keys() & second[split].keys()):
      losses = (found[split][step]['loss'] for found in (first, second))
      print(f'{split:>10} {step:2}', *(f'{loss:<19}' for loss in losses))


def from_step(found, first):
  """What was found after step `first`."""
  return {
    split: {n: v for n, v in values.items() if n > first}
    for split, values in found.items()
  }


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
  """Four steps of the semantic stage under both runners."""
  folder = tmp_path_factory.mktemp('runs')
  ours = train_ours('semantic', 'arrays', data, folder / 'ours', 4)
  theirs = train_t5x('semantic', 'arrays', data, folder / 't5x', 4)
  return folder, ours, theirs


def test_losses_are_equal_digit_by_digit(runs):
  folder, ours, theirs = runs
  show('encoder-decoder, AdamW, dropout 0.1', ours, theirs)
  assert ours == theirs
  assert sorted(ours['train']) == [1, 2, 3, 4]
  assert sorted(ours['validation']) == [2, 4]
  losses = {values['loss'] for values in ours['train'].values()}
  assert len(losses) == 4
  params = [
    checkpoints.load_params(folder / name / 'checkpoint_4')
    for name in ('ours', 't5x')
  ]
  jax.tree.map(np.testing.assert_array_equal, *params)


def test_our_runner_goes_on_where_t5x_stopped(runs, data):
  folder, ours, theirs = runs
  model_dir = folder / 't5x_then_ours'
  shutil.copytree(folder / 't5x/checkpoint_2', model_dir / 'checkpoint_2')
  found = train_ours('semantic', 'arrays', data, model_dir, 4)
  show('checkpoint of T5X, then ours', found, theirs)
  assert found == from_step(ours, 2)


def test_t5x_goes_on_where_our_runner_stopped(runs, data):
  folder, ours, _ = runs
  model_dir = folder / 'ours_then_t5x'
  shutil.copytree(folder / 'ours/checkpoint_2', model_dir / 'checkpoint_2')
  found = train_t5x('semantic', 'arrays', data, model_dir, 4)
  show('checkpoint of ours, then T5X', ours, found)
  assert found == from_step(ours, 2)


def test_t5x_starts_from_parameters_with_its_own_adafactor(runs, data):
  folder, _, _ = runs
  start = f"INITIAL_CHECKPOINT_PATH='{folder / 'ours/checkpoint_4'}'"
  ours = train_ours('semantic', 'arrays', data, folder / 'warm', 1, start)
  theirs = train_t5x(
    'semantic',
    'arrays',
    data,
    folder / 'adafactor',
    2,
    start,
    more=('t5x/adafactor',),
  )
  # The first loss is that of the loaded parameters, whatever the optimizer.
  assert theirs['train'][1] == ours['train'][1]
  assert sorted(theirs['train']) == [1, 2]
  # And back: our runner starts from what T5X's Adafactor has learnt.
  start = f"INITIAL_CHECKPOINT_PATH='{folder / 'adafactor/checkpoint_2'}'"
  back = train_ours('semantic', 'arrays', data, folder / 'back', 1, start)
  assert back['train'][1] != ours['train'][1]


@pytest.fixture(scope='module', params=['fine', 'coarse', 'coarse_visual'])
def stage_runs(request, data, tmp_path_factory):
  """Two steps of a stage under both runners, from records."""
  name = request.param
  folder = tmp_path_factory.mktemp(name)
  ours = train_ours(name, 'records', data, folder / 'ours', 2)
  theirs = train_t5x(name, 'records', data, folder / 't5x', 2)
  return name, folder, ours, theirs


def test_losses_from_records_are_equal(stage_runs):
  name, folder, ours, theirs = stage_runs
  show(f'{name}, from records', ours, theirs)
  assert ours == theirs
  assert sorted(ours['train']) == [1, 2]
  assert sorted(ours['validation']) == [2]
  params = [
    checkpoints.load_params(folder / name / 'checkpoint_2')
    for name in ('ours', 't5x')
  ]
  jax.tree.map(np.testing.assert_array_equal, *params)


def infer(stage_runs, data, mode):
  """Runs `t5x.infer` on our checkpoint; returns its lines, one for a clip."""
  name, folder, _, _ = stage_runs
  arguments = recipe(
    name,
    'records',
    data,
    ('t5x/infer',),
    f"CHECKPOINT_PATH='{folder / 'ours/checkpoint_2'}'",
    f"INFER_OUTPUT_DIR='{folder / mode}'",
    f"INFER_MODE='{mode}'",
    "SPLIT='train'",
  )
  t5x('infer', *arguments)
  (path,) = (folder / mode).glob(f'*-{mode}.jsonl-00000-of-00001')
  return [json.loads(line) for line in path.read_text().splitlines()]


def model_of(name, data):
  """The model of a stage, as the gin files describe it."""
  configs.parse(
    [
      a.removeprefix('--gin_file=')
      for a in recipe(name, 'records', data, ('runs/train',))
      if a.startswith('--gin_file=')
    ],
    ["MODEL_DIR = ''", f"DATA_DIR = '{data}'", 'stages.make.seconds = 2.0'],
    root='train.train',
  )
  return gin.get_bindings('train.train')['model']


def read(stage, model, data):
  """Batches of 4 of the training split in its order, and their clips."""
  from v2meow_jax import tasks

  name = tasks.register('toy:1.0.0', stage, data_dir=str(data))
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    tasks.feature_lengths(stage), 'train', shuffle=False, seed=5
  )
  clips = [x['id_pretokenized'].decode() for x in dataset.as_numpy_iterator()]
  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  batches = converter(dataset, tasks.feature_lengths(stage)).batch(4)
  return clips, list(batches.as_numpy_iterator())


def test_infer_on_our_checkpoint(stage_runs, data):
  name, folder, _, _ = stage_runs
  model = model_of(name, data)
  clips, batches = read(model.stage, model, data)
  assert len(clips) == 18
  params = checkpoints.load_params(folder / 'ours/checkpoint_2')
  score = jax.jit(model.score_batch)
  expected = np.concatenate([score(params, batch) for batch in batches])
  scored = infer(stage_runs, data, 'score')
  assert [line['inputs']['id_pretokenized'] for line in scored] == clips
  # The last batch is padded by T5X, the others are the same arrays.
  found = np.array([line['score'] for line in scored], np.float32)
  np.testing.assert_array_equal(found[:16], expected[:16])
  np.testing.assert_allclose(found, expected, rtol=1e-6)

  stage = model.stage
  predicted = infer(stage_runs, data, 'predict')
  ids = np.array([line['prediction'] for line in predicted])
  # Without the prefix, and every level in its own block of ids.
  assert ids.shape == (18, stage.target_length)
  codes = ids.reshape(18, -1, stage.target.num_levels) - stage.target_offset
  block = codes // stage.target.spec.num_codes
  np.testing.assert_array_equal(
    block, np.broadcast_to(np.arange(stage.target.num_levels), block.shape)
  )
  assert len(np.unique(codes)) > 100  # sampled, not constant


def test_eval_reports_the_metric_functions(stage_runs, data):
  name, folder, ours, _ = stage_runs
  output = folder / 'eval'
  arguments = recipe(
    name,
    'records',
    data,
    ('t5x/eval',),
    f"CHECKPOINT_PATH='{folder / 't5x/checkpoint_2'}'",
    f"EVAL_OUTPUT_DIR='{output}'",
  )
  t5x('eval', *arguments)
  (path,) = output.glob('inference_eval/*-metrics.jsonl')
  (values,) = map(json.loads, path.read_text().splitlines())
  assert values['step'] == 2
  levels = range(4, 8) if name == 'fine' else range(4)
  assert {n for n in values if n != 'step'} == {
    'loss_per_token',
    'perplexity',
    'sampled_accuracy',
    'code_distance',
    *(f'code_distance/level_{level}' for level in levels),
  }
  # Another crop of the one clip than in the training's validation, at random:
  # 6.5 to 6.9 measured with one checkpoint.
  loss = ours['validation'][2]['loss_per_nonpadding_target_token']
  assert values['loss_per_token'] == pytest.approx(loss, abs=0.6)


def test_recorded_parameters_are_those_of_t5x():
  code = (
    'import json\n'
    'from tests.golden import t5x_parameters\n'
    'found = t5x_parameters.record()\n'
    'assert found == json.loads(t5x_parameters.PATH.read_text()), found'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=conftest.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
