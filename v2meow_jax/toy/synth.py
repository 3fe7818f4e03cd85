"""Renders notes without FluidSynth: additive tones, and noise for drums."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.signal

from v2meow_jax.toy import arrangements
from v2meow_jax.toy import effects
from v2meow_jax.toy import music

SAMPLE_RATE_HZ = 16000
_RELEASE_SECONDS = 0.06
_TABLE_STEP_SECONDS = 0.5
# Tables of tones that are kept: those of a few hundred clips fit.
_NUM_TABLES = 1024
_MAX_HARMONICS = 40


@dataclasses.dataclass(frozen=True)
class Patch:
  """How a family of instruments sounds.

  Attributes:
    slope: level of harmonic `k` is `k ** -slope`.
    even: factor of the even harmonics.
    decay_seconds: time constant of the decay of the first harmonic; 0 holds.
    damping: how much faster the upper harmonics decay.
    attack_seconds: length of the attack.
    detune: relative detuning of a second voice; 0 for none.
    drive: how hard the sum is pressed through tanh; 0 for not.
    spacing: distance from harmonic to harmonic, in multiples of the pitch; 1
      but for bars of metal.
    gain: level.
  """

  slope: float = 1.2
  even: float = 1.0
  decay_seconds: float = 0.0
  damping: float = 0.0
  attack_seconds: float = 0.005
  detune: float = 0.0
  drive: float = 0.0
  spacing: float = 1.0
  gain: float = 1.0


_PATCHES = {
  arrangements.PIANO: Patch(1.3, decay_seconds=1.2, damping=0.25),
  arrangements.E_PIANO: Patch(2.0, decay_seconds=1.4, damping=0.5, even=0.5),
  arrangements.VIBRAPHONE: Patch(
    2.2, decay_seconds=1.0, damping=0.6, spacing=3.0
  ),
  arrangements.UPRIGHT: Patch(1.6, decay_seconds=0.6, damping=0.4, gain=1.6),
  arrangements.ORGAN: Patch(1.0, even=0.7, attack_seconds=0.01, gain=0.5),
  arrangements.CLEAN_GUITAR: Patch(1.1, decay_seconds=0.9, damping=0.3),
  arrangements.OVERDRIVE: Patch(0.9, decay_seconds=4.0, drive=2.5, gain=0.6),
  arrangements.PICKED_BASS: Patch(
    1.2, decay_seconds=0.8, damping=0.3, gain=1.3
  ),
  arrangements.SYNTH_BASS: Patch(0.9, decay_seconds=0.5, damping=0.2, gain=1.2),
  arrangements.PLUCK: Patch(0.9, decay_seconds=0.25, damping=0.3),
  arrangements.SQUARE: Patch(1.0, even=0.05, gain=0.6),
  arrangements.SAW: Patch(1.0, detune=0.004, gain=0.5),
  arrangements.WARM_PAD: Patch(
    1.8, attack_seconds=0.12, detune=0.003, gain=0.5
  ),
  arrangements.STRINGS: Patch(1.2, attack_seconds=0.05, detune=0.003, gain=0.5),
  arrangements.PIZZICATO: Patch(1.5, decay_seconds=0.22, damping=0.5, gain=1.4),
  arrangements.FLUTE: Patch(2.4, attack_seconds=0.05, gain=0.9),
  arrangements.HORN: Patch(1.7, attack_seconds=0.05, gain=0.8),
  arrangements.TRUMPET: Patch(1.1, attack_seconds=0.03, gain=0.6),
  arrangements.BRASS: Patch(1.2, attack_seconds=0.04, detune=0.002, gain=0.5),
}


@dataclasses.dataclass(frozen=True)
class _Drum:
  """A drum: a falling tone, and noise between two frequencies."""

  seconds: float
  tone_hz: float = 0.0
  tone_fall_hz: float = 0.0
  tone_decay: float = 0.1
  noise: float = 0.0
  noise_decay: float = 0.05
  band_hz: tuple[float, float] = (200.0, 7000.0)
  gain: float = 1.0


_DRUMS = {
  arrangements.KICK: _Drum(0.35, 48, 110, 0.12, 0.08, 0.006, gain=1.6),
  arrangements.SIDE_STICK: _Drum(
    0.1, 900, 0, 0.015, 0.5, 0.01, (1500, 5000), 0.8
  ),
  arrangements.SNARE: _Drum(0.3, 180, 60, 0.06, 0.8, 0.07, (800, 7500), 1.0),
  arrangements.CLAP: _Drum(
    0.25, noise=1.0, noise_decay=0.06, band_hz=(900, 4000)
  ),
  arrangements.CLOSED_HAT: _Drum(
    0.1, noise=0.6, noise_decay=0.02, band_hz=(5000, 7800), gain=0.7
  ),
  arrangements.PEDAL_HAT: _Drum(
    0.1, noise=0.5, noise_decay=0.025, band_hz=(3500, 7500), gain=0.7
  ),
  arrangements.OPEN_HAT: _Drum(
    0.4, noise=0.6, noise_decay=0.12, band_hz=(4500, 7800), gain=0.7
  ),
  arrangements.CRASH: _Drum(
    1.6, noise=0.8, noise_decay=0.45, band_hz=(2500, 7800), gain=0.8
  ),
  arrangements.RIDE: _Drum(0.6, 3100, 0, 0.1, 0.35, 0.12, (3500, 7800), 0.5),
  arrangements.TAMBOURINE: _Drum(
    0.2, noise=0.6, noise_decay=0.05, band_hz=(4500, 7800), gain=0.7
  ),
  arrangements.SHAKER: _Drum(
    0.12, noise=0.5, noise_decay=0.03, band_hz=(4000, 7500), gain=0.6
  ),
}

# What there are patches for.
PROGRAMS = tuple(sorted(_PATCHES))
DRUM_KEYS = tuple(sorted(_DRUMS))


def render(notes: list[music.Note], seconds: float) -> np.ndarray:
  """Renders notes.

  Args:
    notes: the notes.
    seconds: length of the result; what rings on after it is cut off.

  Returns:
    float32 `[samples]` at 16 kHz, not normalised.

  Raises:
    ValueError: a program or drum that no patch describes.
  """
  num_samples = round(seconds * SAMPLE_RATE_HZ)
  sound = np.zeros(num_samples, np.float32)
  for note in notes:
    tone = _drum(note.pitch) if note.is_drum else _held(note)
    level = (note.velocity / 127) ** 1.7
    start = round(note.start_seconds * SAMPLE_RATE_HZ)
    skipped = max(0, -start)
    start = max(0, start)
    tone = tone[skipped : skipped + max(0, num_samples - start)]
    sound[start : start + len(tone)] += level * tone
  return effects.add_room(0.2 * sound, SAMPLE_RATE_HZ)


def _held(note: music.Note) -> np.ndarray:
  """A tone held as long as its note and let go, float32 `[samples]`."""
  seconds = note.end_seconds - note.start_seconds + _RELEASE_SECONDS
  steps = int(np.ceil(seconds / _TABLE_STEP_SECONDS))
  table = _tone(note.program, note.pitch, steps)
  num_samples = round(seconds * SAMPLE_RATE_HZ)
  num_release = round(_RELEASE_SECONDS * SAMPLE_RATE_HZ)
  tone = table[:num_samples].copy()
  tone[-num_release:] *= np.linspace(1, 0, num_release, dtype=np.float32)
  return tone


@functools.lru_cache(_NUM_TABLES)
def _tone(program: int, pitch: int, steps: int) -> np.ndarray:
  """Table of a tone, `steps` half seconds long, float32 `[samples]`."""
  if program not in _PATCHES:
    raise ValueError(
      f'Program {program}: the NumPy synthesiser has no patch for it, expected '
      f'one of {list(PROGRAMS)}. Add a row to _PATCHES or use FluidSynth.'
    )
  patch = _PATCHES[program]
  num_samples = round(steps * _TABLE_STEP_SECONDS * SAMPLE_RATE_HZ)
  seconds = np.arange(num_samples, dtype=np.float32) / SAMPLE_RATE_HZ
  pitch_hz = 440.0 * 2.0 ** ((pitch - 69) / 12)
  phases = np.random.default_rng(pitch).uniform(0, 2 * np.pi, _MAX_HARMONICS)
  if patch.drive:
    # Sines in step are symmetric: the drive gives them no offset.
    phases[:] = 0
  sound = np.zeros(num_samples, np.float32)
  # Below half the sample rate, or harmonics would fold down; the drive makes
  # further ones.
  highest = (0.1 if patch.drive else 0.47) * SAMPLE_RATE_HZ
  for voice_hz in (
    pitch_hz * (1 - patch.detune),
    pitch_hz * (1 + patch.detune),
  ):
    for k in range(1, _MAX_HARMONICS + 1):
      partial_hz = voice_hz * (1 + (k - 1) * patch.spacing)
      if partial_hz > highest:
        break
      level = k**-patch.slope * (patch.even if k % 2 == 0 else 1.0)
      wave = level * np.sin(
        np.float32(2 * np.pi * partial_hz) * seconds + np.float32(phases[k - 1])
      )
      if patch.decay_seconds:
        rate = (1 + patch.damping * (k - 1)) / patch.decay_seconds
        wave *= np.exp(-np.float32(rate) * seconds)
      sound += wave
    if not patch.detune:
      break
  if patch.drive:
    sound = np.tanh(patch.drive * sound)
  num_attack = round(patch.attack_seconds * SAMPLE_RATE_HZ)
  sound[:num_attack] *= np.linspace(0, 1, num_attack, dtype=np.float32)
  return patch.gain * sound


@functools.cache
def _drum(key: int) -> np.ndarray:
  """A hit of a drum, float32 `[samples]`."""
  if key not in _DRUMS:
    raise ValueError(
      f'Drum {key}: the NumPy synthesiser has no patch for it, expected one of '
      f'{list(DRUM_KEYS)}. Add a row to _DRUMS or use FluidSynth.'
    )
  drum = _DRUMS[key]
  seconds = np.arange(round(drum.seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
  sound = np.zeros(len(seconds))
  if drum.tone_hz:
    pitch_hz = drum.tone_hz + drum.tone_fall_hz * np.exp(-seconds / 0.03)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    sound += np.sin(phase) * np.exp(-seconds / drum.tone_decay)
  if drum.noise:
    rng = np.random.default_rng(key)
    band = scipy.signal.butter(
      2, drum.band_hz, 'bandpass', fs=SAMPLE_RATE_HZ, output='sos'
    )
    noise = scipy.signal.sosfilt(band, rng.standard_normal(len(seconds)))
    noise /= np.sqrt(np.mean(noise**2))
    sound += drum.noise * noise * np.exp(-seconds / drum.noise_decay)
  fade = min(len(sound), round(0.01 * SAMPLE_RATE_HZ))
  sound[-fade:] *= np.linspace(1, 0, fade)
  return (drum.gain * sound).astype(np.float32)
