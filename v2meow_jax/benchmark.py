"""Measured speed and memory, one JSON line each.

  python -m v2meow_jax.benchmark generate [--video VIDEO]
  python -m v2meow_jax.benchmark decode --size tiny --batch 1 --steps 200
  python -m v2meow_jax.benchmark train --stage coarse --size tiny --batch 8 \
      --steps 10
  python -m v2meow_jax.benchmark compile --topology v5e:16x16 --stage coarse \
      --size base --batch 2048
  python -m v2meow_jax.benchmark input --stage coarse --dataset clips:1.0.0 \
      --data_dir records --batch 64

`generate` runs the whole road of a clip twice in one process: the first run
compiles (or reads the cache of compiled code), the second is what a further
clip costs. `decode` runs the loop of one stage alone, with random weights of
the paper's geometry: what a size costs before anything is trained. `train`
times the training step of a stage, on noise. `compile` compiles that step for a
TPU slice that need not be there (extra `tpu`): what it would need of a chip and
how fast it can be at most. `input` reads the batches of a stage from TFDS
records, and trains nothing.
"""

import argparse
from collections.abc import Sequence
import json
import math
import os
import pathlib
import platform
import re
import resource
import sys
import tempfile
import time

from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import platforms

_EXAMPLE = 'data/example.mp4'
_SIZES = ('tiny', 'small', 'base', 'large')
# Of `network.Config`, for a training step.
_OPTIONS = ('dtype', 'remat', 'scan_layers', 'causal_block_queries')
_STAGES = ('semantic', 'coarse', 'fine')


def measure_generate(
  path: str, model: str = 'bundled', seed: int = 0, text: str | None = None
) -> dict:
  """Measures the road from a video to a video with music.

  Args:
    path: a video file.
    model: name or folder of a model.
    seed: of the music.
    text: what the music should be like.

  Returns:
    What was measured; seconds unless the name says otherwise.

  Raises:
    UserError: the video or the model cannot be used.
  """
  start = time.perf_counter()
  from v2meow_jax import generate

  generator = generate.load(model)
  load_seconds = time.perf_counter() - start
  phases = {}

  def note(phase, _):
    nonlocal last
    now = time.perf_counter()
    phases[phase] = phases.get(phase, 0.0) + now - last
    last = now

  runs = []
  with tempfile.TemporaryDirectory() as folder:
    for _ in range(2):
      phases.clear()
      last = time.perf_counter()
      start = last
      music = generator.generate(path, progress=note, seed=seed, text=text)
      music.write(os.path.join(folder, 'music.mp4'))
      runs.append(time.perf_counter() - start)
  first, second = runs
  steps = {
    model.stage.name: _num_steps(model, music.tokens, generator.bundle.overlap)
    for model in generator.bundle.models
  }
  num_tokens = sum(codes.size for codes in music.tokens.values())
  sampling_seconds = sum(phases[name] for name in steps)
  return {
    'video': os.path.basename(path),
    'model': model,
    'music_seconds': round(music.picture.seconds, 3),
    'load_seconds': load_seconds,
    'first_seconds': first,
    'compile_seconds': max(0.0, first - second),
    'seconds': second,
    'phase_seconds': dict(phases),
    'tokens': num_tokens,
    'tokens_per_second': num_tokens / sampling_seconds,
    'seconds_per_step': {
      name: phases[name] / count for name, count in steps.items()
    },
    'real_time_factor': second / music.picture.seconds,
  }


