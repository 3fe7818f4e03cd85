"""Generation: a video in, the same video with music out.

Features of the picture become semantic, coarse and fine tokens, and those
become sound. Features and tokens are small, and pictures pass by in pieces: a
video of any length takes little more memory than a short one.

The random numbers of a clip depend on its own seed, the stage, the time and
the level only: a clip gets the same music alone and in a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import math
import os

import numpy as np

from v2meow_jax import arrays
from v2meow_jax import bundles
from v2meow_jax import compilation_cache
from v2meow_jax import controls as controls_lib
from v2meow_jax import errors
from v2meow_jax import muxing
from v2meow_jax import stages
from v2meow_jax import video

# Positions of the codec that are decoded together.
_CHUNK = 100
# Music ends with the picture. A picture lasts this much longer at most where
# the user asks for more than there is.
_TOLERANCE_SECONDS = 0.1

# Called with a phase and the seconds of music that are through it.
Progress = Callable[[str, float], None]
PHASES = ('picture', *stages.NAMES, 'sound')


@dataclasses.dataclass(frozen=True)
class Picture:
  """What the stages see of a video.

  Attributes:
    path: the video.
    features: float32 `[time, features]` of each visual stream by name.
    seconds: length of the picture that music is made for.
    is_cut: whether the video goes on behind it.
  """

  path: str
  features: Mapping[str, np.ndarray]
  seconds: float
  is_cut: bool


@dataclasses.dataclass(frozen=True)
class Music:
  """What was made for one video.

  Attributes:
    waveform: float32 `[samples]`, loudness normalised, peak below 1.
    sample_rate_hz: samples a second.
    tokens: int32 `[time, levels]` of each discrete stream by name.
    picture: what it was made for.
  """

  waveform: np.ndarray
  sample_rate_hz: int
  tokens: Mapping[str, np.ndarray]
  picture: Picture

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
      from v2meow_jax import audio  # imports SciPy, which takes a second

      audio.write_wav(path, self.waveform, self.sample_rate_hz)
      return path
    return muxing.mux(
      self.picture.path,
      self.waveform,
      self.sample_rate_hz,
      path,
      self.picture.seconds if self.picture.is_cut else None,
    )


class Generator:
  """A trained system, ready to run.

  Attributes:
    bundle: networks and weights.
  """

  def __init__(self, bundle: bundles.Bundle):
    from v2meow_jax import cascade  # imports JAX

    self.bundle = bundle
    self._grid_hz = cascade.common_rate(
      arrays.crop_grid_hz(model.stage) for model in bundle.models
    )
    self._runners = [
      cascade.StageRunner(
        model, bundle.params[model.stage.name], self._grid_hz, bundle.overlap
      )
      for model in bundle.models
    ]
    # XLA compiles without Python's lock: beside the reading of the picture.
    self._pool = concurrent.futures.ThreadPoolExecutor(2)
    self._compiled = {}

  def compile_ahead(self, seconds: float) -> None:
    """Starts to compile, beside what follows, all that a clip needs.

    Args:
      seconds: length of the clip.
    """
    total = self._num_units(seconds)
    for runner in self._runners:
      for prompt in runner.prompts(total):
        key = (runner.model.stage.name, prompt)
        if key not in self._compiled:
          self._compiled[key] = self._pool.submit(runner.compile, prompt)
    if 'sound' not in self._compiled:
      self._compiled['sound'] = self._pool.submit(self._compile_sound)

  def _compile_sound(self) -> None:
    from v2meow_jax import audio  # noqa: F401  imports SciPy: a second

    codec = self.bundle.codec
    target = self.bundle.models[-1].stage.target
    num_levels = target.first_level + target.num_levels
    codes = np.zeros((1, 1, num_levels), np.int32)
    for _ in codec.decode_chunks([codes]):
      pass

  def _num_units(self, seconds: float) -> int:
    """Length in units of 1 / `_grid_hz`, rounded up."""
    return math.ceil(seconds * self._grid_hz - 1e-6)

  def generate(
    self,
    path: str | os.PathLike,
    controls: controls_lib.Controls = controls_lib.DEFAULT,
    progress: Progress = lambda phase, seconds: None,
    **changes,
  ) -> Music:
    """Makes music for a video.

    Args:
      path: a local video file.
      controls: how it shall be made.
      progress: is told what is done.
      **changes: fields of `Controls`, which replace those of `controls`.

    Returns:
      The music, of the length of the picture.

    Raises:
      UserError: the file is no video that can be used, or the text says
        nothing to the model.
      ValueError: an option of sampling is out of its range.
    """
    controls = dataclasses.replace(controls, **changes)
    picture = self.see(path, controls.duration, progress)
    return self.compose(picture, controls, progress)

  def see(
    self,
    path: str | os.PathLike,
    duration: float | None = None,
    progress: Progress = lambda phase, seconds: None,
  ) -> Picture:
    """The first half of `generate`: reads a video's picture."""
    path = os.fspath(path)
    declared = video.probe(path).seconds
    if duration is not None and duration > declared + _TOLERANCE_SECONDS:
      raise errors.UserError(
        f'{path}: lasts {declared:.2f} s, expected at least the duration of '
        f'{duration:g} s that was asked for. Make it shorter or leave it out.'
      )
    features = {}
    for extractor in self.bundle.visual:
      reader = video.FrameReader(
        path,
        extractor.frame_rate_hz,
        extractor.frame_size,
        end_seconds=duration,
        fit=extractor.fit,
      )
      frames = _reported(reader, extractor.frame_rate_hz, progress)
      features[extractor.spec.name] = extractor.extract(frames)
    seconds = reader.seconds
    return Picture(path, features, seconds, duration is not None)

  def compose(
    self,
    picture: Picture,
    controls: controls_lib.Controls = controls_lib.DEFAULT,
    progress: Progress = lambda phase, seconds: None,
    **changes,
  ) -> Music:
    """The second half of `generate`: makes music for what was seen."""
    controls = dataclasses.replace(controls, **changes)
    options = self._options(controls)
    features = dict(picture.features)
    if controls.text:
      features |= self._embed(controls.text[0][0])
    tokens = self.generate_tokens(
      features, picture.seconds, controls.seed, options, progress
    )
    waveform = self._decode(tokens, picture.seconds, progress)
    rate = self.bundle.codec.sample_rate_hz
    return Music(waveform, rate, tokens, picture)

  def _options(self, controls: controls_lib.Controls) -> list:
    """`sampling.Options` of each stage."""
    from v2meow_jax import sampling  # JAX

    names = ('temperature', 'top_k', 'top_p')
    given = {name: getattr(controls, name) for name in names}
    rows = []
    for model in self.bundle.models:
      i = model.stage.index  # a system may lack a stage
      row = model.options._replace(
        **{k: v[i] for k, v in given.items() if v is not None}
      )
      sampling.validate(row)
      rows.append(row)
    return rows

  def _embed(self, text: str) -> dict[str, np.ndarray]:
    """Returns the style stream of a text, if the system has one."""
    style = self.bundle.style
    if style is None:
      errors.warn(
        f'Model {self.bundle.folder.name} takes no text: --text changes '
        'nothing.'
      )
      return {}
    return {style.spec.name: np.asarray(style.embed_text([text]))[0]}

  def generate_tokens(
    self,
    features: Mapping[str, np.ndarray],
    seconds: float,
    seed: int = 0,
    options: Sequence | None = None,
    progress: Progress = lambda phase, seconds: None,
  ) -> dict[str, np.ndarray]:
    """Runs the stages.

    Args:
      features: float32 `[time, features]` of each visual stream by name, and
        `[features]` of the style where there is one.
      seconds: length of the music.
      seed: another seed, another piece.
      options: `sampling.Options` of each stage; None for the models' own.
      progress: is told what is done.

    Returns:
      int32 `[time, levels]` of each stream made, by name: `seconds`, rounded
      up to where all streams have a position.
    """
    streams = dict(features)
    self.compile_ahead(seconds)
    total = self._num_units(seconds)
    for i, runner in enumerate(self._runners):
      stage = runner.model.stage
      for prompt in runner.prompts(total):
        self._compiled[stage.name, prompt].result()
      codes = runner.run(
        streams,
        total,
        seed,
        options[i] if options else runner.model.options,
        functools.partial(progress, stage.name),
      )
      # The levels of one stream come from two stages.
      if stage.target.first_level:
        codes = np.concatenate([streams[stage.target.name], codes], axis=1)
      streams[stage.target.name] = codes
    return {name: x for name, x in streams.items() if name not in features}

  def _decode(
    self, tokens: Mapping[str, np.ndarray], seconds: float, progress: Progress
  ) -> np.ndarray:
    """Makes the sound of acoustic tokens: float32 `[samples]`, normalised."""
    self._compiled['sound'].result()
    codec = self.bundle.codec
    codes = tokens[self.bundle.models[-1].stage.target.name][np.newaxis]
    num_samples = max(1, round(seconds * codec.sample_rate_hz))
    waveform = np.zeros(num_samples, np.float32)
    chunks = (
      codes[:, start : start + _CHUNK]
      for start in range(0, codes.shape[1], _CHUNK)
    )
    done = 0
    for chunk in codec.decode_chunks(chunks):
      piece = chunk[0, : num_samples - done]
      waveform[done : done + len(piece)] = piece
      done += len(piece)
      progress('sound', done / codec.sample_rate_hz)
    from v2meow_jax import audio  # imports SciPy, which takes a second

    return audio.normalize_loudness(waveform, codec.sample_rate_hz)


def _reported(
  chunks: Iterable[np.ndarray], rate_hz: float, progress: Progress
) -> Iterator[np.ndarray]:
  """Passes chunks of frames on and reports their seconds."""
  num_frames = 0
  for chunk in chunks:
    yield chunk
    num_frames += len(chunk)
    progress('picture', num_frames / rate_hz)


def load(name_or_dir: str | os.PathLike = 'bundled') -> Generator:
  """Loads a trained system; JAX keeps what it compiles in a cache folder.

  Args:
    name_or_dir: name of a model, or its folder.

  Raises:
    UserError: there is no such model.
  """
  folder = bundles.find(name_or_dir)
  compilation_cache.enable()
  return Generator(bundles.load(folder))
