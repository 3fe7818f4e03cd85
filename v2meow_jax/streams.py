"""Streams: named time series, and the table of their facts.

A stream is a fact about a pretrained model or a feature: its rate, its width
or its codebooks. Every length in the project is seconds times the rate in this
table. Which streams a model uses, and for how long, is a choice and lives in
gin.
"""

import dataclasses
import fractions


@dataclasses.dataclass(frozen=True)
class StreamSpec:
  """The facts about one stream.

  Attributes:
    name: name of the stream, of its record feature and of its task feature.
    rate_hz: positions a second, or None for one vector per clip.
    num_features: width of a continuous stream, 0 for a discrete one.
    num_codes: entries of a codebook, 0 for a continuous stream.
    num_levels: codes per position: levels of a residual quantiser, or tokens
      of a frame.
    sample_rate_hz: samples a second of the waveform that the stream is made
      from, 0 for a stream of pictures or text.
    shares_codebook: whether all levels are codes of one codebook, as the tokens
      of a frame are; a residual quantiser has a codebook for each level.
  """

  name: str
  rate_hz: float | None
  num_features: int = 0
  num_codes: int = 0
  num_levels: int = 1
  sample_rate_hz: int = 0
  shares_codebook: bool = False

  def __post_init__(self):
    if bool(self.num_features) == bool(self.num_codes):
      raise ValueError(
        f'Stream `{self.name}`: num_features is {self.num_features} and '
        f'num_codes is {self.num_codes}, expected exactly one of them above '
        '0. Set num_features for a continuous stream, num_codes for tokens.'
      )

  @property
  def is_discrete(self) -> bool:
    """Whether the stream holds codes (int32) and not features (float32)."""
    return self.num_codes > 0

  @property
  def is_timed(self) -> bool:
    """Whether the stream has positions in time, not one vector per clip."""
    return self.rate_hz is not None

  @property
  def is_visual(self) -> bool:
    """Whether the stream is made from pictures, not from sound or text."""
    return self.is_timed and not self.sample_rate_hz

  @property
  def hop(self) -> int:
    """Samples of the waveform per position."""
    hop = fractions.Fraction(self.sample_rate_hz) / fractions.Fraction(
      self.rate_hz
    )
    if hop.denominator != 1:
      raise ValueError(
        f'Stream `{self.name}`: {self.sample_rate_hz} Hz is not a multiple '
        f'of {self.rate_hz:g} Hz. Choose a rate that divides it.'
      )
    return int(hop)

  def length(self, seconds: float) -> int:
    """Number of positions in `seconds`; 1 for a once-per-clip stream.

    Raises:
      ValueError: `seconds` is not a whole number of positions.
    """
    if self.rate_hz is None:
      return 1
    length = round(seconds * self.rate_hz)
    if abs(length - seconds * self.rate_hz) > 1e-6:
      raise ValueError(
        f'Stream `{self.name}`: {seconds:g} s at {self.rate_hz:g} Hz is '
        f'{seconds * self.rate_hz:g} positions, expected a whole number. '
        'Choose other seconds.'
      )
    return length

  def example_shape(self, length: int | None = None) -> tuple:
    """Shape of a clip's array: `[time, features | levels]` or `[features]`."""
    if not self.is_timed:
      return (self.num_features,)
    return (length, self.num_levels if self.is_discrete else self.num_features)


_ROWS = (
  # Visual. The paper's three are at 1 Hz (V2Meow, Visual Feature Extraction).
  StreamSpec('clip', rate_hz=1, num_features=768),
  StreamSpec('i3d_flow', rate_hz=1, num_features=1024),
  # 32 x 32 tokens a frame.
  StreamSpec(
    'vit_vqgan',
    rate_hz=1,
    num_codes=8192,
    num_levels=1024,
    shares_codebook=True,
  ),
  StreamSpec('scene', rate_hz=10, num_features=64),
  # Style: one vector per clip, from music or from text.
  StreamSpec('mulan', rate_hz=None, num_features=128, sample_rate_hz=16000),
  StreamSpec(
    'clap_music', rate_hz=None, num_features=512, sample_rate_hz=48000
  ),
  StreamSpec('musiccoca', rate_hz=None, num_features=768, sample_rate_hz=16000),
  StreamSpec('caption', rate_hz=None, num_features=32),
  # What metrics hear: embeddings, and scores of classes.
  StreamSpec('vggish', rate_hz=None, num_features=128, sample_rate_hz=16000),
  StreamSpec('yamnet', rate_hz=None, num_features=521, sample_rate_hz=16000),
  StreamSpec(
    'yamnet_embedding', rate_hz=None, num_features=1024, sample_rate_hz=16000
  ),
  StreamSpec('trill', rate_hz=None, num_features=512, sample_rate_hz=16000),
  StreamSpec('leaf', rate_hz=None, num_features=527, sample_rate_hz=16000),
  StreamSpec('panns_16k', rate_hz=None, num_features=527, sample_rate_hz=16000),
  StreamSpec('panns_32k', rate_hz=None, num_features=527, sample_rate_hz=32000),
  StreamSpec('passt', rate_hz=None, num_features=527, sample_rate_hz=32000),
  # Semantic tokens.
  StreamSpec('w2v_bert', rate_hz=25, num_codes=1024, sample_rate_hz=16000),
  StreamSpec('w2v_bert_2', rate_hz=25, num_codes=1024, sample_rate_hz=16000),
  StreamSpec('musicfm', rate_hz=25, num_codes=1024, sample_rate_hz=24000),
  StreamSpec(
    'spectral_semantic', rate_hz=25, num_codes=512, sample_rate_hz=16000
  ),
  # Acoustic tokens.
  StreamSpec(
    'soundstream',
    rate_hz=50,
    num_codes=1024,
    num_levels=12,
    sample_rate_hz=16000,
  ),
  # descript/dac_16khz: the paper's geometry (its config: ratios 2, 4, 5, 8).
  StreamSpec(
    'dac',
    rate_hz=50,
    num_codes=1024,
    num_levels=12,
    sample_rate_hz=16000,
  ),
  # facebook/encodec_24khz has 32 levels; 8 are 6 kbit/s, what the paper's codec
  # has, and the bandwidth that its authors compare it at.
  StreamSpec(
    'encodec',
    rate_hz=75,
    num_codes=1024,
    num_levels=8,
    sample_rate_hz=24000,
  ),
  StreamSpec(
    'spectral',
    rate_hz=25,
    num_codes=512,
    num_levels=12,
    sample_rate_hz=16000,
  ),
  StreamSpec(
    'spectrogram',
    rate_hz=25,
    num_codes=512,
    num_levels=8,
    sample_rate_hz=16000,
  ),
  # The levels of `spectrogram`, and 18 that keep the waveform.
  StreamSpec(
    'layered',
    rate_hz=25,
    num_codes=512,
    num_levels=26,
    sample_rate_hz=16000,
  ),
)
STREAMS = {row.name: row for row in _ROWS}


def get(name: str) -> StreamSpec:
  """Returns the row of the table named `name`.

  Raises:
    ValueError: there is no such row.
  """
  if name not in STREAMS:
    raise ValueError(
      f'Unknown stream `{name}`, expected one of {", ".join(STREAMS)}. '
      'Choose one of these or add a row to streams.py.'
    )
  return STREAMS[name]
