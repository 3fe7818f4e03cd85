"""Manifests: what is filled in, and that every mistake is named."""

import pathlib

import pytest

from v2meow_jax import errors
from v2meow_jax import manifests


def _read(tmp_path, text):
  path = tmp_path / 'clips.csv'
  path.write_text(text, encoding='utf-8')
  return manifests.read(path)


def test_only_the_file_is_needed(tmp_path):
  assert _read(tmp_path, 'file\na/b.mp4\n/c.wav\n') == [
    manifests.Clip('b', tmp_path / 'a' / 'b.mp4'),
    manifests.Clip('c', pathlib.Path('/c.wav')),
  ]


def test_all_columns_in_any_order(tmp_path):
  (clip,) = _read(
    tmp_path,
    '\ufeffsplit,file,caption,clip_id,end_seconds,start_seconds,sha256,'
    'attributes,note\n'
    'test,a.mp4,"calm, slow",x y,7.5,2,ABC,"{""tempo"": 90}",whatever\n',
  )
  assert clip == manifests.Clip(
    clip_id='x y',
    file=tmp_path / 'a.mp4',
    start_seconds=2.0,
    end_seconds=7.5,
    split='test',
    caption='calm, slow',
    sha256='abc',
    attributes='{"tempo": 90}',
  )


def test_every_wrong_row_is_listed(tmp_path):
  with pytest.raises(errors.UserError) as e:
    _read(
      tmp_path,
      'clip_id,file,start_seconds,end_seconds,split,attributes\n'
      'a,,,,,\n'
      'b,b.mp4,x,,,\n'
      'c,c.mp4,-1,,,\n'
      'd,d.mp4,5,5,,\n'
      'e,e.mp4,,,dev,\n'
      'f,f.mp4,,,,[1]\n'
      'g,g.mp4,,,,\n'
      'g,h.mp4,,,,\n',
    )
  message = str(e.value)
  for wrong in (
    'line 2: no `file`, expected the path of a media file. Add it.',
    'line 3: start_seconds is `x`, expected seconds of at least 0. Correct',
    'line 4: start_seconds is `-1`, expected seconds of at least 0. Correct',
    'line 5: end_seconds is 5 and start_seconds is 5, expected an end after',
    'line 6: split is `dev`, expected one of train, validation, test. Rename',
    'line 7: attributes is `[1]`, expected a JSON object.',
    'line 9: clip_id `g` is also on line 8, expected unique names.',
  ):
    assert wrong in message
  assert message.count('line ') == 8  # `also on line` is one of them


@pytest.mark.parametrize(
  'text, message',
  [
    ('', 'columns are none, expected `file` among them'),
    ('name\nx\n', 'columns are name, expected `file` among them'),
    ('file\n', 'no clips, expected one row per clip below the header'),
  ],
)
def test_manifests_without_clips(tmp_path, text, message):
  with pytest.raises(errors.UserError, match=message):
    _read(tmp_path, text)


def test_a_file_that_is_no_text(tmp_path):
  (tmp_path / 'clips.csv').write_bytes(b'\xff\xfe\x00file')
  with pytest.raises(errors.UserError, match='cannot be read .*, expected a C'):
    manifests.read(tmp_path / 'clips.csv')
  with pytest.raises(errors.UserError, match='cannot be read'):
    manifests.read(tmp_path / 'missing.csv')
