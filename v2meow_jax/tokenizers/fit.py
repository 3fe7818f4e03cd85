"""Fits the clusters of a semantic tokenizer to the sound of a manifest.

  python -m v2meow_jax.tokenizers.fit --gin_file=tokenizers/spectral.gin \\
      --manifest=M.csv --out=T.safetensors

After each shard of clips the state is kept beside the output; the same command
goes on from there.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import sys
from typing import Any

from absl import logging
import gin
import tqdm

from v2meow_jax import arguments
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import weights
from v2meow_jax.tokenizers import fitting


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is fitted; gin/runs/fit.gin binds it.

  Attributes:
    tokenizer: makes the tokenizer from its weights.
  """

  tokenizer: Callable[[Mapping], Any] | None = None


_EXAMPLES = """\
examples:
  python -m v2meow_jax.tokenizers.fit --manifest music.csv \\
      --out tokenizer.safetensors
  python -m v2meow_jax.tokenizers.fit --gin_file tokenizers/w2v_bert.gin \\
      --weights w2v_bert.safetensors --manifest music.csv --epochs 2 \\
      --out tokenizer.safetensors
"""


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='python -m v2meow_jax.tokenizers.fit',
    description='Fits the clusters of a semantic tokenizer. Prints the path of '
    'its weights.',
    epilog=_EXAMPLES,
  )
  add = parser.add_argument
  positive = arguments.number(1, math.inf, int)
  add('--manifest', required=True, help='CSV file; its train split is used')
  add('--out', metavar='PATH', required=True, help='safetensors file to write')
  add(
    '--gin_file',
    action='append',
    metavar='FILE',
    help='that says which tokenizer (default: tokenizers/spectral.gin)',
  )
  add(
    '--gin',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='sets one value behind the files',
  )
  add(
    '--weights',
    metavar='PATH',
    help='safetensors file of the network whose features are clustered',
  )
  add(
    '--start_seconds',
    metavar='S',
    type=arguments.number(0, math.inf, above=True),
    default=fitting.Settings.start_seconds,
    help='sound that starts the fit; what lies behind it is heard in '
    'mini-batches (default: %(default)g)',
  )
  add(
    '--epochs',
    metavar='N',
    type=positive,
    default=fitting.Settings.epochs,
    help='passes over all sound (default: %(default)s)',
  )
  add(
    '--shard_clips',
    metavar='N',
    type=positive,
    default=fitting.Settings.shard_clips,
    help='clips between two saved states (default: %(default)s)',
  )
  add(
    '--batch_size',
    metavar='N',
    type=positive,
    default=fitting.Settings.batch_size,
    help='positions of a batch (default: %(default)s)',
  )
  add('--seed', type=int, default=0, help='of the fit (default: %(default)s)')
  return parser


def fit(
  manifest: str,
  out: str,
  tokenizer,
  params: dict,
  settings: fitting.Settings,
) -> dict[str, float]:
  """Fits a tokenizer and writes its weights.

  Args:
    manifest: CSV file; its train split is used.
    out: safetensors file to write: `params` with the fit in it. The state on
      the way lies in `OUT.state`.
    tokenizer: makes the tokenizer from its weights.
    params: weights of the network that makes the features, {} if it has none.
    settings: how.

  Returns:
    What `fitting.Fitter.report` returns.

  Raises:
    UserError: the manifest or a state cannot be used.
    ValueError: there are fewer positions than clusters.
  """
  clips = [c for c in manifests.read(manifest) if c.split == 'train']
  if not clips:
    raise errors.UserError(
      f'{manifest}: no clips of split `train`, expected at least one. Check '
      'the column split.'
    )
  made = tokenizer(params)
  fitter = fitting.Fitter(made, clips, settings, f'{out}.state')
  with tqdm.tqdm(
    total=settings.epochs * len(clips),
    initial=settings.epochs * len(clips) - fitter.num_clips_left,
    unit='clip',
    disable=not sys.stderr.isatty(),
  ) as bar:
    found = fitter.run(bar)
  # As the tokenizer has them: its config says which features were fitted.
  weights.save_params(out, {**made.params, **found})
  fitter.forget()
  if fitter.num_failed:
    logging.warning('%d clips could not be read.', fitter.num_failed)
  return fitter.report()


def main(argv: Sequence[str]) -> int:
  """Fits a semantic tokenizer; returns the exit status."""
  options = _parser().parse_args(argv)
  logging.set_verbosity(logging.INFO)
  try:
    configs.parse(
      [*(options.gin_file or ['tokenizers/spectral.gin']), 'runs/fit.gin'],
      options.gin,
      root='fit.Recipe',
    )
    report = fit(
      options.manifest,
      options.out,
      gin.get_configurable(Recipe)().tokenizer,
      weights.load_params(options.weights) if options.weights else {},
      fitting.Settings(
        **{
          f.name: getattr(options, f.name)
          for f in dataclasses.fields(fitting.Settings)
        }
      ),
    )
  except (errors.UserError, ValueError, OSError) as error:
    print(f'error: {configs.one_line(error) or error}', file=sys.stderr)
    return 1
  logging.info(
    'Mean distance %.5f, %.1f %% of the clusters used, perplexity %.0f.',
    report['inertia'], 100 * report['used'], report['perplexity'],
  )  # fmt: skip
  print(options.out)
  return 0


if __name__ == '__main__':
  # gin knows this module by its own name, not as `__main__`.
  from v2meow_jax.tokenizers import fit as fit_module

  sys.exit(fit_module.main(sys.argv[1:]))
