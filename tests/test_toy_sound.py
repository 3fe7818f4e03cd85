"""The two renderers of the toy dataset, and what analysis hears in them."""

import librosa
import numpy as np
import pytest

from v2meow_jax import errors
from v2meow_jax.toy import arrangements
from v2meow_jax.toy import attributes as attributes_lib
from v2meow_jax.toy import clips
from v2meow_jax.toy import effects
from v2meow_jax.toy import music
from v2meow_jax.toy import soundfont
from v2meow_jax.toy import synth

_RATE_HZ = clips.SAMPLE_RATE_HZ
# Krumhansl and Kessler (1982): how well each note fits a key, from its tonic.
_PROFILES = {
  'major': (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29,
            2.88),
  'minor': (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34,
            3.17),
}  # fmt: skip
_TONICS = {'C': 0, 'D': 2, 'F': 5, 'G': 7, 'A': 9}


def _needs_fluidsynth():
  try:
    soundfont.check()
  except errors.UserError as error:
    pytest.skip(f'missing: {error}')


def _renderers():
  return pytest.mark.parametrize('renderer', clips.RENDERERS)


def _note(pitch: int, program: int, start=0.1, end=0.6, role='melody'):
  return music.Note(start, end, pitch, 100, program, role)


def _spectrum(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Frequencies in Hz and magnitudes of a sound."""
  windowed = sound * np.hanning(len(sound))
  return (
    np.fft.rfftfreq(len(sound), 1 / _RATE_HZ),
    np.abs(np.fft.rfft(windowed)),
  )


def _hear_mode(sound: np.ndarray) -> tuple[str, int]:
  """Mode and pitch class of the tonic by the best of the 24 key profiles."""
  chroma = librosa.feature.chroma_cqt(
    y=sound, sr=_RATE_HZ, hop_length=1024, tuning=0.0
  ).mean(1)
  fits = {
    (mode, key): np.corrcoef(np.roll(profile, key), chroma)[0, 1]
    for mode, profile in _PROFILES.items()
    for key in range(12)
  }
  return max(fits, key=fits.get)


def _hear_tempo(sound: np.ndarray) -> float:
  """Beats a minute by librosa."""
  hop = 160
  envelope = librosa.onset.onset_strength(
    y=sound, sr=_RATE_HZ, hop_length=hop, n_mels=64, fmax=8000
  )
  return librosa.feature.tempo(
    onset_envelope=envelope, sr=_RATE_HZ, hop_length=hop
  ).item()


@_renderers()
def test_tempo_and_mode_are_heard(renderer):
  if renderer == 'fluidsynth':
    _needs_fluidsynth()
  right = np.zeros(3)  # tempo, mode, tonic
  for index in (0, 3, 4, 5, 29):  # one clip of each style
    clip = clips.make_clip(0, index, 12.0, renderer, frame_size=None)
    attributes = clip.attributes
    tempo = _hear_tempo(clip.waveform)
    ratio = tempo / attributes.tempo_bpm
    mode, key = _hear_mode(clip.waveform)
    right += (
      min(abs(ratio * factor - 1) for factor in (0.5, 1, 2)) < 0.04,
      mode == attributes.mode,
      key == _TONICS[attributes.tonic],
    )
  # Measured: all, from both renderers.
  assert right[0] == 5
  assert right[1] == 5
  assert right[2] >= 4


@pytest.mark.parametrize('program', synth.PROGRAMS)
@pytest.mark.parametrize('pitch', [45, 69])
def test_numpy_plays_the_pitch(program, pitch):
  sound = synth.render([_note(pitch, program)], 0.8)
  frequencies, magnitudes = _spectrum(sound)
  pitch_hz = 440 * 2 ** ((pitch - 69) / 12)
  # Most of the power lies on the harmonics of the note and nowhere else.
  harmonic = np.abs(frequencies / pitch_hz - np.round(frequencies / pitch_hz))
  # Choirs of detuned voices spread the more the higher the harmonic.
  near = harmonic * pitch_hz < 8 + 0.005 * frequencies
  power = magnitudes**2
  assert power[near & (frequencies > 20)].sum() > 0.9 * power.sum()
  # The lowest strong one is the pitch itself.
  lowest = frequencies[magnitudes > 0.1 * magnitudes.max()][0]
  assert abs(lowest - pitch_hz) < 8


@_renderers()
def test_notes_sound_when_they_should(renderer):
  if renderer == 'fluidsynth':
    _needs_fluidsynth()
  notes = [
    _note(69, arrangements.FLUTE, 0.5, 1.0),
    _note(arrangements.KICK, 0, 1.5, 1.6, 'drums'),
  ]
  sound = clips.render(notes, 2.0, renderer)
  assert sound.shape == (32000,)
  assert sound.dtype == np.float32
  level = np.sqrt((sound.reshape(-1, 800) ** 2).mean(1))  # every 50 ms
  assert level[:10].max() < 1e-3 * level.max()
  assert level[11] > 0.1 * level.max()
  assert level[30] > 3 * level[28]


@_renderers()
def test_a_clip_is_a_cut_of_music_that_runs(renderer):
  if renderer == 'fluidsynth':
    _needs_fluidsynth()
  # A held note that began before the clip sounds from its first sample on.
  early = [_note(69, arrangements.ORGAN, -0.5, 0.5)]
  sound = clips.render(early, 1.0, renderer)
  level = np.sqrt((sound.reshape(-1, 800) ** 2).mean(1))
  assert level[0] > 0.5 * level.max()
  assert level[15:].max() < 0.2 * level.max()


@_renderers()
def test_rendering_is_deterministic(renderer):
  if renderer == 'fluidsynth':
    _needs_fluidsynth()
  make = lambda index: clips.make_clip(0, index, 2.0, renderer, frame_size=None)
  first = make(4).waveform
  make(30)  # what was played before leaves no trace
  np.testing.assert_array_equal(make(4).waveform, first)


@_renderers()
def test_loudness_does_not_tell_energy(renderer):
  if renderer == 'fluidsynth':
    _needs_fluidsynth()
  for index in range(6):
    sound = clips.make_clip(1, index, 4.0, renderer, frame_size=None).waveform
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(0.1, rel=0.25)
    assert np.abs(sound).max() <= 0.9001


def test_energy_is_heard_as_brightness_and_attacks():
  heard = []
  for energy in (0.1, 0.9):
    sounds = []
    for style in attributes_lib.STYLES:
      base = attributes_lib.sample(2, 7, 6.0)
      section = attributes_lib.Section(
        0, base.num_bars, energy, 0, ('melody', 'arpeggio')
      )
      changed = base.__class__(
        **{**vars(base), 'style': style, 'sections': (section,)}
      )
      sounds.append(clips.render(music.compose(changed), 6.0, 'numpy'))
    centroids = [(f * m).sum() / m.sum() for f, m in map(_spectrum, sounds)]
    onsets = [
      librosa.onset.onset_strength(y=s, sr=_RATE_HZ).mean() for s in sounds
    ]
    heard.append((np.array(centroids), np.array(onsets)))
  # Measured: every style is brighter by at least 1.2 times.
  assert np.all(heard[1][0] > 1.1 * heard[0][0])
  assert np.all(heard[1][1] > heard[0][1])


def test_normalise():
  sound = np.array([0.2, -0.2, 0.2, -0.2], np.float32)
  np.testing.assert_allclose(
    effects.normalise(sound), [0.1, -0.1, 0.1, -0.1], rtol=1e-6
  )
  peaky = np.zeros(1000, np.float32)
  peaky[3] = 5.0
  assert effects.normalise(peaky).max() == pytest.approx(0.9)
  silence = np.zeros(10, np.float32)
  np.testing.assert_array_equal(effects.normalise(silence), silence)


def test_room_keeps_length_and_adds_a_tail():
  click = np.zeros(8000, np.float32)
  click[100] = 1.0
  sound = effects.add_room(click, _RATE_HZ)
  assert sound.shape == click.shape
  assert sound[100] == pytest.approx(1.0, abs=1e-3)
  np.testing.assert_allclose(sound[:100], 0, atol=1e-6)
  assert 0.01 < np.sqrt((sound[101:] ** 2).sum()) < 0.2


def test_unknown_instruments_are_refused():
  with pytest.raises(ValueError, match='^Program 127: the NumPy synthesiser'):
    synth.render([_note(60, 127)], 1.0)
  with pytest.raises(ValueError, match='^Drum 81: the NumPy synthesiser has'):
    synth.render([_note(81, 0, role='drums')], 1.0)
  with pytest.raises(ValueError, match='^Unknown renderer `midi`, expected'):
    clips.render([], 1.0, 'midi')


def test_too_many_programs_are_refused():
  _needs_fluidsynth()
  notes = [_note(60, program) for program in range(16)]
  with pytest.raises(ValueError, match='^16 programs in one clip, expected'):
    clips.render(notes, 1.0, 'fluidsynth')


def test_missing_soundfont_says_what_to_install(tmp_path, monkeypatch):
  missing = str(tmp_path / 'none.sf2')
  with pytest.raises(errors.UserError) as error:
    soundfont.check(missing)
  assert str(error.value) == (
    f'{missing}: no such soundfont, expected an SF2 file. Install them '
    '(Debian: apt-get install fluidsynth fluid-soundfont-gm) or use the '
    'renderer `numpy`.'
  )
  monkeypatch.setattr(soundfont, '_PATHS', (missing,))
  with pytest.raises(errors.UserError, match='^No General MIDI soundfont in'):
    soundfont.check()


def test_missing_fluidsynth_says_what_to_install(monkeypatch):
  monkeypatch.setattr('ctypes.util.find_library', lambda name: None)
  soundfont._load_library.cache_clear()
  with pytest.raises(errors.UserError, match='^FluidSynth is missing, expect'):
    soundfont._load_library()
  soundfont._load_library.cache_clear()
