"""What a dry run says: shapes, mesh and memory; and it changes nothing."""

import types

import jax
import numpy as np
import pytest
import soundfile

from tests import fakes
from tests import test_train
from v2meow_jax import checkpoints
from v2meow_jax import optimizers
from v2meow_jax import partitioning
from v2meow_jax import summaries
from v2meow_jax import train
from v2meow_jax import trainer

P = jax.sharding.PartitionSpec


def test_a_device_holds_its_part():
  mesh = jax.sharding.AbstractMesh((2, 4), ('data', 'model'))
  cut = jax.sharding.NamedSharding(mesh, P(None, 'model'))
  whole = jax.sharding.NamedSharding(mesh, P())
  shape = lambda s, sharding: jax.ShapeDtypeStruct(
    s, np.float32, sharding=sharding
  )
  params = {'a': {'b': shape((6, 8), cut)}, 'c': shape((3,), whole)}
  assert summaries.parameter_table(params) == (
    '51 parameters:\n'
    '  a/b: float32 [6, 8], on a device [6, 2]\n'
    '  c: float32 [3]'
  )
  assert summaries.device_bytes(params) == 4 * (6 * 2 + 3)
  state = checkpoints.TrainState(
    step=shape((), whole),
    params=params,
    opt_state=(params, params),
    mutables={'d': shape((5,), whole)},
  )
  batch = {
    'x': jax.ShapeDtypeStruct(
      (8, 3),
      np.int32,
      sharding=jax.sharding.NamedSharding(mesh, P('data')),
    )
  }
  expected = {
    'parameters': 60,
    'optimizer state': 120,
    'other state': 20,
    'batch': 48,
    'gradients': 60,
  }
  assert summaries.memory(state, batch) == expected
  analysis = types.SimpleNamespace(temp_size_in_bytes=1000)
  compiled = types.SimpleNamespace(memory_analysis=lambda: analysis)
  del expected['gradients']
  assert summaries.memory(state, batch, compiled) == expected | {
    'gradients and activations': 1000
  }


def test_dry_run_prints_and_changes_nothing(tmp_path, capsys):
  result = test_train.run(tmp_path / 'run', dry_run=True)
  assert (result.state, result.step, result.signal) == (None, 0, None)
  said = capsys.readouterr().out
  assert not list(tmp_path.iterdir())
  # 8 x 4 and 4 numbers; two moments of each, and two counts of steps.
  for line in (
    '36 parameters:',
    '  dense/kernel: float32 [8, 4]',
    'First batch, of 16 examples:',
    '; 1 devices (cpu), 1 processes',
    f'  parameters                {144 / 2**20:10.2f} MiB',
    f'  gradients and activations {0:10.2f} MiB',
  ):
    assert line in said
  assert 'not estimated' not in said
  # It compiled the very step that a run takes.
  data = fakes.Examples('train', 16, 3)
  shapes = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for name, array in data.batch(0).items()
    if name != 'clip_id'
  }
  made = trainer.Trainer(
    fakes.LinearModel(),
    optimizers.adamw(optimizers.constant(0.05)),
    data.batch(0),
    3,
    partitioning.make_mesh(),
  )
  analysis = made.lower_step(shapes).compile().memory_analysis()
  found = summaries.memory(made.abstract, shapes)
  # The state and the batch are the arguments: nothing is forgotten.
  assert analysis.argument_size_in_bytes == pytest.approx(
    sum(found.values()) - found['gradients'], abs=16
  )


def test_dry_run_of_a_stage(tmp_path, capsys):
  test_train.write_arrays(tmp_path / 'arrays')
  bindings = ["--gin.DRY_RUN='shapes'", '--gin.TRAIN_STEPS=5']
  assert train.main(test_train.command(tmp_path, *bindings)) == 0
  said = capsys.readouterr().out
  assert said.startswith('23888 parameters:\n')
  for line in (
    '  decoder/logits_dense/kernel: float32 [16, 512]',
    '  encoder_scene: float32 [4, 10, ',
    ' and activations (not estimated)',
  ):
    assert line in said
  assert not (tmp_path / 'run').exists()


def test_dry_run_of_a_codec(tmp_path, capsys):
  rng = np.random.default_rng(0)
  soundfile.write(tmp_path / 'a.wav', 0.1 * rng.standard_normal(40000), 16000)
  (tmp_path / 'clips.csv').write_text(
    'clip_id,file,split\na,a.wav,train\nb,a.wav,validation\n'
  )
  arguments = [
    '--gin_file=codecs/spectral.gin',
    '--gin_file=runs/train.gin',
    '--gin_file=codecs/train_joint.gin',
    f"--gin.MANIFESTS=('{tmp_path}/clips.csv',)",
    f"--gin.MODEL_DIR='{tmp_path}/run'",
    "--gin.DRY_RUN='shapes'",
    '--gin.spectra.Config.width=16',
  ]
  assert train.main(arguments) == 0
  said = capsys.readouterr().out
  assert '  waveform: float32 [8, 30720]' in said
  assert '  other state ' in said  # the codebooks
  assert not (tmp_path / 'run').exists()
