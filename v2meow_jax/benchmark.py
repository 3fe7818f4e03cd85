"""Measured speed and memory, one JSON line each.

  python -m v2meow_jax.benchmark generate [--video VIDEO]
  python -m v2meow_jax.benchmark decode --size tiny --batch 1 --steps 200
  python -m v2meow_jax.benchmark decode --arch encoder_decoder --layers 4 \
      --embed_dim 256 --heads 4 --head_dim 64 --mlp_dim 1024 --vocab 1024 \
      --batch 8 --encoder_length 64 --steps 2000 --dtype float32
  python -m v2meow_jax.benchmark train --stage coarse --size tiny --batch 8 \
      --steps 10
  python -m v2meow_jax.benchmark compile --topology v5e:16x16 --stage coarse \
      --size base --batch 2048
  python -m v2meow_jax.benchmark input --stage coarse --dataset clips:1.0.0 \
      --data_dir records --batch 64
  python -m v2meow_jax.benchmark codec --codec dac --seconds 30

`generate` runs the whole road of a clip twice in one process: the first run
compiles (or reads the cache of compiled code), the second is what a further
clip costs. `decode` runs the loop of one stage alone, with random weights, of
the paper's geometry or of any dimensions: what a size costs before anything is
trained, and how far it is from the time that reading takes. `train`
times the training step of a stage, on noise. `compile` compiles that step for a
TPU slice that need not be there (extra `tpu`): what it would need of a chip and
how fast it can be at most. `input` reads the batches of a stage from TFDS
records, and trains nothing. `codec` encodes and decodes noise, with random
weights of full size where none are given.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import platform
import re
import resource
import sys
import tempfile
import time

from v2meow_jax import errors
from v2meow_jax import platforms

_EXAMPLE = 'data/example.mp4'
_SIZES = ('tiny', 'small', 'base', 'large')
# Of `network.Config`, for a training step.
_OPTIONS = ('dtype', 'remat', 'scan_layers', 'causal_block_queries')
# Of a network that is no stage, and of its loop: options of `decode`.
_DIMENSIONS = (
  'arch',
  'layers',
  'embed_dim',
  'heads',
  'head_dim',
  'mlp_dim',
  'vocab',
  'encoder_length',
)
_LOOP = ('batch', 'steps', 'dtype', 'weights_dtype')
_STAGES = ('semantic', 'coarse', 'fine')
_CODECS = ('dac', 'encodec', 'soundstream')  # `codec_speed.CODECS`


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
  runs = []
  with tempfile.TemporaryDirectory() as folder:
    for _ in range(2):
      start = time.perf_counter()
      music = generator.generate(path, seed=seed, text=text)
      music.write(os.path.join(folder, 'music.mp4'))
      runs.append(time.perf_counter() - start)
  first, second = runs
  start = time.perf_counter()
  chunks = generator.stream(path, seed=seed, text=text)
  next(chunk for chunk in chunks if len(chunk))
  sound_seconds = time.perf_counter() - start
  chunks.close()
  num_tokens = sum(codes.size for codes in music.tokens.values())
  return {
    'video': os.path.basename(path),
    'model': model,
    'music_seconds': round(music.picture.seconds, 3),
    'load_seconds': load_seconds,
    'first_seconds': first,
    'compile_seconds': max(0.0, first - second),
    'seconds': second,
    'first_sound_seconds': sound_seconds,
    'tokens': num_tokens,
    'tokens_per_second': num_tokens / second,
    'real_time_factor': second / music.picture.seconds,
  }


def _measure_decode(args: argparse.Namespace) -> dict:
  """Measures the loop of a stage, or of the dimensions given."""
  from v2meow_jax import compilation_cache
  from v2meow_jax import decoding_speed

  compilation_cache.enable()
  named = ('size', 'stage') if args.size else _DIMENSIONS
  line = {name: getattr(args, name) for name in (*named, *_LOOP)}
  if args.size:
    model = decoding_speed.paper_model(
      args.stage, args.size, args.steps, args.dtype, args.weights_dtype
    )
  else:
    dimensions = decoding_speed.Dimensions(
      **{name: getattr(args, name) for name in (*_DIMENSIONS, 'steps', 'dtype')}
    )
    model = dimensions.model(args.weights_dtype)
  return line | decoding_speed.measure(model, args.batch, args.steps)


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


def _measure_codec(args: argparse.Namespace) -> dict:
  from v2meow_jax import codec_speed

  return codec_speed.measure(args.codec, args.seconds, args.batch, args.weights)


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


def _add_decode(command: argparse.ArgumentParser) -> None:
  add = command.add_argument
  add('--size', help=' | '.join(_SIZES) + '; or all of the next options')
  add('--stage', choices=_STAGES, default='semantic', help='with --size')
  add('--arch', choices=('encoder_decoder', 'decoder_only'))
  for name in _DIMENSIONS[1:]:
    add(f'--{name}', type=int)
  add('--batch', type=int, default=1, help='clips at once')
  add('--steps', type=int, default=100, help='tokens of each')
  add(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='of activations, caches and weights (default: %(default)s)',
  )
  add(
    '--weights_dtype',
    choices=('bfloat16', 'int8'),
    help='keep the weights in fewer bits than --dtype',
  )


def _check_decode(
  parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
  given = [name for name in _DIMENSIONS if getattr(args, name) is not None]
  if args.size and given:
    parser.error(f'--{given[0]} does not go with --size, leave one of them out')
  missing = [name for name in _DIMENSIONS if name not in given]
  if not args.size and missing:
    parser.error(f'--{missing[0]} is missing, expected it or --size')


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
  _add_decode(command)
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
  command = commands.add_parser('codec', help='sound to codes and back')
  add = command.add_argument
  add('--codec', choices=_CODECS, required=True)
  add('--seconds', type=float, default=30.0, help='(default: %(default)s)')
  add('--batch', type=int, default=1, help='clips at once')
  add('--weights', metavar='FILE', help='safetensors file (default: random)')
  args, rest = parser.parse_known_args(argv)
  args.bindings = []
  for argument in rest:
    if 'gin_file' not in args or not re.match(r'--gin\.[^=]+=', argument):
      parser.error(f'unrecognized arguments: {argument}')
    name, value = argument.removeprefix('--gin.').split('=', 1)
    args.bindings.append(f'{name} = {value}')
  if args.what == 'decode':
    _check_decode(parser, args)
  if getattr(args, 'seconds', 1.0) <= 0:
    parser.error(f'--seconds is {args.seconds:g}, expected more than 0')
  for name in ('batch', 'steps', 'causal_block_queries', *_DIMENSIONS[1:]):
    count = getattr(args, name, None)
    if count is not None and count < 1:
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
      line = _measure_decode(args)
    elif args.what == 'input':
      line = _measure_input(args)
    elif args.what == 'codec':
      line = _measure_codec(args)
    else:
      line = _measure_step(args)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(json.dumps({'benchmark': args.what, **_round(line), **_machine()}))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
