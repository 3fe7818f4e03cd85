"""Words about music to 32 numbers: the bundled model's control by text.

A small lexicon, no weights. Each number is one property of the music and lies
in [-1, 1]; 0 means that the text does not say:

- scales, mean of all words that speak of them: `tempo` (-1 is 75 beats a
  minute or fewer, 1 is 150 or more, even in octaves between), `mode` (-1
  minor, 1 major), `energy`, `trend` (falling or rising energy), `change` (all
  the same or ever new), `brightness`, `articulation` (long or short notes),
  `density`, `space` (dry or reverberant);
- marks that a scale is spoken of, as 0 is also its middle: `tempo_known`,
  `energy_known`; and three soft ranges of the tempo, `slow`, `medium`, `fast`;
- what is heard, 1 where it is wanted and -1 where it is not: five styles and
  thirteen instruments and parts. An instrument also hints at its style.

`no`, `not`, `without` … turn what follows up to a comma: `no drums or bass` is
-1 for both, `not fast` is a little slow. `very` and `slightly` change a scale.
"""

from collections.abc import Mapping, Sequence
import math
import re

import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax.embedders import base

Array = np.ndarray

_SCALES = (
    'tempo', 'mode', 'energy', 'trend', 'change', 'brightness', 'articulation',
    'density', 'space',
)  # fmt: skip
_STYLES = ('piano', 'electronic', 'orchestra', 'rock', 'jazz')
_PARTS = (
    'drums', 'bass', 'guitar', 'strings', 'brass', 'woodwind', 'synthesizer',
    'organ', 'mallets', 'harp', 'pad', 'arpeggio', 'melody',
)  # fmt: skip
_TEMPO_RANGES = {'slow': -0.8, 'medium': 0.0, 'fast': 0.8}

AXES = (
  *_SCALES,
  'tempo_known',
  'energy_known',
  *_TEMPO_RANGES,
  *_STYLES,
  *_PARTS,
)

# 0 of the tempo axis: the middle of one octave from 75 to 150.
_MIDDLE_BPM = 75 * math.sqrt(2)

