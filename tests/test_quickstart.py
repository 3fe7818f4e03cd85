"""The two commands of the README, with a Python that only writes down.

What they run is tested elsewhere; a real installation takes minutes.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from tests import conftest

# Stands for Python: says that it is new enough, and "makes" an environment
# whose programs write down how they were called.
_PYTHON = """#!/usr/bin/env bash
echo "python $*" >>"$CALLS"
case "$*" in
  '--version') echo 'Python 3.11.0' ;;
  '-c '*) exit "${VERSION_STATUS:-0}" ;;
  '-m venv --clear '*)
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    ;;
  '-m pip install '*)
    [[ ${PIP_STATUS:-0} == 0 ]] || { echo 'no network'; exit 1; }
    bin=$(dirname "$0")
    for program in v2meow ruff; do
      printf '#!/usr/bin/env bash\\necho "%s $*" >>"$CALLS"\\n' \\
        "$program" >"$bin/$program"
      chmod +x "$bin/$program"
    done
    ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
  """A checkout with the scripts alone, in a folder with a space."""
  root = tmp_path / 'a checkout'
  root.mkdir()
  for name in ('launch', '.ci'):
    shutil.copytree(conftest.ROOT / name, root / name)
  (root / 'setup.py').write_text('')
  python = tmp_path / 'python'
  python.write_text(_PYTHON)
  python.chmod(0o755)
  return root


@pytest.fixture
def run(checkout, tmp_path):
  """Runs a script from elsewhere; returns its status, errors and calls."""

  def run_script(script, *arguments, **variables):
    calls = tmp_path / 'calls'
    calls.write_text('')
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir(exist_ok=True)
    environment = {
      'PATH': os.environ['PATH'],
      'CALLS': str(calls),
      'PYTHON': str(tmp_path / 'python'),
      **variables,
    }
    done = subprocess.run(
      ['bash', str(checkout / script), *arguments],
      capture_output=True,
      text=True,
      cwd=elsewhere,
      env=environment,
    )
    lines = [
      line
      for line in calls.read_text().splitlines()
      if not line.startswith('python -c ') and line != 'python --version'
    ]
    return done, lines

  return run_script


def test_quickstart_installs_once_and_generates(run, checkout):
  venv = checkout / '.venv'
  done, calls = run('launch/quickstart.sh')
  assert done.returncode == 0, done.stderr
  assert done.stdout == ''
  assert calls == [
    f'python -m venv --clear {venv}',
    'python -m pip install --no-input --disable-pip-version-check -e .',
    f'v2meow generate {checkout}/data/example.mp4',
  ]
  # Nothing to set up any more.
  done, calls = run('launch/quickstart.sh', 'my clip.mp4', '--seed', '7')
  assert done.stderr == ''
  assert calls == ['v2meow --help', 'v2meow generate my clip.mp4 --seed 7']
  _, calls = run('launch/quickstart.sh', '--seed', '7')
  assert calls[-1] == f'v2meow generate {checkout}/data/example.mp4 --seed 7'


def test_quickstart_installs_again_what_has_changed(run, checkout):
  run('launch/quickstart.sh')
  future = (checkout / '.venv' / 'installed-base').stat().st_mtime + 10
  os.utime(checkout / 'setup.py', (future, future))
  _, calls = run('launch/quickstart.sh', 'clip.mp4')
  assert calls[1:3] == [
    'python -m pip install --no-input --disable-pip-version-check -e .',
    'v2meow generate clip.mp4',
  ]


def test_tests_install_what_they_need_and_check_everything(run):
  done, calls = run('launch/test.sh')
  assert done.returncode == 0, done.stderr
  assert calls[1:] == [
    'python -m pip install --no-input --disable-pip-version-check -e '
    '.[train,test]',
    'ruff check .',
    'ruff format --check .',
    'python -m pytest --numprocesses auto --dist loadfile',
  ]
  # The extras come on top of what the quickstart needs.
  _, calls = run('launch/quickstart.sh', 'clip.mp4')
  assert calls == ['v2meow --help', 'v2meow generate clip.mp4']
  _, calls = run('launch/test.sh', 'tests/test_cli.py', '-x')
  assert calls[1:] == ['python -m pytest tests/test_cli.py -x']


def test_continuous_integration_runs_the_tests(run):
  done, calls = run('.ci/run')
  assert done.returncode == 0, done.stderr
  assert calls[-1] == 'python -m pytest --numprocesses auto --dist loadfile'


