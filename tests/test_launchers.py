"""The launchers of clusters, with programs that stand for the cluster's."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import gin
import pytest

from tests import conftest
from v2meow_jax import configs
from v2meow_jax import generate_command

LAUNCH = conftest.ROOT / 'launch'
INFER = LAUNCH / 'infer.sh'
POD = LAUNCH / 'tpu_pod.sh'
SLURM = LAUNCH / 'slurm.sbatch'
TRAIN = LAUNCH / 'train.sh'
WORKER = LAUNCH / 'on_worker.sh'
SLICE = ('--tpu', 'a', '--zone', 'z')
# What a shell could read in another way than meant.
AWKWARD = ['/my runs/a', "--gin.X='it'", '"q"', '$HOME', 'a;b', '*', '', '&\\']


def run(script, *arguments, **variables):
  """Runs a script; a variable of None is taken out of the environment."""
  variables = {'SLURM_JOB_ID': None, 'SLURM_SUBMIT_DIR': None, **variables}
  environment = {
    name: value
    for name, value in {**os.environ, **variables}.items()
    if value is not None
  }
  return subprocess.run(
    ['bash', str(script), *map(str, arguments)],
    capture_output=True,
    text=True,
    env=environment,
    check=False,
  )


def test_shellcheck_has_nothing_to_say():
  folders = [str(pathlib.Path(sys.executable).parent), os.environ['PATH']]
  program = shutil.which('shellcheck', path=os.pathsep.join(folders))
  assert program, "no shellcheck, expected that of pip install '.[test]'"
  scripts = [*LAUNCH.glob('*.sh'), SLURM, conftest.ROOT / '.ci' / 'run']
  done = subprocess.run(
    [program, '-x', *map(str, scripts)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('script', [INFER, POD, SLURM, TRAIN, WORKER])
def test_help_shows_how_to_call_it(script):
  done = run(script, '--help')
  assert done.returncode == 0
  assert f'launch/{script.name} ' in done.stdout
  assert 'set -euo' not in done.stdout and '#' not in done.stdout
  if script != WORKER:
    assert '--dry_run' in done.stdout


@pytest.mark.parametrize(
  'script, arguments, message',
  [
    (POD, [], 'no --tpu, expected the name of a slice.'),
    (POD, ['--tpu', 'a'], 'no --zone, expected that of the slice.'),
    (POD, ['--tpu'], '--tpu has no value, expected one.'),
    (POD, ['--tpu='], '--tpu has no value, expected one.'),
    (POD, SLICE, 'no command, expected one behind --.'),
    (POD, [*SLICE, '--'], 'no command, expected one behind --.'),
    (POD, [*SLICE, '--fast'], 'unknown option --fast.'),
    (POD, [*SLICE, 'x'], 'what is x? The command to run stands behind --.'),
    (
      POD,
      [*SLICE, '--stop', '--', 'x'],
      'a command and --stop, expected one.',
    ),
    (
      POD,
      [*SLICE, '--revision', 'v1', '--', 'x'],
      '--revision without --repository.',
    ),
    (INFER, [], 'no VIDEOS, expected a folder of videos.'),
    (INFER, ['a'], 'no OUT, expected a folder to write to.'),
    (
      INFER,
      ['--seed', '3', 'a', 'b'],
      'options first, expected VIDEOS and OUT before --seed.',
    ),
    (
      INFER,
      ['a', 'b', '--shard=0/2'],
      '--shard=0/2 is set here, expected V2MEOW_SHARD=I/N.',
    ),
    (
      INFER,
      ['a', '--out', 'b'],
      '--out is set here, expected OUT behind VIDEOS.',
    ),
    (
      INFER,
      ['a', 'b', '--from', 'c'],
      '--from makes one piece, expected v2meow generate.',
    ),
    (SLURM, [], 'no command, expected one behind --.'),
    (SLURM, ['--root'], '--root has no value, expected one.'),
    (SLURM, ['--fast', '--', 'x'], 'unknown option --fast.'),
    (SLURM, ['x'], 'what is x? The command to run stands behind --.'),
    (
      SLURM,
      ['--root', '/nowhere', '--', 'x'],
      '/nowhere is no checkout, expected one. Submit the job in it, or set '
      '--root.',
    ),
    (
      SLURM,
      ['--', 'x'],
      'this is no SLURM job, expected one. Submit it with sbatch.',
    ),
    (WORKER, [], 'nothing to do.'),
    (WORKER, ['fly'], 'unknown command fly.'),
    (WORKER, ['status'], 'status takes the name of a run.'),
    (WORKER, ['start', 'a'], 'start takes a command.'),
    (WORKER, ['setup'], 'setup takes the extras to install, as train,tpu.'),
    (
      WORKER,
      ['log', '../a'],
      'the run is called ../a, expected letters, digits, _, . and -.',
    ),
  ],
)
def test_mistakes_are_one_line(script, arguments, message):
  done = run(script, *arguments)
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr == (
    f'error: {message} See `bash launch/{script.name} --help`.\n'
  )


def test_train_prints_its_command():
  model_dir = "/my runs/it's \\n here"
  done = run(
    TRAIN,
    'fine',
    *('--model_dir', model_dir),
    *('--data_dir', 'gs://bucket/records'),
    "--gin.X='a b'",
    '--dry_run',
  )
  assert done.returncode == 0, done.stderr
  path, python, *words = shlex.split(done.stdout)
  assert path.split(':')[0] == f'PYTHONPATH={conftest.ROOT}'
  assert python.rpartition('/')[2].startswith('python')
  assert words[:2] == ['-m', 'v2meow_jax.train']
  assert words[2:11] == [
    f'--gin_file={file}.gin'
    for file in (
      'sizes/small',
      'visual/scene',
      'codecs/spectrogram',
      'tokenizers/spectral',
      'style/caption',
      'datasets/toy',
      'datasets/records',
      'stages/fine',
      'runs/train',
    )
  ]
  assert words[12:] == [
    "--gin.DATA_DIR='gs://bucket/records'",
    "--gin.X='a b'",
  ]
  configs.parse([], [words[11].removeprefix('--gin.').replace('=', ' = ', 1)])
  assert gin.query_parameter('MODEL_DIR/macro.value') == model_dir
  gin.clear_config()


def lines(*arguments):
  """The commands of a dry run of `tpu_pod.sh`, as words."""
  done = run(POD, *SLICE, '--dry_run', *arguments, PATH=os.environ['PATH'])
  assert done.returncode == 0, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


def test_pod_prints_its_commands():
  pack, copy, ssh = lines('--project', 'my p', '--', 'run', *AWKWARD)
  assert pack == [
    *('git', '-C', str(conftest.ROOT), 'ls-files', '-z', '-co'),
    *('--exclude-standard', '|', 'tar', '-czf', './v2meow.tar.gz', '-C'),
    *(str(conftest.ROOT), '--null', '-T', '-'),
  ]
  where = ['--zone=z', '--worker=all', '--project=my p']
  gcloud = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  assert copy == [*gcloud, 'scp', './v2meow.tar.gz', 'a:', *where]
  assert ssh[:-1] == [*gcloud, 'ssh', 'a', *where]
  steps = ssh[-1].removeprefix('--command=').split(' && ')
  worker = 'v2meow/launch/on_worker.sh'
  assert steps[:4] == [
    f'{{ ! [ -e {worker} ] || bash {worker} check_idle train; }}',
    'mkdir -p v2meow',
    'tar -xzf v2meow.tar.gz -C v2meow',
    f'bash {worker} setup train,tpu',
  ]
  start = shlex.split(steps[4])
  if start[0].startswith('V2MEOW_COMMIT='):  # of a checkout with its history
    start = start[1:]
  assert start == ['bash', worker, 'start', 'train', 'run', *AWKWARD]


def test_pod_clones_or_starts_at_once():
  (ssh,) = lines(
    *('--repository', 'https://x/y', '--revision', 'v1', '--dir', 'code'),
    *('--run', 'b', '--extras', 'train', '--', 'true'),
  )
  assert (
    '{ [ -e code/.git ] || git clone -q https://x/y code; } && '
    'git -C code fetch -q --tags origin && '
    '{ git -C code checkout -q --detach origin/v1 2>/dev/null || '
    'git -C code checkout -q --detach v1; } && '
    'bash code/launch/on_worker.sh setup train && '
    'bash code/launch/on_worker.sh start b true'
  ) in ssh[-1]
  (ssh,) = lines('--no_setup', '--', 'true')
  assert ssh[-1] == (
    '--command=bash v2meow/launch/on_worker.sh start train true'
  )


# Stands for gcloud: two workers are two home folders of this machine.
_GCLOUD = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >>"$WORKERS/calls"
shift 3
what=$1 source=$2 output='' command=''
for option in "$@"; do
  case $option in
    --command=*) command=${option#*=} ;;
    --output-directory=*) output=${option#*=} ;;
  esac
done
for worker in 0 1; do
  home=$WORKERS/$worker
  mkdir -p "$home"
  if [[ $what == scp ]]; then
    cp "$source" "$home"
  else
    (cd "$home" && HOME=$home WORKER=$worker bash -c "$command") \\
      >"${output:-$WORKERS/said}${output:+/$worker.log}"
    [[ -n $output ]] || cat "$WORKERS/said"
  fi
done
"""
# Makes environments without installing anything.
_PYTHON = """#!/usr/bin/env bash
case "$*" in
  '-m venv --clear '*)
    mkdir -p "$4/bin"
    for program in python v2meow; do
      printf '#!/usr/bin/env bash\\n' >"$4/bin/$program"
      chmod +x "$4/bin/$program"
    done
    ;;
esac
"""
_TRAINING = """
trap 'echo saved; exit 0' TERM
echo "$WORKER $1 $V2MEOW_COMMIT $(basename "$PWD") $(command -v v2meow)"
while true; do sleep 0.05; done
"""


