"""Classifier-free guidance: further towards a condition than by itself.

A stage is asked once with all its conditions and once more for each guided one
(Ho and Salimans, Classifier-Free Diffusion Guidance, 2022), which is taken away
on top of what was taken away before, style first and then the picture (nested
as in Brooks et al., InstructPix2Pix, 2023). With V for the picture, S for the
style and N for the negative style, or none:

  both        l = l(N) + visual (l(V, N) - l(N)) + style (l(V, S) - l(V, N))
  style only  l = l(V, N) + style (l(V, S) - l(V, N))
  visual only l = l(S) + visual (l(V, S) - l(S))

Weights of 1 are the stage by itself; a weight of 0 of the only guided condition
is the stage without it. A condition that is not there is masked, as in training
(STYLE_DROPOUT and VISUAL_DROPOUT in gin); tokens that a stage continues from
are never taken away. Each guided condition costs a row in the batch.
"""

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from v2meow_jax import stages

Array = jax.Array


class Guidance(NamedTuple):
  """How far to go; numbers are traced, so that no other one recompiles.

  Attributes:
    visual: weight of the picture; None where it is not guided, which saves a
      row.
    style: weight of the style; None where it is not guided.
    negative: style to go away from, float32 `[batch, features]`; None for
      going away from no style.
  """

  visual: float | Array | None = None
  style: float | Array | None = None
  negative: Array | None = None


def make(
  visual: float = 1.0, style: float = 1.0, negative: Array | None = None
) -> Guidance | None:
  """Guidance of what a user asks for; None, which costs nothing, for 1 and 1.

  Args:
    visual: weight of the picture.
    style: weight of the style.
    negative: see `Guidance`; has no effect with a style weight of 1.

  Raises:
    ValueError: a weight is below 0 or no number.
  """
  for name, weight in (('visual', visual), ('style', style)):
    if not 0 <= weight < math.inf:
      raise ValueError(
        f'{name} guidance is {weight}, expected 0 or more. Pass 1 for none, '
        'about 3 for much.'
      )
  if style == 1:
    style, negative = None, None
  if visual == 1:
    visual = None
  if visual is None and style is None:
    return None
  return Guidance(visual, style, negative)


def weights(
  stage: stages.Stage, guidance: Guidance | None
) -> tuple[float | Array, ...]:
  """Weights of the guided conditions that a stage has, style first."""
  if guidance is None:
    return ()
  found = []
  if guidance.style is not None and stage.style_names:
    found.append(guidance.style)
  if guidance.visual is not None and stage.visual_names:
    found.append(guidance.visual)
  return tuple(found)


def branches(
  stage: stages.Stage,
  inputs: Mapping[str, Array],
  masks: Mapping[str, Array],
  guidance: Guidance | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Rows for all that the stage is asked: see `StageModel.decode` for inputs.

  Args:
    stage: says which inputs are visual and which style.
    inputs: per stream, `[batch, …]`.
    masks: per stream, `[batch, positions]`.
    guidance: what is taken away.

  Returns:
    Inputs and masks `[rows * batch, …]`, rows in front: all conditions, then
    without the condition of each of `weights`.
  """
  inputs, masks = dict(inputs), dict(masks)
  rows = [(inputs, masks)]
  if weights(stage, guidance):
    if guidance.style is not None:
      for name in stage.style_names:
        negative = guidance.negative is not None
        if negative:
          inputs = inputs | {name: guidance.negative}
        masks = masks | {name: jnp.full_like(masks[name], negative)}
      if stage.style_names:
        rows.append((inputs, masks))
    if guidance.visual is not None and stage.visual_names:
      seen = {name: jnp.zeros_like(masks[name]) for name in stage.visual_names}
      rows.append((inputs, masks | seen))
  join = lambda *parts: jnp.concatenate(parts) if len(parts) > 1 else parts[0]
  all_inputs, all_masks = zip(*rows)
  return jax.tree.map(join, *all_inputs), jax.tree.map(join, *all_masks)


def combine(logits: Array, by: Sequence[float | Array]) -> Array:
  """The formula above, written as what is added to the first row.

  With weights of 1 that is the first row, bit for bit.

  Args:
    logits: float32 `[rows, batch, codes]`, see `branches`.
    by: the weights, one less than rows.

  Returns:
    float32 `[batch, codes]`.
  """
  guided = logits[0]
  for i, weight in enumerate(by):
    guided = guided + (weight - 1) * (logits[i] - logits[i + 1])
  return guided
