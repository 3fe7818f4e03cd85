"""Who plays what in each style and at each level of energy: data only.

A pattern is one bar of sixteen steps: `.` is a rest, `-` holds the note, and
anything else starts one. In drum patterns `x` is a hit, `X` an accent and `o`
a soft hit. In bass patterns `1`, `5`, `8`, `3` are the root, fifth, octave and
third of the chord and `l` the note that leads to the next root. In chord
patterns `x` and `X` sound all voices. In arpeggios digits are voices of the
chord from the lowest. In rhythms of the melody `x` starts a note.
"""

from __future__ import annotations

import dataclasses

NUM_LEVELS = 4
KICK, SIDE_STICK, SNARE, CLAP = 36, 37, 38, 39
CLOSED_HAT, PEDAL_HAT, OPEN_HAT = 42, 44, 46
CRASH, RIDE, TAMBOURINE, SHAKER = 49, 51, 54, 70

_BEATS = 'x...x...x...x...'
_EIGHTHS = 'x.o.x.o.x.o.x.o.'
_SIXTEENTHS = 'xoxoxoxoxoxoxoxo'
_BACKBEAT = '....x.......x...'


@dataclasses.dataclass(frozen=True)
class Level:
  """The patterns of one level of energy.

  Attributes:
    drums: pattern of each drum, by its General MIDI key.
    bass, chords, arpeggio: one pattern each.
    melody: rhythms of the two bars of the motif.
    crash: whether a crash opens every fourth bar (else only sections).
  """

  drums: dict[int, str]
  bass: str
  chords: str
  arpeggio: str
  melody: tuple[str, str]
  crash: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
  """An instrument: General MIDI program from 0, gain in `[0, 1]`, register.

  Attributes:
    program: General MIDI program of each level of energy, dark to bright.
    gain: factor of the velocity.
    centre: pitch around which it plays.
  """

  program: tuple[int, int, int, int]
  gain: float
  centre: int


@dataclasses.dataclass(frozen=True)
class Style:
  """A style: its instruments, its levels of energy, its feel."""

  bass: Part
  chords: Part
  arpeggio: Part
  pad: Part
  melody: Part
  levels: tuple[Level, Level, Level, Level]
  swing: bool = False
  sevenths: bool = False
  leading_tone: bool = False
  drum_gain: float = 1.0


PIANO, STRINGS, PIZZICATO, TIMPANI = 0, 48, 45, 47
FLUTE, HORN, TRUMPET, BRASS = 73, 60, 56, 61
E_PIANO, VIBRAPHONE, UPRIGHT, ORGAN = 4, 11, 32, 18
CLEAN_GUITAR, OVERDRIVE, PICKED_BASS = 27, 29, 34
SYNTH_BASS, SQUARE, SAW, WARM_PAD, PLUCK = 38, 80, 81, 89, 84

_MELODIES = (
  ('x-------x---x---', 'x-----------....'),
  ('x---x---x-x-x---', 'x---x---x-------'),
  ('x-x-x---x-x-x-x-', 'x---x-x-x---x---'),
  ('x-xxx-x-x-x-x-xx', 'x-x-x-xxx-x-x---'),
)
_SWUNG_MELODIES = (
  ('x-------x---x---', 'x-----------....'),
  ('x---x-x-x---x---', 'x---x---x-------'),
  ('x-x-x---x-x-x---', 'x---x-x-x-x-x---'),
  ('x-x-x-x-x-x-x-x-', 'x-x-x-x-x---x-x-'),
)

