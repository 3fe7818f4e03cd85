"""Several processes: how they meet, what each reads, that they agree."""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import mesh_runs
from tests import test_resume
from tests import test_train
from v2meow_jax import checkpoints
from v2meow_jax import errors
from v2meow_jax import hosts

ROOT = pathlib.Path(__file__).resolve().parent.parent


def examples_of(processes, batch_size):
  """Places in a batch that each process reads."""
  processes = np.array(processes)
  return [
    hosts.make_shard(processes, int(process)).examples(batch_size).tolist()
    for process in np.unique(processes)
  ]


@pytest.mark.parametrize(
  'processes, expected',
  [
    ([[0], [0], [1], [1]], [[0, 1, 2, 3], [4, 5, 6, 7]]),
    # Hosts are squares of a torus: rows that are no neighbours.
    ([[0], [1], [0], [1]], [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ([[1, 1], [0, 0]], [[4, 5, 6, 7], [0, 1, 2, 3]]),
    # Processes along 'model' read the same.
    ([[0, 1], [2, 3]], [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2),
    ([[0, 1], [0, 1]], [[*range(8)]] * 2),
  ],
)
def test_each_process_reads_the_rows_of_its_devices(processes, expected):
  assert examples_of(processes, 8) == expected
  shards = [hosts.make_shard(np.array(processes), p) for p in range(2)]
  assert {shard.count for shard in shards} == {
    len({tuple(part) for part in expected})
  }


def test_rows_that_overlap():
  with pytest.raises(errors.UserError) as error:
    hosts.make_shard(np.array([[0, 0, 1], [1, 2, 2]]), 0)
  assert str(error.value) == (
    'The mesh cuts a batch into 2 rows that overlap between processes (process '
    '0 rows 0; process 1 rows 0, 1; process 2 rows 1), expected processes with '
    "the same rows or none in common. Set another MESH_SHAPE: a 'model' axis "
    'that divides the devices of a process, or is a multiple of them.'
  )


@pytest.mark.parametrize(
  'environment, expected',
  [
    ({}, False),
    ({'SLURM_NTASKS': '8'}, False),  # a batch script, outside of `srun`
    ({'SLURM_NTASKS': '8', 'SLURM_STEP_NODELIST': 'n[1-2]'}, True),
    ({'SLURM_NTASKS': '1', 'SLURM_STEP_NODELIST': 'n1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'TPU_ML_PLATFORM': 'JAX'}, True),
    ({'TPU_ML_PLATFORM': 'JAX', 'JAX_PLATFORMS': 'cpu'}, False),
  ],
)
def test_surroundings_that_say_there_are_others(environment, expected):
  assert hosts._is_one_of_many(environment) is expected


@pytest.mark.parametrize(
  'arguments, environment, message',
  [
    (
      {'process_count': 2},
      {'JAX_PROCESS_ID': '1'},
      'Not set: coordinator_address (HOST:PORT of process 0); expected all of '
      'coordinator_address, process_count, process_index or none. Set it with '
      '--coordinator_address or $JAX_COORDINATOR_ADDRESS.',
    ),
    (
      {},
      {'JAX_NUM_PROCESSES': 'two'},
      'JAX_NUM_PROCESSES is two, expected a whole number: number of processes.',
    ),
    (
      {'coordinator_address': 'host', 'process_count': 2, 'process_index': 0},
      {},
      'coordinator_address is host, expected HOST:PORT of process 0.',
    ),
    (
      {'coordinator_address': 'a:1', 'process_count': 2, 'process_index': 2},
      {},
      'process_index is 2, expected 0 to 1 for 2 processes.',
    ),
  ],
)
def test_settings_that_do_not_fit(monkeypatch, arguments, environment, message):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(errors.UserError) as error:
    hosts.initialize(**arguments)
  assert str(error.value) == message


def test_one_process_needs_no_others(monkeypatch):
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda **_: pytest.fail('it did')
  )
  hosts.initialize()


STEPS = 8
PERIOD = 2  # steps between checkpoints
SHARED = 6  # step of one from which others go on

_TRAIN = """
import json, sys
from v2meow_jax import train
for line in sys.stdin:
  print('ended:', train.main(json.loads(line)), flush=True)
"""


def environment(folder, num_devices):
  """Variables of a process with some devices of its own."""
  flags = f'--xla_force_host_platform_device_count={num_devices}'
  return {
    'XLA_FLAGS': f'{flags} {mesh_runs.FAST_COMPILATION}',
    'V2MEOW_CACHE': str(folder / 'code'),
  }


class Process:
  """A process that trains as it is told."""

  def __init__(self, folder, name, num_devices, **more):
    self.log = folder / f'{name}.log'
    self._is_killed = False
    with open(self.log, 'w') as log:
      self._process = subprocess.Popen(
        [sys.executable, '-c', _TRAIN],
        cwd=ROOT,
        env=os.environ
        | {'JAX_PLATFORMS': 'cpu'}
        | environment(folder, num_devices)
        | more,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
      )

  def start(self, arguments):
    self._before = len(self.log.read_text())
    self._process.stdin.write(json.dumps(arguments) + '\n')
    self._process.stdin.flush()

  def wait(self):
    said = ''
    while 'ended: ' not in said:  # Gloo prints lines too, and parts of them
      said = self._process.stdout.readline()
      assert said, self.log.read_text()
    assert 'ended: 0' in said, self.log.read_text()

  def end(self):
    self._process.stdin.close()

  def wait_for(self, text):
    """Reads what it logs of this training until `text` is in it."""
    while text not in self.log.read_text()[self._before :]:
      assert self._process.poll() is None, self.log.read_text()
      time.sleep(0.002)

  def kill(self):
    self.end()
    self._process.kill()
    self._is_killed = True

  def __enter__(self):
    return self

  def __exit__(self, error, *unused):
    if error is not None:
      self._process.kill()
    self._process.wait()
    self._process.stdout.close()
    expected = -signal.SIGKILL if self._is_killed else 0
    if error is None:
      assert self._process.returncode == expected, self.log.read_text()


def free_port():
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def process_flags(address, index):
  """Arguments of one of two processes."""
  return [
    f'--coordinator_address={address}',
    '--process_count=2',
    f'--process_index={index}',
  ]


def arguments(folder, name, mesh_shape, *more):
  """Arguments that train a tiny semantic stage in `folder`/`name`."""
  return test_train.command(
    folder,
    f"--gin.MODEL_DIR='{folder}/{name}'",
    f'--gin.MESH_SHAPE={mesh_shape}',
    '--gin.MODEL/network.Config.num_heads=4',
    '--gin.BATCH_SIZE=8',
    f'--gin.TRAIN_STEPS={STEPS}',
    f'--gin.EVAL_PERIOD={PERIOD}',
    '--gin.train.train.stats_period=1',
    *more,
  )


# Metrics that no two runs share.
_OF_TIME = (
  'steps_per_second',
  'examples_per_second',
  'target_tokens_per_second',
  'input_wait_share',
  'mfu',
  'seconds_left',
)


def numbers(folder):
  """Metrics by split, step and name, and the last parameters."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  metrics = {
    (line['split'], line['step'], name): value
    for line in map(json.loads, lines)
    for name, value in line.items()
    if name not in ('split', 'step', *_OF_TIME)
  }
  return metrics, checkpoints.load_params(folder / f'checkpoint_{STEPS}')


def assert_close(found, expected, metric_error, param_error):
  metrics, params = found
  expected_metrics, expected_params = expected
  assert metrics.keys() <= expected_metrics.keys()
  for name, value in metrics.items():
    expected_value = pytest.approx(expected_metrics[name], rel=metric_error)
    assert value == expected_value, name
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=param_error * np.abs(b).max()
    ),
    params,
    expected_params,
  )


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Folder of trainings by processes that work together, and their logs.

  'one' is one process with four devices, 'two' are two processes with two
  each; both cut batch and parameters into four. 'to_two' and 'to_one' go on
  from a checkpoint of the other, 'to_two' with all four devices along
  'model', where both processes read the whole batch. 'killed' are two again,
  of which one is killed.
  """
  folder = tmp_path_factory.mktemp('runs')
  test_train.write_arrays(folder / 'arrays')
  address = f'127.0.0.1:{free_port()}'
  # One learns of the other by flags, the other by its environment.
  flags = process_flags(address, 0)
  environment = {
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': '1',
  }
  with (
    Process(folder, 'alone', 4) as alone,
    Process(folder, 'first', 2) as first,
    Process(folder, 'second', 2, **environment) as second,
  ):
    processes = (alone, first, second)
    alone.start(arguments(folder, 'one', (1, 4, 1)))
    first.start(arguments(folder, 'two', (1, 4, 1), *flags))
    second.start(arguments(folder, 'two', (1, 4, 1)))
    for process in processes:
      process.wait()
    for before, after in (('one', 'to_two'), ('two', 'to_one')):
      shutil.copytree(
        folder / before / f'checkpoint_{SHARED}',
        folder / after / f'checkpoint_{SHARED}',
      )
    no_evaluation = '--gin.train.train.eval_split=None'
    alone.start(arguments(folder, 'to_one', (1, 4, 1), no_evaluation))
    first.start(arguments(folder, 'to_two', (1, 1, 4), no_evaluation))
    second.start(arguments(folder, 'to_two', (1, 1, 4), no_evaluation))
    for process in processes:
      process.wait()

    for process in (first, second):
      process.start(arguments(folder, 'killed', (1, 4, 1)))
    # At any step when there is a checkpoint: one is written for half of the
    # time, and that of the step before may be as yet.
    step = random.Random(3).randrange(2 * PERIOD, STEPS)
    first.wait_for(f'step {step} train: ')
    second.kill()
    first.kill()  # as a launcher does when one of them has ended
    alone.end()
  return folder, {
    name: (folder / f'{name}.log').read_text() for name in ('first', 'second')
  }


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(runs):
  """And each goes on from the checkpoints of the other."""
  folder, logs = runs
  # Only process 0 speaks and exports.
  said = logs['first']
  assert 'Process 0 of 2, with 2 of 4 devices.' in said
  assert 'Mesh: data 1, fsdp 4, model 1; 4 devices (cpu), 2 processes' in said
  assert f'Resumed from {folder}/to_two/checkpoint_{SHARED}' in said
  assert said.count('Wrote the parameters of checkpoint_') == 2
  assert 'step 1' in said
  said = logs['second']
  assert 'Wrote' not in said and 'step 1' not in said
  # Both wrote their part of the checkpoint.
  state = folder / 'two' / f'checkpoint_{STEPS}' / 'state'
  assert {path.name for path in state.glob('ocdbt.process_*')} == {
    'ocdbt.process_0',
    'ocdbt.process_1',
  }

  one, two, to_one, to_two = (
    numbers(folder / name) for name in ('one', 'two', 'to_one', 'to_two')
  )
  loss = 'loss_per_nonpadding_target_token'
  assert one[0]['train', STEPS, loss] < 0.6 * one[0]['train', 1, loss]
  # Sums of another order. Measured: metrics 1.2e-7; parameters, of which Adam
  # makes more, 2.7e-6.
  assert_close(two, one, 1e-6, 2e-5)
  # The same: 6.2e-8 and 2.7e-6; and with 'model' 5.0e-7 and 8.7e-8.
  assert_close(to_one, one, 6e-7, 2e-5)
  assert_close(to_two, one, 2e-6, 8e-7)


@pytest.mark.slow
def test_two_killed_processes_end_as_if_they_were_not(runs):
  folder, _ = runs
  killed = folder / 'killed'

  steps = test_resume.checkpoint_steps(killed)
  assert steps and max(steps) < STEPS
  address = f'127.0.0.1:{free_port()}'
  processes = [
    test_resume.start(
      arguments(folder, 'killed', (1, 4, 1), *process_flags(address, index)),
      **environment(folder, 2),
    )
    for index in range(2)
  ]
  logs = [process.communicate(timeout=300)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], logs
  assert f'Resumed from {killed}/checkpoint_{max(steps)}.' in logs[0]
  test_resume.assert_same_runs(killed, folder / 'two', STEPS)
