"""What is made for a video."""

from collections.abc import Mapping
import dataclasses
import os

import numpy as np

from v2meow_jax import audio
from v2meow_jax import loudness
from v2meow_jax import muxing
from v2meow_jax import pictures

# Over this long, old sound goes over into new.
_FADE_SECONDS = 0.03


@dataclasses.dataclass(frozen=True)
class Music:
  """What was made for one video.

  Attributes:
    waveform: float32 `[samples]`, loudness normalised, peak below 1.
    sample_rate_hz: samples a second.
    tokens: int32 `[time, levels]` of each discrete stream by name.
    picture: what it was made for.
    scores: of the pieces it was chosen from, by seed; none where it was made
      alone.
    gains: float64, what its loudness was set with, see `loudness.Leveler`.
  """

  waveform: np.ndarray
  sample_rate_hz: int
  tokens: Mapping[str, np.ndarray]
  picture: pictures.Picture
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
  gains: np.ndarray | None = None

  def write(self, path: str | os.PathLike) -> str:
    """Writes the video with its music, or the music alone.

    Args:
      path: ends with .mp4, .mkv or .wav; a file there is replaced when the new
        one is whole.

    Returns:
      The path that was written: ends with .mkv where MP4 cannot hold the
      picture.

    Raises:
      UserError: the file cannot be written.
    """
    path = os.fspath(path)
    if path.lower().endswith('.wav'):
      audio.write_wav(path, self.waveform, self.sample_rate_hz)
      return path
    return muxing.mux(
      self.picture.path,
      self.waveform,
      self.sample_rate_hz,
      path,
      self.picture.seconds if self.picture.is_cut else None,
    )

  def replace_sound(self, raw: np.ndarray, start: int) -> np.ndarray:
    """The waveform with other sound in a part, at the loudness around it.

    Inside the part the old goes over into the new, and back at its end; what
    lies outside stays as it is, bit for bit.

    Args:
      raw: float32 `[samples]`, as decoded; what is behind the end is left out.
      start: first sample of the part.
    """
    waveform = np.array(self.waveform)
    raw = raw[: len(waveform) - start]
    rate = self.sample_rate_hz
    raw = loudness.amplify(raw, start, self.gains, loudness.hop(rate))
    raw = loudness.limit_peaks(raw, rate)
    part = waveform[start : start + len(raw)]
    fade = min(round(_FADE_SECONDS * rate), len(raw) // 2)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    share = np.ones(len(raw), np.float32)
    # A part at the beginning or the end has nothing to go over into there.
    if start:
      share[:fade] = ramp
    if start + len(raw) < len(waveform):
      share[len(raw) - fade :] = ramp[::-1]
    part += share * (raw - part)
    return waveform
