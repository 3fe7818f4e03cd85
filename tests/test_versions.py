"""Versions are saved once, and a change of them is said."""

import json
import logging
import re

import jax

import v2meow_jax
from v2meow_jax import versions


def test_collects_what_is_there(monkeypatch):
  found = versions.collect()
  assert found['v2meow_jax'] == v2meow_jax.__version__
  assert found['jax'] == jax.__version__
  assert set(found) <= {'python', 'v2meow_jax', 'commit', *versions.PACKAGES}
  if 'commit' in found:  # a checkout with its history
    assert re.fullmatch('[0-9a-f]{40}(-dirty)?', found['commit'])
  monkeypatch.setenv('V2MEOW_COMMIT', 'abc')
  assert versions.collect()['commit'] == 'abc'


def test_a_change_is_said_and_nothing_forgotten(tmp_path, caplog):
  path = tmp_path / versions.FILE
  versions.save(tmp_path, 0, {'jax': '1', 'numpy': '2'})
  before = path.stat()
  versions.save(tmp_path, 10, {'jax': '1', 'numpy': '2'})
  after = path.stat()
  assert (after.st_ino, after.st_mtime_ns) == (
    before.st_ino,
    before.st_mtime_ns,
  )
  assert not caplog.messages
  with caplog.at_level(logging.WARNING):
    versions.save(tmp_path, 20, {'jax': '1.1', 'optax': '3'})
  assert caplog.messages == [
    'Not the versions of step 0: jax 1 -> 1.1, numpy 2 -> none, '
    'optax none -> 3.'
  ]
  assert json.loads(path.read_text()) == [
    {'step': 0, 'versions': {'jax': '1', 'numpy': '2'}},
    {'step': 20, 'versions': {'jax': '1.1', 'optax': '3'}},
  ]


def test_what_cannot_be_read_is_written_anew(tmp_path, caplog):
  path = tmp_path / versions.FILE
  for text in ('', '[1]', '{"a": 1}', '[{"step": 1}]'):
    path.write_text(text)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      versions.save(tmp_path, 3, {'jax': '1'})
    assert caplog.messages == [f'{path}: cannot be read; written anew.']
    assert json.loads(path.read_text()) == [
      {'step': 3, 'versions': {'jax': '1'}}
    ]
