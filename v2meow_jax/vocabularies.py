"""Token ids: padding, EOS, and one block of ids per level of each stream.

A stage has one vocabulary, so that its tokens share one embedding table, as in
T5X. Id 0 is padding (and the beginning of a sequence), id 1 is EOS, and each
discrete stream holds a block of `num_levels * num_codes` ids, or of `num_codes`
where its levels share a codebook. The levels of a position are interleaved
time-major: position `p` of the flat sequence is level `p % num_levels` of time
`p // num_levels`.

Everything here works on NumPy, JAX and TensorFlow arrays alike: it only adds,
multiplies and reshapes.
"""

import numpy as np

PAD_ID = 0
EOS_ID = 1
FIRST_CODE_ID = 2


def level_offsets(num_levels: int, level_ids: int, offset: int) -> np.ndarray:
  """First id of each level: int32 `[levels]`."""
  return offset + level_ids * np.arange(num_levels, dtype=np.int32)


def flatten_levels(codes, level_ids: int, offset: int = FIRST_CODE_ID):
  """Maps codes to ids and interleaves the levels, time-major.

  Args:
    codes: int32 `[..., time, levels]`.
    level_ids: ids from one level's block to the next (`stages.View.level_ids`):
      entries of a codebook, or 0 where the levels share one.
    offset: id of code 0 of the first level.

  Returns:
    int32 `[..., time * levels]`, each the code behind the first id of its
    level.
  """
  time, levels = codes.shape[-2:]
  ids = codes + level_offsets(levels, level_ids, offset)
  # [..., time, levels] -> [..., time * levels]
  return ids.reshape(codes.shape[:-2] + (time * levels,))


def unflatten_levels(
  ids, num_levels: int, level_ids: int, offset: int = FIRST_CODE_ID
):
  """Inverse of `flatten_levels`.

  Args:
    ids: int32 `[..., time * levels]`.
    num_levels: levels that are interleaved.
    level_ids: see `flatten_levels`.
    offset: id of code 0 of the first level.

  Returns:
    Codes, int32 `[..., time, levels]`. Ids outside their level's block come
    out as no code of it.

  Raises:
    ValueError: the length is not a multiple of `num_levels`.
  """
  length = ids.shape[-1]
  if length % num_levels:
    raise ValueError(
      f'{length} tokens, expected a multiple of {num_levels} levels. Cut '
      'the sequence at whole positions.'
    )
  # [..., time * levels] -> [..., time, levels]
  ids = ids.reshape(ids.shape[:-1] + (length // num_levels, num_levels))
  return ids - level_offsets(num_levels, level_ids, offset)
