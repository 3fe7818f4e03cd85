"""Trains a tiny stage on meshes of eight devices; prints JSON for the tests.

  XLA_FLAGS=… python -m tests.mesh_runs [--all]

Compiling is what costs: the network is the smallest with all kinds of
parameters, one optimizer is AdamW and Adafactor at once, and the flags ask for
little optimisation.
"""

import json
import sys

import flax
from flax import linen as nn
import jax
import numpy as np

from tests import stage_examples
from v2meow_jax import models
from v2meow_jax import optimizers
from v2meow_jax import partitioning
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import trainer

NUM_DEVICES = 8
FAST_COMPILATION = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
)
XLA_FLAGS = (
  f'--xla_force_host_platform_device_count={NUM_DEVICES} {FAST_COMPILATION}'
)
# All ways to write 8 as a product of three factors.
SHAPES = [
  (data, fsdp, NUM_DEVICES // (data * fsdp))
  for data in (8, 4, 2, 1)
  for fsdp in (8, 4, 2, 1)
  if data * fsdp <= NUM_DEVICES
]
# Of an encoder-decoder, which takes twice as long to compile, these train, or
# all with --all; how it lies on the devices is looked at for all.
FEW_SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
STEPS = 3
BATCH_SIZE = 16

_SCENE = stages.View(streams.StreamSpec('scene', 2, num_features=8))
_WORDS = stages.View(streams.StreamSpec('words', 2, num_codes=6), 0, 1)
_CODES = stages.View(
  streams.StreamSpec('codes', 2, num_codes=8, num_levels=3), 1, 2
)


def make_model(architecture: str, **changes) -> models.StageModel:
  """A network whose dimensions 8 devices divide."""
  if architecture == stages.DECODER_ONLY:
    stage = stages.Stage('fine', (_WORDS,), _CODES, 1.0, architecture)
  else:
    stage = stages.Stage('coarse', (_SCENE, _WORDS), _CODES, 1.0, architecture)
  config = stage_examples.make_config(
    num_heads=8,
    head_dim=1,
    mlp_dim=16,
    mlp_activations=('relu',),
    cross_relpos_bias=False,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_layers=1,
    **changes,
  )
  return models.StageModel(stage, config, loss_normalizing_factor=64.0)


def make_batch(model: models.StageModel, step: int) -> dict:
  """Batch number `step`, with padding of different lengths."""
  inputs, masks = stage_examples.make_inputs(model.stage, BATCH_SIZE, step)
  codes = stage_examples.make_codes(model.stage, BATCH_SIZE, step)
  batch = stage_examples.make_batch(model.stage, inputs, masks, codes)
  # Half of the last time is padding, in every third example.
  for name in ('decoder_target_tokens', 'decoder_loss_weights'):
    batch[name][::3, -1] = 0
  return batch


def both() -> optimizers.Optimizer:
  """Mean of the updates of AdamW and of Adafactor with factored slots."""
  parts = [
    optimizers.adamw(optimizers.constant(0.03), weight_decay=0.1, eps=1e-4),
    optimizers.adafactor(
      optimizers.constant(0.03), clip_norm=1.0, min_dim_size_to_factor=8
    ),
  ]

  def update(gradients, state, params):
    updates, states = zip(
      *(
        part.update(gradients, part_state, params)
        for part, part_state in zip(parts, state, strict=True)
      ),
      strict=True,
    )
    return jax.tree.map(lambda a, b: (a + b) / 2, *updates), states

  return optimizers.Optimizer(
    init=lambda params: tuple(part.init(params) for part in parts),
    update=update,
    learning_rate=parts[0].learning_rate,
  )


def run(model, shape, start=None, microbatches=1, steps=STEPS):
  """Trains `model` on a mesh of `shape`.

  Args:
    model: what to train.
    shape: devices along the axes of the mesh.
    start: state to start from; None for that of seed 0.
    microbatches: parts of a batch.
    steps: of the training; 0 only puts the state on the devices.

  Returns:
    The trainer with its last state, the first state, and the results and
    metrics of all steps.
  """
  devices = jax.devices()[: int(np.prod(shape))]
  mesh = partitioning.make_mesh(shape, devices)
  with jax.set_mesh(mesh), nn.logical_axis_rules(partitioning.RULES):
    training = trainer.Trainer(
      model,
      both(),
      make_batch(model, 0),
      0,
      mesh,
      microbatches=microbatches,
    )
    if start is None:
      training.initialize()
    else:
      training.state = jax.tree.map(
        lambda array, leaf: jax.device_put(array, leaf.sharding),
        start,
        training.abstract,
      )
    first = jax.device_get(training.state)
    results = []
    for step in range(steps):
      batch, _ = training.to_devices(make_batch(model, step))
      results.append(jax.device_get(training.step(batch)))
  collected = trainer.Results()
  for step, result in enumerate(results):
    collected.add(step, jax.tree.map(jax.numpy.asarray, result))
  return training, first, (results, collected.summary() if steps else {})


def distance(a, b) -> float:
  """Largest difference of two trees, relative to the largest number."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(
    float(np.max(np.abs(x - y)) / max(np.max(np.abs(x)), 1e-30))
    for x, y in ((np.asarray(x), np.asarray(y)) for x, y in pairs)
    if x.size
  )


def compare(expected, training, found) -> dict:
  """Relative errors of a run, beside that on one device.

  Args:
    expected: trainer, first state and results on one device.
    training: trainer of the run.
    found: its results.
  """
  one, _, (results, metrics) = expected
  of = lambda name, steps: [float(step[name]) for step in steps]
  return {
    name: distance(a, b)
    for name, a, b in (
      ('loss', of('loss', results), of('loss', found[0])),
      ('norm', of('gradient_norm', results), of('gradient_norm', found[0])),
      ('metrics', metrics, found[1]),
      ('params', one.state.params, training.state.params),
      ('slots', one.state.opt_state, training.state.opt_state),
    )
  }


def layout(state) -> dict:
  """How a state lies on the devices."""
  held = {}
  for leaf in jax.tree.leaves(state):
    for shard in leaf.addressable_shards:
      number = shard.device.id
      held[number] = held.get(number, 0) + shard.data.nbytes
  shard = lambda leaf: list(leaf.addressable_shards[0].data.shape)
  flat = flax.traverse_util.flatten_dict(state.params, sep='/')
  return {
    'params': {name: [list(x.shape), shard(x)] for name, x in flat.items()},
    'slots': [
      [list(x.shape), shard(x)] for x in jax.tree.leaves(state.opt_state)
    ],
    'held_bytes': sorted(held.values()),
  }


def main() -> None:
  """Prints what all meshes gave, as JSON."""
  assert jax.device_count() == NUM_DEVICES
  report = {'meshes': {}, 'losses': {}}
  for architecture in (stages.ENCODER_DECODER, stages.DECODER_ONLY):
    model = make_model(architecture, dropout_rate=0.1)
    one = run(model, (1, 1, 1))
    _, start, (results, _) = one
    report['losses'][architecture] = [float(x['loss']) for x in results]
    few = architecture == stages.ENCODER_DECODER and '--all' not in sys.argv
    for shape in SHAPES:
      name = f'{architecture} {shape}'
      if few and shape not in FEW_SHAPES:
        training, _, _ = run(model, shape, start, steps=0)
        report['meshes'][name] = layout(training.state)
        continue
      # On one mesh the state is made anew, as on one device.
      is_new = architecture == stages.DECODER_ONLY and shape == (2, 2, 2)
      training, first, found = run(model, shape, None if is_new else start)
      report['meshes'][name] = {
        'errors': compare(one, training, found),
        **layout(training.state),
      }
      if is_new:
        report['first_error'] = distance(start, first)
  # What follows is asked of one architecture only.
  model = make_model(architecture, dropout_rate=0.0)
  one = run(model, (1, 1, 1))
  # And attention that is cut by hand, because XLA cannot cut a kernel.
  model = make_model(architecture, dropout_rate=0.0, fused_attention=True)
  training, _, found = run(model, (1, 2, 2), one[1], microbatches=4)
  report['microbatches'] = compare(one, training, found)
  json.dump(report, sys.stdout)


if __name__ == '__main__':
  main()