# What each word says. Words of one line say the same.
_LINES = {
    'largo, grave, glacial': {'tempo': -1.0},
    'slow, slowly, adagio, lento, unhurried, leisurely, sluggish, laid back, '
    'laidback': {'tempo': -0.8},
    'moderate, moderately, medium, mid tempo, midtempo, moderato, andante, '
    'walking pace': {'tempo': -0.25},
    'lively, brisk, allegretto, upbeat, up tempo, uptempo': {'tempo': 0.25},
    'fast, quick, quickly, allegro, rapid, racing, speedy, hurried, '
    'driving': {'tempo': 0.75},
    'presto, vivace, breakneck, furious': {'tempo': 1.0},
    'happy, happily, joyful, joyous, cheerful, sunny, bright, merry, glad, '
    'optimistic, hopeful, uplifting, carefree, playful, major, positive, warm, '
    'triumphant, festive, fun': {'mode': 1.0},
    'sad, sadly, melancholic, melancholy, gloomy, dark, mournful, sorrowful, '
    'tragic, wistful, sombre, somber, moody, tense, ominous, mysterious, '
    'minor, serious, brooding, scary, eerie, menacing': {'mode': -1.0},
    'calm, calmly, gentle, gently, quiet, quietly, soft, softly, peaceful, '
    'soothing, relaxing, tender, delicate, serene, tranquil, low energy, '
    'chill, sleepy, subdued': {'energy': -0.75},
    'relaxed, easy, flowing, mellow, restrained': {'energy': -0.25},
    'medium energy, balanced': {'energy': 0.0},
    'lifting, strong, spirited, dynamic': {'energy': 0.25},
    'energetic, energy, high energy, powerful, intense, loud, exciting, wild, '
    'aggressive, heavy, action, vigorous, forceful, punchy, explosive': {
        'energy': 0.75
    },
    'building, builds, build up, rising, grows, growing, crescendo, '
    'intensifying, getting stronger, getting louder': {'trend': 1.0},
    'fading, fades, calms down, calming down, winding down, falling, '
    'diminuendo, decrescendo, dies down, getting softer, getting calmer': {
        'trend': -1.0
    },
    'changing, changes, varied, contrast, contrasting, sections, '
    'eventful': {'change': 1.0},
    'constant, monotonous, repetitive, unchanging, minimal, minimalist, '
    'loop': {'change': -1.0},
    'brilliant, crisp, sparkling, shiny, glittering': {'brightness': 1.0},
    'muffled, dull, deep, warm sound, murky': {'brightness': -1.0},
    'staccato, short notes, plucky, choppy, bouncy': {'articulation': 1.0},
    'legato, smooth, sustained, long notes, lyrical': {
        'articulation': -1.0
    },
    'dense, busy, full, thick, rich, layered': {'density': 1.0},
    'sparse, thin, simple, bare, empty': {'density': -1.0},
    'spacious, reverberant, echoing, atmospheric, ethereal, dreamy': {
        'space': 1.0
    },
    'dry, close, intimate': {'space': -1.0},
    # Styles.
    'piano, pianist, keyboard, grand piano': {'piano': 1.0},
    'electronic, electro, techno, house, edm, dance, trance, club, synthwave, '
    'computer music, chiptune, drum and bass': {'electronic': 1.0},
    'ambient': {'electronic': 1.0, 'space': 1.0, 'energy': -0.75},
    'orchestra, orchestral, symphony, symphonic, classical, film score, '
    'cinematic, chamber music, philharmonic': {'orchestra': 1.0},
    'epic': {'orchestra': 1.0, 'energy': 0.75},
    'rock, rock band, metal, punk, grunge, hard rock, indie rock, blues '
    'rock': {'rock': 1.0},
    'jazz, jazzy, swing, swinging, bebop, lounge, bossa nova, jazz combo, '
    'jazz trio, jazz band': {'jazz': 1.0},
    'lullaby': {'energy': -0.75, 'tempo': -0.8},
    # Instruments and parts; each hints at its style.
    'drums, drum, drum kit, drumming, percussion, beat, kick, snare, hi hat, '
    'cymbal, tambourine': {'drums': 1.0},
    'ride cymbal': {'drums': 1.0, 'jazz': 0.6},
    'drum machine': {'drums': 1.0, 'electronic': 0.6},
    'bass, bass line, bassline, double bass, upright bass': {'bass': 1.0},
    'walking bass': {'bass': 1.0, 'jazz': 0.6},
    'guitar, electric guitar, distorted guitar, distortion': {
        'guitar': 1.0, 'rock': 0.6,
    },
    'acoustic guitar': {'guitar': 1.0},
    'jazz guitar': {'guitar': 1.0, 'jazz': 1.0},
    'strings, string, violin, viola, cello, fiddle, string quartet, string '
    'section, string orchestra': {'strings': 1.0, 'orchestra': 0.6},
    'brass, horn, horns, french horn, trombone, tuba, trumpet, muted '
    'trumpet': {'brass': 1.0},
    'flute, oboe, clarinet, bassoon, woodwind, woodwinds, recorder': {
        'woodwind': 1.0, 'orchestra': 0.6,
    },
    'saxophone, sax, alto sax, tenor sax': {'woodwind': 1.0, 'jazz': 0.6},
    'synth, synthesizer, synthesiser, synths, analog synth, sawtooth': {
        'synthesizer': 1.0, 'electronic': 0.6,
    },
    'synth pad': {'synthesizer': 1.0, 'pad': 1.0, 'electronic': 0.6},
    'synth bass': {'synthesizer': 1.0, 'bass': 1.0, 'electronic': 0.6},
    'organ, hammond': {'organ': 1.0},
    'vibraphone, vibes, xylophone, marimba, glockenspiel, celesta, bells, '
    'mallets': {'mallets': 1.0},
    'electric piano, rhodes': {'piano': 1.0, 'jazz': 0.6},
    'harp': {'harp': 1.0, 'orchestra': 0.6},
    'pad, pads, sustained chords': {'pad': 1.0},
    'arpeggio, arpeggios, arpeggiated, broken chords': {'arpeggio': 1.0},
    'melody, melodic, tuneful, lead, singing': {'melody': 1.0},
}  # fmt: skip
_LEXICON = {
  tuple(word.split()): says
  for words, says in _LINES.items()
  for word in words.split(', ')
}
_LONGEST = max(map(len, _LEXICON))

_NEGATIONS = frozenset(
  'no not without never minus nor none neither isn t doesn don hardly '
  'lacking'.split()
)
# Negation ends here; elsewhere it reaches this many words.
_ENDS = frozenset('but with just only instead and yet although .'.split())
_REACH = 3
_DEGREES = {
    'very': 1.25, 'extremely': 1.25, 'really': 1.25, 'super': 1.25,
    'highly': 1.25, 'slightly': 0.5, 'somewhat': 0.5, 'bit': 0.5, 'little': 0.5,
    'fairly': 0.75, 'rather': 0.75, 'quite': 0.75, 'moderately': 0.5,
}  # fmt: skip
_BPM = re.compile(
  r'(\d{2,3}(?:\.\d+)?)\s*(?:bpm|beats? (?:per|a) minute)'
  r'|(?:bpm|tempo)(?:\s+(?:of|is|at|around|about))?\s*[:=]?\s*'
  r'(\d{2,3}(?:\.\d+)?)'
)


def _tempo_of(bpm: float) -> float:
  return float(np.clip(2 * math.log2(bpm / _MIDDLE_BPM), -1, 1))


def _match(words: Sequence[str], first: int) -> tuple[str, ...]:
  """The longest entry of the lexicon at a place, or ()."""
  for length in range(min(_LONGEST, len(words) - first), 0, -1):
    entry = tuple(words[first : first + length])
    if entry in _LEXICON:
      return entry
    singular = (*entry[:-1], entry[-1].removesuffix('s'))
    if singular in _LEXICON:
      return singular
  return ()


