"""The table of chips and the names of slices."""

import pytest

from v2meow_jax import chips
from v2meow_jax import errors


def test_the_table_is_complete():
  assert {'v4', 'v5e', 'v5p', 'v6e'} <= {*chips.CHIPS}
  for name, chip in chips.CHIPS.items():
    assert chip.name == name
    assert chips.of_kind(chip.kind) is chip
    # The balance of FLOP/s and HBM of all of them is alike: no slip of units.
    assert 100 < chip.flops / chip.hbm_bandwidth < 700
    assert 10 << 30 < chip.hbm_bytes < 200 << 30
    assert bool(chip.dimensions) == bool(chip.ici_bandwidth)
    if chip.dimensions:
      # Every link carries 50 to 112 GB/s one way, two links a dimension.
      link = chip.ici_bandwidth / (2 * chip.dimensions)
      assert 50e9 <= link <= 112e9


def test_devices_by_the_name_that_jax_has():
  assert chips.of_kind('TPU v5 lite').name == 'v5e'
  assert chips.of_kind('TPU v5p').name == chips.of_kind('TPU v5').name == 'v5p'
  assert chips.of_kind('cpu') is None


def test_topologies():
  chip, shape = chips.parse_topology('v5p:2x4x4')
  assert (chip.name, shape) == ('v5p', (2, 4, 4))
  assert chips.parse_topology('v5e:16x16')[1] == (16, 16)


@pytest.mark.parametrize('topology', ['v5e', 'h100:8', 'v1:4x4', 'v5e:axb'])
def test_unknown_topology(topology):
  with pytest.raises(errors.UserError) as error:
    chips.parse_topology(topology)
  assert str(error.value) == (
    f'Unknown topology `{topology}`, expected one of v4, v5e, v5p, v6e, a '
    'colon and its chips along each dimension. Choose one such as v5e:4x4.'
  )


def test_topology_of_other_dimensions():
  with pytest.raises(errors.UserError) as error:
    chips.parse_topology('v4:8x8')
  assert str(error.value) == (
    'Topology `v4:8x8` has 2 dimensions, expected 3 of at least one chip: '
    'those of v4. Choose one such as v4:4x4x4.'
  )
