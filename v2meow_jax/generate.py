"""Generation: a video in, the same video with music out.

Features of the picture become semantic, coarse and fine tokens, and those
become sound. Features and tokens are small, and pictures pass by in pieces: a
video of any length takes little more memory than a short one.

The random numbers of a clip depend on its own seed, the stage, the time and
the level only: a clip gets the same music alone and in a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import threading
from typing import Any

import numpy as np

from v2meow_jax import arrays
from v2meow_jax import bundles
from v2meow_jax import compilation_cache
from v2meow_jax import controls as controls_lib
from v2meow_jax import errors
from v2meow_jax import music
from v2meow_jax import performance
from v2meow_jax import pictures
from v2meow_jax import stages

# Sound that is decoded on both sides of a part that is made anew.
_AROUND_SECONDS = 2.0

Progress = pictures.Progress
PHASES = ('picture', *stages.NAMES, 'sound')


class Generator:
  """A trained system, ready to run.

  Attributes:
    bundle: networks and weights.
  """

  def __init__(
    self,
    bundle: bundles.Bundle,
    rows: int | None = None,
    devices: Sequence[Any] | None = None,
  ):
    """Takes a system.

    Args:
      bundle: networks and weights.
      rows: windows that one call of a stage makes, of one clip or of many:
        part of what fixes a piece, see `cascade.StageRunner`. By default 1 on a
        CPU, where more are no faster, and 8 elsewhere.
      devices: that make windows side by side; all of this process by default.
    """
    import jax

    from v2meow_jax import cascade  # imports JAX
    from v2meow_jax import scheduler

    self.bundle = bundle
    self.rows = rows or (1 if jax.default_backend() == 'cpu' else 8)
    self._grid_hz = cascade.common_rate(
      arrays.crop_grid_hz(model.stage) for model in bundle.models
    )
    devices = devices or jax.local_devices()
    self._runners = [
      cascade.StageRunner(
        model,
        bundle.params[model.stage.name],
        self._grid_hz,
        bundle.overlap,
        self.rows,
        devices,
      )
      for model in bundle.models
    ]
    self._scheduler = scheduler.Scheduler(
      self._runners, len(devices), scheduler.calls_per_device()
    )
    # XLA compiles without Python's lock: beside the reading of the picture.
    self._pool = concurrent.futures.ThreadPoolExecutor(2)
    self._compiling, self._kinds = [], set()
    self._lock = threading.Lock()

  def compile_ahead(
    self, controls: controls_lib.Controls = controls_lib.DEFAULT
  ) -> None:
    """Starts to compile, beside what follows, all that a piece needs.

    Args:
      controls: of the piece.
    """
    from v2meow_jax import cascade  # imports JAX

    settings = [
      cascade.make_settings(model, controls) for model in self.bundle.models
    ]
    # Numbers are not compiled for, what is guided is.
    kind = tuple(
      (row.visual is None, row.style is None, row.has_negative)
      for row in settings
    )
    with self._lock:
      if kind in self._kinds:
        return
      if not self._kinds:
        self._compiling.append(self._pool.submit(self._warm_codec))
      self._kinds.add(kind)
      for runner, row in zip(self._runners, settings):
        self._compiling.append(self._pool.submit(runner.compile, row))

  def _warm_codec(self) -> None:
    codec = self.bundle.codec
    target = self.bundle.models[-1].stage.target
    num_levels = target.first_level + target.num_levels
    codes = np.zeros((1, 1, num_levels), np.int32)
    for _ in codec.decode_chunks([codes]):
      pass

  def generate(
    self,
    path: str | os.PathLike,
    controls: controls_lib.Controls = controls_lib.DEFAULT,
    progress: Progress = lambda phase, seconds: None,
    **changes,
  ) -> music.Music:
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
    self.compile_ahead(controls)
    picture = self.see(path, controls.duration, progress)
    return self.compose(picture, controls, progress)

  def see(
    self,
    path: str | os.PathLike,
    duration: float | None = None,
    progress: Progress = lambda phase, seconds: None,
  ) -> pictures.Picture:
    """The first half of `generate`: reads a video's picture."""
    return pictures.see(path, self.bundle.visual, duration, progress)

  def compose(
    self,
    picture: pictures.Picture,
    controls: controls_lib.Controls = controls_lib.DEFAULT,
    progress: Progress = lambda phase, seconds: None,
    **changes,
  ) -> music.Music:
    """The second half of `generate`: makes music for what was seen."""
    controls = dataclasses.replace(controls, **changes)
    self.compile_ahead(controls)
    prompt = self._read_prompt(controls, picture.seconds)
    pieces = []
    for i in range(controls.best_of):
      seed = (controls.seed + i) % controls_lib.SEEDS
      pieces.append(self._begin(controls, seed, prompt))
      if controls.best_of > 1:
        pieces[i].num_stages = self._num_scored
    with contextlib.ExitStack() as stack:
      for piece in pieces:
        self._see_all(piece, picture)
        stack.enter_context(self._scheduler.running(piece))
      best, scores = pieces[0], {}
      if len(pieces) > 1:
        best, scores = self._choose(pieces, progress)
      running = self._perform(best, prompt, progress)
      made = music.Music(
        running.waveform(),
        self.bundle.codec.sample_rate_hz,
        best.tokens,
        picture,
        scores,
        running.gains,
      )
    for start, end, seed in controls.spans:
      made = self._replace(made, controls, start, end, seed)
    return made

  @staticmethod
  def _see_all(piece: Any, picture: pictures.Picture) -> None:
    """Gives a piece all of its picture."""
    for name, features in picture.features.items():
      piece.feed(name, features)
    piece.finish(picture.seconds)

  @property
  def _num_scored(self) -> int:
    """Stages that make what a piece is scored by."""
    from v2meow_jax import scoring

    return sum(runner.name in scoring.STAGES for runner in self._runners)

  def _choose(self, pieces: Sequence[Any], progress: Progress) -> tuple:
    """The best of some running pieces, and the scores of all by seed."""
    from v2meow_jax import scoring

    for piece in pieces:
      self._perform(piece, None, progress).finish()
    scores = [piece.likelihood.result() for piece in pieces]
    best = pieces[scoring.best(scores)]
    self._scheduler.update(
      lambda: setattr(best, 'num_stages', len(self._runners))
    )
    return best, dict(zip((str(p.seed) for p in pieces), scores))

  def _perform(
    self,
    piece: Any,
    prompt: Any | None = None,
    progress: Progress = lambda phase, seconds: None,
  ) -> performance.Performance:
    """A running piece, to be heard when all is compiled."""
    for task in [*self._compiling]:
      task.result()
    return performance.Performance(
      piece, self._scheduler, self.bundle.codec, prompt, progress
    )

  def _replace(
    self,
    made: music.Music,
    controls: controls_lib.Controls,
    start: float,
    end: float,
    seed: int,
  ) -> music.Music:
    """Makes a part anew, with another seed; all else stays bit for bit.

    Args:
      made: the music.
      controls: how it was made.
      start: of the part, in seconds.
      end: of the part, in seconds.
      seed: of the part.

    Raises:
      UserError: the part lies behind the end.
    """
    seconds = made.picture.seconds
    if end > seconds + pictures.TOLERANCE_SECONDS:
      raise errors.UserError(
        f'--replace: {start:g}-{end:g} ends behind the music, which lasts '
        f'{seconds:.2f} s, expected a part of it. Choose another.'
      )
    # At least one unit, on the grid on which all streams have positions.
    first = round(start * self._grid_hz)
    stop = max(first + 1, round(min(end, seconds) * self._grid_hz))
    piece = self._begin(controls, seed, None, made.tokens, first, stop)
    self._see_all(piece, made.picture)
    with self._scheduler.running(piece):
      self._perform(piece).finish()
    codec = self.bundle.codec
    # Sound around the part, so that the decoder is in the midst of it.
    around = math.ceil(_AROUND_SECONDS * self._grid_hz)
    opening = max(0, first - around)
    codes = piece.last_codes(opening, stop + around)
    raw = np.asarray(codec.decode(codes[np.newaxis]))[0]
    unit = self._runners[-1].per_unit * codec.hop
    waveform = made.replace_sound(
      raw[(first - opening) * unit : (stop - opening) * unit], first * unit
    )
    return dataclasses.replace(made, waveform=waveform, tokens=piece.tokens)

  def _read_prompt(
    self, controls: controls_lib.Controls, seconds: float
  ) -> Any | None:
    """The `prompting.Prompt` that the music begins with, or None."""
    if controls.prompt_audio is None:
      return None
    from v2meow_jax import prompting  # the tokenizer's SciPy takes a second

    return prompting.read(
      controls.prompt_audio, self.bundle, self._grid_hz, seconds
    )

  def stream(
    self,
    path: str | os.PathLike,
    controls: controls_lib.Controls = controls_lib.DEFAULT,
    progress: Progress = lambda phase, seconds: None,
    **changes,
  ) -> Iterator[np.ndarray]:
    """Makes music for a video and gives it as it is made.

    The picture is read, the stages run and the sound is decoded side by side.

    Args: as of `generate`.

    Yields:
      float32 `[samples]` at the codec's rate; together they are the waveform
      that `generate` gives.

    Raises: as `generate`.
    """
    controls = dataclasses.replace(controls, **changes)
    if controls.best_of > 1 or controls.replace:
      raise errors.UserError(
        'best_of and replace need the whole piece before its first sound, '
        'expected neither where music is streamed. Write a file instead.'
      )
    self.compile_ahead(controls)
    declared = pictures.check_duration(path, controls.duration)
    prompt = self._read_prompt(controls, controls.duration or declared)
    piece = self._begin(controls, controls.seed, prompt)
    ends = []

    def look(extractor):
      def take(part):
        if piece.error is not None:
          raise _AbandonedError
        self._scheduler.update(
          functools.partial(piece.feed, extractor.spec.name, part)
        )

      try:
        end = pictures.look(path, extractor, controls.duration, progress, take)
      except _AbandonedError:
        return
      except Exception as error:
        self._scheduler.update(functools.partial(piece.fail, error))
        return
      ends.append(end)
      if len(ends) == len(self.bundle.visual):
        self._scheduler.update(functools.partial(piece.finish, end))

    with self._scheduler.running(piece):
      for extractor in self.bundle.visual:
        threading.Thread(target=look, args=(extractor,), daemon=True).start()
      yield from self._perform(piece, prompt, progress).chunks()

  def _begin(
    self,
    controls: controls_lib.Controls,
    seed: int,
    prompt: Any | None = None,
    tokens: Mapping[str, np.ndarray] | None = None,
    start: int = 0,
    until: int | None = None,
  ) -> Any:
    """A `composition.Composition` without its picture; see there."""
    from v2meow_jax import cascade  # imports JAX
    from v2meow_jax import composition

    style = self.bundle.style
    once, negative = {}, None
    if style is not None and controls.text:
      once = {style.spec.name: style.mix_texts(controls.text)}
    if style is not None and controls.negative_text is not None:
      negative = style.mix_texts([(controls.negative_text, 1.0)])
    if style is None and (controls.text or controls.negative_text):
      errors.warn(
        f'Model {self.bundle.folder.name} takes no text: --text changes '
        'nothing.'
      )
    return composition.Composition(
      self._runners,
      [cascade.make_settings(model, controls) for model in self.bundle.models],
      seed,
      [extractor.spec for extractor in self.bundle.visual],
      once,
      negative,
      prompt.tokens if prompt else tokens,
      prompt.units if prompt else start,
      until,
    )


class _AbandonedError(Exception):
  """Nobody waits for the piece any more."""


def load(
  name_or_dir: str | os.PathLike = 'bundled', rows: int | None = None
) -> Generator:
  """Loads a trained system; JAX keeps what it compiles in a cache folder.

  Args:
    name_or_dir: name of a model, or its folder.
    rows: see `Generator`.

  Raises:
    UserError: there is no such model.
  """
  folder = bundles.find(name_or_dir)
  compilation_cache.enable()
  return Generator(bundles.load(folder), rows)
