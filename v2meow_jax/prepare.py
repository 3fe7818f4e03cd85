"""The offline half: clips to streams, one small file each, then a dataset.

  v2meow prepare MANIFEST.csv --out DIR

Each clip becomes `DIR/parts/<clip_id>.npz`, which appears when it is whole.
Running the command again keeps every stream of it whose clip and extractor are
the same (the file's content, the extractor's code and weights), so that it
goes on where it stopped. When all clips are through, the parts are put
together: to TFDS shards, or with `--arrays` to plain arrays.
"""

import argparse
from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import time

from absl import logging

from v2meow_jax import arrays as arrays_lib
from v2meow_jax import errors
from v2meow_jax import extraction
from v2meow_jax import manifests
from v2meow_jax import sources as sources_lib
from v2meow_jax import streams

_PARTS = 'parts'
_LOG_SECONDS = 30.0


def _attempt(
  source: extraction.Source, made: extraction.Extractors, folder: str
) -> str | None:
  """Makes the part of a clip; says in one line what went wrong."""
  try:
    extraction.update_part(source, made, folder)
    return None
  except Exception as e:  # one bad clip among thousands must not stop the rest
    logging.debug('Clip %s', source.clip_id, exc_info=True)
    known = isinstance(e, (errors.UserError, ValueError, OSError))
    text = str(e) if known else f'{source.clip_id}: {type(e).__name__}: {e}'
    return ' '.join(text.split())


_made: extraction.Extractors | None = None  # of a worker process


def _start_worker(plan: extraction.Plan) -> None:
  global _made
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops it
  _made = extraction.extractors(plan)


def _work(source: extraction.Source, folder: str) -> str | None:
  return _attempt(source, _made, folder)


@contextlib.contextmanager
def _pool(plan: extraction.Plan, processes: int):
  """Processes that hold the extractors and one thread each."""
  # Each is as fast alone as its share of the cores; threads only get in the
  # way. The environment is that of the processes to come.
  one_thread = {
    'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
    'OPENBLAS_NUM_THREADS': '1',
    'OMP_NUM_THREADS': '1',
  }
  before = {name: os.environ.get(name) for name in one_thread}
  os.environ.update(one_thread)
  try:
    pool = concurrent.futures.ProcessPoolExecutor(
      processes,
      mp_context=multiprocessing.get_context('spawn'),
      initializer=_start_worker,
      initargs=(plan,),
    )
    try:
      yield pool
    finally:
      pool.shutdown(cancel_futures=True)
  finally:
    for name, value in before.items():
      os.environ.pop(name)
      if value is not None:
        os.environ[name] = value


def _results(
  clips: Sequence[extraction.Source],
  plan: extraction.Plan,
  folder: str,
  processes: int,
) -> Iterator[tuple[extraction.Source, str | None]]:
  """Yields each clip with its error, as they come."""
  made = extraction.extractors(plan)
  extraction.try_out(made)  # mistakes in the plan show before any clip
  if processes == 1:
    for source in clips:
      yield source, _attempt(source, made, folder)
    return
  left = list(clips)
  while left:
    done = set()
    try:
      with _pool(plan, processes) as pool:
        futures = {pool.submit(_work, s, folder): s for s in left}
        for future in concurrent.futures.as_completed(futures):
          error = future.result()
          done.add(futures[future].clip_id)
          yield futures[future], error
    except concurrent.futures.process.BrokenProcessPool:
      # A library took its process down. Those that were under way run alone,
      # which shows whose fault it was.
      suspects = [s for s in left if s.clip_id not in done][: processes + 1]
      for source in suspects:
        done.add(source.clip_id)
        yield source, _attempt_alone(source, plan, folder)
    left = [s for s in left if s.clip_id not in done]


def _attempt_alone(
  source: extraction.Source, plan: extraction.Plan, folder: str
) -> str | None:
  try:
    with _pool(plan, 1) as pool:
      return pool.submit(_work, source, folder).result()
  except concurrent.futures.process.BrokenProcessPool:
    return f'{source.clip_id}: takes the process down. Leave it out.'


def make_parts(
  clips: Sequence[extraction.Source],
  plan: extraction.Plan,
  folder: str | os.PathLike,
  processes: int = 1,
) -> dict[str, str]:
  """Makes the parts of all clips that are not there yet.

  Args:
    clips: the clips.
    plan: which streams.
    folder: where the parts are kept; made if missing.
    processes: how many clips are worked on at once.

  Returns:
    What went wrong, by clip_id of the clips that could not be used.

  Raises:
    UserError: the plan is wrong or the folder cannot be written.
  """
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as e:
    raise errors.UserError(
      f'{folder}: cannot be made ({e.strerror}), expected a folder to write '
      'to. Choose another.'
    ) from e
  failures = {}
  with _Progress(len(clips)) as progress:
    for source, error in _results(clips, plan, str(folder), processes):
      if error:
        failures[source.clip_id] = error
        progress.say(f'skipped {source.clip_id}: {error}')
      progress.advance()
  return failures