def test_pod_runs_until_it_is_stopped(tmp_path):
  # A checkout of its own, so that what is copied is small.
  root = tmp_path / 'checkout'
  shutil.copytree(LAUNCH, root / 'launch')
  (root / 'setup.py').write_text('')
  (root / '.gitignore').write_text('.venv/\nignored\n')
  (root / 'ignored').write_text('')
  for line in ('init -q', 'add .', 'commit -q -m all'):
    name = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    subprocess.run(['git', *name, *line.split()], cwd=root, check=True)
  commit = subprocess.check_output(
    ['git', 'rev-parse', 'HEAD'], cwd=root, text=True
  ).strip()
  binaries = tmp_path / 'binaries'
  binaries.mkdir()
  for name, text in (('gcloud', _GCLOUD), ('python', _PYTHON)):
    (binaries / name).write_text(text)
    (binaries / name).chmod(0o755)
  workers = tmp_path / 'workers'
  workers.mkdir()
  variables = {
    'PATH': f'{binaries}:{os.environ["PATH"]}',
    'PYTHON': str(binaries / 'python'),
    'WORKERS': str(workers),
  }

  def pod(*arguments):
    script = root / 'launch' / 'tpu_pod.sh'
    done = run(script, *SLICE, *arguments, **variables)
    return done.returncode, done.stdout.splitlines(), done.stderr

  assert pod('--status', '--no_setup')[0] == 127  # no code is there yet
  command = ('--', 'bash', '-c', _TRAINING, 'name', 'two words')
  try:
    status, said, err = pod(*command)
    assert status == 0, err
    assert len(said) == 2 and all(s.startswith('running') for s in said)
    assert not (workers / '0' / 'v2meow' / 'ignored').exists()
    assert not (workers / '0' / 'v2meow' / '.git').exists()
    logs = [workers / w / 'v2meow/.runs/train/log' for w in '01']
    _wait_until(lambda: all(log.read_text() for log in logs))
    expected = [
      f'{w} two words {commit} v2meow {workers}/{w}/v2meow/.venv/bin/v2meow'
      for w in '01'
    ]
    assert pod('--status')[1] == [f'running: {line}' for line in expected]
    # Nothing changes below a run that goes on.
    status, _, err = pod(*command)
    assert status == 1
    assert err.splitlines()[-1].startswith('error: run train goes on, with ')
    status, said, _ = pod('--logs', tmp_path / 'fetched')
    for w in '01':
      text = (tmp_path / 'fetched' / f'{w}.log').read_text()
      assert text == expected[int(w)] + '\n'
    # Another run beside it ends by itself, and not well.
    assert pod('--run', 'b', '--no_setup', '--', 'false')[0] == 0
    _wait_until(
      lambda: pod('--run', 'b', '--status')[1] == ['ended with status 1: '] * 2
    )
  finally:
    said = pod('--stop')[1]
  assert said == ['ended with status 0: saved'] * 2
  assert pod('--stop')[1] == said
  assert pod('--run', 'c', '--status')[1] == ['was never started'] * 2
  (workers / '0/v2meow/.runs/train/exit_status').unlink()
  assert pod('--status')[1][0] == 'was killed: saved'


