"""WordPiece: text to the tokens of an uncased BERT, and vocabularies for it.

  python -m v2meow_jax.embedders.wordpiece MANIFEST.csv… --out vocabulary.txt

As BERT's uncased vocabularies want it (Devlin et al., 2019): control characters
go, Chinese characters stand alone, accents and capitals go, words end at spaces
and at every mark; a word is then the longest pieces that the vocabulary has,
from the left, those inside it with `##` in front. The command learns a small
vocabulary from captions, for those who have no file of one.
"""

import argparse
import collections
from collections.abc import Iterable, Sequence
import functools
import os
import pathlib
import sys
import unicodedata

import numpy as np

from v2meow_jax import errors
from v2meow_jax import manifests

PADDING, UNKNOWN, START, END = SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')
INSIDE = '##'
# As in BERT: a longer word is unknown, whatever it holds.
_LONGEST_WORD = 100

_CHINESE = (  # blocks of CJK ideographs, as BERT lists them
  (0x4E00, 0x9FFF),
  (0x3400, 0x4DBF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F),
  (0x2B820, 0x2CEAF),
  (0xF900, 0xFAFF),
  (0x2F800, 0x2FA1F),
)


@functools.lru_cache(maxsize=1 << 16)
def _clean(symbol: str) -> str:
  """What becomes of one character before words are found."""
  if symbol in '\t\n\r':
    return ' '
  if symbol == '\ufffd' or unicodedata.category(symbol)[0] == 'C':
    return ''
  if symbol.isspace():
    return ' '
  if any(first <= ord(symbol) <= last for first, last in _CHINESE):
    return f' {symbol} '
  return symbol


@functools.lru_cache(maxsize=1 << 16)
def _is_mark(symbol: str) -> bool:
  """Whether a character is punctuation; all ASCII signs are, such as `$`."""
  if symbol.isascii():
    return not symbol.isalnum() and symbol.isprintable() and symbol != ' '
  return unicodedata.category(symbol)[0] == 'P'


def split_words(text: str) -> list[str]:
  """Splits a text into lower-case words and single marks."""
  text = ''.join(map(_clean, text))
  text = unicodedata.normalize('NFD', text)
  text = ''.join(c for c in text if unicodedata.category(c) != 'Mn')
  # Each letter alone: the ς at the end of a Greek word stays σ.
  text = ''.join(c.lower() for c in text)
  words = []
  for word in text.split():
    first = 0
    for place, symbol in enumerate(word):
      if _is_mark(symbol):
        words += [word[first:place], symbol]
        first = place + 1
    words.append(word[first:])
  return [word for word in words if word]


class WordPiece:
  """A vocabulary and the way to its tokens.

  Attributes:
    vocabulary: pieces; their places are the tokens.
    padding: token behind the end of a text.
    unknown: token of a word that the vocabulary cannot spell.
  """

  def __init__(self, vocabulary: Sequence[str]):
    """Takes a vocabulary.

    Raises:
      UserError: it lacks one of `SPECIAL`.
    """
    self.vocabulary = tuple(vocabulary)
    self._tokens = {piece: i for i, piece in enumerate(self.vocabulary)}
    missing = [piece for piece in SPECIAL if piece not in self._tokens]
    if missing:
      raise errors.UserError(
        f'The vocabulary of {len(self.vocabulary)} pieces lacks '
        f'{", ".join(missing)}, expected a WordPiece vocabulary, a piece a '
        'line. Use the vocab.txt of an uncased BERT, or make one with '
        '`python -m v2meow_jax.embedders.wordpiece`.'
      )
    self.padding = self._tokens[PADDING]
    self.unknown = self._tokens[UNKNOWN]
    self._longest = max(map(len, self.vocabulary))

  def split(self, text: str) -> list[str]:
    """Splits a text into pieces of the vocabulary."""
    pieces = []
    for word in split_words(text):
      pieces += self._spell(word)
    return pieces

  def _spell(self, word: str) -> list[str]:
    if len(word) > _LONGEST_WORD:
      return [UNKNOWN]
    pieces, first = [], 0
    while first < len(word):
      before = INSIDE if first else ''
      for end in range(min(len(word), first + self._longest), first, -1):
        piece = before + word[first:end]
        if piece in self._tokens:
          break
      else:
        return [UNKNOWN]
      pieces.append(piece)
      first = end
    return pieces

  def encode(self, text: str, length: int) -> np.ndarray:
    """Maps a text to tokens.

    Args:
      text: any text.
      length: of the result; what does not fit is left out at the end.

    Returns:
      int32 `[length]`: `[CLS]`, the text, `[SEP]`, and padding.
    """
    pieces = [START, *self.split(text)[: length - 2], END]
    tokens = np.full(length, self.padding, np.int32)
    tokens[: len(pieces)] = [self._tokens[piece] for piece in pieces]
    return tokens