def _num_steps(model, tokens, overlap: float) -> int:
  """Steps of the sampling loop that made the tokens of one stage."""
  from v2meow_jax import cascade

  stage = model.stage
  rate = stage.target.spec.rate_hz
  total = len(tokens[stage.target.name])
  window = round(stage.seconds * rate)
  if stage.name == 'fine':
    starts = cascade.window_starts(total, window, window)
    calls = -(-len(starts) // cascade.FINE_BATCH)
    return calls * window * stage.target.num_levels
  fresh = window - round(overlap * window)
  starts = cascade.window_starts(total, window, fresh)
  return (window + (len(starts) - 1) * fresh) * stage.target.num_levels


def measure_decode(
  size: str, batch: int, steps: int, stage_name: str = 'semantic'
) -> dict:
  """Measures the sampling loop of one stage with random weights.

  Args:
    size: a file of gin/sizes.
    batch: clips at once.
    steps: steps of the loop at least; rounded up to a whole time.
    stage_name: which stage of the paper's geometry.

  Returns:
    What was measured.

  Raises:
    UserError: there is no such size.
  """
  import jax
  import numpy as np

  from v2meow_jax import compilation_cache
  from v2meow_jax import models
  from v2meow_jax import stages

  compilation_cache.enable()
  config = _read_size(size)
  visual = ('clip', 'i3d_flow') if stage_name == 'semantic' else ()
  whole = stages.make(stage_name, visual=visual)
  view = whole.target
  # Whole seconds, so that every stream has a whole number of positions.
  seconds = float(max(1, math.ceil(steps / view.rate_hz)))
  stage = stages.make(stage_name, visual=visual, seconds=seconds)
  model = models.StageModel(stage, config)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda key: model.get_initial_variables(key, model.feature_shapes(1))[
      'params'
    ],
    jax.random.key(0),
  )
  params = jax.tree.map(
    lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes
  )
  params = jax.device_put(params)
  inputs, masks = {}, {}
  for view in stage.inputs:
    length = view.spec.length(seconds)
    if view.spec.is_discrete:
      shape = (batch, length, view.num_levels)
      inputs[view.name] = rng.integers(0, view.spec.num_codes, shape, np.int32)
    else:
      shape = (batch, length, view.spec.num_features)
      inputs[view.name] = rng.standard_normal(shape, np.float32)
    masks[view.name] = np.ones((batch, view.length(seconds)), np.int32)
  # All but the steps asked for are a prompt.
  target = stage.target
  times = target.spec.length(seconds)
  kept = times - math.ceil(steps / target.num_levels)
  prompt = np.zeros((batch, kept, target.num_levels), np.int32)
  run = lambda: jax.block_until_ready(
    model.decode(
      params,
      inputs,
      masks,
      prompt,
      np.arange(batch, dtype=np.uint32),
      np.zeros(batch, np.int32),
      model.options,
    )
  )
  times_taken = []
  for _ in range(3):
    start = time.perf_counter()
    run()
    times_taken.append(time.perf_counter() - start)
  first, *others = times_taken
  taken = min(others)
  num_steps = (times - kept) * target.num_levels
  music_seconds = (times - kept) / target.spec.rate_hz
  return {
    'size': size,
    'stage': stage_name,
    'batch': batch,
    'steps': num_steps,
    'parameters': sum(x.size for x in jax.tree.leaves(params)),
    'compile_seconds': first - taken,
    'seconds': taken,
    'seconds_per_step': taken / num_steps,
    'tokens_per_second': batch * num_steps / taken,
    'real_time_factor': taken / (batch * music_seconds),
  }


def _read_size(size: str):
  """Returns the `network.Config` of a file of gin/sizes."""
  import gin

  from v2meow_jax import network

  path = configs.folder() / 'sizes' / f'{size}.gin'
  if not path.is_file():
    names = ', '.join(sorted(x.stem for x in path.parent.glob('*.gin')))
    raise errors.UserError(
      f'Unknown size `{size}`, expected one of {names}. Choose one with --size.'
    )
  configs.parse([str(path)])
  config = gin.get_configurable(network.Config)()
  gin.clear_config()
  return config


def _machine() -> dict:
  """Where the numbers were measured."""
  import jax

  device = jax.devices()[0]
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  if sys.platform == 'darwin':  # bytes there, kilobytes elsewhere
    peak //= 1024
  return {
    'peak_memory_mb': round(peak / 1024),
    'device': device.device_kind,
    'cores': len(os.sched_getaffinity(0))
    if hasattr(os, 'sched_getaffinity')
    else os.cpu_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
  }


def _round(value):
  """Four digits are enough."""
  if isinstance(value, dict):
    return {key: _round(item) for key, item in value.items()}
  return float(f'{value:.4g}') if isinstance(value, float) else value


def _measure_step(args: argparse.Namespace) -> dict:
  """Measures the training step that the arguments of a command describe."""
  from v2meow_jax import training_steps

  recipe = training_steps.make(
    args.stage,
    args.size,
    args.batch,
    args.gin_file,
    [
      *(f'network.Config.{n} = {getattr(args, n)!r}' for n in _OPTIONS),
      *args.bindings,
    ],
  )
  if args.what == 'compile':
    from v2meow_jax import ahead_of_time

    line = ahead_of_time.measure(recipe, args.topology, args.mesh)
  else:
    from v2meow_jax import compilation_cache
    from v2meow_jax import training_speed

    compilation_cache.enable()
    line = training_speed.measure(recipe, args.steps, args.mesh)
  names = ('stage', 'size', 'batch', *_OPTIONS)
  return {name: getattr(args, name) for name in names} | line


def _measure_input(args: argparse.Namespace) -> dict:
  from v2meow_jax import reading_speed

  line = reading_speed.measure(
    args.stage,
    args.dataset,
    args.data_dir,
    args.batch,
    args.steps,
    args.gin_file,
    args.bindings,
  )
  names = ('stage', 'dataset', 'batch')
  return {name: getattr(args, name) for name in names} | line


