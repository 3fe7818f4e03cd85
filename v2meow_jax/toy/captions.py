"""Words for a clip: what a person might type to ask for its music."""

from __future__ import annotations

import re

from v2meow_jax.toy import attributes as attributes_lib

_TEMPO_WORDS = (
  (88.0, ('slow', 'unhurried', 'laid-back')),
  (106.0, ('walking-pace', 'moderate', 'mid-tempo')),
  (126.0, ('lively', 'brisk', 'upbeat')),
  (float('inf'), ('fast', 'quick', 'driving')),
)
_MODE_WORDS = {
  'major': ('happy', 'bright', 'cheerful', 'sunny', 'joyful'),
  'minor': ('sad', 'dark', 'melancholic', 'sombre', 'moody'),
}
_ENERGY_WORDS = (
  (0.25, ('calm', 'gentle', 'soft', 'quiet')),
  (0.5, ('relaxed', 'easy', 'flowing')),
  (0.75, ('lifting', 'strong', 'spirited')),
  (float('inf'), ('energetic', 'powerful', 'intense', 'wild')),
)
_STYLE_WORDS = {
  'piano': ('piano piece', 'piano ballad', 'tune for piano'),
  'electronic': ('electronic track', 'synth tune', 'dance track'),
  'orchestra': ('orchestral piece', 'piece for strings', 'film score'),
  'rock': ('rock song', 'guitar song', 'piece for a rock band'),
  'jazz': ('jazz tune', 'lounge jazz piece', 'piece for vibraphone'),
}
_STYLE_DETAILS = {
  'piano': ('with broken chords', 'with a singing right hand'),
  'electronic': ('with a pulsing synth bass', 'with a four-on-the-floor kick'),
  'orchestra': ('with plucked basses', 'with violins and tambourine'),
  'rock': ('with electric guitars', 'with drums, bass and guitar'),
  'jazz': ('with a walking bass', 'with swinging ride cymbal'),
}
_TEMPLATES = (
  'a {tempo}, {mode} {style}',
  'a {energy}, {mode} {style} {detail}',
  'a {tempo} and {energy} {style} in {tonic} {mode_name}',
  '{mode} {style}, {tempo}, {energy}',
  'a {mode}, {energy} {style} {detail}, {tempo}',
  'a {tempo} {style} {detail} at {bpm} bpm, {mode} and {energy}',
)
_SECTION_WORDS = {
  1: ('that grows', 'getting stronger'),
  -1: ('that calms down', 'getting softer'),
}
# From first to last section; less would not be heard as a change.
_CLEAR_STEP = 0.15


def _word(table: tuple, value: float, rng) -> str:
  """One of the words of the first row whose limit is above `value`."""
  for limit, words in table:
    if value < limit:
      return words[rng.integers(len(words))]
  raise AssertionError('the last limit of every table is infinite')


def write_caption(attributes: attributes_lib.Attributes) -> str:
  """Writes the caption of a clip from its attributes, the same every time."""
  rng = attributes_lib.generator(attributes.seed, attributes.index, 'caption')

  def choose(words):
    return words[rng.integers(len(words))]

  caption = choose(_TEMPLATES).format(
    tempo=_word(_TEMPO_WORDS, attributes.tempo_bpm, rng),
    energy=_word(_ENERGY_WORDS, attributes.energy, rng),
    mode=choose(_MODE_WORDS[attributes.mode]),
    style=choose(_STYLE_WORDS[attributes.style]),
    detail=choose(_STYLE_DETAILS[attributes.style]),
    tonic=attributes.tonic,
    mode_name=attributes.mode,
    bpm=round(attributes.tempo_bpm),
  )
  caption = re.sub(r'\ba (?=[aeiou])', 'an ', caption)
  step = attributes.sections[-1].energy - attributes.sections[0].energy
  if abs(step) > _CLEAR_STEP and rng.uniform() < 0.7:
    caption += ', ' + choose(_SECTION_WORDS[1 if step > 0 else -1])
  return caption
