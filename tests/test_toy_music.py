"""Attributes, notes and captions of the toy dataset."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from v2meow_jax.toy import arrangements
from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import captions
from v2meow_jax.toy import harmony
from v2meow_jax.toy import music
from v2meow_jax.toy import synth

_SCALES = {'major': (0, 2, 4, 5, 7, 9, 11), 'minor': (0, 2, 3, 5, 7, 8, 10)}
_LEADING_TONE = 11


def _sample(num: int, **changes) -> list[attributes_lib.Attributes]:
  return [
    dataclasses.replace(attributes_lib.sample(3, index), **changes)
    for index in range(num)
  ]


def _with_energy(
  attributes: attributes_lib.Attributes, energy: float
) -> attributes_lib.Attributes:
  """The same clip with one energy and all instruments throughout."""
  section = attributes_lib.Section(
    0, attributes.num_bars, energy, 0, ('melody', 'arpeggio', 'pad')
  )
  return dataclasses.replace(attributes, energy=energy, sections=(section,))


def test_attributes_depend_on_seed_and_index_only():
  first = [attributes_lib.sample(1, index) for index in (0, 5, 2)]
  again = [attributes_lib.sample(1, index) for index in (2, 0, 5)]
  assert first == [again[1], again[2], again[0]]
  assert attributes_lib.sample(1, 0) != attributes_lib.sample(2, 0)
  assert attributes_lib.sample(1, 0) != attributes_lib.sample(1, 1)


def test_attributes_cover_their_ranges():
  clips = _sample(400)
  tempos = np.array([clip.tempo_bpm for clip in clips])
  energies = np.array([clip.energy for clip in clips])
  assert 75 <= tempos.min() < 80
  assert 140 < tempos.max() <= 150
  assert energies.min() < 0.15
  assert energies.max() > 0.85
  assert all(0 <= s.energy <= 1 for clip in clips for s in clip.sections)
  for values, count in (
    ([clip.mode for clip in clips], 2),
    ([clip.tonic for clip in clips], 5),
    ([clip.style for clip in clips], 5),
    ([len(clip.sections) for clip in clips], 3),
  ):
    counted = collections.Counter(values)
    assert len(counted) == count
    # Ten standard deviations below the mean of an even share.
    assert min(counted.values()) > 0.4 * 400 / count
  # Nothing follows from anything else: tempo says nothing about energy.
  is_major = np.array([clip.mode == 'major' for clip in clips], float)
  for one, other in (
    (tempos, energies),
    (tempos, is_major),
    (energies, is_major),
  ):
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_sections_are_whole_bars_without_gaps():
  for clip in _sample(100):
    bar = 0
    for section in clip.sections:
      assert section.first_bar == bar
      assert section.num_bars >= 1
      bar += section.num_bars
    end = clip.seconds_at(bar * attributes_lib.BEATS_PER_BAR)
    last_bar = attributes_lib.BEATS_PER_BAR * clip.seconds_per_beat
    assert clip.seconds <= end + 1e-6 < clip.seconds + last_bar + 2e-6
    for before, after in zip(
      clip.sections[:-1], clip.sections[1:], strict=True
    ):
      assert abs(after.energy - before.energy) >= 0.2


def test_energy_is_the_mean_over_time():
  clip = next(c for c in _sample(50) if len(c.sections) == 3)
  seconds = (np.arange(8000) + 0.5) / 8000 * clip.seconds
  bars = clip.beat_at(seconds) // attributes_lib.BEATS_PER_BAR
  energies = [clip.section_at_bar(int(bar)).energy for bar in bars]
  assert clip.energy == pytest.approx(np.mean(energies), abs=1e-3)


def test_beats():
  clip = dataclasses.replace(
    attributes_lib.sample(0, 0), tempo_bpm=120.0, start_beat=1.5, seconds=3.0
  )
  np.testing.assert_allclose(
    clip.beat_seconds(), [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
  )
  np.testing.assert_allclose(clip.beat_at(clip.seconds_at(7.25)), 7.25)


def test_splits_are_disjoint_and_of_the_size_asked_for():
  counted = collections.Counter(map(attributes_lib.split, range(1000)))
  assert counted == {'train': 900, 'validation': 50, 'test': 50}


def test_bad_clips_are_refused():
  message = (
    'clip -1 of seed 0, 16 s long: expected a seed and an index of at least '
    '0 and a length of more than 0 s.'
  )
  with pytest.raises(ValueError, match=f'^{message}$'):
    attributes_lib.sample(0, -1)
  with pytest.raises(ValueError, match='clip 0 of seed 0, 0 s long'):
    attributes_lib.sample(0, 0, seconds=0)


def test_notes_are_the_same_every_time():
  clip = attributes_lib.sample(5, 8)
  notes = music.compose(clip)
  assert notes == music.compose(attributes_lib.sample(5, 8))
  assert notes == sorted(notes)
  other = music.compose(dataclasses.replace(clip, index=9))
  assert notes != other


@pytest.mark.parametrize('style', attributes_lib.STYLES)
def test_notes_lie_on_the_grid(style):
  for clip in _sample(8, style=style):
    notes = music.compose(clip)
    assert notes
    steps = 3 if arrangements.STYLES[style].swing else 4
    starts = np.array([note.start_seconds for note in notes])
    beats = clip.beat_at(starts) * steps
    away = (beats - np.round(beats)) / steps * clip.seconds_per_beat
    # Players deviate by at most 8 ms. Swung music has eighths on triplets.
    assert np.abs(away).max() < 0.0081
    assert np.abs(away).max() > 0.001
    assert all(note.start_seconds < clip.seconds for note in notes)
    assert all(note.end_seconds > 0 for note in notes)
    assert all(note.end_seconds > note.start_seconds for note in notes)


@pytest.mark.parametrize('style', attributes_lib.STYLES)
def test_every_beat_is_struck(style):
  for energy in (0.1, 0.4, 0.6, 0.9):
    clip = _with_energy(attributes_lib.sample(4, 1), energy)
    notes = music.compose(dataclasses.replace(clip, style=style))
    starts = np.array([note.start_seconds for note in notes])
    for beat in clip.beat_seconds():
      if beat < clip.seconds - 0.02:
        assert np.abs(starts - beat).min() < 0.009, (style, energy, beat)


def test_pitches_belong_to_the_key():
  tonics = {'C': 0, 'D': 2, 'F': 5, 'G': 7, 'A': 9}
  for clip in _sample(40):
    allowed = set(_SCALES[clip.mode])
    if clip.mode == 'minor' and clip.style in ('orchestra', 'jazz'):
      allowed.add(_LEADING_TONE)
    degrees = {
      (note.pitch - tonics[clip.tonic]) % 12
      for note in music.compose(clip)
      if not note.is_drum
    }
    assert degrees <= allowed
    # The tonic and the third that makes the mode are always there.
    assert {0, 4 if clip.mode == 'major' else 3} <= degrees


def test_onset_density_grows_with_energy():
  for style in attributes_lib.STYLES:
    base = dataclasses.replace(attributes_lib.sample(6, 2), style=style)
    densities = [
      music.onset_density(
        music.compose(_with_energy(base, energy)), base.seconds
      )
      for energy in (0.1, 0.4, 0.6, 0.9)
    ]
    assert densities == sorted(densities)
    assert densities[3] > 1.5 * densities[0]


def test_onset_density_counts_chords_once():
  chord = [music.Note(t, t + 1, p, 90, 0, 'chords')
           for t in (0.5, 1.5) for p in (60, 64, 67)]  # fmt: skip
  assert music.onset_density(chord, 4.0) == 0.5
  assert music.onset_density([], 4.0) == 0.0


def test_instruments_come_and_go_with_sections():
  clip = _with_energy(attributes_lib.sample(0, 0), 0.6)
  bare = dataclasses.replace(clip.sections[0], layers=())
  roles = {n.role for n in music.compose(clip)}
  assert roles == {'drums', 'bass', 'chords', 'arpeggio', 'pad', 'melody'}
  bare_notes = music.compose(dataclasses.replace(clip, sections=(bare,)))
  assert {n.role for n in bare_notes} == {'drums', 'bass', 'chords'}


def test_voices_move_little():
  voicing = None
  for bar in range(8):
    chord = harmony.chord_at('D', 'minor', 0, bar)
    following = harmony.lead_voices(chord.tones, voicing, 60)
    assert {pitch % 12 for pitch in following} == set(chord.tones)
    assert list(following) == sorted(following)
    if voicing is not None:
      assert np.abs(np.subtract(voicing, following)).max() <= 5
    voicing = following


def test_dominant_of_minor():
  # i VI iv v of A minor: E G B, with the leading tone E G# B.
  assert harmony.chord_at('A', 'minor', 0, 3).tones == (4, 7, 11)
  raised = harmony.chord_at('A', 'minor', 0, 3, leading_tone=True)
  assert raised.tones == (4, 8, 11)
  seventh = harmony.chord_at('C', 'major', 0, 2, sevenths=True)
  assert seventh.tones == (7, 11, 2, 5)


def test_patterns_are_whole_bars_of_known_marks():
  for style in arrangements.STYLES.values():
    for level in style.levels:
      for key, pattern in level.drums.items():
        assert len(pattern) == music.STEPS_PER_BAR
        assert set(pattern) <= set('.xXo')
        assert key in synth.DRUM_KEYS
      for pattern, marks in (
        (level.bass, '.-1358l'),
        (level.chords, '.-xX'),
        (level.arpeggio, '.-012'),
        (level.melody[0], '.-x'),
        (level.melody[1], '.-x'),
      ):
        assert len(pattern) == music.STEPS_PER_BAR
        assert set(pattern) <= set(marks)
    for part in (style.bass, style.chords, style.arpeggio, style.pad):
      assert set(part.program) <= set(synth.PROGRAMS)
    assert set(style.melody.program) <= set(synth.PROGRAMS)


def test_captions_tell_the_attributes():
  words = {'major': set(), 'minor': set()}
  for clip in _sample(200):
    caption = captions.write_caption(clip)
    assert caption == captions.write_caption(clip)
    assert '{' not in caption
    assert ' a u' not in caption
    words[clip.mode].update(caption.replace(',', '').split())
  assert {'happy', 'sunny', 'piano', 'fast', 'calm'} <= words['major']
  assert {'sad', 'dark', 'rock', 'slow', 'energetic'} <= words['minor']
  assert not {'sad', 'dark', 'melancholic'} & words['major']
  assert not {'happy', 'sunny', 'cheerful'} & words['minor']


def test_attributes_are_json():
  clip = attributes_lib.sample(0, 1)
  read = json.loads(json.dumps(clip.to_dict()))
  assert read['tempo_bpm'] == clip.tempo_bpm
  assert read['sections'][0]['energy'] == clip.sections[0].energy
