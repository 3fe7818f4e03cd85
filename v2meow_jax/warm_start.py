"""Starts the training of one stage from what another has learnt.

The stages are rows over one network. Two of the same dimensions and the same
architecture differ in what their ids mean, and in nothing else: the fine stage
finds in the coarse one how codes of one time and of the times before it hang
together, and what the coarse codes are. Alone it learns that very late.

`python -m v2meow_jax.warm_start --gin_file … --source coarse=PATH
--target fine --out start.safetensors` writes a file for
INITIAL_CHECKPOINT_PATH of gin/runs/train.gin.
"""

import argparse
from collections.abc import Mapping, Sequence
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import platforms
from v2meow_jax import stages
from v2meow_jax import vocabularies
from v2meow_jax import weights

_EMBEDDING = 'token_embedder/embedding'
_HEAD = 'logits_dense/kernel'


def _ids(stage: stages.Stage, part: str) -> dict[tuple[str, int], slice]:
  """Where the embedding or the head has each level of each stream."""
  if part == _HEAD:
    found, offsets = {}, [(stage.target, 0)]
  else:
    found = {('', 0): slice(0, vocabularies.FIRST_CODE_ID)}
    offsets = [(v, stage.input_offset(v.name)) for v in stage.inputs]
    offsets.append((stage.target, stage.target_offset))
  for view, offset in offsets:
    for level in range(view.num_blocks if view.spec.is_discrete else 0):
      first = offset + level * view.level_ids
      codes = slice(first, first + view.spec.num_codes)
      found[view.name, view.first_level + level] = codes
  return found


def make(
  source: Any, source_params: Mapping[str, Any], target: Any, seed: int = 0
) -> tuple[dict[str, Any], float]:
  """Makes the first parameters of a stage from the last of another.

  What lies at the same place of the network with the same shape is taken over;
  of the embedding and the head, the codes that both stages know. All else is
  random.

  Args:
    source: the stage's `models.StageModel`.
    source_params: its parameters.
    target: the `models.StageModel` of the stage to start.
    seed: of what is random.

  Returns:
    Parameters of the target, and the share of them that was taken over, in
    (0, 1].

  Raises:
    UserError: the two networks have nothing in common.
  """
  variables = target.get_initial_variables(
    jax.random.key(seed), target.feature_shapes(1)
  )
  given = weights.flatten(source_params)
  made, taken, total = {}, 0, 0
  for path, value in weights.flatten(variables['params']).items():
    value = np.array(value)
    found = given.get(path)
    total += value.size
    part = '/'.join(path.split('/')[-2:])
    if found is None:
      pass
    elif part in (_EMBEDDING, _HEAD):
      # [ids, embed] and [embed, ids]
      axis = 0 if part == _EMBEDDING else 1
      if found.shape[1 - axis] == value.shape[1 - axis]:
        rows, old = np.moveaxis(value, axis, 0), np.moveaxis(found, axis, 0)
        old_ids = _ids(source.stage, part)
        for block, ids in _ids(target.stage, part).items():
          if block in old_ids:
            rows[ids] = old[old_ids[block]]
            taken += rows[ids].size
    elif found.shape == value.shape:
      value = np.asarray(found, value.dtype)
      taken += value.size
    made[path] = value
  if not taken:
    raise errors.UserError(
      f'The networks of `{source.stage.name}` and `{target.stage.name}` have '
      'no parameter of one shape in common, expected the same dimensions. '
      'Choose the same file of gin/sizes for both.'
    )
  return weights.unflatten(made), taken / total


def main(argv: Sequence[str]) -> int:
  """`python -m v2meow_jax.warm_start …`; returns the exit status."""
  platforms.settle()
  parser = argparse.ArgumentParser(
    prog='python -m v2meow_jax.warm_start',
    description='Makes a start for the training of one stage from what '
    'another has learnt. Prints the path of the file.',
    epilog='example: python -m v2meow_jax.warm_start '
    '--gin_file gin/sizes/bundled.gin … --gin_file gin/generate.gin '
    '--source coarse=runs/coarse/params.safetensors --target fine '
    '--out start.safetensors; then: bash launch/train.sh fine … '
    '--gin.INITIAL_CHECKPOINT_PATH="\'start.safetensors\'"',
    allow_abbrev=False,
  )
  add = parser.add_argument
  bundles.add_gin_flags(parser)
  add(
    '--source',
    metavar='STAGE=PATH',
    required=True,
    help='a stage and its weights: a .safetensors file, a checkpoint, or a '
    'folder of checkpoints (the newest)',
  )
  add('--target', choices=stages.NAMES, required=True, help='stage to start')
  add('--out', metavar='PATH', required=True, help='safetensors file to write')
  add('--seed', type=int, default=0, help='of what is random (default: 0)')
  args = parser.parse_args(argv)
  name, _, path = args.source.partition('=')
  if name not in stages.NAMES or not path:
    parser.error(
      f'--source {args.source}: expected STAGE=PATH, STAGE one of '
      f'{", ".join(stages.NAMES)}.'
    )
  try:
    params = bundles.read_part(pathlib.Path(path), name)
    with bundles.read_recipe(args.gin_file, args.gin) as recipe:
      made, share = make(
        recipe.model(name), params, recipe.model(args.target), args.seed
      )
    weights.save_params(args.out, made)
  except (errors.UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(f'{100 * share:.0f} % of {args.target} from {name}', file=sys.stderr)
  print(args.out)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
