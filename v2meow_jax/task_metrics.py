"""Metric functions of a seqio task: what an evaluator reports of a stage.

seqio calls them with the targets of all examples and what the model made of
them, and tells scores from predictions by the names of the arguments. Music is
measured by `v2meow evaluate`; this is about tokens.
"""

from collections.abc import Callable, Sequence
import functools

import numpy as np

from v2meow_jax import errors
from v2meow_jax import stages
from v2meow_jax import vocabularies


def metric_fns(stage: stages.Stage) -> list[Callable]:
  """Returns the metric functions of a stage, as seqio takes them."""
  return [likelihood, functools.partial(agreement, stage=stage)]


def likelihood(
  targets: Sequence[Sequence[int]], scores: Sequence[float]
) -> dict[str, float]:
  """How likely the model finds the targets.

  Args:
    targets: ids of each example, 0 where it is padding.
    scores: log-likelihood of each example, see `StageModel.score_batch`.

  Returns:
    `loss_per_token`, nats over all tokens that are no padding, and
    `perplexity`, its exponential.
  """
  num_tokens = sum(np.count_nonzero(ids) for ids in targets)
  if not num_tokens:
    raise errors.UserError(
      'All targets are padding, expected tokens. Look at the split that is '
      'evaluated.'
    )
  loss = -float(np.sum(np.asarray(scores, np.float64))) / num_tokens
  return {'loss_per_token': loss, 'perplexity': float(np.exp(loss))}


def agreement(
  targets: Sequence[Sequence[int]],
  predictions: Sequence[Sequence[int]],
  *,
  stage: stages.Stage | None = None,
) -> dict[str, float]:
  """How close sampled codes are to the targets.

  Args:
    targets: ids of each example, 0 where it is padding.
    predictions: sampled ids of each example, as long.
    stage: whose target they are.

  Returns:
    `sampled_accuracy`, the share of equal codes; `code_distance`, half the
    summed difference of how often each code comes (0 where all come equally
    often, 1 where no code of one comes in the other), mean over levels; and
    where there are several, `code_distance/level_<level>`.
  """
  view = stage.target
  unflatten = lambda ids: vocabularies.unflatten_levels(
    np.stack([np.asarray(x, np.int64) for x in ids]),
    view.num_levels,
    view.spec.num_codes,
    stage.target_offset,
  ).reshape(-1, view.num_levels)
  # [examples * time, levels]; what is padding comes out negative.
  expected, found = unflatten(targets), unflatten(predictions)
  keep = expected >= 0
  values = {'sampled_accuracy': float(np.mean((expected == found)[keep]))}
  distances = []
  for level in range(view.num_levels):
    used = keep[:, level]
    distances.append(
      _distance(expected[used, level], found[used, level], view.spec.num_codes)
    )
  values['code_distance'] = float(np.mean(distances))
  if view.num_levels > 1:
    for level, distance in enumerate(distances, view.first_level):
      values[f'code_distance/level_{level}'] = distance
  return values


def _distance(a: np.ndarray, b: np.ndarray, num_codes: int) -> float:
  """Total variation distance of the codes of two arrays."""
  share = lambda codes: np.bincount(codes, minlength=num_codes) / len(codes)
  return float(np.abs(share(a) - share(b)).sum() / 2)
