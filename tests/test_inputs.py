"""Which files of folders are videos to work on."""

import os

import pytest

from v2meow_jax import errors
from v2meow_jax import inputs
from v2meow_jax import outputs


@pytest.fixture
def work(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in (
    'a/z.mp4',
    'a/B.MOV',
    'a/a.webm',
    'a/notes.txt',
    'a/a.mp4.json',
    'a/z.v2meow.mp4',
    'a/z.v2meow.seed3.mkv',
    'a/z.v2meow.json',
    'a/.hidden.mp4',
    'a/deep.mp4/c.mp4',
    'b/only.wav',
    'c.anything',
  ):
    os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
    with open(name, 'w'):
      pass
  return tmp_path


def test_folders_and_files(work):
  del work
  found = ['a/B.MOV', 'a/a.webm', 'a/z.mp4']
  assert inputs.find_videos(['a']) == found
  assert inputs.find_videos(['a/']) == found
  # Files are what the user says, and each is taken once, in the given order.
  assert inputs.find_videos(
    ['missing.mp4', 'a/z.mp4', 'a', 'c.anything', 'a/z.v2meow.mp4']
  ) == [
    'missing.mp4',
    'a/z.mp4',
    'a/B.MOV',
    'a/a.webm',
    'c.anything',
    'a/z.v2meow.mp4',
  ]


def test_a_folder_without_videos(work):
  del work
  with pytest.raises(errors.UserError, match='^b: holds no videos, expected '):
    inputs.find_videos(['a', 'b'])


def test_suffixes_are_sorted_and_hold_those_that_are_written():
  assert list(inputs.SUFFIXES) == sorted({*inputs.SUFFIXES})
  assert {*outputs.VIDEO_SUFFIXES} < {*inputs.SUFFIXES}
  # So that nobody takes the outputs of a run for its inputs.
  (piece,) = outputs.plan(['a.mp4'], [0])
  assert outputs.MARK + '.' in piece.paths[0].name
  assert piece.sidecar.name == 'a.v2meow.json'
  (piece,) = outputs.plan(['a.mp4'], [0], 'x.y.MKV', 'both')
  assert piece.sidecar.name == 'x.y.json'