class _Progress:
  """Clips done, rate and time left: a bar on a terminal, else log lines."""

  def __init__(self, total: int):
    self._total = total
    self._done = 0
    self._start = self._said = time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      import tqdm

      self._bar = tqdm.tqdm(total=total, unit='clip', dynamic_ncols=True)

  def say(self, message: str) -> None:
    if self._bar is not None:
      self._bar.write(message, file=sys.stderr)
    else:
      print(message, file=sys.stderr, flush=True)

  def advance(self) -> None:
    self._done += 1
    if self._bar is not None:
      self._bar.update()
      return
    now = time.monotonic()
    if now - self._said >= _LOG_SECONDS or self._done == self._total:
      self._said = now
      rate = self._done / max(now - self._start, 1e-9)
      left = (self._total - self._done) / rate
      self.say(
        f'{self._done}/{self._total} clips, {rate:.2f} clips/s, '
        f'{left:.0f} s left'
      )

  def __enter__(self) -> '_Progress':
    return self

  def __exit__(self, *unused):
    if self._bar is not None:
      self._bar.close()


def write_arrays(
  clips: Sequence[extraction.Source],
  stream_names: Sequence[str],
  folder: str | os.PathLike,
  parts: str | os.PathLike,
) -> None:
  """Puts parts together to plain arrays, see arrays.py."""
  specs = [streams.get(name) for name in stream_names]
  for split in manifests.SPLITS:
    of_split = [source for source in clips if source.split == split]
    if of_split:
      with arrays_lib.ArrayWriter(folder, split, specs) as writer:
        for source in of_split:
          part = extraction.read_part(parts, source.clip_id)
          writer.add(source.clip_id, part.arrays, part.seconds)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='v2meow prepare',
    description='Makes a dataset of videos with sound. Run it again to go '
    'on where it stopped. Prints the folder of the dataset.',
    epilog='The columns of a manifest are in data/README.md; only `file` is '
    'needed.',
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('manifest', metavar='MANIFEST', nargs='?', help='CSV file of the clips')
  add('--out', metavar='DIR', required=True, help='folder of the dataset')
  add(
    '--streams',
    metavar='NAME,…',
    default=','.join(extraction.STREAMS),
    help='what to make of each clip (default: %(default)s)',
  )
  add(
    '--model',
    metavar='NAME_OR_DIR',
    default='bundled',
    help='model whose codec, tokenizer and style embedder are used (default: '
    '%(default)s)',
  )
  for part in ('codec', 'tokenizer', 'embedder'):
    add(f'--{part}', metavar='PATH', help=f'weights of another {part}')
  add(
    '--gin_file',
    metavar='FILE',
    action='append',
    help='gin files that name the extractors; repeat it (default: '
    f'{" ".join(extraction.GIN_FILES)})',
  )
  add(
    '--arrays',
    action='store_true',
    help='write plain arrays, for training without TensorFlow, and not '
    'TFRecord shards',
  )
  add(
    '--name',
    help="name of the dataset (default: the manifest's, or `toy`)",
  )
  add('--processes', metavar='N', type=int, default=1, help='clips at once')
  add(
    '--toy',
    metavar='N',
    type=int,
    help='instead of a manifest: N clips of the toy dataset',
  )
  add('--seed', type=int, default=0, help='of the toy dataset')
  add(
    '--renderer',
    choices=('fluidsynth', 'numpy'),
    default='fluidsynth',
    help='sound of the toy dataset (default: %(default)s)',
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """`v2meow prepare …`; returns the exit status."""
  parser = _parser()
  args = parser.parse_args(argv)
  if (args.manifest is None) == (args.toy is None):
    parser.error('expected MANIFEST or --toy N, one of them')
  for name in ('processes', 'toy'):
    value = getattr(args, name)
    if value is not None and value < 1:
      parser.error(f'--{name} is {value}, expected at least 1')
  if args.toy is not None:
    clips = [
      sources_lib.ToySource(i, args.seed, renderer=args.renderer)
      for i in range(args.toy)
    ]
  else:
    clips = [sources_lib.FileSource(c) for c in manifests.read(args.manifest)]
  stream_names = tuple(filter(None, args.streams.split(',')))
  plan = extraction.make_plan(
    stream_names,
    args.model,
    args.codec,
    args.tokenizer,
    args.gin_file or extraction.GIN_FILES,
    args.embedder,
  )
  out = pathlib.Path(args.out)
  parts = out / _PARTS
  failures = make_parts(clips, plan, parts, args.processes)
  good = [source for source in clips if source.clip_id not in failures]
  if not good:
    raise errors.UserError(
      f'Not one of {len(clips)} clips could be used, expected at least one. '
      f'The first: {next(iter(failures.values()))}'
    )
  name = args.name or ('toy' if args.toy else pathlib.Path(args.manifest).stem)
  if args.arrays:
    write_arrays(good, stream_names, out, parts)
    print(out)
  else:
    from v2meow_jax import dataset_builder  # imports TensorFlow

    print(dataset_builder.write(name, good, plan, out, parts))
  if failures:
    lines = ''.join(f'\n  {k}: {v}' for k, v in failures.items())
    print(
      f'error: {len(failures)} of {len(clips)} clips were skipped:{lines}',
      file=sys.stderr,
    )
  return 1 if failures else 0
