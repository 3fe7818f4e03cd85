"""How well an embedder finds music by its words, and words by their music.

  python -m v2meow_jax.embedders.retrieval MANIFEST.csv --split test \
      --gin_file style/mulan.gin --embedder mulan.safetensors

Prints one JSON line. Each clip is asked which text is nearest, and each text
which clip; the same with the texts dealt out anew is what chance finds.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
import sys
from typing import Any

import gin
import numpy as np

from v2meow_jax import audio
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import platforms
from v2meow_jax import weights

Array = np.ndarray

_NEAREST = (1, 5, 10)


def make_embedder(
  embedder: Callable[[Mapping], Any] | None, params: Mapping
) -> Any:
  """Makes what gin/runs/retrieve.gin names.

  Args:
    embedder: makes it from its weights.
    params: the weights.

  Raises:
    UserError: there is none, or it does not hear.
  """
  made = embedder(params) if embedder else None
  if made is None or made.window_seconds is None:
    raise errors.UserError(
      'The gin file names no embedder that hears, expected one of music and '
      'text. Name another with --gin_file, such as style/mulan.gin.'
    )
  return made


def ranks(scores: Array, words: Sequence[str]) -> Array:
  """Place of the right answer, 0 where it is the nearest.

  Args:
    scores: `[questions, answers]`; that of question i is answer i.
    words: of each; answers with the same words are as right.

  Returns:
    int `[questions]`. Of equal scores the right ones come last, so that one
    vector for everything finds nothing.
  """
  words = np.asarray(words)
  same = words[:, None] == words[None]
  best = np.where(same, scores, -np.inf).max(axis=1, keepdims=True)
  return ((scores >= best) & ~same).sum(axis=1)


def measure(music: Array, text: Array, words: Sequence[str]) -> dict:
  """Recall both ways.

  Args:
    music: unit vectors of clips, `[clips, features]`.
    text: those of their captions.
    words: the captions.

  Returns:
    Numbers by name.
  """
  scores = music @ text.T
  found = {'cosine': float(np.diagonal(scores).mean())}
  for name, table in (('text', scores), ('audio', scores.T)):
    places = ranks(table, words)
    for count in _NEAREST:
      recall = float((places < count).mean())
      found[f'recall_of_{name}_at_{count}'] = recall
    found[f'median_rank_of_{name}'] = float(np.median(places) + 1)
  return found


def evaluate(embedder: Any, clips: Sequence[manifests.Clip]) -> dict:
  """Measures an embedder on clips, and with the captions dealt out anew."""
  rate = embedder.spec.sample_rate_hz
  music = np.concatenate(
    [
      embedder.embed_audio(
        audio.read_mono(
          str(clip.file), rate, clip.start_seconds, clip.end_seconds
        )[np.newaxis]
      )
      for clip in clips
    ]
  )
  words = [clip.caption.splitlines()[0] for clip in clips]
  text = embedder.embed_text(words)
  dealt = np.random.default_rng(0).permutation(len(clips))
  return {
    'clips': len(clips),
    'true': measure(music, text, words),
    'shuffled': measure(music, text[dealt], [words[i] for i in dealt]),
  }


def main(argv: Sequence[str]) -> int:
  """`python -m v2meow_jax.embedders.retrieval …`."""
  platforms.settle()
  parser = argparse.ArgumentParser(
    prog='python -m v2meow_jax.embedders.retrieval',
    description='Measures how well an embedder finds music by its captions.',
  )
  add = parser.add_argument
  add('manifest', metavar='MANIFEST', help='CSV file of captioned music')
  add('--split', default='test', help='of the clips (default: %(default)s)')
  add('--gin_file', action='append', required=True, metavar='FILE')
  add('--embedder', metavar='PATH', required=True, help='its weights')
  args = parser.parse_args(argv)
  try:
    clips = [
      clip
      for clip in manifests.read(args.manifest)
      if clip.split == args.split and clip.caption
    ]
    if len(clips) < 2:
      raise errors.UserError(
        f'{args.manifest}: {len(clips)} clips of split `{args.split}` with a '
        'caption, expected at least 2. Name another split.'
      )
    configs.parse([*args.gin_file, 'runs/retrieve.gin'])
    params = weights.load_params(args.embedder)
    embedder = gin.get_configurable(make_embedder)(params=params)
    print(json.dumps(evaluate(embedder, clips)))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  # gin knows this module by its own name, not as `__main__`.
  from v2meow_jax.embedders import retrieval as this_module

  sys.exit(this_module.main(sys.argv[1:]))