def _wait_until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


def _infer(*arguments, **variables):
  """Runs launch/infer.sh where no variable of a cluster is set but these."""
  names = ('V2MEOW_SHARD', 'SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID')
  names += ('TPU_WORKER_ID', 'TPU_WORKER_HOSTNAMES', 'GCE_METADATA_IP')
  names += ('TPU_VISIBLE_CHIPS', 'CUDA_VISIBLE_DEVICES', 'PYTHONPATH')
  return run(INFER, *arguments, **{**dict.fromkeys(names), **variables})


_CHIP = [
  'TPU_PROCESS_BOUNDS=1,1,1',
  'TPU_CHIPS_PER_PROCESS_BOUNDS=1,1,1',
  'TPU_VISIBLE_CHIPS=0',
]
_TASK = {'SLURM_PROCID': '5', 'SLURM_NTASKS': '8', 'SLURM_LOCALID': '1'}
_WORKER = {'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': 'a,b,c'}


@pytest.mark.parametrize(
  'variables, settings, shard, where',
  [
    ({}, [], '0/1', 'this host takes all'),
    ({'V2MEOW_SHARD': '3/12', **_TASK}, [], '3/12', 'V2MEOW_SHARD'),
    (_TASK, [], '5/8', 'SLURM'),
    (
      {'CUDA_VISIBLE_DEVICES': '4,5,6,7', **_TASK},
      ['CUDA_VISIBLE_DEVICES=5'],
      '5/8',
      'SLURM',
    ),
    # SLURM has given the task its own.
    ({'CUDA_VISIBLE_DEVICES': '4', **_TASK}, [], '5/8', 'SLURM'),
    (_WORKER, _CHIP, '1/3', 'TPU_WORKER_ID'),
    (
      {'TPU_VISIBLE_CHIPS': '2', **_WORKER},
      [*_CHIP[:2], 'TPU_VISIBLE_CHIPS=2'],
      '1/3',
      'TPU_WORKER_ID',
    ),
    # A slice of one host needs nothing.
    (
      {'TPU_WORKER_ID': '0', 'TPU_WORKER_HOSTNAMES': 'a'},
      [],
      '0/1',
      'TPU_WORKER_ID',
    ),
  ],
)
def test_infer_prints_its_command(variables, settings, shard, where):
  done = _infer('my videos', 'out/', *AWKWARD, '--dry_run', **variables)
  assert done.returncode == 0, done.stderr
  assert done.stderr == f'shard {shard} ({where})\n'
  words = shlex.split(done.stdout)
  assert words[: len(settings)] == settings
  path, python, *words = words[len(settings) :]
  assert path == f'PYTHONPATH={conftest.ROOT}'
  assert python.rpartition('/')[2].startswith('python')
  assert words == [
    *('-m', 'v2meow_jax.cli', 'generate', 'my videos', '--out', 'out/'),
    *('--shard', shard, '--skip_existing', *AWKWARD),
  ]


