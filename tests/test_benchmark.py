"""Each benchmark prints one line of JSON with what the README states."""

import json

import jax
import numpy as np
import pytest

from tests import toy
from v2meow_jax import benchmark
from v2meow_jax import codec_speed
from v2meow_jax import configs
from v2meow_jax import decoding_speed
from v2meow_jax import streams
from v2meow_jax import trainer
from v2meow_jax import training_speed
from v2meow_jax import training_steps
from v2meow_jax.codecs import encodec


def test_decode_counts_steps_and_tokens(code_folder, capsys):
  arguments = 'decode --size tiny --batch 2 --steps 10 --stage semantic'
  assert benchmark.main(arguments.split()) == 0
  said = capsys.readouterr().out
  assert said.count('\n') == 1
  line = json.loads(said)
  assert line['benchmark'] == 'decode'
  assert (line['size'], line['stage']) == ('tiny', 'semantic')
  assert (line['batch'], line['steps']) == (2, 10)
  assert line['seconds_per_step'] == pytest.approx(
    line['seconds'] / 10, rel=1e-3
  )
  assert line['tokens_per_second'] == pytest.approx(
    20 / line['seconds'], rel=1e-3
  )
  # Ten tokens at 25 Hz of two clips.
  assert line['real_time_factor'] == pytest.approx(
    line['seconds'] / 0.8, rel=1e-3
  )
  assert line['compile_seconds'] > line['seconds']
  assert 50 < line['peak_memory_mb'] < 8000
  assert line['cores'] >= 1


def test_decode_of_any_dimensions_counts_bytes(code_folder, capsys):
  arguments = (
    'decode --arch decoder_only --layers 2 --embed_dim 16 --heads 2 '
    '--head_dim 8 --mlp_dim 32 --vocab 50 --encoder_length 6 --batch 3 '
    '--steps 5 --weights_dtype int8'
  )
  assert benchmark.main(arguments.split()) == 0
  line = json.loads(capsys.readouterr().out)
  assert (line['arch'], line['batch'], line['steps']) == ('decoder_only', 3, 5)
  # Four projections and a gated MLP of each layer, and the logits, in int8 with
  # a float32 for each column: 3 x 16 and 16, 2 x 32 and 16, 50.
  weights = 2 * (4 * 16 * 16 + 3 * 16 * 32) + 16 * 50
  scales = 4 * (2 * (64 + 80) + 50)
  # Keys and values of 7 to 11 positions.
  cache = 4 * 2 * 2 * 3 * 16 * 9
  assert line['bytes_per_step'] == pytest.approx(
    weights + scales + cache, rel=1e-3
  )
  assert line['bytes_per_second'] == pytest.approx(
    line['bytes_per_step'] / line['seconds_per_step'], rel=2e-3
  )
  assert line['ms_per_step'] == pytest.approx(
    1e3 * line['seconds_per_step'], rel=1e-3
  )
  assert line['memory_bytes_per_second'] > 1e8
  assert line['share_of_memory_bandwidth'] == pytest.approx(
    line['bytes_per_second'] / line['memory_bytes_per_second'], rel=2e-3
  )


def test_generate_measures_the_whole_road(tiny_model, tmp_path, capsys):
  clip = toy.make_video(tmp_path / 'clip.mp4', seconds=3.0)
  arguments = ['generate', '--video', clip, '--model', tiny_model]
  assert benchmark.main([*map(str, arguments)]) == 0
  line = json.loads(capsys.readouterr().out)
  assert line['benchmark'] == 'generate'
  assert line['video'] == 'clip.mp4'
  assert line['music_seconds'] == 3.0
  # 3 s at 25 Hz: one semantic token and 8 levels.
  assert line['tokens'] == 75 * 9
  assert line['tokens_per_second'] == pytest.approx(
    line['tokens'] / line['seconds'], rel=1e-3
  )
  assert line['real_time_factor'] == pytest.approx(
    line['seconds'] / 3, rel=1e-3
  )
  assert 0 < line['first_sound_seconds']


def test_train_times_steps_and_counts_tokens(code_folder, capsys):
  arguments = (
    'train --stage fine --size tiny --batch 2 --steps 3 '
    '--gin.stages.make.seconds=0.5'
  )
  assert benchmark.main(arguments.split()) == 0
  said = capsys.readouterr().out
  assert said.count('\n') == 1
  line = json.loads(said)
  assert line['benchmark'] == 'train'
  assert (line['stage'], line['size'], line['dtype']) == (
    'fine',
    'tiny',
    'float32',
  )
  assert (line['batch'], line['steps']) == (2, 3)
  # 0.5 s at 50 Hz of 8 levels, of two clips.
  assert line['target_tokens_per_second'] == pytest.approx(
    2 * 200 / line['step_seconds'], rel=1e-3
  )
  assert 0 < line['fastest_step_seconds'] <= line['step_seconds']
  assert line['model_flops_per_second'] == pytest.approx(
    line['model_flops_per_step'] / line['step_seconds'], rel=1e-3
  )
  # XLA counts what is between the products too.
  assert (
    line['model_flops_per_step']
    < line['cost_analysis_flops_per_step']
    < 3 * line['model_flops_per_step']
  )
  # Random parameters say nothing: 1,024 codes are as likely.
  assert 0.5 * np.log(1024) < line['loss'] < 2 * np.log(1024)
  assert line['mfu'] is None
  assert line['mfu_reason'].startswith('the peak rate of `cpu` is not known')
  assert line['compile_seconds'] > line['step_seconds']
  assert 50 < line['peak_memory_mb'] < 8000


