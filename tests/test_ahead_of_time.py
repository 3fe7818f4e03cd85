"""Training steps compiled for TPUs that are not there."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from tests import conftest
from v2meow_jax import ahead_of_time
from v2meow_jax import benchmark
from v2meow_jax import chips
from v2meow_jax import errors
from v2meow_jax import hlo
from v2meow_jax import training_steps

_HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None


def make_costs(*collectives):
  return hlo.Costs(
    flops=394_000_000_000,  # 2 ms of v5e
    hbm_bytes=819_000_000,  # 1 ms
    collectives=tuple(hlo.Collective(*c) for c in collectives),
    loops=(),
  )


def test_roofline_of_what_is_needed_most():
  v5e = chips.CHIPS['v5e']
  found = ahead_of_time.roofline(make_costs(), v5e, 4, 197e9 * 4)
  assert found == {
    'compute_seconds': pytest.approx(2e-3),
    'hbm_seconds': pytest.approx(1e-3),
    'ici_seconds': 0.0,
    'roofline_seconds': pytest.approx(2e-3),
    'bound': 'compute',
    'mfu': pytest.approx(0.5),
  }


@pytest.mark.parametrize(
  'collective, seconds',
  [
    # 200 GB/s over all links of a chip.
    (('all-reduce', 4, 400_000_000), 2 * 3 / 4 * 2e-3),
    (('all-gather', 4, 400_000_000), 3 / 4 * 2e-3),
    (('reduce-scatter', 4, 400_000_000), 3 / 4 * 2e-3),
    (('all-to-all', 4, 400_000_000), 3 / 4 * 2e-3),
    # Half of them where two chips of four take part.
    (('all-reduce', 2, 400_000_000), 2 * 1 / 2 * 4e-3),
    (('collective-permute', 2, 400_000_000), 4e-3),
  ],
)
def test_sending_takes_the_time_of_a_ring(collective, seconds):
  found = ahead_of_time.roofline(
    make_costs(collective), chips.CHIPS['v5e'], 4, 1.0
  )
  assert found['ici_seconds'] == pytest.approx(seconds)
  assert found['bound'] == ('ici' if seconds > 2e-3 else 'compute')


def test_a_loop_of_unknown_length_leaves_no_utilization():
  costs = dataclasses.replace(make_costs(), loops=(3, None))
  found = ahead_of_time.roofline(costs, chips.CHIPS['v5e'], 4, 1.0)
  assert found['mfu'] is None
  assert found['mfu_reason'].startswith('how often a loop runs is not known')


def test_bytes_of_all_kinds_are_told():
  costs = make_costs(('all-reduce', 2, 3), ('all-reduce', 4, 5))
  found = ahead_of_time.collective_bytes(costs.collectives)
  assert [*found] == [*hlo.COLLECTIVES]
  assert found['all-reduce'] == 8
  assert sum(found.values()) == 8


def test_memory_of_a_program_that_does_not_fit():
  message = (
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
    'memory space hbm. Used 23.50G of 15.75G hbm. Exceeded hbm capacity by '
    '7.75G.'
  )
  assert ahead_of_time.needed_bytes(message) == int(23.5 * 1024**3)
  assert ahead_of_time.needed_bytes('INTERNAL: Used 1G of 2G hbm') is None


def test_without_libtpu(monkeypatch, capsys):
  monkeypatch.setattr(ahead_of_time.importlib.util, 'find_spec', lambda _: None)
  arguments = 'compile --topology v5e:4x4 --stage fine --size tiny --batch 16'
  assert benchmark.main(arguments.split()) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err == (
    'error: libtpu is not installed, expected it: it has the compiler of '
    "TPUs. Install it with pip install 'v2meow_jax[tpu]'.\n"
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      '--topology v9:4x4',
      'Unknown topology `v9:4x4`, expected one of v4, v5e,',
    ),
    ('--topology v5e:4', 'Topology `v5e:4` has 1 dimensions, expected 2 of'),
    ('--size vast', 'Unknown size `vast`, expected one of base, bundled, '),
    ('--stage third', 'Unknown stage `third`, expected one of coarse, '),
    ('--gin.network.Config.what=1', 'Cannot use the gin files: '),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
  whole = '--topology v5e:4x4 --stage fine --size tiny --batch 16 ' + arguments
  assert benchmark.main(['compile', *whole.split()]) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err.startswith(f'error: {message}')
  assert said.err.count('\n') == 1


@pytest.mark.parametrize(
  'arguments, message',
  [
    ('--mesh 4x4', 'argument --mesh: is `4x4`, expected whole numbers'),
    ('--batch 0', '--batch is 0, expected 1 or more'),
    ('--what 1', 'unrecognized arguments: --what'),
    ('--dtype int8', "argument --dtype: invalid choice: 'int8'"),
  ],
)
def test_wrong_usage(arguments, message, capsys):
  whole = '--topology v5e:4x4 --stage fine --size tiny --batch 16 ' + arguments
  with pytest.raises(SystemExit, match='^2$'):
    benchmark.main(['compile', *whole.split()])
  assert message in capsys.readouterr().err


@pytest.mark.skipif(not _HAS_LIBTPU, reason='missing: libtpu (extra tpu)')
@pytest.mark.parametrize('topology', ['v5e:4x5', 'v4:3x3x3'])
def test_slices_that_do_not_exist(topology):
  recipe = training_steps.make('fine', 'tiny', 180)
  with pytest.raises(errors.UserError, match=f'like topology `{topology}`'):
    ahead_of_time.measure(recipe, topology)


@pytest.mark.skipif(not _HAS_LIBTPU, reason='missing: libtpu (extra tpu)')
def test_a_row_of_the_table():
  arguments = (
    'compile --topology v5e:2x2 --stage fine --size tiny --batch 8 '
    '--causal_block_queries 1200 --gin.stages.make.seconds=0.5 '
    '--gin.network.Config.num_layers=4'
  )
  # With an environment like a user's: libtpu there, and nothing said.
  environment = {
    name: value
    for name, value in os.environ.items()
    if name not in ('JAX_PLATFORMS', 'TF_CPP_MIN_LOG_LEVEL')
  }
  done = subprocess.run(
    [sys.executable, '-m', 'v2meow_jax.benchmark', *arguments.split()],
    capture_output=True,
    text=True,
    cwd=conftest.ROOT,
    env=environment,
  )
  assert (done.returncode, done.stderr) == (0, '')
  line = json.loads(done.stdout)
  assert line['chips'] == 4
  assert set(line['mesh'].values()) == {4, 1}
  assert line['fits'] is True
  assert line['loops'] == [3, 3]  # all layers but the last
  bindings = ['network.Config.num_layers = 4']
  model = training_steps.make('fine', 'tiny', 8, bindings=bindings).model
  variables = jax.eval_shape(
    lambda key: model.get_initial_variables(key, model.feature_shapes(1)),
    jax.random.PRNGKey(0),
  )
  parameters = 4 * sum(x.size for x in jax.tree.leaves(variables['params']))
  # Parameters and two moments on every chip, and its share of the batch.
  assert 3 * parameters < line['argument_bytes'] < 3.3 * parameters
  assert line['program_bytes'] > line['argument_bytes']
  # Each chip does a quarter, and the layers again for the backward pass.
  quarter = line['model_flops_per_step'] / 4
  assert quarter < line['flops'] < 2.5 * quarter
  # The gradients of all parameters, in float32 or bfloat16.
  assert 0.4 * parameters < line['collective_bytes']['all-reduce']
  assert line['collective_bytes']['all-to-all'] == 0
  assert line['roofline_seconds'] == max(
    line[f'{name}_seconds'] for name in ('compute', 'hbm', 'ici')
  )
  assert 0 < line['mfu'] < 1
