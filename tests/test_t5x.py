"""What T5X needs of this project, checked where T5X is not installed.

The protocol is in the docstrings of what is tested; test_t5x_drivers.py runs
T5X itself, where it can be imported.
"""

import importlib
import inspect
import json
import pathlib
import re

import flax
from flax.linen import partitioning as flax_partitioning
from gin import config_parser
import jax
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from tests import fakes
from tests import stage_examples
from tests.golden import t5x_parameters
from v2meow_jax import checkpoints
from v2meow_jax import errors
from v2meow_jax import optimizers
from v2meow_jax import stages
from v2meow_jax import t5x_batches
from v2meow_jax import task_metrics
from v2meow_jax import tasks
from v2meow_jax import trainer
from v2meow_jax import vocabularies

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIN = ROOT / 'gin'
DRIVERS = {
  'train': 't5x.train.train',
  'eval': 't5x.eval.evaluate',
  'infer': 't5x.infer.infer',
}


# The gin files.


class _Names(config_parser.ParserDelegate):
  """Keeps references and macros as what they are called."""

  def __init__(self):
    self.references, self.macros = set(), set()

  def configurable_reference(self, scoped_name, evaluate):
    self.references.add(scoped_name.split('/')[-1])

  def macro(self, scoped_name):
    self.macros.add(scoped_name)
    return f'%{scoped_name}'


def statements(path):
  """Statements of a gin file and the names in them; T5X is not imported."""
  names = _Names()
  parser = config_parser.ConfigParser(path.read_text(), names)
  return list(parser), names


def parameters(name, imports, driver):
  """Names of the parameters of a configurable, None for those of any name."""
  alias, attribute = name.rsplit('.', 1)
  module = imports[alias]
  if module == '__main__':
    module = DRIVERS[driver].rsplit('.', 1)[0]
  if module.startswith('t5x'):
    recorded = json.loads(t5x_parameters.PATH.read_text())
    return recorded[f'{module}.{attribute}']
  configurable = getattr(importlib.import_module(module), attribute)
  return list(inspect.signature(configurable).parameters)


@pytest.mark.parametrize('path', sorted((GIN / 't5x').glob('*.gin')))
def test_bindings_are_parameters(path):
  found, names = statements(path)
  imports = {
    s.bound_name(): s.module
    for s in found
    if isinstance(s, config_parser.ImportStatement)
  }
  bindings = [s for s in found if isinstance(s, config_parser.BindingStatement)]
  assert bindings
  for binding in bindings:
    if binding.arg_name:  # a macro has none
      known = parameters(binding.selector, imports, path.stem)
      assert binding.arg_name in known, binding
  for reference in names.references:
    parameters(reference, imports, path.stem)
  unused = set(imports) - {'dynamic_registration'}
  assert unused == {
    name.split('.')[0]
    for name in names.references | {b.selector for b in bindings}
    if '.' in name
  }


def macros(files):
  """Macros that are used in `files` and what they include, and those set."""
  used, values = set(), {}
  for file in files:
    found, names = statements(GIN / file)
    used |= names.macros
    for statement in found:
      if isinstance(statement, config_parser.IncludeStatement):
        more_used, more_values = macros([statement.filename])
        used |= more_used
        values |= more_values
      elif isinstance(statement, config_parser.BindingStatement):
        if not statement.arg_name:
          values[statement.selector] = statement.value
  return used - {'gin.REQUIRED'}, values


@pytest.mark.parametrize(
  'driver, road, needed',
  [
    ('train', 'arrays', {'MODEL_DIR', 'ARRAYS'}),
    ('train', 'records', {'MODEL_DIR'}),
    ('eval', 'records', {'CHECKPOINT_PATH', 'EVAL_OUTPUT_DIR'}),
    ('infer', 'records', {'CHECKPOINT_PATH', 'INFER_OUTPUT_DIR'}),
  ],
)
def test_macros_are_set_by_the_recipe(driver, road, needed):
  files = [
    'sizes/tiny.gin',
    'visual/scene.gin',
    'codecs/spectrogram.gin',
    'tokenizers/spectral.gin',
    'style/caption.gin',
    'datasets/toy.gin',
    f'datasets/{road}.gin',
    'stages/semantic.gin',
    f't5x/{driver}.gin',
  ]
  used, values = macros(files)
  assert used <= set(values)
  assert {n for n, v in values.items() if v == '%gin.REQUIRED'} == needed


@pytest.mark.parametrize('driver', sorted(DRIVERS))
def test_headers_name_what_must_be_set(driver):
  _, values = macros([f't5x/{driver}.gin'])
  text = (GIN / 't5x' / f'{driver}.gin').read_text()
  text += (GIN / 't5x' / 'task.gin').read_text()
  for name in values:
    if values[name] == '%gin.REQUIRED':
      assert re.search(rf'^# .*{name}', text, re.MULTILINE), name


