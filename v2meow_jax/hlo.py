"""What a compiled program does, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, and what moves between
two on-chip memories as if it went to HBM; it says nothing of collectives. Here
a body counts as often as it runs, where XLA knows how often, and only HBM
counts as HBM. All numbers are of one device.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import re

import numpy as np

COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'c64': 64, 'c128': 128}

# Instructions that move nothing themselves: other names of what is there, and
# what only calls computations. So do all `…-done`: their `…-start` counts.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all domain '
  'opt-barrier partition-id replica-id while conditional call '
  'async-start async-update'.split()
)
# Of their first operand, they read what they return.
_SLICES = frozenset({'slice', 'dynamic-slice', 'gather'})


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape: its dtype, its dimensions and where it is.

  Attributes:
    dtype: XLA's name.
    dims: its shape.
    is_in_hbm: whether it is in the device's main memory.
  """

  dtype: str
  dims: tuple[int, ...]
  is_in_hbm: bool

  @property
  def num_bytes(self) -> int:
    """Bytes without padding."""
    width = re.search(r'\d+', self.dtype)
    bits = _BITS.get(self.dtype) or (int(width[0]) if width else 0)
    return math.prod(self.dims) * bits // 8

  @property
  def hbm_bytes(self) -> int:
    """Bytes in main memory."""
    return self.num_bytes if self.is_in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: its name in its computation.
    arrays: what it returns; several for a tuple.
    opcode: what it does.
    operands: names; of a constant its value.
    attributes: the rest of the line.
    is_root: whether its computation returns it.
  """

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool


@dataclasses.dataclass(frozen=True)
class Collective:
  """A kind of communication between devices.

  Attributes:
    kind: one of COLLECTIVES.
    group_size: devices that take part together.
    num_bytes: in all runs of it: of the whole array for all-gather, of the
      operand for the others.
  """

  kind: str
  group_size: int
  num_bytes: int


@dataclasses.dataclass(frozen=True)
class Costs:
  """What one device does in one run of a program.

  Attributes:
    flops: of products and convolutions alone, in kernels as they say.
    hbm_bytes: read and written in main memory.
    collectives: one for each kind and group size.
    loops: how often each loop runs; None where XLA does not know, and then its
      body has been counted once.
  """

  flops: int
  hbm_bytes: int
  collectives: tuple[Collective, ...]
  loops: tuple[int | None, ...]


Computation = Mapping[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Parses the text of a module.

  Args:
    text: what `compiled.as_text()` returns.

  Returns:
    Computations by name, each its instructions by name; and the entry's name.

  Raises:
    ValueError: there is no entry.
  """
  computations, entry, current = {}, None, None
  for line in re.sub(r'/\*.*?\*/', '', text).splitlines():
    if current is None:
      found = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line.rstrip())
      if found:
        current = computations[found[2]] = {}
        entry = found[2] if found[1] else entry
    elif line.startswith('}'):
      current = None
    else:
      instruction = _parse_instruction(line)
      if instruction is not None:
        current[instruction.name] = instruction
  if entry is None:
    raise ValueError(
      'No computation is the entry of this text, expected the text of an HLO '
      'module. Pass what `compiled.as_text()` returns.'
    )
  return computations, entry


def _parse_instruction(line: str) -> Instruction | None:
  found = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
  if not found:
    return None
  rest = line[found.end() :]
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode = re.match(r'[\w\-]+', rest)[0]
  rest = rest[len(opcode) :]
  end = _closing(rest)
  operands = re.findall(r'%([\w.\-]+)', rest[:end])
  if not operands:  # names without %, or the value of a constant
    operands = re.findall(r'([\w.\-]+)\s*(?:,|$)', rest[1:end])
  return Instruction(
    found[2],
    tuple(_parse_arrays(shape)),
    opcode,
    tuple(operands),
    rest[end + 1 :],
    bool(found[1]),
  )


