"""Going on from given sound: the beginning of the music, as the stages see it.

The sound lies under the first seconds of the video. It becomes the tokens that
the stages would have made there, and they go on from these.
"""

from collections.abc import Mapping
import dataclasses
import fractions
import math
import os

import numpy as np

from v2meow_jax import audio
from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import loudness

# Over so many samples, the sound goes over into what the stages made.
_FADE_SAMPLES = 480


@dataclasses.dataclass(frozen=True)
class Prompt:
  """The beginning of a piece of music.

  Attributes:
    units: its length in units of 1 / `grid_hz` seconds, see `read`.
    tokens: int32 `[time, levels]` of each stream that the stages make, by name.
    waveform: float32 `[samples]` at the codec's rate, the sound itself.
  """

  units: int
  tokens: Mapping[str, np.ndarray]
  waveform: np.ndarray

  def lay_over(self, decoded: np.ndarray, start: int) -> np.ndarray:
    """Puts the sound itself over what was decoded of its tokens.

    Args:
      decoded: float32 `[samples]`, a part of the piece.
      start: which sample of the piece is its first.

    Returns:
      float32 `[samples]`, which goes over into `decoded` where the sound ends.
    """
    sound = self.waveform[start : start + len(decoded)]
    left = len(self.waveform) - start - np.arange(len(sound))
    share = np.minimum(1, left / _FADE_SAMPLES).astype(np.float32)
    result = np.array(decoded)
    result[: len(sound)] += share * (sound - result[: len(sound)])
    return result


def read(
  path: str | os.PathLike,
  bundle: bundles.Bundle,
  grid_hz: fractions.Fraction,
  seconds: float,
) -> Prompt:
  """Reads the sound that music shall go on from.

  Args:
    path: a file with sound; all channels are mixed to one. Its loudness stays
      as it is, as in training.
    bundle: the system whose stages go on from it.
    grid_hz: rate of the times at which every stream of the system has a
      position; the sound is cut down to a whole number of its units.
    seconds: length of the whole music.

  Raises:
    UserError: the system cannot go on from sound, or this is no sound file, is
      silent, shorter than a unit or leaves nothing to be made.
  """
  path = os.fspath(path)
  encoders = _encoders(bundle)
  # A little more than there may be, to see that there is more.
  end = seconds + 1.0
  rates = {encoder.spec.sample_rate_hz for encoder, _ in encoders.values()}
  sounds = {
    rate: audio.read_mono(path, rate, end_seconds=end) for rate in rates
  }
  rate = bundle.codec.sample_rate_hz
  length = len(sounds[rate]) / rate
  units = math.floor(length * grid_hz + 1e-6)
  if units >= math.ceil(seconds * grid_hz - 1e-6):
    raise errors.UserError(
      f'{path}: its sound is as long as the music, {seconds:.2f} s, or longer, '
      'expected less, so that there is something to go on with. Cut it.'
    )
  if not units:
    raise errors.UserError(
      f'{path}: lasts {length:.2f} s, expected at least '
      f'{float(1 / grid_hz):g} s of sound to go on from. Choose another file.'
    )
  num_samples = round(units / grid_hz * rate)
  waveform = sounds[rate][:num_samples]
  if loudness.measure(waveform, rate) == -math.inf:
    raise errors.UserError(
      f'{path}: is silent for its {length:.2f} s, expected sound to go on '
      'from. Choose another file.'
    )
  tokens = {}
  for name, (encoder, num_levels) in encoders.items():
    # With what lies behind the cut, which the last positions look at.
    sound = sounds[encoder.spec.sample_rate_hz]
    codes = np.asarray(encoder.encode(sound[np.newaxis]))[0]
    times = round(units * fractions.Fraction(encoder.spec.rate_hz) / grid_hz)
    # The codec may have finer levels than the stages make.
    tokens[name] = codes[:times, :num_levels].astype(np.int32)
  return Prompt(units, tokens, waveform)


def _encoders(bundle: bundles.Bundle) -> dict:
  """What makes each stream of the stages from sound, and its levels."""
  encoders = {}
  for model in bundle.models:
    target = model.stage.target
    encoder = bundle.codec
    if model.stage.name == 'semantic':
      encoder = bundle.tokenizer
      if encoder is None:
        raise errors.UserError(
          f'Model {bundle.folder.name} cannot go on from sound: it has no '
          f'tokenizer of `{target.name}`, expected one. Pack it with a file of '
          'gin/tokenizers and --tokenizer.'
        )
    encoders[target.name] = (encoder, target.first_level + target.num_levels)
  return encoders
