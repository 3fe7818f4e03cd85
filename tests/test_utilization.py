"""MFU: products of a step over what the devices could do meanwhile."""

import json
import types

import jax
import numpy as np
import pytest

from tests import fakes
from tests import stage_examples
from tests import test_train
from v2meow_jax import checkpoints
from v2meow_jax import chips
from v2meow_jax import flops
from v2meow_jax import partitioning
from v2meow_jax import stages
from v2meow_jax import utilization


@pytest.fixture
def known_chip(monkeypatch):
  """Makes this machine's device one of 1 GFLOP/s."""
  chip = chips.Chip('c', 'cpu', 1e9, 1 << 30, 1e9)
  monkeypatch.setattr(chips, 'of_kind', {'cpu': chip}.get)


# Of 16 examples: forward and the gradient of the kernel, but no gradient of
# what is given.
LINEAR_FLOPS = 2 * (2 * 16 * 8 * 4)


@pytest.mark.parametrize('counts', [False, True])
def test_peak_of_any_model(known_chip, counts):
  model = fakes.LinearModel(counts=counts)
  batch = {'x': np.zeros((16, 8), np.float32), 'y': np.zeros(16, np.int32)}
  variables = model.get_initial_variables(
    jax.random.PRNGKey(0), {'x': (16, 8)}, {'x': np.float32}
  )
  mutables = {'counts': variables['counts']} if counts else {}
  state = checkpoints.TrainState(0, variables['params'], (), mutables)
  devices = np.array(jax.devices()[:1] * 4)
  mesh = types.SimpleNamespace(devices=devices, size=4)
  peak = utilization.peak_steps_per_second(model, state, batch, mesh)
  assert peak == 4 * 1e9 / LINEAR_FLOPS


def test_peak_of_a_stage_leaves_out_what_is_done_twice(known_chip):
  peaks = []
  for remat in (False, True):
    model = stage_examples.make_model(stages.DECODER_ONLY, remat=remat)
    params = stage_examples.make_params(model)
    batch = {
      name: np.zeros(shape, np.int32)
      for name, shape in model.feature_shapes(2).items()
    }
    state = checkpoints.TrainState(0, params, (), {})
    mesh = partitioning.make_mesh()
    peaks.append(utilization.peak_steps_per_second(model, state, batch, mesh))
  assert peaks[0] == peaks[1] == 1e9 / flops.of_step(model, batch)


def test_unknown_devices_have_none(tmp_path):
  mesh = partitioning.make_mesh()
  assert utilization.peak_steps_per_second(None, None, None, mesh) is None
  test_train.run(tmp_path, eval_split=None)
  for line in test_train.metrics_of(tmp_path, 'train').values():
    assert 'mfu' not in line


def test_training_writes_it(known_chip, tmp_path):
  test_train.run(tmp_path, eval_split=None)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  for line in map(json.loads, lines):
    assert line['mfu'] == pytest.approx(
      line['steps_per_second'] * LINEAR_FLOPS / 1e9
    )
