"""Kernels of Triton as they are lowered, one operation at a time in NumPy.

What Pallas interprets is the kernel before it is lowered, and it forgives what
a program reads or writes behind the end of an array. Here both are errors, and
so is an element of an output that is not written exactly once.
"""

import itertools

from jax.experimental import pallas  # noqa: F401  registers what jaxlib parses
from jaxlib.mlir import ir
from jaxlib.triton import dialect
import ml_dtypes
import numpy as np

DTYPES = {
  'f32': np.float32,
  'bf16': ml_dtypes.bfloat16,
  'i1': np.bool_,
  'i32': np.int32,
  'i64': np.int64,
}
COMPARISONS = {0: np.equal, 1: np.not_equal, 2: np.less, 3: np.less_equal}
# Operations that NumPy has.
FUNCTIONS = {
  'arith.addf': np.add,
  'arith.addi': np.add,
  'arith.andi': np.logical_and,
  'arith.divf': np.divide,
  'arith.divui': np.floor_divide,
  'arith.maxnumf': np.fmax,
  'arith.mulf': np.multiply,
  'arith.muli': np.multiply,
  'arith.remui': np.remainder,
  'arith.subf': np.subtract,
  'arith.subi': np.subtract,
  'tt.extern_elementwise __nv_exp2f': np.exp2,
}


def run(lowered, arrays, outputs):
  """Runs the one kernel of a function that was lowered for `cuda`.

  Args:
    lowered: `jax.stages.Lowered`, of nothing but a kernel.
    arrays: what it is given.
    outputs: shapes and dtypes of what it returns.

  Returns:
    Arrays.
  """
  (config,) = (
    op.attributes['mhlo.backend_config']
    for op in _operations(lowered.compiler_ir('stablehlo').operation)
    if op.name == 'stablehlo.custom_call'
  )
  grid = [ir.IntegerAttr(config[f'grid_{axis}']).value for axis in 'xyz']
  arrays = [np.array(x) for x in arrays]
  results = [np.zeros(x.shape, x.dtype) for x in outputs]
  with ir.Context() as context:
    dialect.register_dialect(context)
    context.load_all_available_dialects()
    module = ir.Module.parse(config['ir'].value_bytes)
    (function,) = module.body.operations
    memory = _Memory([*arrays, *results])
    for place in itertools.product(*map(range, grid)):
      _Program(memory, place).run(function.regions[0].blocks[0])
  for count in memory.writes[: len(arrays)]:
    assert not count.any(), 'a program writes to what it is given'
  for count in memory.writes[len(arrays) :]:
    assert (count == 1).all(), 'an element is not written exactly once'
  return results


def _operations(operation):
  for region in operation.regions:
    for block in region.blocks:
      for op in block.operations:
        yield op.operation
        yield from _operations(op.operation)


class _Memory:
  """Arrays and how often their elements were written."""

  def __init__(self, arrays):
    self.arrays = [x.reshape(-1) for x in arrays]
    self.writes = [np.zeros(x.size, int) for x in arrays]

  def read(self, pointers, mask=True, other=0):
    number, offsets = pointers
    mask = np.broadcast_to(mask, np.shape(offsets))
    array = self.arrays[number]
    self._check(array, np.asarray(offsets)[mask])
    values = array[np.where(mask, offsets, 0)]
    return np.where(mask, values, np.asarray(other, array.dtype))

  def write(self, pointers, values, mask=True):
    number, offsets = pointers
    mask = np.broadcast_to(mask, np.shape(offsets))
    offsets = offsets[mask]
    self._check(self.arrays[number], offsets)
    np.add.at(self.writes[number], offsets, 1)
    self.arrays[number][offsets] = values[mask]

  def _check(self, array, offsets):
    inside = (0 <= offsets) & (offsets < array.size)
    assert inside.all(), 'a program leaves an array'


class _Program:
  """One program of the grid. Pointers are an array's number and offsets."""

  def __init__(self, memory, place):
    self._memory = memory
    self._place = place
    self._values = {}

  def run(self, block, arguments=None):
    """Returns what the block yields."""
    if arguments is None:
      arguments = [(n, np.int64(0)) for n in range(len(block.arguments))]
    self._values.update(zip(block.arguments, arguments))
    for op in block.operations:
      op = op.operation
      operands = [self._values[x] for x in op.operands]
      if op.name in ('tt.return', 'scf.yield'):
        return operands
      results = self._compute(op, operands)
      if len(op.results) == 1 and op.name != 'scf.for':
        results = [results]
      self._values.update(zip(op.results, results or []))

  def _compute(self, op, operands):
    name = op.name
    if name == 'tt.extern_elementwise':
      name += ' ' + op.attributes['symbol'].value
    if name in FUNCTIONS:
      return FUNCTIONS[name](*operands)
    return getattr(self, '_' + name.replace('.', '_'))(op, *operands)

  def _arith_constant(self, op):
    dtype, shape = _type(op)
    value = op.attributes['value']
    if shape is not None:
      value = value.get_splat_value()
    return np.full(shape or (), value.value, dtype)[()]

  def _arith_cmpi(self, op, a, b):
    return COMPARISONS[op.attributes['predicate'].value](a, b)

  def _arith_truncf(self, op, x):
    return x.astype(_type(op)[0])

  _arith_extf = _arith_truncf

  def _scf_for(self, op, start, end, step, *carry):
    for index in range(start, end, step):
      carry = self.run(op.regions[0].blocks[0], [np.int32(index), *carry])
    return carry

  def _tt_get_program_id(self, op):
    return np.int32(self._place[op.attributes['axis'].value])

  def _tt_make_range(self, op):
    ends = (op.attributes[name].value for name in ('start', 'end'))
    return np.arange(*ends, dtype=np.int32)

  def _tt_broadcast(self, op, x):
    _, shape = _type(op)
    if isinstance(x, tuple):
      return x[0], np.broadcast_to(x[1], shape)
    return np.broadcast_to(x, shape)

  _tt_splat = _tt_broadcast

  def _tt_expand_dims(self, op, x):
    return np.expand_dims(x, op.attributes['axis'].value)

  def _tt_addptr(self, op, pointers, offsets):
    return pointers[0], pointers[1] + offsets

  def _tt_load(self, op, *operands):
    return self._memory.read(*operands)

  def _tt_store(self, op, *operands):
    self._memory.write(*operands)

  def _tt_trans(self, op, x):
    return x.transpose(list(op.attributes['order']))

  def _tt_dot(self, op, a, b, c):
    return a.astype(np.float32) @ b.astype(np.float32) + c

  def _tt_reduce(self, op, x):
    combine = op.regions[0].blocks[0].operations[0].operation.name
    return FUNCTIONS[combine].reduce(x, axis=op.attributes['axis'].value)


def _type(op):
  """Dtype, None for pointers, and shape, None for a scalar."""
  found = op.results[0].type
  shape = None
  if isinstance(found, ir.RankedTensorType):
    found, shape = found.element_type, found.shape
  return DTYPES.get(str(found)), shape
