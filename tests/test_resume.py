"""A training that is killed ends as one that was never stopped."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests import test_train
from v2meow_jax import arrays
from v2meow_jax import checkpoints
from v2meow_jax import train
from v2meow_jax import weights

ROOT = test_train.ROOT
STEPS = 12
PERIOD = 4  # steps between checkpoints

# The trainer in a process that kills itself at the COUNTth event (a folder
# made, a file opened, something renamed or removed) that has WHERE in its path,
# or at the COUNTth line of its log that has WHERE in it.
_KILLED = """
import logging, os, signal, sys
where, count = sys.argv[1], int(sys.argv[2])
events = {'open', 'os.mkdir', 'os.rename', 'os.rmdir', 'os.remove'}

def note(event, args):
  global count
  if event in events and where in str(args[0]):
    count -= 1
    if count == 0:
      os.kill(os.getpid(), signal.SIGKILL)

class Notes(logging.Handler):
  def emit(self, record):
    note('open', [record.getMessage()])

sys.addaudithook(note)
import v2meow_jax.train
logging.getLogger('absl').addHandler(Notes())
sys.exit(v2meow_jax.train.main(sys.argv[3:]))
"""


def arrays_command(folder):
  """Arguments that train a tiny semantic stage on arrays."""
  test_train.write_arrays(folder / 'arrays')
  return test_train.command(folder, *_bindings())


def records_command(folder):
  """The same on TFDS records in four files, through seqio."""
  from tests import records  # imports TensorFlow

  records.write(folder / 'records')
  arguments = test_train.command(folder, *_bindings())
  road = arguments.index('--gin_file=datasets/arrays.gin')
  arguments[road] = '--gin_file=datasets/records.gin'
  arguments = [a for a in arguments if not a.startswith('--gin.ARRAYS')]
  return [
    *arguments,
    f"--gin.DATA_DIR='{folder}/records'",
    '--gin.SeqioDataset.steps_per_pass=6',  # not where checkpoints are
  ]


def codec_command(folder):
  """Arguments that train a tiny codec and its adversaries on sound files."""
  rng = np.random.default_rng(0)
  soundfile.write(folder / 'a.wav', 0.1 * rng.standard_normal(16000), 16000)
  (folder / 'audio.csv').write_text(
    'clip_id,file,start_seconds,end_seconds,split\n'
    'a,a.wav,0,.8,train\nb,a.wav,.8,1,validation\n'
  )
  return [
    '--gin_file=codecs/soundstream.gin',
    '--gin_file=runs/train.gin',
    '--gin_file=codecs/train_adversarial.gin',
    f"--gin.MANIFESTS=('{folder}/audio.csv',)",
    f"--gin.MODEL_DIR='{folder}/run'",
    '--gin.CROP_SECONDS=0.16',
    '--gin.BATCH_SIZE=2',
    '--gin.LISTENER=None',
    '--gin.ADVERSARY_START=2',
    '--gin.soundstream.Config.channels=1',
    '--gin.soundstream.Config.dilations=(1,)',
    '--gin.soundstream.Config.num_features=4',
    '--gin.models.CodecModel.kmeans_iterations=1',
    '--gin.discriminators.Config.scales=(2,)',
    '--gin.discriminators.Config.wave_channels=4',
    '--gin.discriminators.Config.wave_strides=(4, 4)',
    '--gin.discriminators.Config.stft_channels=1',
    *[binding for binding in _bindings() if 'DROPOUT' not in binding],
  ]


def _bindings():
  return (
    f'--gin.TRAIN_STEPS={STEPS}',
    f'--gin.EVAL_PERIOD={PERIOD}',
    '--gin.STYLE_DROPOUT=0.5',
    '--gin.DROPOUT_RATE=0.1',
    '--gin.train.stats_period=1',
  )


def start(arguments, where='', count=0, **environment):
  """Starts the trainer; it dies at an event if `where` says so."""
  program = [_KILLED, where, str(count)]
  return subprocess.Popen(
    [sys.executable, '-c', *program, *arguments],
    cwd=ROOT,
    env=os.environ
    | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  """Waits for the trainer; returns its log."""
  out, log = process.communicate(timeout=300)
  assert out == ''
  return log


def read_until(process, text):
  """Reads the log up to a line that has `text`."""
  log = ''
  while text not in log:
    line = process.stderr.readline()
    assert line, log  # it has ended
    log += line
  return log


def checkpoint_steps(folder):
  names = [path.name for path in folder.glob('checkpoint_*')]
  return sorted(int(n.split('_')[1]) for n in names if n.count('.') == 0)


def losses(folder):
  """All that is measured but for speed, by step and split."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  kept = {}
  for line in map(json.loads, lines):
    key = line['step'], line['split']
    assert key not in kept, 'a step is there twice'
    kept[key] = {
      name: value
      for name, value in line.items()
      if not name.endswith('per_second')
      and name not in ('input_wait_share', 'mfu')
    }
  return kept


