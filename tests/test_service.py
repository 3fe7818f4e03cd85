"""Many videos: order, failures, overlap, what is there, and how it stops."""

import collections
import errno
import io
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from tests import conftest
from tests import fake_generator
from tests import toy
from v2meow_jax import bars
from v2meow_jax import cli
from v2meow_jax import errors
from v2meow_jax import generate
from v2meow_jax import outputs
from v2meow_jax import service

# So long that nothing but a deadlock takes it.
_SECONDS = 60


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  return toy.make_video(tmp_path_factory.mktemp('clip') / 'clip.mp4', 0.3)


@pytest.fixture
def work(tmp_path, monkeypatch, clip):
  """A working folder with a folder of videos and what passes for a model."""
  monkeypatch.chdir(tmp_path)
  os.mkdir('model')
  for name in ('bundle.gin', 'codec.safetensors'):
    pathlib.Path('model', name).write_text(name)
  os.mkdir('in')
  for name in 'abcdef':
    # A container may end with anything: other bytes, the same picture.
    content = clip.read_bytes() + b'\0\0\0\x09free' + name.encode()
    pathlib.Path(f'in/{name}.mp4').write_bytes(content)
  monkeypatch.setattr(errors, '_warned', set())
  return tmp_path


@pytest.fixture
def run(work, monkeypatch, capsys):
  """Runs the command with a fake; returns status, stdout, stderr and it."""
  del work
  result = collections.namedtuple('Result', 'status out err fake')

  def run(*arguments, on=lambda what, name: None, version=0):
    fake = fake_generator.Generator(on, version)
    loaded = []
    monkeypatch.setattr(
      generate, 'load', lambda model: loaded.append(model) or fake
    )
    words = ['generate', '--model', 'model', *map(str, arguments)]
    before = _threads()
    status = cli.main(words)
    assert _threads() == before
    assert len(loaded) == bool(fake.events)
    said = capsys.readouterr()
    return result(status, said.out.split('\n')[:-1], said.err, fake)

  return run


def _threads() -> set[threading.Thread]:
  """Our own: tqdm has one that stays."""
  return {x for x in threading.enumerate() if x.name != 'tqdm_monitor'}


def _sidecar(path) -> dict:
  return json.loads(pathlib.Path(path).read_text())


def _names(folder) -> list[str]:
  return sorted(os.listdir(folder))


def test_a_folder_in_order(run):
  done = run('in', '--out', 'out', '--seed', '3', '--format', 'both')
  assert (done.status, done.err) == (0, '')
  assert done.out == [
    f'out/{name}.v2meow.{suffix}'
    for name in 'abcdef'
    for suffix in ('mp4', 'wav')
  ]
  assert _names('out') == sorted(
    f'{name}.v2meow.{suffix}'
    for name in 'abcdef'
    for suffix in ('json', 'mp4', 'wav')
  )
  noted = _sidecar('out/b.v2meow.json')
  assert noted['inputs']['video']['path'] == '../in/b.mp4'
  assert noted['inputs']['model']['name'] == 'model'
  assert noted['inputs']['controls']['seed'] == 3
  assert noted['outputs']['seconds'] == 0.3
  assert [*noted['outputs']['files']] == ['b.v2meow.mp4', 'b.v2meow.wav']
  assert {*noted['run']['timings']} == {*generate.PHASES, 'writing'}


def test_failures_are_listed_at_the_end(run):
  pathlib.Path('in/b.mp4').write_text('no video')

  def on(what, name):
    if (what, name) == ('see', 'c.mp4'):
      raise errors.UserError('in/c.mp4: is dark. Light it.')
    if (what, name) == ('compose', 'd.mp4'):
      raise RuntimeError('out of\nmemory')
    if (what, name) == ('half', 'e.v2meow.mp4'):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  done = run('in', 'gone.mp4', '--out', 'out', on=on)
  assert done.status == 1
  assert done.out == ['out/a.v2meow.mp4', 'out/f.v2meow.mp4']
  lines = done.err.splitlines()
  assert lines[0].startswith('error: in/b.mp4: is no media file, expected ')
  assert lines[1:] == [
    'error: in/c.mp4: is dark. Light it.',
    'error: in/d.mp4: RuntimeError: out of memory. This is a fault of the '
    'program: please report it, with what V2MEOW_DEBUG=1 shows.',
    'error: out/e.v2meow.mp4: cannot be written (No space left on device). '
    'Check the permissions and the space of the folder, or choose another '
    'one.',
    'error: gone.mp4: no such file, expected a media file. Check the path.',
    'error: 5 of 7 pieces failed, 2 were made',
  ]
  assert _names('out') == [
    f'{name}.v2meow.{suffix}' for name in 'af' for suffix in ('json', 'mp4')
  ]


