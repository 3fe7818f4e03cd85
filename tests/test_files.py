"""Files that appear whole or not at all, and what is in them."""

import hashlib
import os
import pathlib
import threading

import pytest

from v2meow_jax import errors
from v2meow_jax import files


def test_measure(tmp_path, rng):
  content = rng.bytes((1 << 20) + 5)
  path = tmp_path / 'a'
  path.write_bytes(content)
  ticks = []
  size, digest = files.measure(path, lambda: ticks.append(1))
  assert size == len(content)
  assert digest == hashlib.sha256(content).hexdigest()
  assert len(ticks) == 2
  with pytest.raises(errors.UserError) as caught:
    files.measure(tmp_path)
  assert str(caught.value) == (
    f'{tmp_path}: cannot be read (Is a directory), expected a file. Check the '
    'path and its permissions.'
  )


@pytest.mark.parametrize('is_there', [False, True])
def test_a_file_appears_whole_or_not_at_all(is_there, tmp_path):
  path = tmp_path / ('ä' * 120)  # 240 of the 255 bytes that a name may have
  before = [path.name] if is_there else []
  if is_there:
    path.write_text('old')

  def write_half():
    with files.replace(path) as part:
      pathlib.Path(part).write_text('half')
      assert os.path.exists(path) == is_there
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_half()
  assert os.listdir(tmp_path) == before
  with files.replace(path) as part:
    pathlib.Path(part).write_text('new')
  assert path.read_text() == 'new'
  assert os.listdir(tmp_path) == [path.name]


def test_writing_is_halted_from_another_thread(tmp_path):
  halt, is_open, is_halted = files.Halt(), threading.Event(), threading.Event()
  failures = []

  def write(name, *steps):
    try:
      with files.replace(tmp_path / name) as part:
        for step in steps:
          step()
        pathlib.Path(part).write_text('all')
    except errors.UserError as error:
      failures.append(str(error))

  def work():
    with halt:
      write('whole')
      write('half', is_open.set, is_halted.wait)
      write('late')

  thread = threading.Thread(target=work)
  thread.start()
  is_open.wait()
  halt.now()
  # At this moment the process may end.
  assert os.listdir(tmp_path) == ['whole']
  is_halted.set()
  thread.join()
  # The thread tries to make the file anew, and the next one: in vain.
  assert os.listdir(tmp_path) == ['whole']
  end = 'Check the permissions and the space of the folder, or choose another'
  assert failures == [
    f'{tmp_path / "half"}: cannot be written (No such file or directory). '
    f'{end} one.',
    f'{tmp_path / "late"}: cannot be written (stopped). {end} one.',
  ]
  # Other threads write as before.
  write('other')
  assert sorted(os.listdir(tmp_path)) == ['other', 'whole']