def assert_same_runs(a, b, steps=STEPS):
  """Bit for bit: every loss, the parameters, the optimizer's state."""
  assert losses(a) == losses(b)
  params = [weights.load_params(f / 'params.safetensors') for f in (a, b)]
  test_train.assert_equal_trees(*params)
  state = [
    {
      item: checkpoints._load(f / f'checkpoint_{steps}', item)
      for item in ('target', 'state', 'flax_mutables')
    }
    for f in (a, b)
  ]
  assert int(state[0]['state']['step']) == steps
  test_train.assert_equal_trees(*state)


@pytest.fixture(
  params=['arrays', 'records', pytest.param('codec', marks=pytest.mark.slow)],
  scope='module',
)
def whole(request, tmp_path_factory, code_folder):
  """A run that was never stopped: its arguments and where it has been."""
  folder = tmp_path_factory.mktemp(request.param)
  command = {
    'arrays': arrays_command,
    'records': records_command,
    'codec': codec_command,
  }
  arguments = command[request.param](folder)
  process = start(arguments)
  log = finish(process)
  assert process.returncode == 0, log
  return request.param, arguments, folder / 'run'


def test_killed_training_ends_as_if_it_was_not(whole, tmp_path):
  road, arguments, expected = whole
  luck = random.Random(road)
  run = tmp_path / 'run'
  arguments = [*arguments, f"--gin.MODEL_DIR='{run}'"]

  broken_off, count = 2 * PERIOD, 0
  if road == 'arrays':  # the other roads start slowly
    # Some way into the writing of a checkpoint.
    count = luck.randrange(1, 12)
    process = start(arguments, f'checkpoint_{broken_off}.orbax', count)
    log = finish(process)
    assert process.returncode == -signal.SIGKILL, log
    # No more is lost than since then.
    assert checkpoint_steps(run) == [PERIOD]

  # At any step; the same command goes on.
  step = luck.randrange(PERIOD + 1, 3 * PERIOD)
  process = start(arguments, f'step {step} train: ', 1)
  log = finish(process)
  assert process.returncode == -signal.SIGKILL, log
  assert (f'Resumed from {run}/checkpoint_{PERIOD}.' in log) == (count > 0)
  if count > 1:  # the first event comes before there is a folder
    assert f'checkpoint_{broken_off}.orbax-checkpoint-tmp: removed' in log

  if road == 'arrays':
    # While an older checkpoint is removed, some way into it.
    process = start(arguments, '.deleted', luck.randrange(1, 12))
    log = finish(process)
    assert process.returncode == -signal.SIGKILL, log
    assert max(checkpoint_steps(run)) > PERIOD

    # SIGTERM saves what is done and is no error.
    process = start(arguments)
    log = read_until(process, 'Resumed from ')
    process.send_signal(signal.SIGTERM)
    log += finish(process)
    assert process.returncode == 0, log
    assert re.search('goes on from there|Wrote the parameters', log)

  process = start(arguments)
  log = finish(process)
  assert process.returncode == 0, log
  assert not list(run.glob('*orbax-checkpoint-tmp*'))
  assert not (run / '.deleted').exists()
  assert_same_runs(run, expected)


def error_of(arguments, capsys):
  """Trains here; returns the one line that says what is wrong."""
  assert train.main(arguments) == 1
  log = capsys.readouterr().err
  assert 'Traceback' not in log
  *_, line = log.splitlines()
  assert line.startswith('error: ')
  return line.removeprefix('error: ')


@contextlib.contextmanager
def full_disk():
  """No file may be longer than 20 kB."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_storage_that_fails(tmp_path, capsys, monkeypatch, code_folder):
  arguments = arrays_command(tmp_path)
  run = tmp_path / 'run'
  assert train.main([*arguments, f'--gin.TRAIN_STEPS={PERIOD}']) == 0
  kept = run / f'checkpoint_{PERIOD}'
  before = {p: p.read_bytes() for p in kept.rglob('*') if p.is_file()}

  # The disk is full when a checkpoint is written.
  save = checkpoints.Checkpoints.save

  def save_on_full_disk(*args):  # by now all is compiled and in the cache
    disk.enter_context(full_disk())
    save(*args)

  with contextlib.ExitStack() as disk, monkeypatch.context() as patch:
    patch.setattr(checkpoints.Checkpoints, 'save', save_on_full_disk)
    line = error_of(arguments, capsys)
  assert line == (
    f'{run}/checkpoint_{2 * PERIOD}: cannot be written (File too large), '
    'expected a folder with space for it. All older checkpoints are as they '
    'were: make space, or make the folder writable, and run the same command '
    f'again; it goes on from checkpoint_{PERIOD}.'
  )

  # The disk is full when metrics are written.
  metrics = run / 'metrics.jsonl'
  old = metrics.read_text() * 20
  metrics.write_text(old)
  with full_disk():
    line = error_of(arguments, capsys)
  assert line == (
    f'{metrics}: metrics cannot be written (File too large), expected space '
    'for them. Make space and run the same command again; it goes on from the '
    'newest checkpoint.'
  )
  assert metrics.read_text() == old

  # A byte of an array flips.
  path = max(kept.glob('state/**/d/*'), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  line = error_of(arguments, capsys)
  assert line.startswith(f'{kept}: is damaged (bytes of state/')
  path.write_bytes(before[path])
  assert {p: p.read_bytes() for p in kept.rglob('*') if p.is_file()} == before


# Trains where there is room for one checkpoint, then again with more room. The
# file system is there for this process and those that it starts alone.
_SMALL_DISK = """
import shutil, subprocess, sys
from v2meow_jax import train