STYLES = {
  'piano': Style(
    bass=Part((PIANO,) * 4, 0.9, 40),
    chords=Part((PIANO,) * 4, 0.7, 60),
    arpeggio=Part((PIANO,) * 4, 0.85, 67),
    pad=Part((STRINGS,) * 4, 0.5, 62),
    melody=Part((PIANO,) * 4, 1.1, 74),
    drum_gain=0.9,
    levels=(
      Level(
        {},
        '1-------5-------',
        'X---x---X---x---',
        '0---2---1---2---',
        _MELODIES[0],
      ),
      Level(
        {KICK: 'o.......o.......', SHAKER: 'x...x...x...x...'},
        '1---5---1---5---',
        'X---x---X---x---',
        '0-1-2-1-0-1-2-1-',
        _MELODIES[1],
      ),
      Level(
        {KICK: 'x.......x.......', SIDE_STICK: _BACKBEAT, SHAKER: _EIGHTHS},
        '1---1---8---1---',
        'X-x-X-x-X-x-X-x-',
        '0-1-2-1-0-1-2-1-',
        _MELODIES[2],
      ),
      Level(
        {KICK: _BEATS, SNARE: _BACKBEAT, CLOSED_HAT: _SIXTEENTHS},
        '1-8-1-8-1-8-1-8-',
        'X-x-X-x-X-x-X-x-',
        '0121012101210121',
        _MELODIES[3],
        crash=True,
      ),
    ),
  ),
  'electronic': Style(
    bass=Part((SYNTH_BASS,) * 4, 0.9, 38),
    chords=Part((WARM_PAD, WARM_PAD, SAW, SAW), 0.55, 62),
    arpeggio=Part((PLUCK,) * 4, 0.68, 72),
    pad=Part((WARM_PAD,) * 4, 0.6, 60),
    melody=Part((SQUARE, SQUARE, SAW, SAW), 0.68, 76),
    levels=(
      Level(
        {KICK: 'x...o...x...o...'},
        '1-------1-------',
        'X-------X-------',
        '0---1---2---1---',
        _MELODIES[0],
      ),
      Level(
        {KICK: _BEATS, CLOSED_HAT: '..x...x...x...x.'},
        '1---1---1---1---',
        'X---x---X---x---',
        '0-1-2-1-0-1-2-1-',
        _MELODIES[1],
      ),
      Level(
        {KICK: 'X...X...X...X...', CLAP: _BACKBEAT, CLOSED_HAT: _EIGHTHS},
        '1-1-1-1-1-1-8-1-',
        'X-x-X-x-X-x-X-x-',
        '0-1-2-1-0-1-2-1-',
        _MELODIES[2],
      ),
      Level(
        {
          KICK: 'X...X...X...X...',
          CLAP: _BACKBEAT,
          CLOSED_HAT: _SIXTEENTHS,
          OPEN_HAT: '..x...x...x...x.',
        },
        '1.11..118.11..11',
        'X-x-X-x-X-x-X-x-',
        '0121012101210121',
        _MELODIES[3],
        crash=True,
      ),
    ),
  ),
  'orchestra': Style(
    bass=Part((PIZZICATO,) * 4, 0.85, 43),
    chords=Part((PIZZICATO, PIZZICATO, STRINGS, STRINGS), 0.75, 62),
    arpeggio=Part((STRINGS,) * 4, 0.8, 69),
    pad=Part((STRINGS, STRINGS, STRINGS, BRASS), 0.55, 60),
    melody=Part((FLUTE, FLUTE, HORN, TRUMPET), 1.0, 75),
    leading_tone=True,
    drum_gain=0.9,
    levels=(
      Level(
        {},
        '1---5---1---5---',
        'X---x---X---x---',
        '0-------1-------',
        _MELODIES[0],
      ),
      Level(
        {TAMBOURINE: 'o...o...o...o...'},
        '1---5---1---5---',
        'X-x-X-x-X-x-X-x-',
        '0---1---2---1---',
        _MELODIES[1],
      ),
      Level(
        {TAMBOURINE: _EIGHTHS, KICK: 'x.......x.......'},
        '1---1---5---1---',
        'X-x-X-x-X-x-X-x-',
        '0-1-2-1-0-1-2-1-',
        _MELODIES[2],
      ),
      Level(
        {TAMBOURINE: _EIGHTHS, SNARE: 'x.ooxoooX.ooxooo', KICK: _BEATS},
        '1-1-1-1-5-5-1-1-',
        'X.xxX.xxX.xxX.xx',
        '0121012101210121',
        _MELODIES[3],
        crash=True,
      ),
    ),
  ),
  'rock': Style(
    bass=Part((PICKED_BASS,) * 4, 0.92, 38),
    chords=Part((CLEAN_GUITAR, CLEAN_GUITAR, OVERDRIVE, OVERDRIVE), 0.66, 57),
    arpeggio=Part((CLEAN_GUITAR,) * 4, 0.8, 64),
    pad=Part((ORGAN,) * 4, 0.5, 62),
    melody=Part((CLEAN_GUITAR, CLEAN_GUITAR, OVERDRIVE, OVERDRIVE), 0.82, 72),
    levels=(
      Level(
        {KICK: 'x.......x.......', SIDE_STICK: _BACKBEAT},
        '1-------1-------',
        'X---x---X---x---',
        '0---1---2---1---',
        _MELODIES[0],
      ),
      Level(
        {KICK: 'x.......x.......', SNARE: _BACKBEAT, CLOSED_HAT: _BEATS},
        '1---1---1---1---',
        'X---x---X---x---',
        '0-1-2-1-0-1-2-1-',
        _MELODIES[1],
      ),
      Level(
        {
          KICK: 'X.......X.x.....',
          SNARE: '....X.......X...',
          CLOSED_HAT: _EIGHTHS,
        },
        '1-1-1-1-1-1-1-1-',
        'X-x-X-x-X-x-X-x-',
        '0-1-2-1-0-1-2-1-',
        _MELODIES[2],
      ),
      Level(
        {
          KICK: 'X...x.x.X...x.x.',
          SNARE: '....X.......X..o',
          OPEN_HAT: 'x...x...x...x...',
          CLOSED_HAT: '..x...x...x...x.',
        },
        '1-1-1-1-1-1-1-1l',
        'X-xxX-x-X-xxX-x-',
        '0121012101210121',
        _MELODIES[3],
        crash=True,
      ),
    ),
  ),
  'jazz': Style(
    bass=Part((UPRIGHT,) * 4, 0.88, 41),
    chords=Part((E_PIANO,) * 4, 0.62, 61),
    arpeggio=Part((E_PIANO,) * 4, 0.8, 68),
    pad=Part((STRINGS,) * 4, 0.4, 62),
    melody=Part((VIBRAPHONE,) * 4, 1.2, 74),
    swing=True,
    sevenths=True,
    leading_tone=True,
    drum_gain=1.0,
    levels=(
      Level(
        {RIDE: 'o...o...o...o...'},
        '1-------5-------',
        'X-------X-------',
        '0---1---2---1---',
        _SWUNG_MELODIES[0],
      ),
      Level(
        {RIDE: 'x...x...x...x...', PEDAL_HAT: _BACKBEAT},
        '1---3---5---l---',
        'X-----------x---',
        '0---1---2---1---',
        _SWUNG_MELODIES[1],
      ),
      Level(
        {
          RIDE: 'x...x.o.x...x.o.',
          PEDAL_HAT: _BACKBEAT,
          KICK: 'o...o...o...o...',
        },
        '1---3---5---l---',
        'X---x.x-X---x---',
        '0-1-2-1-0-1-2-1-',
        _SWUNG_MELODIES[2],
      ),
      Level(
        {
          RIDE: 'X.o.X.o.X.o.X.o.',
          PEDAL_HAT: _BACKBEAT,
          KICK: _BEATS,
          SNARE: '....X.o...o.X.o.',
        },
        '1-1-3-3-5-5-l-l-',
        'X-x-x-x-X-x-x-x-',
        '0-1-2-1-0-1-2-1-',
        _SWUNG_MELODIES[3],
        crash=True,
      ),
    ),
  ),
}