def test_old_python_is_refused(run, checkout, tmp_path):
  done, calls = run('launch/quickstart.sh', VERSION_STATUS='1')
  assert done.returncode == 1
  assert done.stderr == (
    f'error: PYTHON is `{tmp_path / "python"}`, expected Python 3.11 or newer. '
    'Set it to another interpreter or unset it.\n'
  )
  assert not calls
  assert not (checkout / '.venv').exists()


def test_failed_installation_says_where_to_look(run, checkout):
  done, calls = run('launch/quickstart.sh', PIP_STATUS='1')
  assert done.returncode == 1
  assert done.stderr.splitlines()[-2:] == [
    'no network',
    'error: the installation failed; all of its messages are in '
    f'{checkout}/.venv/install.log. Check the connection to the package index '
    'and run this again.',
  ]
  assert not [call for call in calls if call.startswith('v2meow')]
  # And the next run tries again.
  done, calls = run('launch/quickstart.sh', 'clip.mp4')
  assert calls[-1] == 'v2meow generate clip.mp4'


@pytest.mark.parametrize('script', ['quickstart', 'test'])
def test_help_changes_nothing(script, run, checkout):
  done, calls = run(f'launch/{script}.sh', '--help')
  assert done.returncode == 0
  assert f'bash launch/{script}.sh' in done.stdout
  assert not calls
  assert not (checkout / '.venv').exists()


def test_scripts_parse():
  folder = conftest.ROOT / 'launch'
  scripts = [*folder.glob('*.sh'), conftest.ROOT / '.ci' / 'run']
  assert folder / 'quickstart.sh' in scripts
  for script in scripts:
    done = subprocess.run(
      ['bash', '-n', str(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'set -euo pipefail' in script.read_text() or (
      script.name == 'environment.sh'
    )


# Trainings that never end; if it is told to, one of them fails once all run.
_TRAINER = """#!/usr/bin/env bash
case "$*" in
  *v2meow_jax.train*)
    echo $$ >>"$CALLS"
    if [[ -n ${FAILS:-} && "$*" == *stages/coarse.gin* ]]; then
      until [[ $(wc -l <"$CALLS") == 3 ]]; do sleep 0.02; done
      exit 7
    fi
    [[ "$*" != *stages/${STOPPED:-none}.gin* ]] || exit 0
    exec sleep 60
    ;;
esac
"""


def _wait_until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


def _alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # Where nobody waits for a process that has ended, it stays as a zombie.
  state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  return state.split()[0] != 'Z'


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM, None])
def test_no_training_goes_on_alone(how, checkout, tmp_path):
  binaries = tmp_path / 'binaries'
  binaries.mkdir()
  (binaries / 'python3').write_text(_TRAINER)
  (binaries / 'python3').chmod(0o755)
  start = tmp_path / 'start'
  start.mkdir()
  calls = tmp_path / 'calls'
  calls.touch()
  process = subprocess.Popen(
    ['bash', checkout / 'launch' / 'train_bundled.sh', tmp_path / 'work'],
    env={
      **os.environ,
      'PATH': f'{binaries}:{os.environ["PATH"]}',
      'CALLS': str(calls),
      'START': str(start),
      'FAILS': '' if how else 'yes',
    },
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  _wait_until(lambda: len(calls.read_text().split()) == 3)
  pids = [int(pid) for pid in calls.read_text().split()]
  if how:
    assert all(map(_alive, pids))
    os.kill(process.pid, how)
  process.communicate(timeout=60)
  assert process.returncode == ({None: 7}.get(how) or 128 + how)
  _wait_until(lambda: not any(map(_alive, pids)))
  assert not (tmp_path / 'work' / 'bundle').exists()


def test_training_that_was_stopped_is_not_done(checkout, tmp_path):
  binaries = tmp_path / 'binaries'
  binaries.mkdir()
  (binaries / 'python3').write_text(_TRAINER)
  (binaries / 'python3').chmod(0o755)
  (tmp_path / 'start').mkdir()
  semantic = tmp_path / 'work' / 'semantic'
  (semantic / 'checkpoint_4999').mkdir(parents=True)
  (semantic / 'checkpoint_5000.orbax-checkpoint-tmp').mkdir()
  calls = tmp_path / 'calls'
  done = subprocess.run(
    ['bash', checkout / 'launch' / 'train_bundled.sh', tmp_path / 'work'],
    env={
      **os.environ,
      'PATH': f'{binaries}:{os.environ["PATH"]}',
      'CALLS': str(calls),
      'START': str(tmp_path / 'start'),
      'STOPPED': 'semantic',
    },
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 143
  assert (
    f'error: the training in {semantic} was stopped before step 5000. Run the '
    'same command again: it goes on from there.\n'
  ) in done.stderr
  assert 'semantic_short' not in done.stderr
  assert '== bundle' not in done.stderr