def _closing(text: str) -> int:
  """Index of what closes the parenthesis that `text` begins with."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return i
  return len(text)


def _parse_arrays(shape: str) -> Iterator[Array]:
  for dtype, dims, layout in re.findall(
    r'([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?', shape
  ):
    dims = tuple(int(d.strip('<=')) for d in dims.split(',') if d)
    space = re.search(r'S\((\d+)\)', layout)
    # Spaces above 0 are the memories on the chip, flags and the host.
    yield Array(dtype, dims, space is None or space[1] == '0')


def analyze(text: str, num_devices: int = 1) -> Costs:
  """Counts what one device does.

  Args:
    text: what `compiled.as_text()` returns.
    num_devices: devices of the program, for collectives of all of them.

  Returns:
    The counts.
  """
  computations, entry = parse(text)
  runs, fused, loops = _count_runs(computations, entry)
  flops = hbm_bytes = 0
  collectives = {}
  for name, count in runs.items():
    computation = computations[name]
    for instruction in computation.values():
      flops += count * _flops(instruction, computation)
      if name not in fused:
        hbm_bytes += count * _hbm_bytes(instruction, computation, computations)
      found = _collective(instruction, computation, num_devices)
      if found is None:
        continue
      kind, size, num_bytes = found
      if name in fused and _scatters(name):
        kind = 'reduce-scatter'
      key = (kind, size)
      collectives[key] = collectives.get(key, 0) + count * num_bytes
  return Costs(
    flops,
    hbm_bytes,
    tuple(Collective(*k, b) for k, b in sorted(collectives.items())),
    tuple(loops),
  )


def _scatters(computation: str) -> bool:
  """Whether an all-reduce in this fusion is one of which a part is kept."""
  return computation.startswith(('all-reduce-scatter', 'reduce-scatter'))


def _count_runs(computations: Mapping[str, Computation], entry: str):
  """How often each computation runs, which are fused, and the loops."""
  runs, fused, loops = {}, set(), []

  def visit(name, count, is_fused):
    runs[name] = runs.get(name, 0) + count
    if is_fused:
      fused.add(name)
    for instruction in computations[name].values():
      opcode, attributes = instruction.opcode, instruction.attributes
      times = 1
      if opcode == 'while':
        times = _trip_count(attributes, computations)
        loops.append(times)
      for called in _called(opcode, attributes):
        if called in computations:
          visit(called, count * (times or 1), is_fused or opcode == 'fusion')

  visit(entry, 1, False)
  return runs, fused, loops


def _called(opcode: str, attributes: str) -> Sequence[str]:
  """Computations whose instructions run; not those of single elements."""
  keys = {
    'while': 'body|condition',
    'fusion': 'calls',
    'async-start': 'calls',
    'call': 'to_apply|called_computations',
    'conditional': 'true_computation|false_computation',
  }.get(opcode)
  if keys is None:
    return []
  names = re.findall(rf'\b(?:{keys})=\{{?%?([\w.\-]+)', attributes)
  branches = re.search(r'branch_computations=\{([^}]*)\}', attributes)
  if branches:
    names += re.findall(r'[\w.\-]+', branches[1])
  return names


def _trip_count(
  attributes: str, computations: Mapping[str, Computation]
) -> int | None:
  """How often a loop runs, by its annotation or by its condition."""
  found = re.search(r'"known_trip_count":\{"n":"?(\d+)', attributes)
  if found:
    return int(found[1])
  found = re.search(r'condition=%?([\w.\-]+)', attributes)
  condition = computations.get(found[1], {}) if found else {}
  root = next((i for i in condition.values() if i.is_root), None)
  # As JAX writes a scan: a counter from 0 on, less than a constant.
  if root is None or 'direction=LT' not in root.attributes:
    return None
  last = condition.get(root.operands[-1])
  is_number = last is not None and last.opcode == 'constant'
  return int(last.operands[0]) if is_number else None


def _flops(instruction: Instruction, computation: Computation) -> int:
  if instruction.opcode == 'custom-call':  # a kernel says what it does
    found = re.search(
      r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes
    )
    return int(found[1]) if found else 0
  if instruction.opcode not in ('dot', 'convolution'):
    return 0
  left, right = (computation[o].arrays[0] for o in instruction.operands[:2])
  (result,) = instruction.arrays
  if instruction.opcode == 'dot':
    dims = _numbers(r'lhs_contracting_dims=\{([\d,]*)\}', instruction)
    shared = math.prod(left.dims[d] for d in dims)
    return 2 * math.prod(result.dims) * shared
  return _convolution_flops(left, right, result, instruction.attributes)


def _numbers(pattern: str, instruction: Instruction) -> list[int]:
  found = re.search(pattern, instruction.attributes)
  return [int(n) for n in found[1].split(',') if n] if found else []


def _convolution_flops(
  image: Array, kernel: Array, result: Array, attributes: str
) -> int:
  """FLOPs without those on padding and holes, of which batches are made."""
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', attributes)
  of_image, of_kernel, of_result = (labels[i] for i in (1, 2, 3))
  flops = 2 * kernel.dims[of_kernel.index('i')]
  flops *= result.dims[of_result.index('b')] * result.dims[of_result.index('f')]
  window = re.search(r'window=\{([^}]*)\}', attributes)
  window = dict(
    pair.split('=') for pair in (window[1].split() if window else [])
  )
  for d, label in enumerate(sorted(set(of_result) - {'b', 'f'})):
    given = {key: value.split('x')[d] for key, value in window.items()}
    flops *= _valid_pairs(
      image.dims[of_image.index(label)],
      kernel.dims[of_kernel.index(label)],
      result.dims[of_result.index(label)],
      int(given.get('stride', 1)),
      int(given.get('pad', '0_0').split('_')[0]),
      int(given.get('lhs_dilate', 1)),
      int(given.get('rhs_dilate', 1)),
    )
  return flops


@functools.cache
def _valid_pairs(
  size: int,
  kernel: int,
  result: int,
  stride: int,
  pad: int,
  dilation: int,
  kernel_dilation: int,
) -> int:
  """Pairs of result and kernel positions that meet an element of the image."""
  places = np.arange(result)[:, None] * stride - pad
  places = places + np.arange(kernel) * kernel_dilation
  is_inside = (places >= 0) & (places <= (size - 1) * dilation)
  return int(np.count_nonzero(is_inside & (places % dilation == 0)))


def _hbm_bytes(
  instruction: Instruction,
  computation: Computation,
  computations: Mapping[str, Computation],
) -> int:
  opcode, arrays = instruction.opcode, instruction.arrays
  if opcode in _FREE or opcode.endswith('-done'):
    return 0
  if opcode == 'custom-call' and 'AllocateBuffer' in instruction.attributes:
    return 0  # nothing is written yet
  written = sum(array.hbm_bytes for array in arrays)
  operands = [
    computation[name].arrays
    for name in instruction.operands
    if name in computation
  ]
  if opcode == 'copy-start':  # the copy, what is copied, and a flag
    return arrays[0].hbm_bytes + arrays[1].hbm_bytes
  if opcode.endswith('slice-start'):  # what is cut, the slice, and a flag
    return arrays[1].num_bytes * arrays[0].is_in_hbm + arrays[1].hbm_bytes
  if opcode.endswith('-start'):  # its result repeats the operands
    written //= 2
  read = [sum(array.hbm_bytes for array in o) for o in operands]
  if opcode in _SLICES and read:
    read[0] = min(read[0], sum(array.num_bytes for array in arrays))
  if opcode == 'dynamic-update-slice':  # in place
    read[0], written = 0, read[1]
  if opcode == 'fusion':
    (called,) = _called(opcode, instruction.attributes)
    read, written = _fusion_bytes(computations[called], read, written)
  return sum(read) + written


def _fusion_bytes(
  fused: Computation, read: list[int], written: int
) -> tuple[list[int], int]:
  """Takes off what a fusion leaves alone of its operands and its result."""
  users = {}
  for instruction in fused.values():
    for place, name in enumerate(instruction.operands):
      users.setdefault(name, []).append((instruction, place))
  parameters = [i for i in fused.values() if i.opcode == 'parameter']
  for number, parameter in enumerate(parameters):
    of_it = users.get(parameter.name, [])
    if number >= len(read) or not of_it:
      continue
    if all(u.opcode in _SLICES and place == 0 for u, place in of_it):
      sliced = sum(a.num_bytes for u, _ in of_it for a in u.arrays)
      read[number] = min(read[number], sliced)
    elif all(
      u.opcode == 'dynamic-update-slice' and place == 0 for u, place in of_it
    ):
      read[number] = 0
  root = next((i for i in fused.values() if i.is_root), None)
  if root is not None and root.opcode == 'dynamic-update-slice':
    update = fused[root.operands[1]].arrays
    written = min(written, sum(array.num_bytes for array in update))
  return read, written


def _collective(
  instruction: Instruction, computation: Computation, num_devices: int
) -> tuple[str, int, int] | None:
  """Kind, group size and bytes of one run, or None for other opcodes."""
  kind = instruction.opcode.removesuffix('-start')
  if kind not in COLLECTIVES:
    return None
  size = _group_size(kind, instruction.attributes, num_devices)
  num_bytes = sum(
    array.num_bytes
    for name in instruction.operands
    if name in computation
    for array in computation[name].arrays
  )
  return kind, size, num_bytes * (size if kind == 'all-gather' else 1)


def _group_size(kind: str, attributes: str, num_devices: int) -> int:
  if kind == 'collective-permute':
    return 2
  # {{0,1},{2,3}}; [groups,size]<=[…]; mesh['a'=2,'b'=4] {'a'}; the same with
  # an order of the devices in between: device_ids=([4,4]T(1,0)).
  found = re.search(r'replica_groups=\{\{([\d,]+)\}', attributes)
  if found:
    return len(found[1].split(','))
  found = re.search(r'replica_groups=\[\d+,(\d+)\]', attributes)
  if found:
    return int(found[1])
  found = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))?\s*'
    r'\{([^}]*)\}',
    attributes,
  )
  if found:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    # 'a':(2)4 is the part of size 4 of axis a.
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part or sizes[name]) for name, part in axes)
  return num_devices
