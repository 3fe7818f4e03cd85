"""What JSON must look like, and what is said where it does not."""

import json

import pytest

from v2meow_jax import schemas

_KIND = {
  'name': schemas.string(5),
  'hex': schemas.Maybe(schemas.matching('[0-9a-f]{2}', '2 digits')),
  'point': schemas.Row((schemas.number(), schemas.whole(0, 9))),
  'many': schemas.Many(schemas.number(0), 2),
  'table': schemas.Table(schemas.matching('[a-z]+', 'small letters'), {}),
  'extra': schemas.Optional(schemas.number(0, 1)),
}
_RIGHT = {
  'name': 'a',
  'hex': '0f',
  'point': [-1.5, 9],
  'many': [0, 1.0],
  'table': {'x': {}},
  'extra': 1,
}


def test_what_is_right():
  schemas.check(_KIND, _RIGHT)
  schemas.check(_KIND, _RIGHT | {'hex': None, 'many': [], 'table': {}})
  del (without := dict(_RIGHT))['extra']
  schemas.check(_KIND, without)


@pytest.mark.parametrize(
  'change, message',
  [
    ('{"name": 1}', '`a.name` is 1, expected a text of at most 5 characters'),
    ('{"name": "123456"}', None),
    ('{"hex": "0F"}', '`a.hex` is 0F, expected 2 digits'),
    ('{"hex": "0f\\n"}', '`a.hex` is 0f?, expected 2 digits'),
    ('{"hex": 1}', '`a.hex` is 1, expected 2 digits'),
    ('{"point": [1]}', '`a.point` is [1], expected a list of 2'),
    ('{"point": "ab"}', '`a.point` is ab, expected a list of 2'),
    ('{"point": [true, 1]}', '`a.point[0]` is true, expected a number'),
    ('{"point": [NaN, 1]}', '`a.point[0]` is NaN, expected a number'),
    ('{"point": [Infinity, 1]}', '`a.point[0]` is Infinity, expected a number'),
    (
      '{"point": [1, 1.0]}',
      '`a.point[1]` is 1.0, expected a whole number of at least 0 and at most '
      '9',
    ),
    ('{"point": [1, true]}', None),
    ('{"point": [1, 10]}', None),
    (
      '{"many": [1, 2, 3]}',
      '`a.many` is [1, 2, 3], expected a list of at most 2',
    ),
    ('{"many": [-1]}', '`a.many[0]` is -1, expected a number of at least 0'),
    ('{"table": []}', '`a.table` is [], expected an object of at most 1000'),
    (
      '{"table": {"X": {}}}',
      '`a.table` is X, expected names that are small letters',
    ),
    ('{"table": {"x": []}}', '`a.table.x` is [], expected an object'),
    ('{"table": {"x": {"y": 1}}}', '`a.table.x.y` is unknown, expected '),
    (
      '{"more": 1}',
      '`a.more` is unknown, expected name, hex, point, many, table, extra',
    ),
    (
      '{"extra": 2}',
      '`a.extra` is 2, expected a number of at least 0 and at most 1',
    ),
    ('{"extra": null}', None),
    (
      '{"name": {"a": "' + 'b' * 50 + '"}}',
      '`a.name` is {"a": "' + 'b' * 33 + '…, expected a text of at most 5 '
      'characters',
    ),
  ],
)
def test_what_is_wrong(change, message):
  with pytest.raises(schemas.Mismatch) as caught:
    schemas.check(_KIND, _RIGHT | json.loads(change), 'a')
  if message:
    assert str(caught.value) == message


def test_what_is_missing():
  del (without := dict(_RIGHT))['point']
  with pytest.raises(schemas.Mismatch) as caught:
    schemas.check(_KIND, without)
  assert str(caught.value) == '`point` is missing, expected it'
  with pytest.raises(
    schemas.Mismatch, match='^`a` is null, expected an object'
  ):
    schemas.check(_KIND, None, 'a')