def test_one_piece_that_fails_leaves_the_others_of_its_video(run):
  def on(what, name):
    if what == 'write' and 'seed1' in name:
      raise errors.UserError(f'{name}: full. Make room.')

  done = run('in/a.mp4', '--samples', 3, on=on)
  assert done.status == 1
  assert done.out == ['a.v2meow.seed0.mp4', 'a.v2meow.seed2.mp4']
  assert done.err == (
    'error: a.v2meow.seed1.mp4: full. Make room.\n'
    'error: 1 of 3 pieces failed, 2 were made\n'
  )
  assert done.fake.names('see') == ['a.mp4']
  assert _sidecar('a.v2meow.seed2.json')['inputs']['controls']['seed'] == 2


def test_debugging_shows_where_an_error_comes_from(run, monkeypatch):
  monkeypatch.setenv('V2MEOW_DEBUG', '1')

  def on(what, name):
    if what == 'compose':
      raise RuntimeError(name)

  done = run('in/a.mp4', on=on)
  assert done.status == 1
  assert 'line ' in done.err and 'in compose' in done.err


def test_reading_and_writing_overlap_generation(run):
  begun = collections.defaultdict(threading.Event)
  late = []

  def wait(*event):
    if not begun[event].wait(_SECONDS):
      late.append(event)

  def on(what, name):
    begun[what, name[0]].set()
    if what == 'compose' and name < 'e':
      # The next video is read while this one is on the device, and so is the
      # next but one.
      wait('see', chr(ord(name[0]) + 1))
      wait('see', chr(ord(name[0]) + 2))
    if what == 'half' and name < 'e':
      # While this one is being written, the next is on the device.
      wait('compose', chr(ord(name[0]) + 1))

  done = run('in', '--out', 'out', on=on)
  assert not late
  assert done.status == 0
  assert len(done.out) == 6


def test_reading_does_not_run_ahead(run):
  ahead = []
  is_ahead = threading.Event()

  def on(what, name):
    del name
    if what == 'see':
      ahead.append(len(ahead) + 1)
      if len(ahead) == 3:
        is_ahead.set()
    elif what == 'compose' and not is_ahead.is_set():
      is_ahead.wait(_SECONDS)

  def check(what, name):
    on(what, name)
    fake_counts.append((what, name))

  fake_counts = []
  assert run('in', '--out', 'out', on=check).status == 0
  num_seen = num_composed = most = 0
  for what, _ in fake_counts:
    num_seen += what == 'see'
    num_composed += what == 'compose'
    most = max(most, num_seen - num_composed)
  # One that is read, one that waits, and two on their way to the device.
  assert 2 <= most <= 4