# The model: the signatures that T5X calls; values are in test_models.py.


def test_model_has_the_signatures():
  model = stage_examples.make_model(stages.ENCODER_DECODER)
  names = lambda method: list(inspect.signature(method).parameters)
  assert names(model.get_initial_variables) == [
    'rng',
    'input_shapes',
    'input_types',
  ]
  assert model.get_initial_variables.__self__ is model
  assert names(model.loss_fn) == ['params', 'batch', 'dropout_rng']
  assert names(model.eval_fn) == ['params', 'batch']
  # T5X passes a key where a parameter has this name, and only there.
  assert names(model.predict_batch) == ['params', 'batch', 'rng']
  assert names(model.predict_batch_with_aux) == ['params', 'batch', 'rng']
  assert names(model.score_batch) == ['params', 'batch', 'return_intermediates']


# The optimizers.

PARAMS = {
  'dense': {'kernel': np.ones((4, 6), 'f4'), 'bias': np.zeros(6, 'f4')},
  'scale': np.ones(4, 'f4'),
}
AXES = {
  'dense': {
    'kernel': PartitionSpec('embed', 'mlp'),
    'bias': PartitionSpec('mlp'),
  },
  'scale': PartitionSpec('embed'),
}
OPTIMIZERS = {
  'adamw': lambda: optimizers.adamw(optimizers.rsqrt(0.1, 2)),
  'adafactor': lambda: optimizers.adafactor(
    optimizers.constant(0.1), min_dim_size_to_factor=2
  ),
}


def gradients(step):
  return jax.tree.map(lambda p: (step + 1) * np.sin(p + 1), PARAMS)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_steps_and_layout_are_those_of_our_runner(name):
  optimizer = OPTIMIZERS[name]()
  # T5X freezes its parameters, and passes the rate of its own trainer.
  optimized = optimizer.create(flax.core.freeze(PARAMS))
  params, state = PARAMS, optimizer.init(PARAMS)
  for step in range(3):
    frozen = flax.core.freeze(gradients(step))
    optimized = optimized.apply_gradient(frozen, learning_rate=99.0)
    updates, state = optimizer.update(gradients(step), state, params)
    params = optax.apply_updates(params, updates)
  assert params['dense']['bias'].any()
  expected = checkpoints.to_tree(
    checkpoints.TrainState(np.int32(3), params, state, {})
  )
  assert jax.tree.structure(optimized.state_dict()) == (
    jax.tree.structure(expected)
  )
  jax.tree.map(np.testing.assert_array_equal, optimized.state_dict(), expected)
  fresh = optimizer.create(flax.core.freeze(PARAMS))
  restored = fresh.restore_state(optimized.state_dict())
  assert jax.tree.structure(restored) == jax.tree.structure(optimized)
  jax.tree.map(np.testing.assert_array_equal, restored, optimized)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_slots_have_the_axes_of_their_parameter(name):
  optimizer = OPTIMIZERS[name]()
  optimized = jax.eval_shape(optimizer.create, flax.core.freeze(PARAMS))
  axes = optimizer.derive_logical_axes(optimized, flax.core.freeze(AXES))
  # T5X walks both dicts side by side, and restores one that it has mapped.
  flat = lambda tree: flax.traverse_util.flatten_dict(tree.state_dict())
  assert flat(axes).keys() == flat(optimized).keys()
  assert jax.tree.structure(axes) == jax.tree.structure(optimized)
  assert axes.restore_state(axes.state_dict()) == axes
  found = {
    '/'.join(path): spec
    for path, spec in flat(axes).items()
    if path[-1] == 'kernel'
  }
  assert found.pop('target/dense/kernel') == PartitionSpec('embed', 'mlp')
  slots = {path.split('/')[-3]: spec for path, spec in found.items()}
  if name == 'adamw':
    whole = PartitionSpec('embed', 'mlp')
    assert slots == {'mu': whole, 'nu': whole}
  else:  # rows and columns, and the place of what is factored
    assert slots == dict.fromkeys(('v_row', 'v_col', 'v'), PartitionSpec())
  assert flat(axes)['state', 'step'] == PartitionSpec()


def test_log_has_the_rate_of_the_optimizer():
  optimizer = OPTIMIZERS['adamw']()
  schedule = optimizers.learning_rate(optimizer)
  np.testing.assert_allclose(schedule(np.int32(0)), 0.05, rtol=1e-6)
  np.testing.assert_allclose(schedule(np.int32(7)), 0.05, rtol=1e-6)


