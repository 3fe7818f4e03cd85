"""One stage starts from what another has learnt."""

import jax
import numpy as np
import pytest

from tests import stage_examples
from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import models
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import warm_start
from v2meow_jax import weights

CODEC = streams.StreamSpec('codec', 6, num_codes=7, num_levels=3)
LOW = stages.View(CODEC, 0, 2)
HIGH = stages.View(CODEC, 2, 1)


def _stage(name, inputs, target):
  return stages.Stage(name, inputs, target, 2.0, stages.DECODER_ONLY)


COARSE = _stage('coarse', (stage_examples.WORDS,), LOW)
FINE = _stage('fine', (LOW,), HIGH)


def _model(stage, **changes):
  return models.StageModel(stage, stage_examples.make_config(**changes))


def _params(model):
  variables = model.get_initial_variables(
    jax.random.key(7), model.feature_shapes(1)
  )
  return jax.tree.map(np.array, variables['params'])


def test_a_codebook_that_levels_share_is_taken_over_once():
  spec = streams.StreamSpec(
    'tokens', 1, num_codes=5, num_levels=4, shares_codebook=True
  )
  tokens = stages.View(spec, 0, 4)
  source, target = (
    _model(stages.Stage('coarse', inputs, LOW, 2.0))
    for inputs in ((tokens,), (stage_examples.SCENE, tokens))
  )
  given = _params(source)
  made, share = warm_start.make(source, given, target, seed=1)
  assert share < 1  # of the scene, nothing is known
  table = lambda params: params['token_embedder']['embedding']
  assert table(made).shape == (2 + 5 + 2 * 7, 8)
  np.testing.assert_array_equal(table(made), table(given))


def test_what_both_stages_know_is_taken_over():
  source, target = _model(COARSE), _model(FINE)
  given = _params(source)
  made, share = warm_start.make(source, given, target, seed=1)
  fresh = target.get_initial_variables(
    jax.random.key(1), target.feature_shapes(1)
  )['params']
  weights.check_params(fresh, made)
  old, new, fresh = map(weights.flatten, (given, made, fresh))
  name, head = (
    next(path for path in new if path.endswith(end))
    for end in ('token_embedder/embedding', 'logits_dense/kernel')
  )
  for path in new.keys() - {name, head}:
    np.testing.assert_array_equal(new[path], old[path])
  # Two ids of no code; 2 levels of 6 words, 2 of 7 codes; 2 of 7 codes, 1 of 7.
  np.testing.assert_array_equal(new[name][:2], old[name][:2])
  np.testing.assert_array_equal(new[name][2:16], old[name][14:28])
  np.testing.assert_array_equal(new[name][16:], fresh[name][16:])
  # No level that the one writes is written by the other.
  np.testing.assert_array_equal(new[head], fresh[head])
  total = sum(value.size for value in new.values())
  random = new[name][16:].size + new[head].size
  assert share == pytest.approx(1 - random / total)


def test_a_stage_starts_from_itself_as_it_is():
  model = _model(FINE)
  given = _params(model)
  made, share = warm_start.make(model, given, model)
  assert share == 1
  jax.tree.map(np.testing.assert_array_equal, made, given)


def test_networks_without_anything_in_common():
  wide = {'embed_dim': 16, 'num_heads': 4, 'head_dim': 8, 'num_buckets': 8}
  with pytest.raises(errors.UserError, match='have no parameter of one shape'):
    warm_start.make(
      _model(COARSE), _params(_model(COARSE)), _model(FINE, **wide)
    )


def test_command(tiny_model, tmp_path, capsys):
  out = tmp_path / 'start.safetensors'
  flags = [f'--gin_file={tiny_model / bundles.GIN}', f'--out={out}']
  source = f'--source=coarse={tiny_model / "coarse.safetensors"}'
  assert warm_start.main([*flags, source, '--target=fine']) == 0
  captured = capsys.readouterr()
  assert captured.out == f'{out}\n'
  assert captured.err.endswith(' % of fine from coarse\n')
  weights.check_params(
    weights.load_params(tiny_model / 'fine.safetensors'),
    weights.load_params(out),
  )
  missing = f'--source=coarse={tmp_path / "none.safetensors"}'
  assert warm_start.main([*flags, missing, '--target=fine']) == 1
  assert capsys.readouterr().err.startswith('error: ')
  with pytest.raises(SystemExit) as stop:
    warm_start.main([*flags, '--source=codec=x', '--target=fine'])
  assert stop.value.code == 2
