"""What every semantic tokenizer offers: a codec without the way back."""

import abc

import numpy as np

from v2meow_jax import streams
from v2meow_jax import waveforms

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
