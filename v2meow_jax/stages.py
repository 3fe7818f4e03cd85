"""The stages of V2Meow as data: what conditions and what is predicted.

The three stages are three rows over one network. `make` builds a row from the
choices made in gin: which visual streams, which style, which tokens.
"""

from collections.abc import Sequence
import dataclasses

from v2meow_jax import streams
from v2meow_jax import vocabularies

ENCODER_DECODER = 'encoder_decoder'
DECODER_ONLY = 'decoder_only'

# Defaults of the paper (V2Meow, Model Details): seconds of a training crop
# and the sampling temperature of each stage.
_SECONDS = {'semantic': 10.0, 'coarse': 10.0, 'fine': 3.0}
TEMPERATURES = {'semantic': 1.0, 'coarse': 0.95, 'fine': 0.4}
NAMES = tuple(_SECONDS)


@dataclasses.dataclass(frozen=True)
class View:
  """The part of a stream that a stage sees: all of it, or a range of levels.

  Attributes:
    spec: the stream.
    first_level: first level seen.
    num_levels: number of levels seen; 1 for a continuous stream.
  """

  spec: streams.StreamSpec
  first_level: int = 0
  num_levels: int = 1

  @property
  def name(self) -> str:
    return self.spec.name

  @property
  def num_blocks(self) -> int:
    """Blocks of ids: one for each level, or one that all levels share."""
    return 1 if self.spec.shares_codebook else self.num_levels

  @property
  def level_ids(self) -> int:
    """Ids from one level's block to the next; 0 if all share a block."""
    return 0 if self.spec.shares_codebook else self.spec.num_codes

  @property
  def num_ids(self) -> int:
    """Ids of all blocks together; 0 for a continuous stream."""
    return self.num_blocks * self.spec.num_codes

  @property
  def rate_hz(self) -> float | None:
    """Positions of the flat sequence a second; None once per clip."""
    return self.spec.rate_hz and self.spec.rate_hz * self.num_levels

  @property
  def time_rate_hz(self) -> float | None:
    """Places in time a second: the tokens of one frame are at one place."""
    return self.spec.rate_hz if self.spec.shares_codebook else self.rate_hz

  def length(self, seconds: float) -> int:
    """Positions of the flat sequence: time x levels, 1 once per clip."""
    return self.spec.length(seconds) * self.num_levels


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage: its inputs in order, its target and the length of a crop.

  Attributes:
    name: 'semantic', 'coarse' or 'fine'.
    inputs: what conditions the prediction, in the order of the sequence.
    target: what is predicted.
    seconds: length of a training crop and of a window of generation.
    architecture: 'encoder_decoder' or 'decoder_only'; the latter puts the
      inputs in front of the target, so they must be tokens.
  """

  name: str
  inputs: tuple[View, ...]
  target: View
  seconds: float
  architecture: str = ENCODER_DECODER

  def __post_init__(self):
    if self.name not in NAMES:
      raise ValueError(
        f'Unknown stage `{self.name}`, expected one of {", ".join(NAMES)}.'
      )
    if self.architecture not in (ENCODER_DECODER, DECODER_ONLY):
      raise ValueError(
        f'Stage `{self.name}`: unknown architecture `{self.architecture}`, '
        f'expected {ENCODER_DECODER} or {DECODER_ONLY}.'
      )
    if not self.inputs:
      raise ValueError(
        f'Stage `{self.name}` has no inputs, expected at least one stream. '
        'Set VISUAL, or another condition of the stage.'
      )
    if self.architecture == DECODER_ONLY:
      for view in self.inputs:
        if not view.spec.is_discrete:
          raise ValueError(
            f'Stage `{self.name}` is {DECODER_ONLY} but its input '
            f'`{view.name}` is continuous, expected tokens. Choose '
            f'{ENCODER_DECODER} or leave the stream out.'
          )
        if view.spec.shares_codebook:
          raise ValueError(
            f'Stage `{self.name}` is {DECODER_ONLY} but its input '
            f'`{view.name}` holds frames, {view.num_levels} tokens each, '
            f'which an encoder reads. Choose {ENCODER_DECODER} or leave the '
            'stream out.'
          )
    if self.target.spec.shares_codebook:
      raise ValueError(
        f'Stage `{self.name}`: its target `{self.target.name}` holds frames, '
        'expected a stream with a codebook for each level. Choose another.'
      )
    for view in (*self.inputs, self.target):
      view.length(self.seconds)  # raises where it is no whole number

  @property
  def index(self) -> int:
    """Place in the cascade; part of the key of every random number."""
    return NAMES.index(self.name)

  def input_offset(self, name: str) -> int:
    """First id of the discrete input `name`."""
    offset = vocabularies.FIRST_CODE_ID
    for view in self.inputs:
      if view.name == name:
        return offset
      offset += view.num_ids
    raise ValueError(
      f'Stage `{self.name}` has no input `{name}`, expected one of '
      f'{", ".join(view.name for view in self.inputs)}.'
    )

  @property
  def visual_names(self) -> tuple[str, ...]:
    """Inputs made from pictures."""
    return tuple(v.name for v in self.inputs if v.spec.is_visual)

  @property
  def style_names(self) -> tuple[str, ...]:
    """Inputs that are once per clip."""
    return tuple(v.name for v in self.inputs if not v.spec.is_timed)

  @property
  def target_offset(self) -> int:
    """First id of the target."""
    return vocabularies.FIRST_CODE_ID + sum(v.num_ids for v in self.inputs)

  @property
  def vocab_size(self) -> int:
    """Padding, EOS, and a block for each discrete input and the target."""
    return self.target_offset + self.target.num_ids

  @property
  def reference_rate_hz(self) -> float:
    """Units of relative position a second: the finest grid of the stage."""
    views = (*self.inputs, self.target)
    return float(max(v.time_rate_hz for v in views if v.spec.is_timed))

  @property
  def target_length(self) -> int:
    """Positions of the target's flat sequence in one crop."""
    return self.target.length(self.seconds)

  @property
  def input_length(self) -> int:
    """Positions of all inputs together in one crop."""
    return sum(view.length(self.seconds) for view in self.inputs)

  def task_feature_lengths(self) -> dict[str, int]:
    """What seqio calls the lengths of the features of one example.

    Positions of the flat sequence for tokens, of time for features, and the
    width for a once-per-clip vector, whose only dimension that is.
    """
    lengths = {'targets': self.target_length}
    for view in self.inputs:
      spec = view.spec
      lengths[view.name] = (
        view.length(self.seconds) if spec.is_timed else spec.num_features
      )
    return lengths


