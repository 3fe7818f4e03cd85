"""Sidecars: what they hold comes back, and nothing of them is trusted."""

import dataclasses
import hashlib
import json
import os
import re

import numpy as np
import pytest

from v2meow_jax import controls
from v2meow_jax import errors
from v2meow_jax import fingerprints
from v2meow_jax import sidecars

# Everything other than by default.
CONTROLS = controls.Controls(
  seed=7,
  text=(('calm: "pianö"', 1.0), ('fast', 0.5)),
  negative_text='noise',
  visual_guidance=2.5,
  style_guidance=0.0,
  temperature=(1.0, 0.5, 0.0),
  top_k=(0, 5, 1024),
  top_p=(1.0, 0.9, 1e-3),
  duration=2.5,
  best_of=4,
  prompt_audio='in/prompt.wav',
  replace=((0.5, 1.5, 2**32 - 1), (1.0, 2.0, 0)),
)
MACHINE = {
  'platform': 'tpu',
  'device': 'TPU v9',
  'processor': 'abacus',
  'versions': {'v2meow_jax': '0.1.0', 'jax': '0.1.2'},
}


@pytest.fixture
def work(tmp_path, monkeypatch):
  """A working folder with a model, a video, a prompt and an output."""
  monkeypatch.chdir(tmp_path)
  for path, content in {
    'model/bundle.gin': 'a.b = 1\n',
    'model/codec.safetensors': 'weights',
    'model/CARD.md': 'card',
    'in/clip.mp4': 'video',
    'in/prompt.wav': 'prompt',
    'out/clip.v2meow.wav': 'music',
  }.items():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    (tmp_path / path).write_text(content)
  return tmp_path


def _make(**changes) -> sidecars.Sidecar:
  codes = np.arange(6, dtype=np.int32).reshape(3, 2)
  made = sidecars.Sidecar(
    inputs=sidecars.Inputs(
      fingerprints.describe_model('model'),
      fingerprints.describe_file('in/clip.mp4'),
      CONTROLS,
      fingerprints.describe_file('in/prompt.wav'),
    ),
    seconds=2.5,
    tokens=fingerprints.hash_tokens({'b': codes, 'a': codes[:1]}),
    scores={'likelihood': np.float32(-1.5)},
    outputs=(fingerprints.describe_file('out/clip.v2meow.wav'),),
    machine=MACHINE,
    timings={'picture': 1.23456, 'writing': 0.0},
  )
  return dataclasses.replace(made, **changes)


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def test_every_control_is_kept():
  names = {field.name for field in dataclasses.fields(controls.Controls)}
  assert names == {*sidecars._CONTROLS}
  for field in dataclasses.fields(controls.Controls):
    assert getattr(CONTROLS, field.name) != field.default, field.name


def test_what_is_written_comes_back_from_anywhere(work, monkeypatch):
  made = _make()
  sidecars.write('out/clip.v2meow.json', made)
  monkeypatch.chdir(work / 'in')
  found = sidecars.read('../out/clip.v2meow.json')
  assert found.inputs.controls == dataclasses.replace(
    CONTROLS, prompt_audio='../out/../in/prompt.wav'
  )
  assert found.inputs.video == dataclasses.replace(
    made.inputs.video, path='../out/../in/clip.mp4'
  )
  assert found.inputs.model == made.inputs.model
  assert found.inputs.make_same(made.inputs)
  assert found.inputs.video.is_found()
  assert found.inputs.prompt_audio.is_found()
  assert found.is_current(made.inputs)
  assert found.kind == 'wav'
  assert dataclasses.replace(found, outputs=()).kind is None
  assert (found.seconds, found.tokens) == (2.5, made.tokens)
  assert found.scores == {'likelihood': -1.5}
  assert found.machine == MACHINE
  assert found.timings == {'picture': 1.235, 'writing': 0.0}
  # The whole folder may be moved.
  os.rename(work, f'{work}.moved')
  monkeypatch.chdir(f'{work}.moved')
  assert sidecars.read('out/clip.v2meow.json').inputs.video.is_found()