def _read(text: str) -> list[tuple[str, dict[str, float]]]:
  """Finds what a text says: the word and what it says of each axis."""
  text = text.lower().replace('’', "'")
  found = []
  for match in _BPM.finditer(text):
    bpm = float(match.group(1) or match.group(2))
    if bpm > 0:
      found.append((f'{bpm:g} bpm', {'tempo': _tempo_of(bpm)}))
  text = _BPM.sub(' ', text)
  # A mark ends what is negated: `no drums, calm piano`.
  text = re.sub(r'[.,;:!?()]|\n', ' . ', text)
  words = re.findall(r'[^\W\d_]+|\.', text)
  i, reach, degree = 0, 0, 1.0
  while i < len(words):
    entry = _match(words, i)
    if entry:
      says = dict(_LEXICON[entry])
      for axis in says:
        if axis in _SCALES:
          says[axis] *= degree * (-0.5 if reach else 1.0)
        elif reach:
          says[axis] = -1.0
      if reach:  # no drums, no style that drums hint at: only the drums
        says = {k: v for k, v in says.items() if abs(_LEXICON[entry][k]) > 0.6}
        # `no drums or bass`: the list goes on.
        reach = _REACH + 1
      found.append((' '.join(entry), says))
      i += len(entry)
      degree = 1.0
      reach = max(reach - 1, 0)
      continue
    word = words[i]
    if word in _NEGATIONS:
      reach = _REACH + 1
    elif word in _ENDS:
      reach = 0
    degree = _DEGREES.get(word, degree)
    reach = max(reach - 1, 0)
    i += 1
  return found


def known_words(text: str) -> list[str]:
  """Returns the words and phrases of a text that mean something here."""
  return [word for word, _ in _read(text)]


def _say(text: str) -> dict[str, float]:
  """What a text says of each axis that it speaks of."""
  values = {axis: [] for axis in AXES}
  found = _read(text)
  for _, says in found:
    for axis, value in says.items():
      values[axis].append(value)
  # A number says more about the tempo than any word beside it.
  numbers = [says['tempo'] for word, says in found if word.endswith(' bpm')]
  values['tempo'] = numbers or values['tempo']
  says = {}
  for axis, said in values.items():
    if not said:
      continue
    if axis in _SCALES:
      says[axis] = float(np.clip(np.mean(said), -1, 1))
    else:  # a clear word outweighs a hint
      says[axis] = max(said, key=abs)
  return says


def _join(said: Sequence[Mapping[str, float]], weights: Array) -> dict:
  """What several texts say together.

  A scale is the mean of those that speak of it. What is heard keeps its full
  value in the weightiest text and has less in the others, and a clear wish
  outweighs a faint one; so equal weights give what one text of all the words
  gives.
  """
  values = {axis: [] for axis in AXES}
  for says, weight in zip(said, weights, strict=True):
    for axis, value in says.items():
      values[axis].append((value, weight))
  joined = {}
  for axis, pairs in values.items():
    pairs = [(value, weight) for value, weight in pairs if weight > 0]
    if pairs and axis in _SCALES:
      said_by, by = zip(*pairs)
      joined[axis] = float(np.average(said_by, weights=by))
    elif pairs:
      joined[axis] = max((v * w / max(weights) for v, w in pairs), key=abs)
  return joined


def _vector(says: Mapping[str, float]) -> Array:
  """Puts what is said in its places, with the marks of scales."""
  vector = dict.fromkeys(AXES, 0.0) | dict(says)
  if 'tempo' in says:
    vector['tempo_known'] = 1.0
    for name, centre in _TEMPO_RANGES.items():
      vector[name] = math.exp(-(((vector['tempo'] - centre) / 0.4) ** 2))
  if 'energy' in says:
    vector['energy_known'] = 1.0
  return np.array([vector[axis] for axis in AXES], np.float32)


class Caption(base.Embedder):
  """The lexicon as an embedder of text."""

  spec = streams.get('caption')

  def __init__(self, params: Mapping[str, Array] | None = None):
    """Takes parameters, as every embedder does; this one has none."""
    if params:
      raise ValueError(
        f'Embedder `caption` was given parameters {", ".join(params)}, '
        'expected none. Leave them out.'
      )

  def embed_text(
    self, texts: Sequence[str], allow_unknown: bool = False
  ) -> Array:
    for text in texts:
      if not allow_unknown and not known_words(text):
        raise errors.UserError(
          f'Text `{text}` holds no word that the model knows, expected words '
          'about tempo (slow, fast, 120 bpm), mood (happy, sad), energy '
          '(calm, energetic), style (piano, electronic, orchestra, rock, '
          'jazz) or instruments (drums, bass, guitar, strings, …). Use some '
          'of these.'
        )
    # [batch] -> [batch, features]
    return np.stack([_vector(_say(text)) for text in texts])

  def _mix(self, texts: Sequence[str], vectors: Array, weights: Array) -> Array:
    """Each axis apart: they are properties and no direction, see `_join`."""
    del vectors  # where 0 may mean that nothing is said
    return _vector(_join([_say(text) for text in texts], weights))
