"""WordPiece against BERT's own tokenizer, and vocabularies that are learned."""

import random

import numpy as np
import pytest

from v2meow_jax import errors
from v2meow_jax.embedders import wordpiece

_VOCABULARY = (
  '[PAD] [UNK] [CLS] [SEP] a calm piano ##s ##ist un ##happy naive jazz , ! $ '
  '音 楽 ##ably ##f affable aff ##able σ ##σ'
).split()

# As transformers' BertTokenizer gives them with the vocabulary above; the live
# test asks it again.
_GOLDEN = {
  'A calm piano,pianos! pianist': 'a calm piano , piano ##s ! [UNK]',
  'Unhappy NAÏVE jazz$': 'un ##happy naive jazz $',
  'calm\tpiano\u00a0jazz\x00\ufffd\u200b': 'calm piano jazz',
  '音楽piano音': '音 楽 piano 音',
  'unaffable': '[UNK]',
  'affably AFFABLE': 'aff ##ably affable',
  'zither': '[UNK]',
  'Σ σς ΣΣ': 'σ [UNK] σ ##σ',
  'calm 🎹 (jazz)': 'calm [UNK] [UNK] jazz [UNK]',
  '': '',
  ' \n ': '',
  'a' * 101: '[UNK]',
}


def test_pieces_are_those_of_bert():
  pieces = wordpiece.WordPiece(_VOCABULARY)
  for text, expected in _GOLDEN.items():
    assert ' '.join(pieces.split(text)) == expected, text


def test_tokens_are_framed_cut_and_padded():
  pieces = wordpiece.WordPiece(_VOCABULARY)
  assert pieces.encode('Calm pianos', 8).tolist() == [2, 5, 6, 7, 3, 0, 0, 0]
  assert pieces.encode('Calm pianos', 4).tolist() == [2, 5, 6, 3]
  assert pieces.encode('', 3).tolist() == [2, 3, 0]
  long = pieces.encode('calm ' * 10_000, 512)
  assert long.dtype == np.int32
  assert long.tolist() == [2, *[5] * 510, 3]


def _random_texts(count):
  """Texts of letters, marks, accents and signs of many scripts."""
  rng = random.Random(0)
  symbols = (
    'abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ 0123456789 .,;:!?-_$%&()[]{}<>|~^`'
    '\'"/\\+=*#@ éèüßñçåøÆŒÏÄ ΑΒΓΣσςω ЖЙёд אבג عرب हिन्दी ไทย 音楽曲ピアノ 한국 '
    '\t\n\r\u00a0\u2003\u3000\u200b\u0301\ufffd\u00ad€£–—…“”«»¿¡ ﬁ🎹♪'
  )
  for _ in range(count):
    yield ''.join(rng.choices(symbols, k=rng.randrange(60)))


def _parity(vocabulary, texts, tmp_path):
  transformers = pytest.importorskip('transformers')
  path = tmp_path / 'vocab.txt'
  path.write_text('\n'.join(vocabulary) + '\n', 'utf-8')
  theirs = transformers.BertTokenizer(str(path), do_lower_case=True)
  ours = wordpiece.read_vocabulary(path)
  for text in texts:
    assert ours.split(text) == theirs.tokenize(text), repr(text)
    ids = theirs(text, padding='max_length', truncation=True, max_length=24)
    assert ours.encode(text, 24).tolist() == ids['input_ids'], repr(text)


def test_bert_says_the_same_live(tmp_path):
  _parity([*_VOCABULARY, '[MASK]'], _GOLDEN, tmp_path)


def test_bert_says_the_same_of_the_real_vocabulary(shared_data, tmp_path):
  path = shared_data / 'weights' / 'bert_uncased_vocab.txt'
  vocabulary = path.read_text('utf-8').splitlines()
  assert len(vocabulary) == 30522
  texts = [*_GOLDEN, *_random_texts(2000)]
  texts.append('A melancholic, slow-burning synthwave piece at 92.5 BPM!')
  _parity(vocabulary, texts, tmp_path)


def test_what_is_learned_spells_every_text():
  texts = ['calm piano', 'calm pianos', 'pianist', 'jazz, piano', 'a']
  learned = wordpiece.learn_vocabulary(texts, 40)
  assert learned[:4] == list(wordpiece.SPECIAL)
  assert len(learned) == len(set(learned)) <= 40
  assert learned == wordpiece.learn_vocabulary(texts, 40)
  pieces = wordpiece.WordPiece(learned)
  assert pieces.split('Calm piano') == ['calm', 'piano']
  for text in texts:
    assert wordpiece.UNKNOWN not in pieces.split(text)
  letters = wordpiece.learn_vocabulary(texts, 0)
  assert wordpiece.WordPiece(letters).split('calm') == [
    'c', '##a', '##l', '##m',
  ]  # fmt: skip


def test_the_command_reads_captions_for_training(tmp_path, capsys):
  manifest = tmp_path / 'm.csv'
  manifest.write_text(
    'file,split,caption\na.wav,train,calm piano\nb.wav,test,zither\n'
  )
  out = tmp_path / 'vocabulary.txt'
  assert wordpiece.main([str(manifest), '--out', str(out)]) == 0
  assert capsys.readouterr().out == f'{out}\n'
  pieces = wordpiece.read_vocabulary(out)
  assert pieces.split('calm piano zither') == ['calm', 'piano', '[UNK]']
  manifest.write_text('file,split,caption\nb.wav,test,zither\n')
  assert wordpiece.main([str(manifest), '--out', str(out)]) == 1
  assert capsys.readouterr().err == (
    f'error: {manifest}: no captions of split `train`, expected words in the '
    'column caption. Add them.\n'
  )


def test_vocabularies_that_are_none(tmp_path):
  with pytest.raises(errors.UserError, match='none.txt: cannot be read'):
    wordpiece.read_vocabulary(tmp_path / 'none.txt')
  path = tmp_path / 'words.txt'
  path.write_text('calm\n[PAD]\n')
  with pytest.raises(errors.UserError) as error:
    wordpiece.read_vocabulary(path)
  assert str(error.value) == (
    'The vocabulary of 2 pieces lacks [UNK], [CLS], [SEP], expected a '
    'WordPiece vocabulary, a piece a line. Use the vocab.txt of an uncased '
    'BERT, or make one with `python -m v2meow_jax.embedders.wordpiece`.'
  )
  path.write_bytes(b'\xff\xfe\x00')
  with pytest.raises(errors.UserError, match='cannot be read'):
    wordpiece.read_vocabulary(path)