def test_input_reads_the_records(tmp_path, capsys):
  from tests import records  # imports TensorFlow

  records.write(tmp_path, name='read')
  arguments = [
    *'input --stage semantic --dataset read:1.0.0 --batch 4 --steps 3'.split(),
    f'--data_dir={tmp_path}',
    "--gin.VISUAL=('scene',)",
    "--gin.SEMANTIC='spectral_semantic'",
    '--gin.STYLE=None',
    '--gin.stages.make.seconds=2.0',
  ]
  assert benchmark.main(arguments) == 0
  line = json.loads(capsys.readouterr().out)
  assert line['benchmark'] == 'input'
  assert (line['stage'], line['batch'], line['steps']) == ('semantic', 4, 3)
  assert line['examples_per_second'] == pytest.approx(
    12 / line['seconds'], rel=1e-3
  )
  # Of 2 s: 20 frames of 64 features and a mask, 50 ids three times.
  assert line['batch_bytes'] == 4 * 4 * (20 * 65 + 3 * 50)
  assert line['cpu_seconds_per_example'] > 0
  assert line['kept_in_memory']  # 24 clips
  assert benchmark.main([*arguments, '--stage', 'none']) == 1
  assert 'error: Unknown stage `none`' in capsys.readouterr().err
  # The records hold no stream of the paper.
  assert benchmark.main([*arguments, "--gin.VISUAL=('clip',)"]) == 1
  assert (
    'no stream clip, which stage `semantic` needs; found scene, '
    'spectral_semantic. Prepare the records again'
  ) in capsys.readouterr().err


def test_a_step_is_compiled_once(monkeypatch):
  traced = []
  original = trainer.Trainer._train_step_fn

  def count(self, *args):
    traced.append(1)
    return original(self, *args)

  monkeypatch.setattr(trainer.Trainer, '_train_step_fn', count)
  recipe = training_steps.make(
    'fine', 'tiny', 1, bindings=['stages.make.seconds = 0.5']
  )
  line = training_speed.measure(recipe, steps=2)
  assert len(traced) == 1
  assert line['steps'] == 2


def test_noise_is_a_batch_of_the_stage():
  recipe = training_steps.make('coarse', 'tiny', 2)
  batch = recipe.random_batch()
  shapes = recipe.batch_shapes()
  assert {n: a.shape for n, a in batch.items()} == {
    n: s.shape for n, s in shapes.items()
  }
  stage = recipe.model.stage
  targets = batch['decoder_target_tokens'][:, -stage.target_length :]
  level = np.arange(stage.target_length) % 4
  codes = targets - stage.target_offset - level * 1024
  assert codes.min() >= 0 and codes.max() < 1024
  np.testing.assert_array_equal(
    batch['decoder_input_tokens'][:, 1:], batch['decoder_target_tokens'][:, :-1]
  )
  assert batch['decoder_loss_weights'].sum() == targets.size


def test_mistakes_are_one_line(capsys):
  assert benchmark.main(['decode', '--size', 'vast']) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err.startswith('error: Unknown size `vast`, expected one of base')
  assert said.err.endswith('Choose one with --size.\n')
  with pytest.raises(SystemExit, match='^2$'):
    benchmark.main(['decode', '--size', 'tiny', '--steps', '0'])
  assert 'expected 1 or more' in capsys.readouterr().err
  for arguments, message in (
    ('--layers 2', '--arch is missing, expected it or --size'),
    ('--size tiny --heads 2', '--heads does not go with --size'),
    ('--size tiny --batch 0', '--batch is 0, expected 1 or more'),
  ):
    with pytest.raises(SystemExit, match='^2$'):
      benchmark.main(['decode', *arguments.split()])
    assert message in capsys.readouterr().err


def test_every_size_is_known():
  folder = configs.folder() / 'sizes'
  for size in ('tiny', 'small', 'base'):
    assert (folder / f'{size}.gin').is_file()
    assert decoding_speed.read_size(size).num_layers >= 1


def test_codec_encodes_and_decodes(monkeypatch, capsys):
  assert benchmark._CODECS == tuple(codec_speed.CODECS)
  for name in codec_speed.CODECS:
    shapes = codec_speed._shapes(name)
    spec = streams.get(name)
    books = shapes['quantizer']['codebooks'].shape
    assert books[:2] == (spec.num_levels, spec.num_codes)
  config = encodec.Config(2, (64, 5), 1, 8)
  shapes = encodec.shapes(config)
  monkeypatch.setattr(codec_speed, '_shapes', lambda name: shapes)
  monkeypatch.setitem(
    codec_speed.CODECS, 'encodec', lambda made: encodec.Encodec(made, config)
  )
  arguments = 'codec --codec encodec --seconds 1.5 --batch 2'
  assert benchmark.main(arguments.split()) == 0
  line = json.loads(capsys.readouterr().out)
  assert (line['benchmark'], line['codec']) == ('codec', 'encodec')
  assert (line['weights'], line['batch']) == ('random', 2)
  for what in ('encode', 'decode'):
    assert line[f'{what}_real_time_factor'] == pytest.approx(
      line[f'{what}_seconds'] / 3, rel=1e-3
    )
    assert line[f'{what}_compile_seconds'] > line[f'{what}_seconds']
  assert line['parameters'] == sum(
    np.prod(shape.shape) for shape in jax.tree.leaves(shapes)
  )
  with pytest.raises(SystemExit):
    benchmark.main(['codec', '--codec', 'encodec', '--seconds', '0'])
  assert '--seconds is 0, expected more than 0' in capsys.readouterr().err
