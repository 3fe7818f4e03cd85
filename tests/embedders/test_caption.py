"""The lexicon: what words say, negations, numbers, and unknown texts."""

import numpy as np
import pytest

from tests import contracts
from v2meow_jax import errors
from v2meow_jax.embedders import caption


def _says(text):
  """The axes that a text speaks of, by name."""
  vector = caption.Caption().embed_text([text])[0]
  return {a: float(v) for a, v in zip(caption.AXES, vector) if v}


def _words(text):
  ranges = (*caption._TEMPO_RANGES, 'tempo_known', 'energy_known')
  return {k: v for k, v in _says(text).items() if k not in ranges}


def test_vector_has_the_shape_of_the_stream_and_is_bounded():
  words = ' '.join(w for entry in caption._LEXICON for w in entry)
  vectors = caption.Caption().embed_text(['slow piano', f'very {words}'])
  assert vectors.dtype == np.float32
  assert vectors.shape == (2, caption.Caption.spec.num_features)
  assert len(caption.AXES) == caption.Caption.spec.num_features
  assert np.abs(vectors).max() <= 1


def test_contract():
  contracts.check_embedder(
    caption.Caption({}), ['slow piano', 'fast', 'a rock song']
  )


def test_weights_of_another_embedder():
  with pytest.raises(ValueError, match='was given parameters a, expected none'):
    caption.Caption({'a': np.zeros(1)})


def test_every_word_of_the_lexicon_speaks_of_an_axis():
  for entry, says in caption._LEXICON.items():
    assert set(says) <= set(caption.AXES), entry
    assert caption.known_words(' '.join(entry)) == [' '.join(entry)]


@pytest.mark.parametrize(
    'text, expected',
    [
        ('A slow, sad piano', {'tempo': -0.8, 'mode': -1, 'piano': 1}),
        ('HAPPY ROCK!', {'mode': 1, 'rock': 1}),
        ('film-score with violins',
         {'orchestra': 1, 'strings': 1}),
        ('drum and bass', {'electronic': 1}),
        ('drums and bass', {'drums': 1, 'bass': 1}),
        # Of words that disagree, the mean; hints give way to clear words.
        ('calm and energetic', {}),
        ('jazz guitar', {'jazz': 1, 'guitar': 1}),
        ('electric guitar', {'guitar': 1, 'rock': 0.6}),
    ],
)  # fmt: skip
def test_words(text, expected):
  assert _words(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    'text, expected',
    [
        ('no drums', {'drums': -1}),
        ('without drums or bass', {'drums': -1, 'bass': -1}),
        ('no drums, calm piano', {'drums': -1, 'energy': -0.75, 'piano': 1}),
        ('no guitar but strings',
         {'guitar': -1, 'strings': 1, 'orchestra': 0.6}),
        ('no drums. Strings', {'drums': -1, 'strings': 1, 'orchestra': 0.6}),
        ("isn't happy", {'mode': -0.5}),
        ('not too fast', {'tempo': -0.375}),
        # Three words on, `no` is forgotten.
        ('no one knows how it began drums', {'drums': 1}),
    ],
)  # fmt: skip
def test_negation(text, expected):
  assert _words(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    'text', ['120 bpm', '120bpm', 'tempo of 120', 'BPM: 120',
             '120 beats per minute, slow']
)  # fmt: skip
def test_numbers(text):
  # log2(120 / 106.07) of an octave, whose half is 1.
  assert _says(text)['tempo'] == pytest.approx(0.3561, abs=1e-3)


@pytest.mark.parametrize('bpm, tempo', [(20, -1), (75, -1), (150, 1), (300, 1)])
def test_the_tempo_is_bounded(bpm, tempo):
  assert _says(f'{bpm} bpm')['tempo'] == tempo


def test_known_marks_tell_the_middle_from_silence():
  assert _says('balanced rock') == {'rock': 1.0, 'energy_known': 1.0}
  says = _says('106.066 bpm')
  assert abs(says.pop('tempo', 0)) < 1e-4
  assert says['tempo_known'] == 1
  assert says['medium'] == pytest.approx(1)
  assert says['slow'] == pytest.approx(says['fast'], rel=1e-3)
  assert 'energy_known' in _says('calm')
  assert 'energy_known' not in _says('slow')


def test_degrees():
  energy = lambda text: _says(text)['energy']
  slightly, plain, very = map(energy, ('slightly calm', 'calm', 'very calm'))
  assert 0 > slightly > plain > very >= -1


def test_known_words_are_listed_in_order():
  text = 'Something with a muted trumpet, not loud, at 96 bpm'
  assert caption.known_words(text) == ['96 bpm', 'muted trumpet', 'loud']


def test_a_text_without_known_words_is_an_error():
  with pytest.raises(errors.UserError) as e:
    caption.Caption().embed_text(['piano', 'xyzzy of 3'])
  assert str(e.value) == (
    'Text `xyzzy of 3` holds no word that the model knows, expected words '
    'about tempo (slow, fast, 120 bpm), mood (happy, sad), energy (calm, '
    'energetic), style (piano, electronic, orchestra, rock, jazz) or '
    'instruments (drums, bass, guitar, strings, …). Use some of these.'
  )
  zero = caption.Caption().embed_text(['xyzzy'], allow_unknown=True)
  np.testing.assert_array_equal(zero, np.zeros((1, 32)))


def test_it_does_not_hear():
  with pytest.raises(ValueError, match='only reads text'):
    caption.Caption().embed_audio(np.zeros((1, 16000)))


def test_equal_weights_are_one_text_of_all_words():
  texts = ['slow piano', 'calm drums, no bass', 'happy jazz guitar, fast']
  embedder = caption.Caption()
  np.testing.assert_allclose(
    embedder.mix_texts([(text, 0.3) for text in texts]),
    embedder.embed_text(['; '.join(texts)])[0],
    atol=1e-6,
  )


def test_weights_are_those_of_scales_and_of_what_is_heard():
  mixed = caption.Caption().mix_texts(
    [('calm electric guitar', 0.75), ('energetic rock, fast', 0.25)]
  )
  says = dict(zip(caption.AXES, mixed))
  assert says['energy'] == pytest.approx(-0.375)  # of two
  assert says['tempo'] == pytest.approx(0.75)  # only one speaks of it
  assert says['guitar'] == 1
  # A hint of the weighty text is more than the word of the other.
  assert says['rock'] == pytest.approx(0.6)
  assert (says['tempo_known'], says['energy_known']) == (1, 1)
  assert says['fast'] > 0.9
