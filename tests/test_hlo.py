"""HLO text: what is computed, moved and sent, with loops as often as they run."""

import jax
import jax.numpy as jnp
import pytest

from v2meow_jax import hlo

# Two layers in a loop: a product, and an all-gather of its weights.
# ruff: noqa: E501
_LOOP = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%fused (p0: bf16[8,16], p1: bf16[16,32]) -> bf16[8,32] {
  %p0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %conv = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (state: (bf16[8,16], bf16[4,32])) -> (bf16[8,16], bf16[4,32]) {
  %state = (bf16[8,16]{1,0}, bf16[4,32]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%state), index=0
  %w = bf16[4,32]{1,0} get-tuple-element(%state), index=1
  %ag = (bf16[4,32]{1,0}, bf16[16,32]{1,0:S(1)}) all-gather-start(%w), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %whole = bf16[16,32]{1,0:S(1)} all-gather-done(%ag)
  %y = bf16[8,32]{1,0} fusion(%x, %whole), kind=kOutput, calls=%fused, metadata={op_name="a(b)"}
  %z = bf16[8,16]{1,0} slice(%y), slice={[0:8], [0:16]}
  ROOT %next = (bf16[8,16]{1,0}, /*index=1*/bf16[4,32]{1,0}) tuple(%z, %w)
}

%condition (state.1: (bf16[8,16], bf16[4,32])) -> pred[] {
  %state.1 = (bf16[8,16]{1,0}, bf16[4,32]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x.1: bf16[8,16], w.1: bf16[4,32]) -> f32[8,16] {
  %x.1 = bf16[8,16]{1,0} parameter(0)
  %w.1 = bf16[4,32]{1,0} parameter(1)
  %init = (bf16[8,16]{1,0}, bf16[4,32]{1,0}) tuple(%x.1, %w.1)
  %loop = (bf16[8,16]{1,0}, bf16[4,32]{1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %out = bf16[8,16]{1,0} get-tuple-element(%loop), index=0
  %wide = f32[8,16]{1,0} convert(%out)
  ROOT %reduced = f32[8,16]{1,0} all-reduce(%wide), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'a'}, use_global_device_ids=true, to_apply=%sum
}
"""


def test_loops_count_as_often_as_they_run():
  costs = hlo.analyze(_LOOP, num_devices=8)
  assert costs.loops == (2,)
  assert costs.flops == 2 * (2 * 8 * 16 * 32)
  assert costs.collectives == (
    # The whole of [16, 32] in each of two runs.
    hlo.Collective('all-gather', 4, 2 * 16 * 32 * 2),
    hlo.Collective('all-reduce', 2, 8 * 16 * 4),
  )
  # What is in S(1) is not in main memory.
  gather = 4 * 32 * 2 + 4 * 32 * 2 // 2
  product = 8 * 16 * 2 + 8 * 32 * 2
  cut = 2 * 8 * 16 * 2
  convert = 8 * 16 * 2 + 8 * 16 * 4
  reduce = 2 * 8 * 16 * 4
  assert costs.hbm_bytes == 2 * (gather + product + cut) + convert + reduce


def test_a_scan_tells_its_length_by_its_condition():
  counted = _LOOP.replace('known_trip_count', 'unknown').replace(
    '  ROOT %true = pred[] constant(true)\n',
    '  %i = s32[]{:T(128)} get-tuple-element(%state.1), index=0\n'
    '  %n = s32[]{:T(128)} constant(5)\n'
    '  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT\n',
  )
  costs = hlo.analyze(counted)
  assert costs.loops == (5,)
  assert costs.flops == 5 * (2 * 8 * 16 * 32)


def test_a_loop_of_unknown_length_is_told():
  costs = hlo.analyze(_LOOP.replace('known_trip_count', 'unknown'))
  assert costs.loops == (None,)
  assert costs.flops == 2 * 8 * 16 * 32


@pytest.mark.parametrize(
  'opcode, groups, size, expected',
  [
    ('all-reduce', 'replica_groups={{0,1,2},{3,4,5}}', 3, 64),
    ('all-reduce', 'replica_groups={}', 6, 64),
    ('reduce-scatter', 'replica_groups=[2,3]<=[6]', 3, 64),
    ('all-gather', 'replica_groups=[3,2]<=[2,3]T(1,0)', 2, 128),
    ('all-to-all', "replica_groups=mesh['a'=6] {'a':(2)3}", 3, 64),
    ('all-reduce', "replica_groups=mesh['a'=2,'b'=3] {'a','b'}", 6, 64),
    (
      'all-gather',
      "replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'b'}",
      3,
      192,
    ),
    ('collective-permute', 'source_target_pairs={{0,1},{1,0}}', 2, 64),
  ],
)
def test_collectives_of_all_notations(opcode, groups, size, expected):
  text = (
    'ENTRY %main (x: f32[16]) -> f32[16] {\n'
    '  %x = f32[16]{0} parameter(0)\n'
    f'  ROOT %y = f32[16]{{0}} {opcode}(%x), channel_id=1, {groups}\n'
    '}\n'
  )
  (found,) = hlo.analyze(text, num_devices=6).collectives
  assert found == hlo.Collective(opcode, size, expected)


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
  text = (
    '%all-reduce-scatter.1 (p: f32[16]) -> f32[4] {\n'
    '  %p = f32[16]{0} parameter(0)\n'
    '  %r = f32[16]{0} all-reduce(%p), replica_groups=[1,4]<=[4]\n'
    '  %i = s32[] partition-id()\n'
    '  ROOT %s = f32[4]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={4}\n'
    '}\n'
    'ENTRY %main (x: f32[16]) -> f32[4] {\n'
    '  %x = f32[16]{0} parameter(0)\n'
    '  ROOT %y = f32[4]{0} fusion(%x), calls=%all-reduce-scatter.1\n'
    '}\n'
  )
  costs = hlo.analyze(text)
  assert costs.collectives == (hlo.Collective('reduce-scatter', 4, 64),)
  assert costs.hbm_bytes == 64 + 16


_KERNEL = """\
HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[8,16], w: f32[16]) -> bf16[8,32] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[16]{0:T(128)S(1)} parameter(1)
  ROOT %kernel = bf16[8,32]{1,0:T(8,128)(2,1)} custom-call(%x, %w), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[8,16]{1,0}, f32[16]{0}}, backend_config={"custom_call_config":{"body":"TUzvUg","cost_estimate":{"flops":"12345","transcendentals":"7","bytes_accessed":"1"}}}
}
"""


def test_a_kernel_says_what_it_computes():
  costs = hlo.analyze(_KERNEL)
  assert costs.flops == 12345
  # What it is given and returns, where that is in main memory.
  assert costs.hbm_bytes == 8 * 16 * 2 + 8 * 32 * 2


def test_what_a_fusion_leaves_alone_is_not_moved():
  text = (
    '%cut (p: f32[100,8], i: s32[]) -> f32[1,8] {\n'
    '  %p = f32[100,8]{1,0} parameter(0)\n'
    '  %i = s32[] parameter(1)\n'
    '  %z = s32[] constant(0)\n'
    '  ROOT %s = f32[1,8]{1,0} dynamic-slice(%p, %i, %z)\n'
    '}\n'
    '%put (q: f32[100,8], u: f32[1,8], j: s32[]) -> f32[100,8] {\n'
    '  %q = f32[100,8]{1,0} parameter(0)\n'
    '  %u = f32[1,8]{1,0} parameter(1)\n'
    '  %j = s32[] parameter(2)\n'
    '  ROOT %d = f32[100,8]{1,0} dynamic-update-slice(%q, %u, %j, %j)\n'
    '}\n'
    'ENTRY %main (x: f32[100,8], n: s32[]) -> f32[100,8] {\n'
    '  %x = f32[100,8]{1,0} parameter(0)\n'
    '  %n = s32[] parameter(1)\n'
    '  %b = f32[9]{0} custom-call(), custom_call_target="AllocateBuffer"\n'
    '  %row = f32[1,8]{1,0} fusion(%x, %n), kind=kLoop, calls=%cut\n'
    '  ROOT %y = f32[100,8]{1,0} fusion(%x, %row, %n), kind=kLoop, calls=%put\n'
    '}\n'
  )
  row, number = 8 * 4, 4
  expected = (row + number + row) + (row + number + row)
  assert hlo.analyze(text).hbm_bytes == expected


@pytest.mark.parametrize(
  'window, length, pairs',
  [
    ('size=3', 8, 8 * 3),
    # The first and the last place meet one element less.
    ('size=3 pad=1_1', 10, 10 * 3 - 2),
    ('size=3 stride=2', 4, 4 * 3),
    # Nine holes between ten elements: 9 places meet two, 8 meet one.
    ('size=3 lhs_dilate=2', 17, 9 * 2 + 8),
    ('size=3 rhs_dilate=2', 6, 6 * 3),
  ],
)
def test_convolutions_count_neither_padding_nor_holes(window, length, pairs):
  text = (
    f'ENTRY %main (x: f32[2,10,4], k: f32[3,4,5]) -> f32[2,{length},5] {{\n'
    '  %x = f32[2,10,4]{2,1,0} parameter(0)\n'
    '  %k = f32[3,4,5]{2,1,0} parameter(1)\n'
    f'  ROOT %y = f32[2,{length},5]{{2,1,0}} convolution(%x, %k), '
    f'window={{{window}}}, dim_labels=b0f_0io->b0f\n'
    '}\n'
  )
  assert hlo.analyze(text).flops == 2 * 2 * 4 * 5 * pairs


def test_real_programs_count_as_xla_does(rng):
  x, w = (
    rng.standard_normal((64, 32), 'f4'),
    rng.standard_normal((32, 48), 'f4'),
  )
  compiled = jax.jit(lambda x, w: jnp.tanh(x @ w)).lower(x, w).compile()
  costs = hlo.analyze(compiled.as_text())
  assert costs.flops == compiled.cost_analysis()['flops'] == 2 * 64 * 32 * 48
  assert costs.hbm_bytes == compiled.cost_analysis()['bytes accessed']

  def scanned(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

  w = rng.standard_normal((32, 32), 'f4')
  compiled = jax.jit(scanned).lower(x, w).compile()
  costs = hlo.analyze(compiled.as_text())
  assert costs.loops == (7,)
  assert costs.flops == 7 * 2 * 64 * 32 * 32


def test_what_is_no_program():
  with pytest.raises(ValueError, match='^No computation is the entry of this'):
    hlo.parse('HloModule nothing\n')
