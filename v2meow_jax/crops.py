"""Batches of random crops of audio files, to train what hears. NumPy only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import os

import numpy as np
import soundfile

from v2meow_jax import errors
from v2meow_jax import hosts
from v2meow_jax import manifests as manifests_lib
from v2meow_jax import streams


class CropDataset:
  """Endless batches of random crops of the audio that manifests list.

  A batch depends on the seed and its number alone, so that training resumes
  exactly, on any number of processes. All manifests are drawn equally often,
  whatever their size; within one, a cut in proportion to its length and a crop
  evenly within the cut.
  """

  def __init__(
    self,
    manifests: Sequence[str | os.PathLike],
    stream: str,
    seconds: float,
    split: str,
    batch_size: int,
    seed: int = 0,
    gain_db: tuple[float, float] = (-9.0, 0.0),
    shard: hosts.Shard | None = None,
    annotate: Callable[[manifests_lib.Clip], Mapping[str, np.ndarray]]
    | None = None,
  ):
    """Reads the manifests.

    Args:
      manifests: CSV files of audio clips, as `manifests.py` describes.
      stream: the row of streams.py of what is trained; files must have its
        sample rate.
      seconds: length of a crop, a whole number of the stream's positions; a
        shorter cut is followed by silence.
      split: rows to use: 'train', 'validation' or 'test'.
      batch_size: crops per batch, over all processes.
      seed: of all random choices.
      gain_db: lowest and highest random gain of a crop.
      shard: the part of each batch to read; all of it by default.
      annotate: what else a crop brings, from its row of the manifest: arrays
        by name, such as the tokens of its caption or its labels; of the same
        shapes for all clips.

    Raises:
      ValueError: unknown stream, or seconds are not a whole number of
        positions.
      errors.UserError: a manifest cannot be read or has no such split, or a
        file of it cannot be read or has another rate.
    """
    spec = streams.get(stream)
    self._num_samples = round(seconds * spec.sample_rate_hz)
    if spec.is_timed:
      self._num_samples = spec.length(seconds) * spec.hop
    self._batch_size = batch_size
    self._seed = seed
    self._gain_db = gain_db
    self._annotate = annotate or (lambda clip: {})
    self._examples = (shard or hosts.Shard()).examples(batch_size)
    self._cuts = [
      _read_cuts(manifest, split, spec.sample_rate_hz) for manifest in manifests
    ]
    self._probabilities = []
    for cuts in self._cuts:
      lengths = np.array([end - start for _, start, end in cuts], float)
      self._probabilities.append(lengths / lengths.sum())

  def iterator(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches as `batch` returns them, from a step on."""
    step = start_step
    while True:
      yield self.batch(step)
      step += 1

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Returns our part of batch number `step`.

    Returns:
      `waveform`, float32 `[examples, samples]`, mono in -1..1, and what
      `annotate` gives of each crop, `[examples, …]`.

    Raises:
      errors.UserError: a file holds what is no number.
    """
    rng = np.random.default_rng((self._seed, step))
    crops = [self._draw(rng) for _ in range(self._batch_size)]
    crops = [crops[example] for example in self._examples]
    waveform = np.zeros((len(crops), self._num_samples), np.float32)
    for row, (clip, first, end, gain) in zip(waveform, crops, strict=True):
      samples, _ = soundfile.read(
        str(clip.file), start=first, stop=end, dtype='float32', always_2d=True
      )
      if not np.isfinite(samples).all():
        raise errors.UserError(
          f'{clip.file}: samples {first} to {end} hold NaN or infinity, '
          'expected numbers. Repair the file or take it out of the manifest.'
        )
      row[: len(samples)] = gain * samples.mean(axis=1)
    notes = [self._annotate(clip) for clip, *_ in crops]
    return {
      'waveform': waveform,
      **{name: np.stack([note[name] for note in notes]) for name in notes[0]},
    }

  def _draw(
    self, rng: np.random.Generator
  ) -> tuple[manifests_lib.Clip, int, int, float]:
    """Draws clip, first sample, end sample and gain of a crop."""
    manifest = rng.integers(len(self._cuts))
    cuts = self._cuts[manifest]
    pick = rng.choice(len(cuts), p=self._probabilities[manifest])
    clip, start, end = cuts[pick]
    latest = max(start, end - self._num_samples)
    first = int(rng.integers(start, latest + 1))
    gain = 10.0 ** (rng.uniform(*self._gain_db) / 20.0)
    return clip, first, min(end, first + self._num_samples), gain


def _read_cuts(
  manifest: str | os.PathLike, split: str, sample_rate_hz: int
) -> list[tuple[manifests_lib.Clip, int, int]]:
  """Returns `(clip, first sample, end sample)` of every clip of the split."""
  cuts = []
  for clip in manifests_lib.read(manifest):
    if clip.split != split:
      continue
    try:
      info = soundfile.info(clip.file)
    except (OSError, soundfile.SoundFileError) as error:
      raise errors.UserError(
        f'{clip.file}: cannot read the audio ({error}), expected a WAV or '
        'FLAC file. Correct the manifest.'
      ) from error
    if info.samplerate != sample_rate_hz:
      raise errors.UserError(
        f'{clip.file}: {info.samplerate} Hz, expected {sample_rate_hz} Hz. '
        'Resample the file.'
      )
    start = round(clip.start_seconds * sample_rate_hz)
    end = info.frames
    if clip.end_seconds is not None:
      end = min(end, round(clip.end_seconds * sample_rate_hz))
    if end > start:
      cuts.append((clip, start, end))
  if not cuts:
    raise errors.UserError(
      f'{os.fspath(manifest)}: no audio of split `{split}`, expected at '
      'least one row. Check the column split.'
    )
  return cuts