def test_axes_of_the_model_fit_its_optimizer():
  model = stage_examples.make_model(stages.DECODER_ONLY)
  variables = jax.eval_shape(
    lambda key: model.get_initial_variables(
      rng=key, input_shapes=model.feature_shapes(2)
    ),
    jax.random.PRNGKey(0),
  )
  optimizer = OPTIMIZERS['adamw']()
  optimized = jax.eval_shape(optimizer.create, variables['params'])
  axes = flax_partitioning.get_axis_names(variables['params_axes'])
  axes = optimizer.derive_logical_axes(optimized, flax.core.unfreeze(axes))
  slots = axes.state_dict()['state']['param_states']
  mu = next(
    spec
    for path, spec in flax.traverse_util.flatten_dict(slots).items()
    if path[-4:] == ('mu', 'decoder', 'logits_dense', 'kernel')
  )
  assert mu == PartitionSpec('embed', 'vocab')


# The batches.


class Config:
  """What is read of T5X's `DatasetConfig`."""

  split = 'train'
  batch_size = 4
  seed = 7


def first_batches(iterator, count):
  return [trainer.numeric(next(iterator)) for _ in range(count)]


def assert_equal_batches(found, expected):
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_training_goes_on_at_the_newest_checkpoint(tmp_path):
  make = lambda: t5x_batches.train_batches(
    Config, 0, 1, None, batches=fakes.Examples, model_dir=tmp_path
  )
  ours = fakes.Examples(split='train', batch_size=4, seed=7)
  expected = first_batches(ours.iterator(0), 6)
  found = make()
  assert_equal_batches(first_batches(found, 2), expected[:2])
  found.reset()
  assert_equal_batches(first_batches(found, 2), expected[:2])
  (tmp_path / 'checkpoint_3' / 'state').mkdir(parents=True)
  (tmp_path / 'checkpoint_9.orbax-checkpoint-tmp-1' / 'state').mkdir(
    parents=True
  )
  found = make()
  assert found.element_spec['x'].shape == expected[0]['x'].shape
  assert found.element_spec['x'].dtype == expected[0]['x'].dtype
  assert_equal_batches(first_batches(found, 3), expected[3:])


def test_evaluation_sees_the_same_batches_each_time():
  made = t5x_batches.eval_batches(Config, 0, 1, 2, None, batches=fakes.Examples)
  assert list(made) == ['train']
  assert 'clip_id' not in made['train'].element_spec  # no device holds names
  ours = fakes.Examples(split='train', batch_size=4, seed=7)
  expected = first_batches(ours.iterator(0), 2)
  for _ in range(2):
    assert_equal_batches(list(made['train']), expected)
  assert made['train'].element_spec['x'].shape == expected[0]['x'].shape


def test_other_shards_than_processes_are_refused(tmp_path):
  with pytest.raises(errors.UserError) as error:
    t5x_batches.train_batches(
      Config, 1, 2, None, batches=fakes.Examples, model_dir=tmp_path
    )
  assert str(error.value) == (
    'T5X asks process 0 of 1 for shard 1 of 2, expected a shard for each '
    'process. Choose a mesh whose model axis stays inside a process '
    '(partitioning.PjitPartitioner).'
  )


# The task.


def test_lengths_are_those_of_the_stage():
  stage = stage_examples.make_stage(stages.DECODER_ONLY)
  assert tasks.feature_lengths(stage) == stage.task_feature_lengths()


def test_likelihood_is_a_mean_over_tokens():
  values = task_metrics.likelihood([[5, 6, 0], [7, 0, 0]], [-4.0, -2.0])
  assert values == {'loss_per_token': 2.0, 'perplexity': np.exp(2.0)}
  with pytest.raises(errors.UserError, match='All targets are padding'):
    task_metrics.likelihood([[0, 0]], [0.0])


def test_agreement_counts_codes_of_each_level():
  stage = stage_examples.make_stage(stages.DECODER_ONLY)
  # [examples, time, levels]; the second example ends after one time.
  targets = np.array([[[0, 1], [0, 2]], [[3, 4], [0, 0]]])
  found = np.array([[[0, 1], [0, 1]], [[0, 4], [5, 5]]])
  ids = lambda codes: vocabularies.flatten_levels(
    codes, stage.target.spec.num_codes, stage.target_offset
  )
  targets, found = ids(targets), ids(found)
  targets[1, 2:] = 0
  values = task_metrics.agreement(targets.tolist(), found.tolist(), stage=stage)
  # Level 1: codes 0, 0, 3 and 0, 0, 0; level 2: 1, 2, 4 and 1, 1, 4.
  assert values == pytest.approx(
    {
      'sampled_accuracy': 4 / 6,
      'code_distance': 1 / 3,
      'code_distance/level_1': 1 / 3,
      'code_distance/level_2': 1 / 3,
    }
  )


def test_seqio_tells_scores_from_predictions():
  import seqio

  stage = stage_examples.make_stage(stages.DECODER_ONLY)
  task = seqio.Task(
    'a',
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files: None, splits=['train']
    ),
    output_features={},
    metric_fns=task_metrics.metric_fns(stage),
  )
  assert task.score_metric_fns == [task_metrics.likelihood]
  assert [fn.func for fn in task.predict_metric_fns] == [task_metrics.agreement]
