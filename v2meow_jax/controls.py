"""What a user may choose of a piece of music, in one place.

`v2meow generate` has an option for each, and a piece's sidecar holds them all:
they and the model make the piece again.
"""

from collections.abc import Sequence
import dataclasses
import functools

# Values of the stages semantic, coarse and fine.
PerStage = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Controls:
  """How a piece shall be made.

  Attributes:
    seed: another seed, another piece; 0 to 2**32 - 1.
    text: what the music should be like, in words: one text or several, each
      with a weight or not; kept as pairs of words and weight.
    negative_text: what it should be unlike; None for nothing.
    visual_guidance: how much further than the model goes by itself the music
      shall go from what it would be without the picture; 1 for no further.
    style_guidance: the same for the text; what it goes away from is the music
      of `negative_text`, or without text.
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
      another seed when all is done, one after the other.
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
  replace: tuple[tuple[float, float, int], ...] = ()

  def __post_init__(self):
    # What users and JSON write, as it is kept.
    set_field = functools.partial(object.__setattr__, self)
    set_field('text', _parse_texts(self.text))
    for name in ('temperature', 'top_k', 'top_p'):
      value = getattr(self, name)
      set_field(name, None if value is None else tuple(value))
    set_field('replace', tuple(tuple(span) for span in self.replace))


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


# Everything as the model does by itself.
DEFAULT = Controls()
