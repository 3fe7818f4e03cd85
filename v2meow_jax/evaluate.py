"""`v2meow evaluate`: what the music of a model measures, in one report.

Music is judged by its final waveform alone; see `metrics`.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import math
import pathlib
import sys
import time

import numpy as np
import tqdm

from v2meow_jax import arguments
from v2meow_jax import errors
from v2meow_jax import evaluation_clips
from v2meow_jax import reports
from v2meow_jax.metrics import adherence
from v2meow_jax.metrics import music

_DESCRIPTION = """\
Measures music by its waveform and prints tables.

commands:
  adherence   does the music follow tempo, mode and energy of the video?
  music       does generated music measure like real music?
  codec       how near does the codec come to the sound it encoded?

Without a command it is `music`. `v2meow evaluate COMMAND --help` explains one.
"""
_EPILOG = """\
examples:
  v2meow evaluate adherence --out report
  v2meow evaluate music --generated DIR --reference DIR --out report
  v2meow evaluate codec --out report
  v2meow evaluate codec --codec runs/codec/params.safetensors \\
      --gin_file codecs/soundstream.gin --out report
"""
_OUT = """
Writes report.json, report.md and plots into --out, and keeps there what took
long: run it again to go on where it stopped.
"""
COMMANDS = ('adherence', 'music', 'codec')
_LOG_SECONDS = 30.0


def _levels(text: str) -> tuple[int, ...]:
  one = arguments.number(1, math.inf, int)
  return tuple(sorted({one(part) for part in text.split(',')}))


def _bit_rates(text: str) -> tuple[float, ...]:
  """Parses `6,12` to rates in kbit/s."""
  number = arguments.number(6, math.inf)
  return tuple(number(part) for part in text.split(','))


def _parser(command: str) -> argparse.ArgumentParser:
  texts = {
    'adherence': 'Makes music for held-out videos whose tempo, mode and energy '
    'are known\nand measures whether it follows them, beside the same music '
    'held against\nother videos (control) and real music (ceiling).',
    'music': 'Compares the sound files of two folders, which need not be '
    'pairs.',
    'codec': 'Encodes and decodes held-out sound with some numbers of levels.',
  }
  parser = arguments.Parser(
    prog=f'v2meow evaluate {command}', description=texts[command] + '\n' + _OUT
  )
  add = parser.add_argument
  add('--out', metavar='DIR', required=True, help='folder of the report')
  if command != 'music':
    add(
      '--model',
      metavar='NAME_OR_DIR',
      default='bundled',
      help='name or folder of a trained model (default: %(default)s)',
    )
  if command == 'music':
    add('--generated', metavar='DIR', required=True, help='generated music')
    add('--reference', metavar='DIR', required=True, help='real music')
    add(
      '--seconds',
      metavar='S',
      type=arguments.number(1, math.inf),
      help='how much of each file to use (default: all)',
    )
    return parser
  add(
    '--clips',
    metavar='N',
    type=arguments.number(3, math.inf, int),
    default=100 if command == 'adherence' else 20,
    help='number of clips (default: %(default)s)',
  )
  add(
    '--seconds',
    metavar='S',
    type=arguments.number(4, math.inf),
    default=10.0,
    help='length of a toy clip (default: %(default)g)',
  )
  add(
    '--renderer',
    choices=('fluidsynth', 'numpy'),
    default='fluidsynth',
    help='sound of the toy clips (default: %(default)s)',
  )
  if command == 'adherence':
    add(
      '--manifest',
      metavar='CSV',
      help='use these clips and not toy clips; the column `attributes` holds '
      'tempo_bpm, mode and energy',
    )
    add(
      '--split', default='test', help='of the manifest (default: %(default)s)'
    )
    add(
      '--generated',
      metavar='DIR',
      help='measure these files, named by clip id, and generate nothing',
    )
    add(
      '--seed',
      type=arguments.number(0, math.inf, int),
      default=0,
      help='of the music (default: 0)',
    )
    add(
      '--draws',
      metavar='N',
      type=arguments.number(100, math.inf, int),
      default=2000,
      help='draws of bootstrap and shuffles (default: %(default)s)',
    )
  else:
    add(
      '--codec',
      metavar='WEIGHTS',
      help="measure this codec and not the model's: a safetensors file; "
      '--gin_file says which codec it is',
    )
    add(
      '--gin_file',
      metavar='FILE',
      action='append',
      default=[],
      help='file of gin/codecs of --codec; repeat it for more',
    )
    add(
      '--gin',
      metavar='NAME=VALUE',
      action='append',
      default=[],
      help='one value of gin behind all files, such as the width of --codec; '
      'repeat it for more',
    )
    add('--audio', metavar='DIR', help='use these files and not toy clips')
    add(
      '--levels',
      metavar='N,…',
      type=_levels,
      help='numbers of levels to decode from (default: 1, 2, 4, … and all)',
    )
    add(
      '--opus',
      metavar='KBPS,…',
      type=_bit_rates,
      default=(),
      help='also measure Opus at these bit rates, in kbit/s, 6 or more',
    )
  return parser


def _with_progress(items: Sequence, what: str) -> Iterator:
  """Yields items and shows how many are done and the time left.

  A bar on a terminal, else a line to stderr about every 30 s.
  """
  if sys.stderr.isatty():
    yield from tqdm.tqdm(items, desc=what, unit='clip', dynamic_ncols=True)
    return
  start = said = time.monotonic()
  for done, item in enumerate(items):
    now = time.monotonic()
    if done and now - said >= _LOG_SECONDS:
      said = now
      pace = (now - start) / done
      print(
        f'{what}: {done}/{len(items)} clips, {pace:.1f} s/clip, '
        f'{pace * (len(items) - done):.0f} s left',
        file=sys.stderr,
        flush=True,
      )
    yield item


class _Batch:
  """Runs over clips and collects what went wrong."""

  def __init__(self):
    self.failures: dict[str, str] = {}

  def run(self, what: str, items: Iterable, name_of, work) -> list:
    """Calls `work` with each item; returns `(item, result)` of the good ones.

    Args:
      what: what the progress says.
      items: what to work on.
      name_of: function of an item to its clip id.
      work: function of an item; a UserError is a failure of that clip.
    """
    results = []
    for item in _with_progress(list(items), what):
      try:
        results.append((item, work(item)))
      except errors.UserError as error:
        self.failures[name_of(item)] = str(error)
    return results

  def status(self) -> int:
    """Prints the failures to stderr and returns the exit status."""
    for name, message in self.failures.items():
      print(f'error: clip `{name}`: {message}', file=sys.stderr)
    return 1 if self.failures else 0


def _require(results: Sequence, count: int, batch: _Batch, what: str) -> None:
  """Raises UserError if fewer than `count` clips are good."""
  if len(results) < count:
    first = next(iter(batch.failures.values()), '')
    raise errors.UserError(
      f'{len(results)} {what}, expected at least {count}. {first}'.strip()
    )


def evaluate_adherence(options: argparse.Namespace) -> int:
  """`v2meow evaluate adherence`."""
  out = pathlib.Path(options.out)
  batch = _Batch()
  clip_id = lambda clip: clip.clip_id
  if options.generated:
    compose = evaluation_clips.Finder(options.generated)
  else:
    compose = evaluation_clips.Composer(
      options.model, out / 'generated', options.seed
    )
  if options.manifest:
    clips = evaluation_clips.from_manifest(options.manifest, options.split)
    clips = clips[: options.clips]
  else:
    make = evaluation_clips.ToyClips(
      out / 'clips', options.seconds, options.renderer
    )
    made = batch.run(
      'clips',
      make.indices(options.clips),
      str,
      lambda index: make(index, with_video=not options.generated),
    )
    clips = [clip for _, clip in made]
  made = batch.run('music', clips, clip_id, compose)
  paths = {clip.clip_id: path for clip, path in made}
  describe = evaluation_clips.Describer(out / 'descriptions')

  def describe_both(clip: evaluation_clips.Clip):
    return {
      'generated': describe(paths[clip.clip_id], clip.seconds),
      'real': describe(clip.sound, clip.seconds),
    }

  heard = batch.run(
    'analysis', [clip for clip, _ in made], clip_id, describe_both
  )
  _require(heard, 5, batch, 'clips with music')
  results = {}
  quality = music.MusicQuality()
  for kind in ('generated', 'real'):
    metric = adherence.Adherence()
    for clip, descriptions in heard:
      metric.update(clip.clip_id, descriptions[kind], clip.attributes)
      quality.update(clip.clip_id, kind, descriptions[kind])
    results[kind] = metric.result(options.draws)
  rows = [_adherence_row(clip, descriptions) for clip, descriptions in heard]
  report = {
    'command': 'adherence',
    'options': vars(options),
    'adherence': results,
    'music': quality.result(),
    'clips': rows,
    'failures': batch.failures,
  }
  text = (
    f'{len(heard)} held-out clips; 95 % intervals by bootstrap over clips; '
    f'{options.draws} shuffles.\n\n'
    f'{reports.adherence_table(results["generated"], results["real"])}\n\n'
    f'{reports.music_table(report["music"])}\n'
  )
  reports.plot_adherence(
    out / 'adherence.png', results['generated'], results['real'], rows
  )
  _plot_music(out, report['music'], rows)
  return _finish(out, report, text, batch)


def _adherence_row(clip: evaluation_clips.Clip, descriptions: dict) -> dict:
  row = dataclasses.asdict(clip.attributes) | {'clip_id': clip.clip_id}
  del row['beat_seconds']
  for kind, description in descriptions.items():
    row[kind] = _plain(description)
    row[kind]['energy'] = adherence.energy(description)
  return row


def _plain(description) -> dict:
  """A description without its envelope."""
  values = dict(vars(description))
  del values['onset_envelope']
  return values


def _plot_music(out: pathlib.Path, result: dict, rows: Sequence[dict]) -> None:
  values = {
    quantity.name: {
      kind: [row[kind][quantity.name] for row in rows if kind in row]
      for kind in ('real', 'generated')
    }
    for quantity in music.QUANTITIES
  }
  reports.plot_music(out / 'music.png', result, values)


def _finish(out: pathlib.Path, report: dict, text: str, batch: _Batch) -> int:
  reports.write_json(out / 'report.json', report)
  reports.write_text(out / 'report.md', text)
  print(text, end='')
  return batch.status()


def evaluate_music(options: argparse.Namespace) -> int:
  """`v2meow evaluate music`."""
  out = pathlib.Path(options.out)
  found = {
    'real': evaluation_clips.find_sounds(options.reference),
    'generated': evaluation_clips.find_sounds(options.generated),
  }
  describe = evaluation_clips.Describer(out / 'descriptions')
  quality = music.MusicQuality()
  batch = _Batch()
  rows = []
  for kind, paths in found.items():
    heard = batch.run(
      kind,
      paths.items(),
      lambda item: item[0],
      lambda item: describe(item[1], options.seconds),
    )
    _require(heard, 5, batch, f'{kind} clips')
    for (clip_id, _), description in heard:
      quality.update(clip_id, kind, description)
      rows.append({'clip_id': clip_id, kind: _plain(description)})
  result = quality.result()
  report = {
    'command': 'music',
    'options': vars(options),
    'music': result,
    'clips': rows,
    'failures': batch.failures,
  }
  text = (
    f'{result["num_generated"]} generated and {result["num_real"]} real '
    f'clips.\n\n{reports.music_table(result)}\n'
  )
  _plot_music(out, result, rows)
  return _finish(out, report, text, batch)


def _codec(options: argparse.Namespace):
  """The codec to measure: that of a model, or of a file of weights.

  Raises:
    UserError: the files cannot be used, or do not belong together.
  """
  import gin
  import jax

  from v2meow_jax import bundles
  from v2meow_jax import configs
  from v2meow_jax import extraction
  from v2meow_jax import weights

  if options.codec is None:
    if options.gin_file or options.gin:
      raise errors.UserError(
        '--gin_file and --gin without --codec, expected the weights that they '
        'are for. Add --codec, or leave them out.'
      )
    return bundles.load(options.model).codec
  nothing_else = ['EXTRACTORS = ()', 'TOKENIZER = None', 'EMBEDDER = None']
  configs.parse(
    [*options.gin_file, 'runs/prepare.gin'],
    [*nothing_else, *options.gin],
    root='extraction.Recipe',
  )
  make = gin.get_configurable(extraction.Recipe)().codec
  variables = weights.load_params(options.codec)
  if 'quantizer' not in variables:
    raise errors.UserError(
      f'{options.codec}: no codebooks, expected the weights of a whole codec. '
      'Add them with `python -m v2meow_jax.codecs.fit_quantizer`.'
    )
  try:
    codec = make(variables)
  except ValueError as error:
    raise errors.UserError(f'{options.codec}: {error}') from error
  silence = np.zeros((1, codec.hop), np.float32)
  expected = jax.eval_shape(
    lambda key: codec.network.init(key, silence, mutable=['params']),
    jax.random.key(0),
  )
  weights.check_params(expected['params'], codec.variables['params'])
  return codec


def evaluate_codec(options: argparse.Namespace) -> int:
  """`v2meow evaluate codec`."""
  import librosa

  from v2meow_jax.metrics import opus
  from v2meow_jax.metrics import reconstruction
  from v2meow_jax.toy import effects

  out = pathlib.Path(options.out)
  codec = _codec(options)
  rate, most = codec.sample_rate_hz, codec.spec.num_levels
  levels = options.levels or sorted(
    {2**n for n in range(most.bit_length()) if 2**n < most} | {most}
  )
  if levels[-1] > most:
    raise errors.UserError(
      f'{levels[-1]} levels, expected at most the {most} of the codec. Correct '
      '--levels.'
    )
  evaluation_clips.make_folder(out)
  if options.audio:
    found = evaluation_clips.find_sounds(options.audio)
    items = list(found.items())[: options.clips]
    name_of = lambda item: item[0]
    load = lambda item: item[1]
  else:
    make = evaluation_clips.ToyClips(
      out / 'clips', options.seconds, options.renderer
    )
    items = make.indices(options.clips)
    name_of = str
    load = lambda index: make(index, with_video=False).sound
  metric = reconstruction.Reconstruction()
  shown, spent = {}, {}

  def measure(item) -> None:
    sound, own_rate = evaluation_clips.read_sound(load(item), options.seconds)
    if own_rate != rate:
      sound = librosa.resample(sound, orig_sr=own_rate, target_sr=rate)
    # The level at which codecs are trained and used.
    sound = effects.normalise(sound)
    codes = codec.encode(sound[None])
    decoded = {
      f'{n} of {most} levels': np.asarray(codec.decode(codes[:, :, :n])[0])
      for n in levels
    }
    for kilobits in options.opus:
      decoded[f'Opus, {kilobits:g} kbit/s'], used = opus.round_trip(
        sound, rate, kilobits
      )
      spent.setdefault(f'{kilobits:g}', []).append(used)
    metric.update(name_of(item), sound, decoded)
    if not shown:
      shown.update({'original': sound, **decoded})

  batch = _Batch()
  good = batch.run('codec', items, name_of, measure)
  _require(good, 3, batch, 'sounds')
  result = metric.result()
  bits = math.log2(codec.spec.num_codes) * codec.spec.rate_hz
  report = {
    'command': 'codec',
    'options': vars(options),
    'stream': codec.spec.name,
    'bits_per_second_and_level': bits,
    'codec': result,
    'opus_kilobits': {k: float(np.mean(v)) for k, v in spent.items()},
    'failures': batch.failures,
  }
  text = (
    f'Codec `{codec.spec.name}`, {bits:g} bit/s a level, on '
    f'{result["num_clips"]} held-out sounds; mean and 95 % interval.\n\n'
    f'{reports.codec_table(result)}\n'
  )
  reports.plot_spectrograms(out / 'codec.png', shown, rate)
  return _finish(out, report, text, batch)


def main(argv: Sequence[str]) -> int:
  """`v2meow evaluate …`: prints the tables and returns the exit status.

  Raises:
    UserError: something is wrong with the input or its surroundings.
  """
  argv = list(argv)
  if not argv or argv[0] in ('-h', '--help'):
    arguments.Parser(
      prog='v2meow evaluate',
      usage='v2meow evaluate COMMAND …',
      description=_DESCRIPTION,
      epilog=_EPILOG,
    ).print_help()
    return 0
  command = 'music'
  if not argv[0].startswith('-'):
    command = argv.pop(0)
  if command not in COMMANDS:
    arguments.Parser(prog='v2meow evaluate').error(
      f'unknown command `{command}`, expected one of {", ".join(COMMANDS)}'
    )
  options = _parser(command).parse_args(argv)
  reports.check_can_plot()
  run = {
    'adherence': evaluate_adherence,
    'music': evaluate_music,
    'codec': evaluate_codec,
  }[command]
  return run(options)
