"""Clips and extractors with known answers, for tests of preparing data.

Everything pickles, and follows from the clip alone: every stream of clip
`name` holds its time in units of the stream, so that alignment shows.
"""

import dataclasses
import os
import pathlib
import signal

import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams

GIN = """
from __gin__ import dynamic_registration
from tests import fake_sources
from v2meow_jax import extraction
extraction.Recipe.visual = (@fake_sources.Picture(),)
extraction.Recipe.tokenizer = @fake_sources.Sound
extraction.Recipe.embedder = @fake_sources.Words
"""
STREAMS = ('clip', 'w2v_bert', 'caption')


@dataclasses.dataclass(frozen=True)
class Source:
  """A clip without any media.

  Attributes:
    clip_id: its name.
    split: of the dataset.
    caption: words.
    seconds: length of the picture; the sound is half a second longer.
    behaviour: 'good'; 'bad' cannot be used; 'kill' takes the process down
      unless the file `kill` + clip_id is in `log`.
    log: folder with one file for each stream that was made.
    content: what the streams follow from.
  """

  clip_id: str
  split: str = 'train'
  caption: str = 'calm piano'
  seconds: float = 4.0
  behaviour: str = 'good'
  log: str = ''
  content: str = ''
  attributes: str = '{"tempo": 90}'

  def key(self):
    return self.content

  def _note(self, what):
    if self.log:
      with open(pathlib.Path(self.log) / self.clip_id, 'a') as f:
        f.write(f'{what} ')

  def picture(self, extractor):
    if self.behaviour == 'bad':
      raise errors.UserError(f'{self.clip_id}: is bad, expected good.')
    pardon = pathlib.Path(self.log) / f'pardon_{self.clip_id}'
    if self.behaviour == 'kill' and not pardon.exists():
      os.kill(os.getpid(), signal.SIGKILL)
    self._note('picture')
    length = int(self.seconds * extractor.spec.rate_hz)
    shape = extractor.spec.example_shape(length)
    return np.full(shape, np.arange(length)[:, None], np.float32), self.seconds

  def sound(self, sample_rate_hz):
    self._note('sound')
    return np.arange(
      int((self.seconds + 0.5) * sample_rate_hz), dtype=np.float32
    )


class Picture:
  """Extractor of a 1 Hz stream."""

  spec = streams.get('clip')


class Sound:
  """Tokenizer: the time in tokens. Its weights are part of its version."""

  spec = streams.get('w2v_bert')

  def __init__(self, params):
    self.params = params

  def encode(self, waveform):
    first = waveform[:, :: self.spec.hop] / self.spec.hop
    return first.astype(np.int32)[:, :, None]


class Words:
  """Embedder: the number of letters."""

  spec = streams.get('caption')
  window_seconds = None

  def __init__(self, params):
    assert not params

  def embed_text(self, texts, allow_unknown=False):
    del allow_unknown
    return np.stack([np.full(32, len(t), np.float32) for t in texts])
