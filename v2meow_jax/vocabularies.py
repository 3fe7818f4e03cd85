"""Token ids: padding, EOS, and one block of ids per level of each stream.

A stage has one vocabulary, so that its tokens share one embedding table, as in
T5X. Id 0 is padding (and the beginning of a sequence), id 1 is EOS, and each
discrete stream holds a block of `num_levels * num_codes` ids. The levels of a
position are interleaved time-major: position `p` of the flat sequence is level
`p % num_levels` of time `p // num_levels`.

Everything here works on NumPy, JAX and TensorFlow arrays alike: it only adds,
multiplies and reshapes.
"""

import numpy as np

PAD_ID = 0
EOS_ID = 1
FIRST_CODE_ID = 2


def level_offsets(num_levels: int, num_codes: int, offset: int) -> np.ndarray:
  """First id of each level: int32 `[levels]`."""
  return offset + num_codes * np.arange(num_levels, dtype=np.int32)


def flatten_levels(codes, num_codes: int, offset: int = FIRST_CODE_ID):
  """Maps codes to ids and interleaves the levels, time-major.

  Args:
    codes: int32 `[..., time, levels]`, each in [0, num_codes).
    num_codes: entries of each codebook.
    offset: id of code 0 of the first level.

  Returns:
    int32 `[..., time * levels]`, each in
    [offset, offset + levels * num_codes).
  """
  time, levels = codes.shape[-2:]
  ids = codes + level_offsets(levels, num_codes, offset)
  # [..., time, levels] -> [..., time * levels]
  return ids.reshape(codes.shape[:-2] + (time * levels,))


def unflatten_levels(
  ids, num_levels: int, num_codes: int, offset: int = FIRST_CODE_ID
):
  """Inverse of `flatten_levels`.

  Args:
    ids: int32 `[..., time * levels]`.
    num_levels: levels that are interleaved.
    num_codes: entries of each codebook.
    offset: id of code 0 of the first level.

  Returns:
    Codes, int32 `[..., time, levels]`. Ids outside their level's block come
    out outside [0, num_codes).

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
  return ids - level_offsets(num_levels, num_codes, offset)
