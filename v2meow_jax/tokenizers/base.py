"""What every semantic tokenizer offers: a codec without the way back."""

import abc
from collections.abc import Mapping

import numpy as np

from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax import waveforms
from v2meow_jax.tokenizers import kmeans

Array = np.ndarray


class Tokenizer(abc.ABC):
  """Maps a mono waveform to one token per position of its stream.

  Token `t` describes the seconds `[t / rate_hz, (t + 1) / rate_hz)`.

  Attributes:
    spec: the row of streams.py that the tokens fill.
  """

  spec: streams.StreamSpec

  def encode(self, waveform: Array) -> Array:
    """Maps a waveform to tokens.

    Args:
      waveform: float32 `[batch, samples]` at `spec.sample_rate_hz`, about
        [-1, 1]. A last position that is not full is filled with silence.

    Returns:
      int32 `[batch, time, levels]`, time = samples / spec.hop rounded up.

    Raises:
      ValueError: the waveform has another rank, is empty or is not finite.
    """
    waveform = waveforms.check(waveform)
    tokens = np.stack([self._encode_clip(clip) for clip in waveform])
    return tokens.astype(np.int32)

  @abc.abstractmethod
  def _encode_clip(self, waveform: Array) -> Array:
    """Maps float32 `[samples]`, checked, to int32 `[time, levels]`."""


class ClusterTokenizer(Tokenizer):
  """Features of the sound, standardised; a token is the nearest of centres.

  Without `mean`, `scale` and `centres` among its parameters it makes features
  alone, for `tokenizers/fit.py` to fit these.

  Attributes:
    params: float32 `mean` and `scale` `[features]`, `centres`
      `[codes, features]`, and what else the features need.
  """

  FIT = ('mean', 'scale', 'centres')

  def __init__(self, params: Mapping):
    """Checks the fit.

    Args:
      params: see above.

    Raises:
      UserError: the fit is incomplete, or one of other features or codes.
    """
    self.params = dict(params)
    fit = {key: params[key] for key in self.FIT if key in params}
    if not fit:
      return
    self.params |= {k: np.asarray(v, np.float32) for k, v in fit.items()}
    expected = {
      'mean': (self.num_features,),
      'scale': (self.num_features,),
      'centres': (self.spec.num_codes, self.num_features),
    }
    shapes = {k: self.params[k].shape for k in fit}
    if shapes != expected:
      raise errors.UserError(
        f'Clusters of tokenizer `{self.spec.name}` are {shapes}, expected '
        f'{expected}. Fit it again or choose other weights.'
      )

  @property
  @abc.abstractmethod
  def num_features(self) -> int:
    """Width of `features`."""

  @abc.abstractmethod
  def features(self, waveform: Array) -> Array:
    """Computes the features of a clip, as they are.

    Args:
      waveform: float32 `[samples]` at `spec.sample_rate_hz`, of any length.

    Returns:
      float32 `[time, features]`, time = samples / spec.hop rounded up.
    """

  def standardise(self, points: Array) -> tuple[Array, Array]:
    """What brings features to a common scale.

    Args:
      points: float32 `[points, features]`.

    Returns:
      Mean and scale, float32 `[features]`: each feature of `(points - mean) *
      scale` has a standard deviation of 1.
    """
    return points.mean(0), 1 / (points.std(0) + 1e-6)

  def _encode_clip(self, waveform: Array) -> Array:
    if self.FIT[-1] not in self.params:
      raise errors.UserError(
        f'Tokenizer `{self.spec.name}` has no clusters, expected weights with '
        f'{", ".join(self.FIT)}. Fit them with `python -m '
        'v2meow_jax.tokenizers.fit`.'
      )
    points = (self.features(waveform) - self.params['mean']) * (
      self.params['scale']
    )
    # [time] -> [time, levels]
    return kmeans.assign(points, self.params['centres'])[:, None]
