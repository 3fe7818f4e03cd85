"""`v2meow generate`: many videos with one model, which is loaded once.

While some threads generate, one reads the next videos and one writes what is
finished: the device does not wait for either, and can make windows of several
pieces in one call. Queues between them are short, so that memory is bounded.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

import tqdm

from v2meow_jax import background
from v2meow_jax import bars
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import fingerprints
from v2meow_jax import generate
from v2meow_jax import music as music_lib
from v2meow_jax import orders
from v2meow_jax import outputs
from v2meow_jax import pictures
from v2meow_jax import prefetching
from v2meow_jax import sidecars
from v2meow_jax import video

# Pictures that wait for the device, beside the one that is being read.
_PICTURES_AHEAD = 1
# Pieces in the making at most.
_PIECES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class _Seen:
  """A video that was read.

  Attributes:
    path: of the video.
    seconds: that it declares.
    file: its fingerprint, or None where nobody needs it.
    found: files that are there, by piece; such a piece is not made.
    error: what was wrong with it, or None.
    picture: what the model sees, or None where nothing is to be made.
    timings: seconds by phase.
  """

  path: str
  seconds: float = 0.0
  file: fingerprints.File | None = None
  found: Mapping[outputs.Piece, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  error: Exception | None = None
  picture: pictures.Picture | None = None
  timings: Mapping[str, float] = dataclasses.field(default_factory=dict)


class _Stopped(Exception):
  """Ends a thread."""


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
  """Lets nothing come between: Ctrl-C is often pressed twice."""
  numbers = []
  if threading.current_thread() is threading.main_thread():
    numbers = [signal.SIGINT, signal.SIGTERM]
  before = {x: signal.signal(x, signal.SIG_IGN) for x in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


class Service:
  """Makes the pieces of an order.

  Attributes:
    failures: what went wrong, in one line each, by piece.
    num_made: pieces that were made.
    num_found: pieces that were there already.
  """

  def __init__(
    self, order: orders.Order, load: Callable[[str], generate.Generator]
  ):
    """Takes an order.

    Args:
      order: what to make.
      load: loads a model.
    """
    self.failures, self.num_made, self.num_found = {}, 0, 0
    self._order = order
    self._load = load
    self._pieces = {}
    for piece in order.pieces:
      self._pieces.setdefault(piece.video, []).append(piece)
    self._needs_files = order.with_sidecars or order.origin is not None
    self._bar = bars.Bar(len(order.pieces))
    self._is_stopped = threading.Event()
    self._generator = None

  def run(self) -> None:
    """Makes all pieces; prints the path of each file when it is there.

    Raises:
      UserError: what is wrong concerns all pieces.
    """
    reader = None
    writer = background.Worker()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    self._composers = concurrent.futures.ThreadPoolExecutor(_PIECES_AT_ONCE)
    self._begun = collections.deque()
    try:
      if self._needs_files:
        self._model = pool.submit(self._describe_model)
        prompt = self._order.controls.prompt_audio
        self._prompt = fingerprints.describe_file(prompt) if prompt else None
      looks = map(self._look, self._pieces)
      # Nothing is loaded for nothing.
      first = []
      for look in looks:
        left = self._left(look)
        if left:
          first = [look]
          self._bar.name(left[0])
          break
        self._compose(look, writer)
      if first:
        outputs.make_folders(self._order.pieces)
        self._generator = self._load(self._order.model)
        if self._needs_files:
          self._model.result()  # what is wrong with it is wrong for all
        reader = prefetching.Prefetch(
          itertools.chain(first, looks),
          self._see,
          len(self._pieces),
          _PICTURES_AHEAD,
        )
        for seen in reader:
          self._compose(seen, writer)
      while self._begun:
        self._end_first(writer)
      writer.close()
    except BaseException as error:
      # A stopped process ends at once; any other lets its threads end first.
      wait = not isinstance(error, KeyboardInterrupt)
      with _no_signals():
        self._is_stopped.set()
        writer.stop()
      if wait:
        writer.join()
      if reader:
        reader.close(wait)
      self._composers.shutdown(wait, cancel_futures=True)
      pool.shutdown(wait)
      raise
    finally:
      self._bar.close()
    if reader:
      reader.close()
    self._composers.shutdown()
    pool.shutdown()

  def report(self) -> int:
    """Says what went wrong so far; returns the exit status, 1 where it did."""
    pieces, failures = self._order.pieces, self.failures
    lines = [failures[piece] for piece in pieces if piece in failures]
    for line in dict.fromkeys(lines):  # one for all pieces of a video
      print(f'error: {line}', file=sys.stderr)
    if lines and len(pieces) > 1:
      found = f', {self.num_found} were there' if self.num_found else ''
      print(
        f'error: {len(lines)} of {len(pieces)} pieces failed, {self.num_made} '
        f'were made{found}',
        file=sys.stderr,
      )
    return 1 if lines else 0

  # In the thread that reads.

  def _tick(self) -> None:
    if self._is_stopped.is_set():
      raise _Stopped

  def _look(self, path: str) -> _Seen:
    """Looks at a video and at what is there for it already."""
    try:
      self._tick()
      seconds = video.probe(path).seconds
      file = self._describe(path) if self._needs_files else None
      found = {}
      if self._order.skip_existing:
        for piece in self._pieces[path]:
          names = _find(piece, self._inputs(piece, file))
          if names:
            found[piece] = names
      return _Seen(path, seconds, file, found)
    except _Stopped:
      raise
    except Exception as error:
      return _Seen(path, error=error)

  def _left(self, seen: _Seen) -> list[outputs.Piece]:
    """The pieces of a video that shall be made."""
    if seen.error:
      return []
    return [x for x in self._pieces[seen.path] if x not in seen.found]

  def _describe_model(self) -> fingerprints.Model:
    order = self._order
    return order.fingerprint or fingerprints.describe_model(order.model)

  def _describe(self, path: str) -> fingerprints.File:
    origin = self._order.origin
    if not origin:
      return fingerprints.describe_file(path, self._tick)
    file = dataclasses.replace(origin.sidecar.inputs.video, path=path)
    if not file.is_found():
      raise errors.UserError(
        f'{path}: is not the video of {origin.path}, expected the same '
        f'{file.bytes} bytes with SHA-256 {file.sha256}. Name its place as '
        'VIDEO.'
      )
    return file

  def _see(self, look: _Seen) -> _Seen:
    """Reads what the model sees of a video."""
    left = self._left(look)
    if not left:
      return look
    try:
      duration = self._order.controls.duration
      seconds = duration or look.seconds
      self._generator.compile_ahead(self._order.controls)

      def tell(phase, done):
        self._tick()
        self._bar.tell(left[0], seconds, phase, done)

      clock = bars.Clock(tell)
      picture = self._generator.see(look.path, duration, clock)
      return dataclasses.replace(look, picture=picture, timings=clock.seconds)
    except _Stopped:
      raise
    except Exception as error:
      return dataclasses.replace(look, error=error)

  # In the main thread.

  def _compose(self, seen: _Seen, writer: background.Worker) -> None:
    """Begins the pieces of a video; ends those begun first."""
    for piece in self._pieces[seen.path]:
      self._bar.name(piece)
      self._begun.append(self._composers.submit(self._make, piece, seen))
      # Two keep a device busy; more fill the rows of its calls.
      rows = self._generator.rows if self._generator else 1
      while len(self._begun) >= min(max(2, rows), _PIECES_AT_ONCE):
        self._end_first(writer)

  def _end_first(self, writer: background.Worker) -> None:
    """Hands the piece that was begun first to the writer."""
    finish = self._begun.popleft().result()
    if finish:
      writer.put(finish)

  # In the threads that generate.

  def _make(
    self, piece: outputs.Piece, seen: _Seen
  ) -> Callable[[], None] | None:
    """Makes the music of a piece; what is to be done with it, if anything."""
    if seen.error:
      self._fail(piece, seen.error)
      return None
    if piece in seen.found:
      return functools.partial(self._leave, seen.found[piece])

    def tell(phase, done):
      self._tick()
      self._bar.tell(piece, seen.picture.seconds, phase, done)

    clock = bars.Clock(tell)
    controls = dataclasses.replace(self._order.controls, seed=piece.seed)
    try:
      music = self._generator.compose(seen.picture, controls, clock)
    except _Stopped:
      raise
    except Exception as error:
      self._fail(piece, error)
      return None
    timings = {**seen.timings, **clock.seconds}
    return functools.partial(self._finish, piece, seen, music, timings)

  def _fail(self, piece: outputs.Piece, error: Exception) -> None:
    if self._is_stopped.is_set():
      return  # as a consequence
    self.failures[piece] = _explain(piece, error)
    self._bar.end(piece, True)

  def _inputs(
    self, piece: outputs.Piece, file: fingerprints.File
  ) -> sidecars.Inputs:
    return sidecars.Inputs(
      self._model.result(),
      file,
      dataclasses.replace(self._order.controls, seed=piece.seed),
      self._prompt,
    )

  # In the thread that writes.

  def _leave(self, paths: Sequence[str]) -> None:
    """Says what is there already."""
    self.num_found += 1
    self._bar.leave_out()
    _say(paths)

  def _finish(
    self,
    piece: outputs.Piece,
    seen: _Seen,
    music: music_lib.Music,
    timings: dict[str, float],
  ) -> None:
    """Writes the files of a piece."""
    try:
      start = time.perf_counter()
      written = [music.write(path) for path in piece.paths]
      timings['writing'] = time.perf_counter() - start
      if self._needs_files:
        self._note(piece, seen, music, timings, written)
    except Exception as error:
      self._fail(piece, error)
      return
    self.num_made += 1
    self._bar.end(piece, False)
    _say(written)

  def _note(
    self,
    piece: outputs.Piece,
    seen: _Seen,
    music: music_lib.Music,
    timings: Mapping[str, float],
    written: Sequence[str],
  ) -> None:
    """Writes the sidecar, and compares with the one that was given."""
    inputs = self._inputs(piece, seen.file)
    tokens = fingerprints.hash_tokens(music.tokens)
    if self._order.with_sidecars:
      sidecars.write(
        piece.sidecar,
        sidecars.Sidecar(
          inputs=inputs,
          seconds=seen.picture.seconds,
          tokens=tokens,
          scores=music.scores,
          outputs=tuple(map(fingerprints.describe_file, written)),
          machine=self._machine,
          timings=timings,
        ),
      )
    origin = self._order.origin
    if origin and origin.sidecar.inputs.make_same(inputs):
      if origin.sidecar.tokens != tokens:
        change = fingerprints.explain_change(
          origin.sidecar.machine, self._machine
        )
        errors.warn(
          f'{written[0]}: is not the piece of {origin.path}: this machine or '
          f'version computes other tokens ({change}).'
        )

  @functools.cached_property
  def _machine(self) -> dict[str, Any]:
    return fingerprints.describe_machine()


def _find(piece: outputs.Piece, inputs: sidecars.Inputs) -> Sequence[str]:
  """Returns the files of a piece that need not be made again, or none."""
  try:
    sidecar = sidecars.read(piece.sidecar)
  except errors.UserError:
    return ()
  paths = [output.path for output in sidecar.outputs]
  for path in piece.paths:
    # Matroska where MP4 cannot hold the picture.
    if not {str(path), str(path.with_suffix('.mkv'))} & {*paths}:
      return ()
  return paths if sidecar.is_current(inputs) else ()


def _say(paths: Sequence[str]) -> None:
  """Prints paths; a bar makes room for them."""
  with tqdm.tqdm.external_write_mode():
    for path in paths:
      try:
        print(path, flush=True)
      except UnicodeEncodeError:  # a name that is no text
        sys.stdout.buffer.write(os.fsencode(path) + b'\n')
        sys.stdout.flush()


def _explain(piece: outputs.Piece, error: Exception) -> str:
  if os.environ.get('V2MEOW_DEBUG') == '1':
    traceback.print_exception(error)
  if isinstance(error, errors.UserError):
    return str(error)
  text = configs.one_line(error) or errors.describe_fault(error)
  return f'{piece.video}: {text}'


def run(**arguments) -> int:
  """`v2meow generate`: prints the path of each file as soon as it is there.

  A video that cannot be used does not stop the others; what was wrong is said
  at the end.

  Args:
    **arguments: see `orders.make`.

  Returns:
    Exit status: 1 if a piece was not made.

  Raises:
    UserError: what is wrong concerns all videos.
  """
  service = Service(orders.make(**arguments), generate.load)
  try:
    service.run()
  finally:
    status = service.report()
  return status