def read_vocabulary(path: str | os.PathLike) -> WordPiece:
  """Reads a vocabulary: UTF-8, a piece a line.

  Raises:
    UserError: the file cannot be read or is no vocabulary.
  """
  try:
    text = pathlib.Path(path).read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f'{path}: cannot be read ({error}), expected a vocabulary, a piece a '
      'line. Check the path.'
    ) from error
  return WordPiece(text.removesuffix('\n').split('\n'))


def learn_vocabulary(texts: Iterable[str], size: int) -> list[str]:
  """Learns pieces from texts: letters, then the pairs that are most frequent.

  Args:
    texts: what the vocabulary is for.
    size: most pieces that it may have; fewer where all words are pieces, more
      where the letters alone are more.

  Returns:
    The vocabulary. Every text that was given can be spelt with it.
  """
  counts = collections.Counter(w for text in texts for w in split_words(text))
  spelt = {w: [w[0], *(INSIDE + letter for letter in w[1:])] for w in counts}
  letters = sorted({piece for pieces in spelt.values() for piece in pieces})
  vocabulary = [*SPECIAL, *letters]
  while len(vocabulary) < size:
    pairs = collections.Counter()
    for word, pieces in spelt.items():
      for pair in zip(pieces, pieces[1:]):
        pairs[pair] += counts[word]
    if not pairs:
      break
    # Of equally many the first of the alphabet, so that it is always the same.
    (left, right), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
    joined = left + right.removeprefix(INSIDE)
    vocabulary.append(joined)
    for pieces in spelt.values():
      i = 0
      while i < len(pieces) - 1:
        if (pieces[i], pieces[i + 1]) == (left, right):
          pieces[i : i + 2] = [joined]
        i += 1
  return list(dict.fromkeys(vocabulary))


def main(argv: Sequence[str]) -> int:
  """`python -m v2meow_jax.embedders.wordpiece …`."""
  parser = argparse.ArgumentParser(
    prog='python -m v2meow_jax.embedders.wordpiece',
    description='Learns a WordPiece vocabulary from the captions of manifests '
    'whose clips are for training.',
  )
  add = parser.add_argument
  add('manifests', metavar='MANIFEST', nargs='+', help='CSV file of clips')
  add('--out', metavar='FILE', required=True, help='vocabulary to write')
  add(
    '--size',
    metavar='N',
    type=int,
    default=4096,
    help='most pieces (default: %(default)s)',
  )
  args = parser.parse_args(argv)
  try:
    clips = [clip for path in args.manifests for clip in manifests.read(path)]
    texts = [clip.caption for clip in clips if clip.split == 'train']
    if not any(texts):
      raise errors.UserError(
        f'{", ".join(args.manifests)}: no captions of split `train`, expected '
        'words in the column caption. Add them.'
      )
    vocabulary = learn_vocabulary(texts, args.size)
    pathlib.Path(args.out).write_text('\n'.join(vocabulary) + '\n', 'utf-8')
  except (errors.UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(args.out)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
