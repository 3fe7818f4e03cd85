"""The training loop: any model object, any number of devices and hosts.

  python -m v2meow_jax.train --gin_file=sizes/tiny.gin … \
      --gin_file=runs/train.gin --gin.MODEL_DIR='"runs/semantic"'

The model is an object in T5X's protocol: `get_initial_variables`, `loss_fn`,
`eval_fn`. Batches come from anything with `iterator(start_step)` that yields
dicts of NumPy arrays: step `n` must be the same batch however often training
stopped before, so that to resume is exact.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import logging as python_logging
import os
import pathlib
import signal
import sys
import tempfile
import time
from typing import Any

from absl import flags
from absl import logging
from flax import linen as nn
import gin
import jax
import optax

from v2meow_jax import checkpoints
from v2meow_jax import compilation_cache
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import hosts
from v2meow_jax import listening
from v2meow_jax import optimizers
from v2meow_jax import partitioning
from v2meow_jax import platforms
from v2meow_jax import prefetching
from v2meow_jax import progress
from v2meow_jax import signals
from v2meow_jax import summaries
from v2meow_jax import trainer
from v2meow_jax import utilization
from v2meow_jax import versions
from v2meow_jax import weights

Batch = Mapping[str, Any]

# Packages that log each of their steps.
_TALKATIVE = {'orbax', 'seqio', 'tensorflow_datasets'}


@dataclasses.dataclass(frozen=True)
class Result:
  """How a training ended.

  Attributes:
    state: the state after the last step; None after a dry run.
    step: steps done.
    signal: number of the signal that stopped it early; None at the end.
  """

  state: checkpoints.TrainState | None
  step: int
  signal: int | None


def train(
  model: Any,
  batches: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  model_dir: str,
  train_steps: int,
  batch_size: int,
  seed: int = 0,
  train_split: str = 'train',
  eval_split: str | None = 'validation',
  eval_period: int = 1000,
  eval_steps: int = 20,
  stats_period: int = 100,
  checkpoint_period: int | None = None,
  keep: int = 2,
  keep_best: int = 1,
  initial_checkpoint_path: str | None = None,
  export_path: str | None = None,
  mesh_shape: Sequence[int] = (-1, 1, 1),
  logical_axis_rules: partitioning.Rules = partitioning.RULES,
  microbatches: int = 1,
  dry_run: bool | str = False,
  listener: listening.Listener | None = None,
) -> Result:
  """Trains a model from its newest checkpoint, or from the beginning.

  Args:
    model: object with `get_initial_variables`, `loss_fn` and `eval_fn`.
    batches: `batches(split=, batch_size=, seed=)` returns an object whose
      `iterator(start_step)` yields batches without end. Where processes read
      different parts of a batch, it gets `shard=` too, a `hosts.Shard`.
    optimizer: optax transformation.
    model_dir: folder of checkpoints, metrics and config.gin.
    train_steps: steps in total, those of earlier runs included.
    batch_size: examples of a step, over all devices.
    seed: of the parameters, dropout and the order of the data.
    train_split: split to train on.
    eval_split: split to evaluate on; None for no evaluation.
    eval_period: steps between evaluations.
    eval_steps: batches of an evaluation, always the same ones, which are kept
      in memory.
    stats_period: steps that a line of training metrics averages.
    checkpoint_period: steps between checkpoints; `eval_period` if None.
    keep: newest checkpoints to keep.
    keep_best: best checkpoints by validation loss to keep beside them.
    initial_checkpoint_path: parameters to start from: a checkpoint, a folder
      of checkpoints or a .safetensors file.
    export_path: where to write the parameters of the best checkpoint at the
      end; `model_dir`/params.safetensors if None, nowhere if ''.
    mesh_shape: devices along 'data', 'fsdp' and 'model', see
      `partitioning.make_mesh`; -1 for the rest.
    logical_axis_rules: logical axis to mesh axis.
    dry_run: whether to build everything, print what it is to stdout and stop,
      without a change to `model_dir`; 'shapes' does not compile the step, and
      leaves the activations out of the estimate of memory.
    listener: lets the model be heard in TensorBoard at each evaluation.
    microbatches: parts of a batch that are computed one after another, see
      `trainer.Trainer`.

  Returns:
    The final state, the steps done and the signal that stopped it, if any.

  Raises:
    UserError: a setting does not fit, the loss is not finite, a checkpoint is
      damaged or cannot be written.
  """
  if train_steps < 1:
    raise errors.UserError(
      f'TRAIN_STEPS is {train_steps}, expected at least 1.'
    )
  if not dry_run:
    model_dir = _make_folder(model_dir)
  mesh = partitioning.make_mesh(mesh_shape)
  partitioning.check_batch_size(batch_size, mesh, microbatches)
  checkpoint_period = checkpoint_period or eval_period
  data_arguments = {'batch_size': batch_size, 'seed': seed}
  shard = partitioning.data_shard(mesh)
  if shard.count > 1:
    data_arguments['shard'] = shard
  train_data = batches(split=train_split, **data_arguments)
  eval_data = None
  if eval_split is not None:
    eval_data = batches(split=eval_split, **data_arguments)

  if listener is not None:
    listener.open(model, batch_size, mesh)

  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(nn.logical_axis_rules(tuple(logical_axis_rules)))
    step = 0
    if not dry_run:
      stop = stack.enter_context(signals.StopSignals())
      manager = checkpoints.Checkpoints(model_dir, keep, keep_best)
      stack.callback(manager.close)
      step = manager.latest_step() or 0
    # Opened once, at the step where training goes on: it can take seconds.
    batches_to_come = train_data.iterator(step)
    batch = next(batches_to_come)
    first_batch = trainer.numeric(batch)
    training = trainer.Trainer(
      model,
      optimizer,
      first_batch,
      seed,
      mesh,
      logical_axis_rules,
      microbatches,
    )
    if dry_run:
      _print_summary(training, first_batch, batch_size, mesh, dry_run)
      return Result(None, 0, None)
    if manager.latest_step() is not None:
      training.state = manager.restore(step, training.abstract)
      logging.info('Resumed from %s.', manager.path(step))
    else:
      training.initialize(initial_checkpoint_path)
    _log_start(first_batch, training.abstract, mesh)
    _note_start(model_dir, step, training.abstract)
    shapes = summaries.batch_shapes(first_batch, batch_size, mesh)
    peak = utilization.peak_steps_per_second(
      model, training.abstract, shapes, mesh
    )
    if step >= train_steps:
      logging.info('TRAIN_STEPS is %d and %d are done.', train_steps, step)

    writer = stack.enter_context(progress.MetricWriter(model_dir, step))
    results = trainer.Results()
    bar = stack.enter_context(
      progress.Progress(step, train_steps, results.latest_loss)
    )
    feed = prefetching.Prefetch(
      itertools.chain([batch], batches_to_come),
      training.to_devices,
      train_steps - step,
    )
    stack.callback(feed.close)

    eval_batches = []  # read once: to start a reader again can take seconds

    def evaluate() -> float | None:
      if eval_data is None:
        return None
      if not eval_batches:
        eval_batches.extend(itertools.islice(eval_data.iterator(0), eval_steps))
      with contextlib.closing(
        prefetching.Prefetch(
          iter(eval_batches), training.to_devices, eval_steps
        )
      ) as eval_feed:
        values = training.evaluate(batch for batch, _ in eval_feed)
      writer.write(step, 'validation', values)
      if listener is not None:
        sounds = listener.listen(training, eval_batches[0])
        writer.write_audio(step, 'validation', sounds, listener.sample_rate_hz)
      return values[trainer.loss_name(values)]

    def save(loss: float | None = None) -> None:
      start = time.perf_counter()
      manager.save(training.state, step, loss)
      seconds = time.perf_counter() - start
      logging.info('Saving step %d held training up for %.3f s.', step, seconds)

    while step < train_steps and not stop.reached(step):
      manager.check()
      batch, num_tokens = next(feed)
      results.add(step + 1, training.step(batch))
      step += 1
      bar.update(step, num_tokens, batch_size, feed.waited_seconds)
      if bar.steps_here == 1:
        _write_config(model_dir)  # by now all of gin has been used
      is_last = step == train_steps
      if is_last or step % stats_period == 0:
        values = results.summary()
        values |= optimizers.learning_rates(optimizer, step - 1)
        rates = bar.rates()
        if peak is not None:
          rates['mfu'] = rates['steps_per_second'] / peak
        writer.write(step, 'train', values | rates)
      saves = is_last or step % checkpoint_period == 0
      if saves or step % eval_period == 0:
        results.fetch()  # what is not finite must not be saved
        with bar.paused():
          loss = evaluate()
          if saves:
            save(loss)
    is_done = step >= train_steps  # a signal that came after changes nothing
    if not is_done and bar.steps_here:
      results.fetch()
      logging.info('Signal %d: saving step %d.', stop.signal, step)
      save()
    manager.wait()
    if is_done and export_path != '':
      path = pathlib.Path(export_path or model_dir / 'params.safetensors')
      if jax.process_index() == 0:
        export(model, manager.path(manager.best_step()), path)
    hosts.wait_for_all('end of training')
    return Result(training.state, step, None if is_done else stop.signal)


def export(model: Any, checkpoint: pathlib.Path, path: pathlib.Path) -> None:
  """Writes the parameters of a checkpoint as safetensors.

  Args:
    model: if it has `export_variables(params, mutables)`, what that returns is
      written; else the parameters, and beside them, where the model has
      further collections, each under its name: `params/…`, `codebooks/…`.
    checkpoint: folder `checkpoint_<step>`.
    path: file to write.
  """
  params = checkpoints.load_params(checkpoint)
  mutables = checkpoints.load_mutables(checkpoint)
  if hasattr(model, 'export_variables'):
    tree = model.export_variables(params, mutables)
  else:
    tree = {'params': params, **mutables} if mutables else params
  path.parent.mkdir(parents=True, exist_ok=True)
  weights.save_params(path, tree)
  logging.info('Wrote the parameters of %s to %s.', checkpoint.name, path)


def _make_folder(path: str | os.PathLike) -> pathlib.Path:
  if '://' in os.fspath(path):
    raise errors.UserError(
      f'MODEL_DIR {path} is an address, expected a folder that all hosts see. '
      'Mount the bucket, and name the folder where it is.'
    )
  path = pathlib.Path(path).expanduser().absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise errors.UserError(
      f'MODEL_DIR {path} cannot be made ({e.strerror}), expected a folder '
      'that can be written. Set another MODEL_DIR.'
    ) from e
  try:
    tempfile.TemporaryFile(dir=path).close()
  except OSError as e:
    raise errors.UserError(
      f'MODEL_DIR {path} cannot be written ({e.strerror}), expected a folder '
      'that can. Change its permissions or set another MODEL_DIR.'
    ) from e
  return path


def _write_config(model_dir: pathlib.Path) -> None:
  text = gin.operative_config_str()
  if text and jax.process_index() == 0:
    _write_if_changed(model_dir / 'config.gin', text)
    logging.info('Operative gin configuration:\n%s', text)


def _log_start(
  batch: Batch, state: checkpoints.TrainState, mesh: jax.sharding.Mesh
) -> None:
  logging.info('%s', summaries.parameter_table(state.params))
  logging.info('%s', summaries.placement(state, mesh))
  logging.info('First batch:\n%s', summaries.batch_table(batch))


def _note_start(
  model_dir: pathlib.Path, step: int, state: checkpoints.TrainState
) -> None:
  """Writes what a training is made of beside its checkpoints."""
  if jax.process_index() == 0:
    table = summaries.parameter_table(state.params) + '\n'
    _write_if_changed(model_dir / summaries.PARAMETERS_FILE, table)
    versions.save(model_dir, step)


def _print_summary(
  training: trainer.Trainer,
  batch: Batch,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  dry_run: bool | str,
) -> None:
  compiled = None
  if dry_run != 'shapes':
    shapes = summaries.batch_shapes(batch, batch_size, mesh)
    compiled = training.lower_step(shapes).compile()
  if jax.process_index() == 0:
    state = training.abstract
    print(summaries.describe(state, batch, batch_size, mesh, compiled))


def _write_if_changed(path: pathlib.Path, text: str) -> None:
  if not path.exists() or path.read_text() != text:
    path.write_text(text)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Parses the command line; `--gin.X=Y` becomes a line of gin."""
  parser = argparse.ArgumentParser(
    prog='v2meow train',
    description='Trains a model that gin files describe.',
    epilog='--gin.NAME=VALUE sets one value, after all files: '
    "--gin.TRAIN_STEPS=100 --gin.MODEL_DIR=\\'runs/a\\'",
    allow_abbrev=False,
  )
  parser.add_argument(
    '--gin_file',
    action='append',
    default=[],
    metavar='FILE',
    help='a gin file; repeat it, one from each folder of gin/, in the order '
    'of gin/README.md: later ones win',
  )
  parser.add_argument(
    '--gin_search_paths',
    default='',
    metavar='DIR[,DIR]',
    help='further folders to look for gin files in',
  )
  parser.add_argument(
    '--gin_bindings',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='the same as --gin.NAME=VALUE',
  )
  hosts.add_arguments(parser)
  arguments, rest = parser.parse_known_args(argv)
  for argument in rest:
    if not argument.startswith('--gin.') or '=' not in argument:
      parser.exit(
        2,
        f'error: unknown argument {argument}, expected --gin_file=FILE or '
        '--gin.NAME=VALUE. See `v2meow train --help`.\n',
      )
    name, value = argument.removeprefix('--gin.').split('=', 1)
    arguments.gin_bindings.append(f'{name} = {value}')
  return arguments


