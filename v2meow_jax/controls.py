"""What a user may choose of a piece of music, in one place.

`v2meow generate` has an option for each, and a piece's sidecar holds them all:
they and the model make the piece again.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

SEEDS = 2**32  # of them, from 0 on

# Values of the stages semantic, coarse and fine.
PerStage = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Controls:
  """How a piece shall be made.

  Attributes:
    seed: another seed, another piece; 0 to 2**32 - 1.
    text: what the music should be like, in words: one text or several, each
      with a weight (`calm piano:0.5`) or not; kept as pairs of words and
      weight, of which only the ratios count.
    negative_text: what it should be unlike; None for nothing.
    visual_guidance: how much further than the model goes by itself the music
      shall go from what it would be without the picture; 1 for no further.
    style_guidance: the same for the text; what it goes away from is the music
      of `negative_text`, or without text. A `negative_text` needs another one
      than 1.
    temperature: of sampling in each stage, 0 for the most likely tokens; None
      for the model's own.
    top_k: most likely tokens to draw from in each stage, 0 for all; None for
      the model's own.
    top_p: their probability together in each stage, 1 for all; None for the
      model's own.
    duration: seconds to make, at most the video's; None for all of it.
    best_of: pieces to make, of which the one with the highest score is kept.
    prompt_audio: sound file that the music goes on from; None for none.
    replace: spans `(start, end, seed)` in seconds that are made anew with
      another seed when all is done, one after the other; see `spans` for a
      seed of None.
  """

  seed: int = 0
  text: tuple[tuple[str, float], ...] = ()
  negative_text: str | None = None
  visual_guidance: float = 1.0
  style_guidance: float = 1.0
  temperature: PerStage | None = None
  top_k: PerStage | None = None
  top_p: PerStage | None = None
  duration: float | None = None
  best_of: int = 1
  prompt_audio: str | None = None
  replace: tuple[tuple[float, float, int | None], ...] = ()

  def __post_init__(self):
    # What users and JSON write, as it is kept.
    set_field = functools.partial(object.__setattr__, self)
    set_field('text', _parse_texts(self.text))
    for name in ('temperature', 'top_k', 'top_p'):
      value = getattr(self, name)
      set_field(name, None if value is None else tuple(value))
    set_field('replace', tuple(_parse_span(span) for span in self.replace))
    self._check()

  def _check(self) -> None:
    """Raises ValueError where a choice is out of its range or idle."""
    if not 0 <= self.seed < SEEDS:
      raise ValueError(f'seed is {self.seed}, expected 0 to {SEEDS - 1}.')
    weights = [weight for _, weight in self.text]
    if not all(0 <= weight < math.inf for weight in weights) or (
      weights and not any(weights)
    ):
      raise ValueError(
        f'text has weights {", ".join(f"{w:g}" for w in weights)}, expected 0 '
        'or more and not all 0. Say what the music should be unlike with '
        'negative_text.'
      )
    for name in ('visual_guidance', 'style_guidance'):
      weight = getattr(self, name)
      if not 0 <= weight < math.inf:
        raise ValueError(f'{name} is {weight:g}, expected 0 or more.')
    if self.negative_text is not None and self.style_guidance == 1:
      raise ValueError(
        'negative_text changes nothing where style_guidance is 1, expected '
        'more, as 3.'
      )
    if self.style_guidance != 1 and not (self.text or self.negative_text):
      raise ValueError(
        f'style_guidance is {self.style_guidance:g} but there is no text, '
        'expected 1, or a text or negative_text.'
      )
    if self.best_of < 1:
      raise ValueError(f'best_of is {self.best_of}, expected 1 or more.')
    for start, end, seed in self.replace:
      if not 0 <= start < end < math.inf:
        raise ValueError(
          f'replace has the span {start:g} to {end:g}, expected seconds from 0 '
          'on, with the end behind the start.'
        )
      if seed is not None and not 0 <= seed < SEEDS:
        raise ValueError(
          f'replace has the seed {seed}, expected 0 to {SEEDS - 1}.'
        )

  @property
  def spans(self) -> tuple[tuple[float, float, int], ...]:
    """What to make anew, in order; without a seed of its own, with the next.

    The first such span gets the seed after that of the piece, the second the
    one after that: never the one that made what is replaced.
    """
    return tuple(
      (start, end, (self.seed + 1 + i) % SEEDS if seed is None else seed)
      for i, (start, end, seed) in enumerate(self.replace)
    )


def _parse_texts(
  text: str | Sequence[str | tuple[str, float]] | None,
) -> tuple[tuple[str, float], ...]:
  """Texts as users write them: `calm piano`, or `calm piano:0.5`."""
  if text is None:
    return ()
  parsed = []
  for part in [text] if isinstance(text, str) else text:
    if not isinstance(part, str):
      words, weight = part
      parsed.append((words, float(weight)))
      continue
    words, colon, weight = part.rpartition(':')
    try:
      parsed.append((words.strip(), float(weight)) if colon else (part, 1.0))
    except ValueError:  # a colon of the text itself
      parsed.append((part, 1.0))
  return tuple(parsed)


def _parse_span(
  span: Sequence[float | int | None],
) -> tuple[float, float, int | None]:
  """Start and end of a span, with or without a seed."""
  if len(span) not in (2, 3):
    raise ValueError(
      f'replace has the span {tuple(span)}, expected start and end in seconds, '
      'and a seed or none.'
    )
  start, end, seed = (*span, None)[:3]
  return float(start), float(end), seed


# Everything as the model does by itself.
DEFAULT = Controls()