def make(
  name: str,
  visual: Sequence[str] = (),
  style: str | None = None,
  semantic: str | None = 'w2v_bert',
  acoustic: str = 'soundstream',
  coarse_levels: int | None = 4,
  seconds: float | None = None,
  architecture: str | None = None,
) -> Stage:
  """Builds one row of the cascade.

  Args:
    name: 'semantic' (visual and style to semantic), 'coarse' (semantic and,
      where given, visual to the first levels of acoustic) or 'fine' (those to
      the other levels).
    visual: names of the visual streams. A coarse stage without any is
      decoder-only.
    style: name of the once-per-clip stream, or None. It conditions the first
      stage of the cascade.
    semantic: name of the semantic stream; None for a cascade without a
      semantic stage, whose coarse stage sees visual and style instead.
    acoustic: name of the acoustic stream.
    coarse_levels: levels that the coarse stage predicts; None for all, in a
      cascade without a fine stage.
    seconds: length of a crop; the paper's by default.
    architecture: the paper's by default: encoder-decoder where a continuous
      stream conditions, decoder-only otherwise.

  Returns:
    The stage.

  Raises:
    ValueError: an unknown name, no inputs, or lengths that do not fit.
  """
  if name not in NAMES:
    raise ValueError(
      f'Unknown stage `{name}`, expected one of {", ".join(NAMES)}.'
    )
  acoustic_spec = streams.get(acoustic)
  if semantic is None and name == 'semantic':
    raise ValueError(
      'semantic is None, expected the stream that stage `semantic` predicts. '
      'Set SEMANTIC, or train the coarse stage alone.'
    )
  if coarse_levels is None and name == 'fine':
    raise ValueError(
      'coarse_levels is None, which leaves stage `fine` nothing to predict, '
      f'expected 1 to {acoustic_spec.num_levels - 1} for stream `{acoustic}`.'
    )
  if coarse_levels is None:
    coarse_levels = acoustic_spec.num_levels
  elif not 0 < coarse_levels < acoustic_spec.num_levels:
    raise ValueError(
      f'coarse_levels is {coarse_levels}, expected 1 to '
      f'{acoustic_spec.num_levels - 1} for stream `{acoustic}`, or None for '
      'all.'
    )
  whole = lambda spec: View(spec, 0, spec.num_levels)
  seen = [whole(streams.get(v)) for v in visual]
  styles = [whole(streams.get(style))] if style else []
  heard = [whole(streams.get(semantic))] if semantic else []
  coarse_view = View(acoustic_spec, 0, coarse_levels)
  fine_view = View(
    acoustic_spec, coarse_levels, acoustic_spec.num_levels - coarse_levels
  )
  inputs, target = {
    'semantic': ([*seen, *styles], *heard),
    'coarse': ([*seen, *(heard or styles)], coarse_view),
    'fine': ([coarse_view], fine_view),
  }[name]
  if architecture is None:
    tokens_only = all(
      v.spec.is_discrete and v.spec.name not in visual for v in inputs
    )
    architecture = DECODER_ONLY if tokens_only else ENCODER_DECODER
  return Stage(
    name=name,
    inputs=tuple(inputs),
    target=target,
    seconds=_SECONDS[name] if seconds is None else seconds,
    architecture=architecture,
  )