size, disk, kept, *arguments = sys.argv[1:]

def mount(options):
  subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', options, 'none', disk], check=True
  )

mount(f'size={size}')
assert train.main(arguments) == 1
mount('remount,size=9m')
assert train.main(arguments) == 0
shutil.copytree(disk, kept)
"""


@pytest.mark.parametrize('whole', ['arrays'], indirect=True)
def test_full_disk(whole, tmp_path):
  _, arguments, expected = whole
  in_namespace = ['unshare', '--user', '--map-root-user', '--mount']
  disk = tmp_path / 'disk'
  disk.mkdir()
  try:
    subprocess.run(
      [*in_namespace, 'mount', '-t', 'tmpfs', 'none', disk],
      capture_output=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('missing: the right to mount a file system (unshare, mount)')
  files = (expected / f'checkpoint_{STEPS}').rglob('*')
  size = sum(path.stat().st_size for path in files) * 8 // 5
  done = subprocess.run(
    [
      *in_namespace,
      *(sys.executable, '-c', _SMALL_DISK),
      *(str(size), disk, tmp_path / 'run'),
      *(*arguments, f"--gin.MODEL_DIR='{disk}'"),
    ],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'Traceback' not in done.stderr
  assert re.findall('^error: (.*)', done.stderr, re.MULTILINE) == [
    f'{disk}/checkpoint_{2 * PERIOD}: cannot be written (No space left on '
    'device), expected a folder with space for it. All older checkpoints are '
    'as they were: make space, or make the folder writable, and run the same '
    f'command again; it goes on from checkpoint_{PERIOD}.'
  ]
  assert f'Resumed from {disk}/checkpoint_{PERIOD}.' in done.stderr
  assert_same_runs(tmp_path / 'run', expected)


def test_folder_that_cannot_be_written(tmp_path, capsys):
  arguments = arrays_command(tmp_path)
  arguments.append("--gin.MODEL_DIR='/proc'")
  assert error_of(arguments, capsys) == (
    'MODEL_DIR /proc cannot be written (No such file or directory), expected '
    'a folder that can. Change its permissions or set another MODEL_DIR.'
  )


def test_damaged_record(tmp_path, capsys, code_folder):
  arguments = records_command(tmp_path)
  path = tmp_path / 'records' / 'toy' / '1.0.0' / 'toy-train.tfrecord-00002'
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  assert error_of(arguments, capsys) == (
    f'{path}: is damaged at record 4 of 6, expected the file as TFDS wrote it. '
    'Copy it again, or build the dataset again; training then goes on from '
    'its newest checkpoint.'
  )


@pytest.mark.parametrize(
  'number, status', [(signal.SIGTERM, 0), (signal.SIGINT, 130)]
)
def test_exit_status(
  tmp_path, capsys, monkeypatch, code_folder, number, status
):
  batch = arrays.ArrayDataset.batch

  def stop(self, step):
    if step == 6:
      os.kill(os.getpid(), number)
    return batch(self, step)

  monkeypatch.setattr(arrays.ArrayDataset, 'batch', stop)
  assert train.main(arrays_command(tmp_path)) == status
  log = capsys.readouterr().err
  step = int(re.search(r'Stopped at step (\d+); the same command', log)[1])
  assert 0 < step < STEPS
  assert max(checkpoint_steps(tmp_path / 'run')) == step
  assert f'Saving step {step} held training up for 0.' in log


_TWO_HOSTS = """
import sys, time
import jax
from v2meow_jax import signals
jax.distributed.initialize(f'localhost:{sys.argv[1]}', 2, int(sys.argv[2]))
step = 0
with signals.StopSignals() as stop:
  print('ready', flush=True)
  while not stop.reached(step):
    step += 1
    time.sleep(0.01 + 0.002 * jax.process_index())
    assert step < 3000
print(step, stop.signal)
"""


def test_all_hosts_stop_at_the_same_step():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _TWO_HOSTS, str(port), str(index)],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  for process in processes:
    assert process.stdout.readline() == 'ready\n'
  processes[1].send_signal(signal.SIGTERM)  # only one of them is told
  answers = [process.communicate(timeout=60)[0] for process in processes]
  assert answers[0] == answers[1]
  step, number = map(int, answers[0].split())
  assert step > 0
  assert number == signal.SIGTERM
