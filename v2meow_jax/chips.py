"""Accelerators: what one chip can do, and the slices they come in.

Sources, read in 2025: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of
cloud.google.com/tpu/docs for FLOP/s, HBM and interconnect (given there as
2,400, 1,600, 4,800 and 3,584 Gbit/s a chip, one way, over all links);
NVIDIA's data sheets of A100 (80 GB SXM), H100 (SXM) and H200 for the GPUs,
dense rates without sparsity.
"""

import dataclasses
import math
import re

from v2meow_jax import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do.

  Attributes:
    name: as in a topology, `v5e` of `v5e:4x4`; for a GPU its own name.
    kind: what JAX calls the device.
    flops: dense bfloat16 FLOP/s.
    hbm_bytes: capacity of its memory; a little less is there for programs.
    hbm_bandwidth: bytes/s.
    ici_bandwidth: bytes/s that leave the chip, over all its links; 0 where
      nothing is said about links.
    dimensions: of the torus that its links make; 0 for a GPU.
    options: of `get_topology_desc`, so that one device is one chip.
  """

  name: str
  kind: str
  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  ici_bandwidth: float = 0.0
  dimensions: int = 0
  options: tuple[tuple[str, str], ...] = ()


_ROWS = (
  # A chip of v4 has two cores, which programs see as one device.
  Chip(
    'v4',
    'TPU v4',
    275e12,
    32 << 30,
    1228e9,
    300e9,
    3,
    (('chip_config_name', 'megacore'),),
  ),
  Chip('v5e', 'TPU v5 lite', 197e12, 16 << 30, 819e9, 200e9, 2),
  Chip('v5p', 'TPU v5', 459e12, 95 << 30, 2765e9, 600e9, 3),
  Chip('v6e', 'TPU v6 lite', 918e12, 32 << 30, 1640e9, 448e9, 2),
  Chip('a100', 'NVIDIA A100-SXM4-80GB', 312e12, 80 << 30, 2039e9),
  Chip('h100', 'NVIDIA H100 80GB HBM3', 989e12, 80 << 30, 3350e9),
  Chip('h200', 'NVIDIA H200', 989e12, 141 * 10**9, 4800e9),
)
CHIPS = {row.name: row for row in _ROWS}


def of_kind(kind: str) -> Chip | None:
  """Returns the chip that JAX calls `kind`, or None for an unknown one."""
  # The first v5p were called otherwise than today's.
  kind = {'TPU v5p': 'TPU v5', 'TPU v5e': 'TPU v5 lite'}.get(kind, kind)
  return next((chip for chip in _ROWS if chip.kind == kind), None)


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
  """Reads the name of a slice.

  Args:
    topology: such as `v5e:16x16` or `v5p:2x4x4`, in chips.

  Returns:
    The chip, and how many there are along each dimension.

  Raises:
    UserError: there is no such chip, or it comes in no such shape.
  """
  tpus = [chip.name for chip in _ROWS if chip.dimensions]
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
  if not found or found[1] not in tpus:
    raise errors.UserError(
      f'Unknown topology `{topology}`, expected one of {", ".join(tpus)}, a '
      'colon and its chips along each dimension. Choose one such as v5e:4x4.'
    )
  chip = CHIPS[found[1]]
  shape = tuple(map(int, found[2].split('x')))
  if len(shape) != chip.dimensions or not math.prod(shape):
    raise errors.UserError(
      f'Topology `{topology}` has {len(shape)} dimensions, expected '
      f'{chip.dimensions} of at least one chip: those of {chip.name}. Choose '
      f'one such as {chip.name}:{"x".join(["4"] * chip.dimensions)}.'
    )
  return chip, shape