def test_what_is_there_is_not_made_again(run):
  arguments = ('in', '--out', 'out', '--skip_existing')
  first = run(*arguments)
  assert (first.status, first.fake.names('compose')[0]) == (0, 'a.mp4')
  before = {name: os.stat(f'out/{name}').st_mtime_ns for name in _names('out')}
  again = run(*arguments)
  assert (again.status, again.err) == (0, '')
  assert again.out == first.out
  assert not again.fake.events
  assert before == {
    name: os.stat(f'out/{name}').st_mtime_ns for name in _names('out')
  }
  # An output that is gone or changed, a sidecar that is gone or damaged, and
  # another video are made anew; nothing else is.
  os.remove('out/a.v2meow.mp4')
  pathlib.Path('out/b.v2meow.mp4').write_bytes(
    pathlib.Path('out/c.v2meow.mp4').read_bytes()
  )
  os.remove('out/c.v2meow.json')
  noted = _sidecar('out/d.v2meow.json') | {'v2meow_sidecar': 2}
  pathlib.Path('out/d.v2meow.json').write_text(json.dumps(noted))
  with open('in/e.mp4', 'ab') as f:
    f.write(b'\0')
  pathlib.Path('in/f.mp4').write_text('no video any more')
  third = run(*arguments)
  assert third.fake.names('compose') == [f'{x}.mp4' for x in 'abcde']
  assert third.out == first.out[:-1]
  assert third.err.endswith('error: 1 of 6 pieces failed, 5 were made\n')
  # So are other options, another format and another model.
  assert run(*arguments, '--seed', 1).fake.names('compose')[0] == 'a.mp4'
  done = run('in/a.mp4', *arguments[1:], '--seed', 1)
  assert not done.fake.events
  done = run('in/a.mp4', *arguments[1:], '--seed', 1, '--format', 'both')
  assert done.fake.names('write') == ['a.v2meow.mp4', 'a.v2meow.wav']
  pathlib.Path('model/codec.safetensors').write_text('other weights')
  done = run('in/a.mp4', *arguments[1:], '--seed', 1, '--format', 'both')
  assert done.fake.names('compose') == ['a.mp4']
  # Some pieces of a video.
  done = run('in/a.mp4', '--out', 'some', '--samples', 2)
  os.remove('some/a.v2meow.seed0.mp4')
  again = run('in/a.mp4', '--out', 'some', '--samples', 3, '--skip_existing')
  assert again.out == [f'some/a.v2meow.seed{i}.mp4' for i in range(3)]
  assert again.fake.names('write') == [again.out[i][5:] for i in (0, 2)]


def test_shards_take_each_video_once(run):
  runs = [run('in', '--out', 'out', '--shard', f'{i}/4') for i in range(4)]
  assert [len(done.out) for done in runs] == [2, 2, 1, 1]
  assert runs[0].out == ['out/a.v2meow.mp4', 'out/e.v2meow.mp4']
  assert len({path for done in runs for path in done.out}) == 6
  # More processes than videos is no mistake.
  done = run('in/a.mp4', '--shard', '1/2')
  assert (done.status, done.out, done.err) == (0, [], '')
  # Names collide among all videos, not only among those of a shard.
  os.rename('in/b.mp4', 'in/a.mov')
  for i in range(2):
    done = run('in', '--out', 'out', '--shard', f'{i}/2')
    assert done.status == 1
    assert done.err == (
      'error: in/a.mov and in/a.mp4 would both be written to '
      'out/a.v2meow.mp4, expected videos with different names. Rename one, or '
      'give each its own --out.\n'
    )


def test_without_sidecars(run):
  assert run('in/a.mp4', '--no_sidecar').status == 0
  assert not pathlib.Path('a.v2meow.json').exists()
  pathlib.Path('a.v2meow.json').write_text('{"mine": true}')
  assert run('in/a.mp4', '--no_sidecar').status == 0
  assert pathlib.Path('a.v2meow.json').read_text() == '{"mine": true}'
  assert run('in/a.mp4').status == 1


def test_made_again_from_its_sidecar(run):
  first = run('in/a.mp4', '--seed', 7, '--duration', 0.2, '--format', 'wav')
  assert first.status == 0
  before = pathlib.Path('a.v2meow.wav').read_bytes()
  again = run('--from', 'a.v2meow.json', '--out', 'again/')
  assert (again.status, again.err) == (0, '')
  assert again.out == ['again/a.v2meow.wav']
  assert pathlib.Path('again/a.v2meow.wav').read_bytes() == before
  # Elsewhere, with all that changes it.
  os.makedirs('there/is')
  os.rename('in/a.mp4', 'there/moved.mp4')
  again = run('--from', 'a.v2meow.json')
  assert (again.status, again.err) == (
    1,
    'error: a.v2meow.json: its video is not at in/a.mp4, expected it there. '
    'Name its place as VIDEO.\n',
  )
  other = run(
    *('there/moved.mp4', '--from', 'a.v2meow.json', '--out', 'x.mp4'),
    *('--seed', 9, '--top_k', 5),
  )
  assert (other.status, other.err) == (0, '')
  noted = _sidecar('x.json')['inputs']
  assert noted['video']['path'] == 'there/moved.mp4'
  assert noted['controls']['seed'] == 9
  assert noted['controls']['top_k'] == [5, 5, 5]
  assert noted['controls']['duration'] == 0.2
  # What is by default on the command line is the sidecar's here.
  again = run('there/moved.mp4', '--from', 'x.json', '--samples', 2)
  assert again.out == ['moved.v2meow.seed9.mp4', 'moved.v2meow.seed10.mp4']