def test_infer_calls_a_command_that_there_is():
  done = _infer('in', 'out', '--seed', '7', '--dry_run', V2MEOW_SHARD='1/2')
  words = shlex.split(done.stdout)
  options = generate_command.parse(words[words.index('generate') + 1 :])
  assert options.videos == ['in']
  assert options.given == {'videos', 'out', 'seed', 'shard', 'skip_existing'}
  assert (options.out, options.shard, options.seed) == ('out/', (1, 2), 7)


@pytest.mark.parametrize('shard', ['1', 'a/b', '2/2', '0/0', '/1', '1/2/3'])
def test_infer_wants_a_shard_that_there_is(shard):
  done = _infer('a', 'b', '--dry_run', V2MEOW_SHARD=shard)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: this is shard ')
  assert done.stderr.count('\n') == 1


_CURL = """#!/usr/bin/env bash
case ${*: -1} in
  http://1.2.3.4/computeMetadata/v1/instance/attributes/agent-worker-number)
    echo "$NUMBER" ;;
  */worker-network-endpoints) echo 'x:8470:10.0.0.1,y:8470:10.0.0.2' ;;
esac
[[ -n $NUMBER ]]
"""


@pytest.mark.parametrize('number', ['1', ''])
def test_infer_asks_a_tpu_vm_for_its_number(number, tmp_path):
  (tmp_path / 'curl').write_text(_CURL)
  (tmp_path / 'curl').chmod(0o755)
  done = _infer(
    *('a', 'b', '--dry_run'),
    PATH=f'{tmp_path}:{os.environ["PATH"]}',
    GCE_METADATA_IP='1.2.3.4',
    NUMBER=number,
  )
  if number:
    assert done.stderr == 'shard 1/2 (the metadata server)\n'
    assert shlex.split(done.stdout)[:3] == _CHIP
  else:
    assert done.returncode == 2
    assert done.stderr.startswith(
      'error: this TPU VM does not know its number, expected V2MEOW_SHARD=I/N.'
    )