def _add_step(
  commands, name: str, summary: str, dtype: str, saves: bool, block: int
) -> argparse.ArgumentParser:
  """Adds a command about the training step of a stage."""
  command = commands.add_parser(
    name,
    help=summary,
    epilog='--gin.NAME=VALUE sets one value of the recipe, such as '
    "--gin.OPTIMIZER='@optimizers.adafactor()'.",
  )
  add = command.add_argument
  add('--stage', required=True, help='file of gin/stages')
  add('--size', required=True, help=' | '.join(_SIZES))
  add('--batch', type=int, required=True, help='examples, over all devices')
  add(
    '--mesh',
    type=_parse_mesh,
    help='devices along each axis of the mesh, separated by commas (default: '
    'all along the first)',
  )
  add(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default=dtype,
    help='of activations; parameters are float32 (default: %(default)s)',
  )
  add(
    '--remat',
    action=argparse.BooleanOptionalAction,
    default=saves,
    help='compute each layer again in the backward pass (default: %(default)s)',
  )
  add(
    '--scan_layers',
    action=argparse.BooleanOptionalAction,
    default=saves,
    help='compute layers in a loop, compiled once (default: %(default)s)',
  )
  add(
    '--causal_block_queries',
    type=int,
    default=block,
    help='queries of a block of causal attention (default: %(default)s)',
  )
  _add_gin_file(command)
  return command


def _add_gin_file(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    '--gin_file',
    action='append',
    default=[],
    metavar='FILE',
    help='one more gin file, behind those of the recipe; may be repeated',
  )


def _parse_mesh(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(size) for size in text.split(','))
  except ValueError as e:
    raise argparse.ArgumentTypeError(
      f'is `{text}`, expected whole numbers separated by commas'
    ) from e


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m v2meow_jax.benchmark',
    description=__doc__.split('\n')[0],
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest='what', metavar='WHAT', required=True)
  command = commands.add_parser('generate', help='from video to music')
  command.add_argument(
    '--video',
    default=str(pathlib.Path(__file__).resolve().parents[1] / _EXAMPLE),
    help='video file (default: the example of a checkout)',
  )
  command.add_argument('--model', default='bundled', help='name or folder')
  command.add_argument('--seed', type=int, default=0)
  command.add_argument('--text', help='what the music should be like')
  command = commands.add_parser('decode', help='the sampling loop of a stage')
  command.add_argument('--size', required=True, help=' | '.join(_SIZES))
  command.add_argument('--batch', type=int, default=1, help='clips at once')
  command.add_argument('--steps', type=int, default=100, help='tokens of each')
  command.add_argument('--stage', choices=_STAGES, default='semantic')
  command = _add_step(
    commands, 'train', 'the training step of a stage', 'float32', False, 128
  )
  command.add_argument('--steps', type=int, default=10, help='steps to time')
  command = _add_step(
    commands, 'compile', 'the same for a slice of TPUs', 'bfloat16', True, 512
  )
  command.add_argument(
    '--topology', required=True, help='chip and shape, such as v5e:16x16'
  )
  command = commands.add_parser('input', help='batches from TFDS records')
  add = command.add_argument
  add('--stage', required=True, help='file of gin/stages')
  add('--dataset', required=True, help='TFDS dataset, such as clips:1.0.0')
  add('--data_dir', help="folder of the records (default: TFDS's own)")
  add('--batch', type=int, default=64, help='examples (default: %(default)s)')
  add('--steps', type=int, default=100, help='batches (default: %(default)s)')
  _add_gin_file(command)
  args, rest = parser.parse_known_args(argv)
  args.bindings = []
  for argument in rest:
    if 'gin_file' not in args or not re.match(r'--gin\.[^=]+=', argument):
      parser.error(f'unrecognized arguments: {argument}')
    name, value = argument.removeprefix('--gin.').split('=', 1)
    args.bindings.append(f'{name} = {value}')
  for name in ('batch', 'steps', 'causal_block_queries'):
    if getattr(args, name, 1) < 1:
      parser.error(f'--{name} is {getattr(args, name)}, expected 1 or more')
  return args


def main(argv: Sequence[str]) -> int:
  """Runs one benchmark and prints its line."""
  args = _parse_arguments(argv)
  platforms.settle()
  try:
    if args.what == 'generate':
      line = measure_generate(args.video, args.model, args.seed, args.text)
    elif args.what == 'decode':
      line = measure_decode(args.size, args.batch, args.steps, args.stage)
    elif args.what == 'input':
      line = _measure_input(args)
    else:
      line = _measure_step(args)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(json.dumps({'benchmark': args.what, **_round(line), **_machine()}))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