def test_other_tokens_are_a_warning(run):
  assert run('in/a.mp4', '--format', 'wav').status == 0
  noted = _sidecar('a.v2meow.json')
  noted['machine']['versions']['jax'] = '0.0.1'
  pathlib.Path('a.v2meow.json').write_text(json.dumps(noted))
  again = run('--from', 'a.v2meow.json', '--out', 'x.wav', version=1)
  assert again.status == 0
  assert again.out == ['x.wav']
  jax = _sidecar('x.json')['machine']['versions']['jax']
  assert again.err == (
    'warning: x.wav: is not the piece of a.v2meow.json: this machine or '
    f'version computes other tokens (jax 0.0.1 -> {jax}).\n'
  )
  # Another seed is another piece: nothing to compare.
  again = run('--from', 'a.v2meow.json', '--out', 'y.wav', '--seed', 1)
  assert (again.status, again.err) == (0, '')


def test_a_sidecar_that_does_not_fit(run, capsys):
  assert run('in/a.mp4').status == 0
  digest = _sidecar('a.v2meow.json')['inputs']['video']['sha256']
  size = os.path.getsize('in/a.mp4')
  done = run('in/b.mp4', '--from', 'a.v2meow.json', '--out', 'x.mp4')
  assert done.status == 1
  assert done.err == (
    'error: in/b.mp4: is not the video of a.v2meow.json, expected the same '
    f'{size} bytes with SHA-256 {digest}. Name its place as VIDEO.\n'
  )
  pathlib.Path('model/codec.safetensors').write_text('other weights')
  done = run('--from', 'a.v2meow.json', '--out', 'x.mp4')
  assert done.status == 1
  assert done.err == (
    'error: a.v2meow.json: was made with another model than `model` '
    '(codec.safetensors differs), expected the same files. Name their folder '
    'with --model.\n'
  )
  # A model is not looked for where a sidecar says.
  assert cli.main(['generate', '--from', 'a.v2meow.json']) == 1
  assert capsys.readouterr().err == (
    'error: a.v2meow.json: was made with model `model`, which is not one of '
    'bundled, expected --model. Name its folder.\n'
  )
  assert not pathlib.Path('x.mp4').exists()


def test_seeds_beyond_the_last(run):
  assert run('in/a.mp4', '--seed', 2**32 - 1).status == 0
  done = run('--from', 'a.v2meow.json', '--samples', 2)
  assert done.err == (
    'error: 2 seeds from 4294967295 on go beyond 4294967295, expected smaller '
    'ones. Choose others with --seed and --samples.\n'
  )


def test_a_model_that_cannot_be_loaded_ends_it(work, monkeypatch, capsys):
  del work
  before = _threads()

  def load(model):
    raise errors.UserError(f'{model}: is torn. Mend it.')

  monkeypatch.setattr(generate, 'load', load)
  assert cli.main(['generate', 'in', '--model', 'model']) == 1
  assert capsys.readouterr().err == 'error: model: is torn. Mend it.\n'
  assert _threads() == before


def test_a_reader_of_stdout_that_is_gone(work, monkeypatch):
  del work
  before, fake = _threads(), fake_generator.Generator()

  def fail(paths):
    raise BrokenPipeError(paths[0])

  monkeypatch.setattr(generate, 'load', lambda model: fake)
  monkeypatch.setattr(service, '_say', fail)
  with pytest.raises(BrokenPipeError, match='^out/a.v2meow.mp4$'):
    service.run(videos=['in'], out='out', model='model')
  assert fake.names('write') == ['a.v2meow.mp4']
  assert _threads() == before


def test_names_that_are_no_text(run, clip):
  name = os.fsdecode(b'\xff.mp4')
  pathlib.Path(name).write_bytes(clip.read_bytes())
  done = run(name, 'in/a.mp4')
  # Whatever becomes of the first, the second is made.
  assert done.out[-1] == 'a.v2meow.mp4'


