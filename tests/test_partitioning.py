"""Where arrays lie on the devices of a mesh."""

from flax.linen import partitioning as flax_partitioning
import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from v2meow_jax import errors
from v2meow_jax import optimizers
from v2meow_jax import partitioning


def axes(*names):
  return flax_partitioning.AxisMetadata(names)


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


def abstract_mesh(data, model):
  """A mesh of more devices than there are."""
  devices = np.empty((data, model), object)
  return jax.sharding.AbstractMesh(
    (data, model),
    partitioning.AXES,
    (jax.sharding.AxisType.Auto,) * devices.ndim,
  )


PARAMS = {
  'token_embedder': {'embedding': shape(12, 8)},
  'layer': {'query': {'kernel': shape(8, 6)}, 'scale': shape(8)},
  'free': shape(3),
}
PARAMS_AXES = {
  'token_embedder': {'embedding_axes': axes('vocab', 'embed')},
  'layer': {
    'query': {'kernel_axes': axes('embed', 'joined_kv')},
    'scale_axes': axes('embed'),
  },
}


def specs(tree):
  return jax.tree.map(lambda sharding: sharding.spec, tree)


def test_parameters_follow_the_rules():
  shardings = partitioning.param_shardings(
    PARAMS, PARAMS_AXES, abstract_mesh(1, 2)
  )
  assert specs(shardings) == {
    'token_embedder': {'embedding': PartitionSpec('model', None)},
    'layer': {
      'query': {'kernel': PartitionSpec(None, 'model')},
      'scale': PartitionSpec(None),
    },
    'free': PartitionSpec(),
  }


def test_rules_are_a_parameter_and_the_first_wins():
  rules = (('embed', 'data'), ('vocab', 'data'), ('embed', 'model'))
  shardings = partitioning.param_shardings(
    PARAMS, PARAMS_AXES, abstract_mesh(2, 2), rules
  )
  found = specs(shardings)
  assert found['layer']['query']['kernel'] == PartitionSpec('data', None)
  # A mesh axis cuts one axis of an array.
  assert found['token_embedder']['embedding'] == PartitionSpec('data', None)


def test_axis_that_cannot_be_cut():
  with pytest.raises(errors.UserError) as error:
    partitioning.param_shardings(PARAMS, PARAMS_AXES, abstract_mesh(1, 4))
  assert str(error.value) == (
    'Parameter `layer/query/kernel`: axis `joined_kv` of size 6 is cut '
    'along `model`, expected a multiple of its 4 devices. Choose another '
    'train.mesh_shape.'
  )


@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_slots_of_the_optimizer_follow_their_parameter(name):
  optimizer = getattr(optimizers, name)(optimizers.constant(1e-3))
  mesh = abstract_mesh(1, 2)
  shardings = partitioning.param_shardings(PARAMS, PARAMS_AXES, mesh)
  slots = partitioning.optimizer_shardings(optimizer, PARAMS, shardings, mesh)
  state = jax.eval_shape(optimizer.init, PARAMS)
  assert jax.tree.structure(slots) == jax.tree.structure(state)
  leaves = zip(jax.tree.leaves(state), jax.tree.leaves(slots), strict=True)
  by_shape = {leaf.shape: slot.spec for leaf, slot in leaves}
  assert by_shape[(8, 6)] == PartitionSpec(None, 'model')
  assert by_shape[(12, 8)] == PartitionSpec('model', None)
  assert by_shape[()] == PartitionSpec()


def test_factored_slots_are_held_whole():
  params = {'kernel': shape(256, 128)}
  names = {'kernel_axes': axes('embed', 'mlp')}
  mesh = abstract_mesh(1, 2)
  shardings = partitioning.param_shardings(params, names, mesh)
  optimizer = optimizers.adafactor(optimizers.constant(1e-3))
  slots = partitioning.optimizer_shardings(optimizer, params, shardings, mesh)
  state = jax.eval_shape(optimizer.init, params)
  shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
  assert {(256,), (128,)} <= shapes  # rows and columns
  for leaf, slot in zip(
    jax.tree.leaves(state), jax.tree.leaves(slots), strict=True
  ):
    cut = leaf.shape == (256, 128)
    assert slot.spec == PartitionSpec(*((None, 'model') if cut else ()))


def test_mesh_of_one_device():
  mesh = partitioning.make_mesh()
  assert dict(mesh.shape) == {'data': jax.device_count(), 'model': 1}
  partitioning.check_batch_size(jax.device_count() * 3, mesh)
  with pytest.raises(errors.UserError) as error:
    partitioning.make_mesh((7, 5))
  assert str(error.value).startswith(
    'mesh_shape is (7, 5), expected two numbers whose product is '
    f'{jax.device_count()}, the number of devices.'
  )


def test_batch_that_cannot_be_cut():
  with pytest.raises(errors.UserError) as error:
    partitioning.check_batch_size(6, abstract_mesh(4, 1))
  assert str(error.value) == (
    "BATCH_SIZE is 6, expected a multiple of the 4 devices along 'data'. "
    'Set another BATCH_SIZE or train.mesh_shape.'
  )
