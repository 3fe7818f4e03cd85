"""What a long training says: metrics to files, progress to the terminal."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
import pathlib
import sys
import time

from absl import logging
import jax
import numpy as np

from v2meow_jax import errors
from v2meow_jax import events

_LOG_SECONDS = 30.0


class MetricWriter:
  """Writes metrics as JSON lines and for TensorBoard.

  One line of `metrics.jsonl` is `{"step", "split", name: value …}`; TensorBoard
  reads a folder for each split. Lines of steps that a resumed run does again
  are dropped.
  """

  def __init__(self, model_dir: pathlib.Path, step: int):
    """Opens the files in `model_dir`, to go on behind `step`."""
    self._model_dir = model_dir
    self._step = step
    self._file = None
    self._event_writers = {}
    if jax.process_index() == 0:
      path = model_dir / 'metrics.jsonl'
      with _writing(path):
        _drop_lines(path, step)
        self._file = open(path, 'a', buffering=1)

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes the metrics of one step and split.

    Raises:
      UserError: they cannot be written.
    """
    if self._file is None:
      return
    logging.info(
      'step %d %s: %s',
      step,
      split,
      ' '.join(
        f'{name}={value:.5g}'
        for name, value in sorted(values.items())
        if '/' not in name  # details, one for each level
      ),
    )
    line = {'step': step, 'split': split, **values}
    with _writing(self._model_dir):
      self._file.write(json.dumps(line) + '\n')
      self._events(split).write_scalars(step, values)

  def write_audio(
    self,
    step: int,
    split: str,
    sounds: Mapping[str, np.ndarray],
    sample_rate_hz: int,
  ) -> None:
    """Writes mono waveforms by name for TensorBoard, `[samples]` in -1..1."""
    if self._file is not None and sounds:
      with _writing(self._model_dir):
        self._events(split).write_audio(step, sounds, sample_rate_hz)

  def _events(self, split: str) -> events.EventWriter:
    if split not in self._event_writers:
      self._event_writers[split] = events.EventWriter(
        self._model_dir / split, self._step
      )
    return self._event_writers[split]

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *unused):
    for writer in self._event_writers.values():
      writer.close()
    if self._file:
      self._file.close()


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    raise errors.UserError(
      f'{path}: metrics cannot be written ({e.strerror}), expected space for '
      'them. Make space and run the same command again; it goes on from the '
      'newest checkpoint.'
    ) from e


def _drop_lines(path: pathlib.Path, step: int) -> None:
  """Keeps the lines up to `step`, and only whole ones."""
  if not path.exists():
    return
  kept = [
    line
    for line in path.read_text().splitlines(keepends=True)
    if line.endswith('\n') and json.loads(line)['step'] <= step
  ]
  part = path.with_suffix('.part')
  part.write_text(''.join(kept))
  os.replace(part, path)


class Progress:
  """Steps done, rates and time left: a bar on a terminal, else log lines."""

  def __init__(self, step: int, total: int, loss: Callable[[], float]):
    """Starts the clock.

    Args:
      step: steps done before.
      total: steps at the end.
      loss: returns the loss to show; only called when it is shown.
    """
    self.steps_here = 0
    self._waited = 0.0
    self._step = step
    self._total = total
    self._loss = loss
    self._bar = None
    self._restart()
    self._all = self._window
    self._last_log = time.monotonic()
    if sys.stderr.isatty() and jax.process_index() == 0:
      import tqdm

      self._bar = tqdm.tqdm(
        initial=step,
        total=total,
        unit='step',
        dynamic_ncols=True,
        miniters=1,  # tqdm's guess goes wrong when evaluations come between
      )
      # A line of the log goes where the bar is, and the bar below it.
      logging.get_absl_handler().addFilter(self._make_room)

  def _restart(self):
    self._window = _Window(time.monotonic())

  def update(
    self,
    step: int,
    num_tokens: int,
    num_examples: int,
    waited_seconds: float = 0.0,
  ) -> None:
    """Counts one step.

    Args:
      step: steps done.
      num_tokens: target tokens of its batch; 0 if the targets are none.
      num_examples: examples of its batch.
      waited_seconds: time that all steps so far have waited for their batch.
    """
    waited, self._waited = waited_seconds - self._waited, waited_seconds
    self._step = step
    self.steps_here += 1
    if self.steps_here == 1:  # compilation is no rate
      self._restart()
      self._all = _Window(time.monotonic())
      self._last_log = time.monotonic()
      return
    for window in {self._window, self._all}:
      window.add(num_tokens, num_examples, waited)
    now = time.monotonic()
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
    elif now - self._last_log >= _LOG_SECONDS:
      self._last_log = now
      self.log()

  def log(self) -> None:
    """Logs one line."""
    rates = self._all.rates()
    per_second = rates['steps_per_second']
    left = (self._total - self._step) / per_second if per_second else 0.0
    parts = [f'step {self._step}/{self._total}', f'loss {self._loss():.4f}']
    parts += [f'{_number(v)} {_WORDS[k]}' for k, v in rates.items()]
    parts += [f'{_clock(left)} left']
    logging.info(', '.join(parts))

  def rates(self) -> dict[str, float]:
    """Returns the rates since the last call."""
    rates = self._window.rates()
    self._restart()
    if self._bar is not None:
      self._bar.set_postfix(loss=f'{self._loss():.4f}', refresh=False)
    return rates

  @contextlib.contextmanager
  def paused(self):
    """Time inside the block counts for no rate."""
    start = time.monotonic()
    yield
    for window in {self._window, self._all}:
      window.start += time.monotonic() - start

  def _make_room(self, unused_record) -> bool:
    self._bar.clear()
    return True

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *unused):
    if self._bar is not None:
      logging.get_absl_handler().removeFilter(self._make_room)
      self._bar.close()


_WORDS = {
  'steps_per_second': 'steps/s',
  'examples_per_second': 'examples/s',
  'target_tokens_per_second': 'target tokens/s',
  'input_wait_share': 'of the time waiting for data',
}


class _Window:
  """Counts since a time."""

  def __init__(self, start: float):
    self.start = start
    self._steps = self._tokens = self._examples = 0
    self._waited = 0.0

  def add(self, num_tokens: int, num_examples: int, waited: float) -> None:
    self._steps += 1
    self._waited += waited
    self._tokens += num_tokens
    self._examples += num_examples

  def rates(self) -> dict[str, float]:
    seconds = max(time.monotonic() - self.start, 1e-9)
    rates = {
      'steps_per_second': self._steps / seconds,
      'examples_per_second': self._examples / seconds,
      'input_wait_share': self._waited / seconds,
    }
    if self._tokens:
      rates['target_tokens_per_second'] = self._tokens / seconds
    return rates


def _number(value: float) -> str:
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