def test_links_do_not_lead_astray(work):
  (work / 'deep' / 'er').mkdir(parents=True)
  os.symlink(work / 'deep' / 'er', work / 'link')
  os.symlink(work / 'in', work / 'videos')
  video = fingerprints.describe_file('videos/clip.mp4')
  inputs = dataclasses.replace(_make().inputs, video=video)
  sidecars.write('link/clip.json', _make(inputs=inputs))
  content = json.loads((work / 'deep/er/clip.json').read_text())
  assert content['inputs']['video']['path'] == '../../in/clip.mp4'
  assert sidecars.read('link/clip.json').inputs.video.is_found()


def test_two_runs_differ_in_one_part_alone(work):
  del work
  contents = []
  for seconds in (1.0, 2.0):
    sidecars.write('a.json', _make(timings={'picture': seconds}))
    with open('a.json') as f:
      contents.append(json.load(f))
  first, second = contents
  assert first['run']['timings'] != second['run']['timings']
  del first['run'], second['run']
  assert first == second
  assert list(first) == ['v2meow_sidecar', 'inputs', 'outputs', 'machine']


def test_hashes(work):
  del work
  model = _make().inputs.model
  assert model.name == 'model'
  assert model.files == {
    'bundle.gin': _sha256('a.b = 1\n'),
    'codec.safetensors': _sha256('weights'),
  }
  assert model.gin == 'a.b = 1\n'
  assert model.sha256 == _sha256(
    f'{_sha256("a.b = 1" + chr(10))}  bundle.gin\n'
    f'{_sha256("weights")}  codec.safetensors\n'
  )
  codes = np.array([[1, 2], [3, 4]], np.int32)
  hashed = lambda codes: fingerprints.hash_tokens({'a': codes})['a']
  assert hashed(codes) == hashed(np.asfortranarray(codes))
  assert hashed(codes) == hashed(codes.astype(np.int64))
  # The same numbers in another order, or in another shape, are other tokens.
  assert hashed(codes) != hashed(codes.T)
  assert hashed(codes) != hashed(codes.reshape(4, 1))
  # Documented, so that others can compute it.
  digest = hashlib.sha256(b'(2, 2)' + codes.astype('<i4').tobytes())
  assert hashed(codes) == digest.hexdigest()


@pytest.mark.parametrize(
  'path',
  [
    'model/codec.safetensors',
    'model/bundle.gin',
    'in/clip.mp4',
    'in/prompt.wav',
    'out/clip.v2meow.wav',
  ],
)
def test_a_changed_file_is_seen(path, work):
  sidecars.write('out/a.json', _make())
  assert sidecars.read('out/a.json').is_current(_make().inputs)
  (work / path).write_bytes(b'x' * (work / path).stat().st_size)
  assert not sidecars.read('out/a.json').is_current(_make().inputs)


@pytest.mark.parametrize('name', [x.name for x in dataclasses.fields(CONTROLS)])
def test_another_choice_is_another_piece(name, work):
  del work
  sidecars.write('out/a.json', _make())
  before = sidecars.read('out/a.json')
  default = getattr(controls.DEFAULT, name)
  if name == 'style_guidance':  # a negative text needs some
    default = 2.0
  inputs = _make().inputs
  other = dataclasses.replace(CONTROLS, **{name: default})
  # A sound file is what is in it, wherever it is.
  prompt = None if name == 'prompt_audio' else inputs.prompt_audio
  other = dataclasses.replace(inputs, controls=other, prompt_audio=prompt)
  assert before.is_current(inputs)
  assert not before.is_current(other)


def test_choices_that_make_no_sense_together_are_one_line(work):
  sidecars.write('out/a.json', _make())
  path = work / 'out' / 'a.json'
  path.write_text(
    path.read_text().replace('"style_guidance": 0.0', '"style_guidance": 1.0')
  )
  with pytest.raises(errors.UserError) as caught:
    sidecars.read('out/a.json')
  assert str(caught.value) == (
    'out/a.json: negative_text changes nothing where style_guidance is 1, '
    f'expected more, as 3. {_WRONG}'
  )


def test_a_device_is_no_video(work):
  endless = fingerprints.File('/dev/zero', 0, _sha256(''))
  assert not endless.is_found()
  assert not fingerprints.File(str(work), 0, _sha256('')).is_found()


_WRONG = 'It was changed or damaged: make the piece from its video.'