@pytest.mark.parametrize(
  'job, number, status', [('7', 15, 0), (None, 15, 143), ('7', 0, 3)]
)
def test_infer_goes_back_into_the_queue_of_slurm(job, number, status, tmp_path):
  # A copy of the checkout, whose python is no python.
  (tmp_path / 'launch').mkdir()
  shutil.copy(INFER, tmp_path / 'launch')
  (tmp_path / '.venv' / 'bin').mkdir(parents=True)
  python = tmp_path / '.venv' / 'bin' / 'python'
  python.write_text(
    '#!/usr/bin/env bash\n'
    f'if [[ {number} == 0 ]]; then exit 3; fi\n'
    'echo ready\n'
    'exec sleep 60\n'
  )
  python.chmod(0o755)
  environment = {**os.environ, 'SLURM_JOB_ID': job or ''}
  process = subprocess.Popen(
    ['bash', str(tmp_path / 'launch' / 'infer.sh'), 'a', 'b'],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    start_new_session=True,
  )
  if number:
    assert process.stdout.readline() == 'ready\n'
    os.killpg(process.pid, number)  # as SLURM does
  process.communicate(timeout=20)
  # Without a shell in between, the status is the signal.
  assert process.returncode == (-15 if status == 143 else status)


def test_slurm_prints_its_command():
  done = run(SLURM, '--dry_run', '--srun_args', '--mpi=none -v', '--', *AWKWARD)
  assert done.returncode == 0, done.stderr
  assert shlex.split(done.stdout) == [
    f'PATH={conftest.ROOT}/.venv/bin:$PATH',
    *('srun', '--kill-on-bad-exit=1', f'--chdir={conftest.ROOT}'),
    *('--mpi=none', '-v'),
    *AWKWARD,
  ]
  # SLURM runs a copy; the checkout is where the job was submitted.
  done = run(
    SLURM, '--dry_run', '--', 'true', SLURM_SUBMIT_DIR=str(conftest.ROOT)
  )
  assert f'--chdir={conftest.ROOT} true' in done.stdout


def test_slurm_asks_for_a_requeue_and_a_signal():
  head = SLURM.read_text().splitlines()[1:6]
  assert '#SBATCH --requeue' in head
  assert '#SBATCH --signal=B:USR1@300' in head


# Stand for SLURM's programs: a step is a process, and its id is kept.
_SRUN = """#!/usr/bin/env bash
echo $$ >"$WORK/step"
shift 2
exec "$@"
"""
_SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >>"$WORK/calls"
kill -TERM "$(cat "$WORK/step")"
"""
_SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$WORK/calls"
"""
_STEP = """
trap 'echo saved; exit "$STATUS"' TERM
echo ready
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize(
  'number, status, calls',
  [
    (signal.SIGUSR1, 0, ['scancel --signal=TERM 7.0', 'scontrol requeue 7']),
    (signal.SIGUSR1, 3, ['scancel --signal=TERM 7.0']),  # it could not save
    (signal.SIGTERM, 0, []),  # preempted or cancelled: SLURM knows which
  ],
)
def test_slurm_saves_and_goes_back_into_the_queue(
  tmp_path, number, status, calls
):
  texts = {'srun': _SRUN, 'scancel': _SCANCEL, 'scontrol': _SCONTROL}
  for name, text in texts.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'calls').touch()
  process = subprocess.Popen(
    ['bash', str(SLURM), '--', 'bash', '-c', _STEP],
    env={
      **os.environ,
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'WORK': str(tmp_path),
      'STATUS': str(status),
      'SLURM_JOB_ID': '7',
      'SLURM_SUBMIT_DIR': str(conftest.ROOT),
    },
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(number)
  if number == signal.SIGTERM:
    os.kill(int((tmp_path / 'step').read_text()), number)
  assert process.communicate(timeout=20)[0] == 'saved\n'
  assert process.returncode == status
  assert (tmp_path / 'calls').read_text().splitlines() == calls