def _set_up_logging() -> None:
  """Logs to stderr; of what others say only what is wrong."""
  flags.FLAGS.mark_as_parsed()  # there are none; absl would warn of it
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.python_handler.stream = sys.stderr
  handler.addFilter(_is_worth_reading)


def _is_worth_reading(record) -> bool:
  if _TALKATIVE.isdisjoint(pathlib.PurePath(record.pathname).parts):
    return True
  if record.exc_info:
    return False  # it is raised, too, and then told in one line
  # A checkpoint without a validation loss is nothing to warn of.
  is_expected = 'did not provide metrics' in record.getMessage()
  return record.levelno >= python_logging.WARNING and not is_expected


def main(argv: Sequence[str] | None = None) -> int:
  """Trains as the command line says.

  Args:
    argv: arguments without the program's name; `sys.argv[1:]` if None.

  Returns:
    Exit status: 0 when done, and when SIGTERM stopped it: then all is saved
    and the same command goes on, which is what a scheduler that takes the
    machine away needs to know. 130 when Ctrl-C did, so that what comes behind
    it in a script does not run; all is saved, too. 1 after an error.
  """
  platforms.settle()
  arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
  _set_up_logging()
  compilation_cache.enable()
  try:
    configs.parse(
      arguments.gin_file,
      arguments.gin_bindings,
      [p for p in arguments.gin_search_paths.split(',') if p],
      root='train.train',
    )
    # What gin makes for `train` may use JAX already.
    gin.get_configurable(hosts.initialize)(
      arguments.coordinator_address,
      arguments.process_count,
      arguments.process_index,
    )
    if jax.process_index() != 0:
      logging.set_verbosity(logging.WARNING)
    result = gin.get_configurable(train)()
  except KeyboardInterrupt as stop:  # a second one, or before there is a state
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)
  except Exception as e:  # pylint: disable=broad-except
    message = configs.one_line(e)
    if message is None or os.environ.get('V2MEOW_DEBUG') == '1':
      raise
    print(f'error: {message}', file=sys.stderr)
    return 1
  if result.signal is not None:
    logging.info(
      'Stopped at step %d; the same command goes on from there.', result.step
    )
  return 128 + signal.SIGINT if result.signal == signal.SIGINT else 0


if __name__ == '__main__':
  # gin knows this module by its own name, not as `__main__`.
  from v2meow_jax import train as train_module

  sys.exit(train_module.main())
