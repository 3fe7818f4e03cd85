"""Finding music by its words, with answers that are known."""

import json

import numpy as np
import pytest

from tests.embedders import mulan_examples
from v2meow_jax import weights
from v2meow_jax.embedders import retrieval


def test_ranks_are_places_of_the_right_answer():
  scores = np.array([[3, 2, 1], [3, 2, 1], [3, 2, 1]])
  assert retrieval.ranks(scores, ['a', 'b', 'c']).tolist() == [0, 1, 2]
  assert retrieval.ranks(scores, ['a', 'b', 'a']).tolist() == [0, 1, 0]
  assert retrieval.ranks(np.ones((3, 3)), ['a', 'b', 'c']).tolist() == [2] * 3


def test_recall_of_what_is_known():
  found = retrieval.measure(np.eye(12), np.eye(12), [*'abcdefghijkl'])
  assert found['recall_of_text_at_1'] == found['recall_of_audio_at_1'] == 1
  assert found['median_rank_of_text'] == found['cosine'] == 1
  mixed = np.roll(np.eye(12), 1, axis=0)
  found = retrieval.measure(np.eye(12), mixed, [*'abcdefghijkl'])
  assert found['recall_of_text_at_10'] == found['cosine'] == 0


def test_the_command_measures_an_embedder(tmp_path, capsys):
  manifest = mulan_examples.write_music(tmp_path)
  path = tmp_path / 'mulan.safetensors'
  weights.save_params(path, mulan_examples.make_weights())
  flags = ['--embedder', str(path), '--gin_file', 'style/mulan.gin']
  assert retrieval.main([str(manifest), '--split', 'validation', *flags]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['clips'] == 4
  assert found['true']['recall_of_text_at_5'] == 1  # of four
  assert found['true'].keys() == found['shuffled'].keys()
  assert found['true']['cosine'] != found['shuffled']['cosine']
  assert retrieval.main([str(manifest), *flags]) == 1
  assert capsys.readouterr().err == (
    f'error: {manifest}: 0 clips of split `test` with a caption, expected at '
    'least 2. Name another split.\n'
  )


@pytest.mark.parametrize('style', ['caption', 'none'])
def test_one_that_does_not_hear(style, tmp_path, capsys):
  manifest = mulan_examples.write_music(tmp_path)
  path = tmp_path / 'empty.safetensors'
  weights.save_params(path, {})
  flags = ['--embedder', str(path), '--gin_file', f'style/{style}.gin']
  flags += ['--split', 'train']
  assert retrieval.main([str(manifest), *flags]) == 1
  assert 'names no embedder that hears, expect' in capsys.readouterr().err