_STOPPED = """
import os, signal, sys, threading
from tests import fake_generator
from v2meow_jax import cli, generate
is_open = threading.Event()
def on(what, name):
  if (what, name) == ('half', 'b.v2meow.mp4'):
    is_open.set()
    threading.Event().wait()
  if (what, name) == ('compose', 'c.mp4'):
    is_open.wait()
    assert any(x.endswith('.part') for x in os.listdir('out'))
    os.kill(os.getpid(), signal.{name})
    threading.Event().wait()
generate.load = lambda model: fake_generator.Generator(on)
sys.argv[1:] = ['generate', 'in', '--model', 'model', '--out', 'out']
cli.run()
"""


@pytest.mark.parametrize('name, status', [('SIGINT', 130), ('SIGTERM', 143)])
def test_a_signal_stops_at_once(name, status, work):
  environment = os.environ | {'PYTHONPATH': str(conftest.ROOT)}
  (work / 'in' / '0.mp4').write_bytes(b'')
  done = subprocess.run(
    [sys.executable, '-c', _STOPPED.format(name=name)],
    cwd=work,
    env=environment,
    capture_output=True,
    text=True,
    timeout=_SECONDS,
    check=False,
  )
  assert done.returncode == status
  assert done.stderr == (
    'error: in/0.mp4: is empty (0 bytes), expected a media file. Copy or '
    'download it again.\n'
    'error: 1 of 7 pieces failed, 1 were made\n'
    'stopped\n'
  )
  assert done.stdout == 'out/a.v2meow.mp4\n'
  assert _names(work / 'out') == ['a.v2meow.json', 'a.v2meow.mp4']


def test_progress_over_the_folder(monkeypatch):
  screen = io.StringIO()
  screen.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', screen)
  pieces = outputs.plan(['a.mp4', 'b.mp4', 'c.mp4', 'd.mp4'], [0])
  bar = bars.Bar(4)
  bar._bar.mininterval = 0
  bar.name(pieces[0])
  bar.tell(pieces[0], 10.0, 'picture', 10.0)
  bar.tell(pieces[0], 10.0, 'semantic', 10.0)
  bar._bar.refresh()
  assert 'a.v2meow.mp4 0/4   6 %|' in screen.getvalue()  # a quarter of a piece
  bar.end(pieces[0], False)
  bar.tell(pieces[1], 10.0, 'picture', 5.0)
  bar.end(pieces[1], True)
  bar.leave_out()
  bar.name(pieces[3])
  assert 'd.v2meow.mp4 3/4, 1 failed  67 %|' in screen.getvalue()
  # What is told late takes nothing back.
  bar.tell(pieces[1], 10.0, 'picture', 5.0)
  bar._bar.refresh()
  assert screen.getvalue().count(' 67 %') >= 2
  bar.close()


def test_round_trip_with_a_model(tiny_model, work, capsys):
  toy.make_video(work / 'clip.mp4', 1.2)
  # Samples that the machine computes are the same from run to run.
  options = ['--seed', '5', '--text', 'calm piano', '--format', 'both']
  options += ['--temperature', '1,0.9,0.5', '--duration', '1']
  model = ['--model', str(tiny_model)]
  assert cli.main(['generate', 'clip.mp4', *model, *options, '--out', 'a']) == 0
  words = ['generate', '--from', 'a/clip.v2meow.json', *model, '--out', 'b']
  assert cli.main(words) == 0
  said = capsys.readouterr()
  assert said.err == ''
  assert (
    _names('a')
    == _names('b')
    == [
      'clip.v2meow.json',
      'clip.v2meow.mp4',
      'clip.v2meow.wav',
    ]
  )
  first, again = _sidecar('a/clip.v2meow.json'), _sidecar('b/clip.v2meow.json')
  assert {*first['outputs']['tokens']} == {'spectral_semantic', 'spectrogram'}
  assert {*first.pop('run')['timings']} == {*generate.PHASES, 'writing'}
  del again['run']
  assert first == again
  for name in ('clip.v2meow.wav', 'clip.v2meow.mp4'):
    read = [pathlib.Path(folder, name).read_bytes() for folder in ('a', 'b')]
    assert read[0] == read[1]
