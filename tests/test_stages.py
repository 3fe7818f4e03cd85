"""Tests of stages.py: the three rows and their layout."""

import pytest

from v2meow_jax import stages


def test_paper_stages():
  """Lengths and vocabularies of the paper's cascade (10, 10 and 3 s)."""
  semantic = stages.make('semantic', visual=('clip', 'i3d_flow'), style='mulan')
  assert semantic.architecture == stages.ENCODER_DECODER
  assert semantic.task_feature_lengths() == {
    'clip': 10,
    'i3d_flow': 10,
    'mulan': 128,
    'targets': 250,
  }
  assert semantic.input_length == 21
  assert semantic.vocab_size == 2 + 1024

  coarse = stages.make('coarse')
  assert coarse.architecture == stages.DECODER_ONLY
  assert coarse.task_feature_lengths() == {'w2v_bert': 250, 'targets': 2000}
  assert coarse.vocab_size == 2 + 1024 + 4 * 1024
  assert coarse.target_offset == 2 + 1024
  assert coarse.reference_rate_hz == 200

  visual_coarse = stages.make('coarse', visual=('clip',))
  assert visual_coarse.architecture == stages.ENCODER_DECODER
  assert [v.name for v in visual_coarse.inputs] == ['clip', 'w2v_bert']

  fine = stages.make('fine')
  assert fine.architecture == stages.DECODER_ONLY
  assert fine.task_feature_lengths() == {'soundstream': 600, 'targets': 1200}
  assert fine.inputs[0].num_levels == 4
  assert (fine.target.first_level, fine.target.num_levels) == (4, 8)


def test_discrete_visual_stream_keeps_the_encoder():
  stage = stages.make('semantic', visual=('vit_vqgan',))
  assert stage.architecture == stages.ENCODER_DECODER
  assert stage.input_length == 10 * 1024


def test_tokens_of_a_frame_share_a_codebook_and_a_time():
  stage = stages.make('semantic', visual=('vit_vqgan', 'i3d_flow'))
  view = stage.inputs[0]
  assert (view.num_ids, view.level_ids) == (8192, 0)
  assert stage.target_offset == 2 + 8192
  assert stage.vocab_size == 2 + 8192 + 1024
  # 1,024 tokens a second, at one place in time.
  assert (view.rate_hz, view.time_rate_hz) == (1024, 1)
  assert stage.reference_rate_hz == 25
  codec = stages.make('fine').target
  assert (codec.num_ids, codec.level_ids) == (8 * 1024, 1024)
  assert codec.time_rate_hz == codec.rate_hz == 400


def test_cascade_without_semantic_stage():
  direct = stages.make('coarse', visual=('clip',), style='mulan', semantic=None)
  assert direct.architecture == stages.ENCODER_DECODER
  assert [v.name for v in direct.inputs] == ['clip', 'mulan']
  assert direct.task_feature_lengths() == {
    'clip': 10,
    'mulan': 128,
    'targets': 2000,
  }
  # With a semantic stage, that is where the style goes.
  coarse = stages.make('coarse', visual=('clip',), style='mulan')
  assert [v.name for v in coarse.inputs] == ['clip', 'w2v_bert']


def test_cascade_without_fine_stage():
  stage = stages.make('coarse', coarse_levels=None)
  assert stage.architecture == stages.DECODER_ONLY
  assert (stage.target.first_level, stage.target.num_levels) == (0, 12)
  assert stage.task_feature_lengths() == {'w2v_bert': 250, 'targets': 6000}


def test_blocks_of_ids_do_not_overlap():
  stage = stages.make('coarse', visual=('vit_vqgan', 'clip'))
  blocks = [(stage.input_offset(v.name), v.num_ids) for v in stage.inputs] + [
    (stage.target_offset, stage.target.num_ids)
  ]
  end = 2
  for offset, size in blocks:
    assert offset == end
    end = offset + size
  assert end == stage.vocab_size


def test_indices_follow_the_cascade():
  rows = [stages.make(n, visual=('clip',)).index for n in stages.NAMES]
  assert rows == [0, 1, 2]
  assert set(stages.TEMPERATURES) == set(stages.NAMES)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(name='middle'), 'Unknown stage `middle`, expected one of'),
    (dict(name='semantic'), 'Stage `semantic` has no inputs'),
    (
      dict(name='coarse', coarse_levels=12),
      'expected 1 to 11 for stream `soundstream`, or None for all',
    ),
    (
      dict(name='fine', coarse_levels=None),
      'which leaves stage `fine` nothing to predict',
    ),
    (
      dict(name='semantic', visual=('clip',), semantic=None),
      'semantic is None, expected the stream that stage `semantic` predicts',
    ),
    (
      dict(name='coarse', visual=('vit_vqgan',), architecture='decoder_only'),
      'its input `vit_vqgan` holds frames, 1024 tokens each, which an encoder',
    ),
    (
      dict(name='semantic', visual=('clip',), semantic='vit_vqgan'),
      'its target `vit_vqgan` holds frames, expected a stream with a codebook',
    ),
    (
      dict(name='coarse', visual=('clip',), architecture='decoder_only'),
      'its input `clip` is continuous, expected tokens',
    ),
    (
      dict(name='coarse', architecture='encoder'),
      'unknown architecture `encoder`',
    ),
    (
      dict(name='semantic', visual=('clip',), seconds=2.5),
      'expected a whole number',
    ),
  ],
)
def test_wrong_rows(arguments, message):
  with pytest.raises(ValueError, match=message):
    stages.make(**arguments)