@pytest.mark.parametrize(
  'place, value, message',
  [
    (
      'inputs.video.path',
      'a\0b',
      f'`inputs.video.path` is a?b, expected a path. {_WRONG}',
    ),
    (
      'inputs.video.bytes',
      '5',
      '`inputs.video.bytes` is 5, expected a whole number of at least 0. '
      + _WRONG,
    ),
    (
      'inputs.controls.seed',
      2**32,
      '`inputs.controls.seed` is 4294967296, expected a whole number of at '
      f'least 0 and at most 4294967295. {_WRONG}',
    ),
    (
      'inputs.controls.top_p',
      [1, 1, 0],
      '`inputs.controls.top_p[2]` is 0, expected a number above 0 and at most '
      f'1. {_WRONG}',
    ),
    (
      'inputs.controls.text',
      'calm',
      f'`inputs.controls.text` is calm, expected a list of at most 1000. '
      f'{_WRONG}',
    ),
    (
      'outputs.files',
      {'../x.mp4': {'bytes': 1, 'sha256': '0' * 64}},
      '`outputs.files` is ../x.mp4, expected names that are the name of a file.'
      f' {_WRONG}',
    ),
    (
      'machine.device',
      'TPU\x1b[2J',
      f'`machine.device` is TPU?[2J, expected a short text. {_WRONG}',
    ),
    (
      'inputs.controls.mood',
      'blue',
      '`inputs.controls.mood` is unknown, expected '
      f'{", ".join(sidecars._CONTROLS)}. {_WRONG}',
    ),
    (
      'machine.versions.v2meow_jax',
      '9.0',
      '`surprise` is unknown, expected v2meow_sidecar, inputs, outputs, '
      'machine, run. Version 9.0 of v2meow_jax wrote it and this is 0.1.0: '
      'use that one.',
    ),
    (
      'v2meow_sidecar',
      2,
      f'is of schema 2, expected 1. {_WRONG}',
    ),
    (
      'v2meow_sidecar',
      True,
      '`v2meow_sidecar` is true, expected a whole number of at least 1 and at '
      f'most 1. {_WRONG}',
    ),
  ],
)
def test_a_changed_sidecar_is_one_line(place, value, message, work):
  sidecars.write('a.json', _make())
  content = json.loads((work / 'a.json').read_text())
  *parents, name = place.split('.')
  node = content
  for parent in parents:
    node = node[parent]
  node[name] = value
  if value == '9.0':
    content['surprise'] = 1
  (work / 'a.json').write_text(json.dumps(content))
  with pytest.raises(errors.UserError) as caught:
    sidecars.read('a.json')
  assert str(caught.value) == f'a.json: {message}'


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', r'is no JSON \(Expecting value: line 1 column 1 \(char 0\)\)'),
    (b'\xff\xfe\xff', 'is no JSON '),
    (b'{"a": ', 'is no JSON '),
    (b'[' * 100_000, 'is no JSON '),
    (b'9' * 5000, 'is no JSON '),
    (b'[1]', 'holds no object'),
    (b' ' * (2**20 + 1), 'has more than 1048576 bytes'),
    (b'{"title": "my own notes"}', 'is no sidecar'),
  ],
)
def test_other_files_are_one_line(content, message, work):
  (work / 'a.json').write_bytes(content)
  with pytest.raises(errors.UserError, match=f'^a.json: {message}') as caught:
    sidecars.read('a.json')
  assert re.fullmatch('[^\n]*, expected [^\n]*\\.', str(caught.value))
  assert not sidecars.is_one('a.json')


def test_no_file(work):
  with pytest.raises(errors.UserError, match='^no.json: no such file, expecte'):
    sidecars.read('no.json')
  with pytest.raises(errors.UserError, match='^in: is a folder, expected a si'):
    sidecars.read('in')
  assert not sidecars.is_one('no.json')
  # What cannot be used is a sidecar nevertheless.
  (work / 'a.json').write_text('{"v2meow_sidecar": 99}')
  assert sidecars.is_one('a.json')


def test_machine_and_what_differs():
  machine = fingerprints.describe_machine()
  assert machine['platform'] == 'cpu'
  assert {'python', 'v2meow_jax', 'jax', 'jaxlib', 'numpy', 'av'} <= {
    *machine['versions']
  }
  other = machine | {'device': 'TPU v9'}
  other['versions'] = machine['versions'] | {'jax': '0.1.2'}
  jax = machine['versions']['jax']
  explain = fingerprints.explain_change
  assert explain(other, machine) == f'device TPU v9 -> cpu, jax 0.1.2 -> {jax}'
  assert explain(machine, machine) == 'nothing that was noted differs'
