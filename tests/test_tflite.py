"""Constants of TFLite models against those that TensorFlow reads."""

import contextlib
import re

import numpy as np
import pytest

from tests import conftest
from v2meow_jax import errors
from v2meow_jax import tflite
from v2meow_jax import weight_files

GOLDEN = conftest.ROOT / 'tests' / 'golden'


def test_constants_are_those_of_tensorflow():
  found = weight_files.read(GOLDEN / 'quantized.tflite')
  with np.load(GOLDEN / 'quantized.npz') as expected:
    assert found.keys() == set(expected.files)
    for name in expected.files:
      assert found[name].shape == expected[name].shape
      # Measured: 1.2e-7, the rounding to float32.
      np.testing.assert_allclose(found[name], expected[name], atol=5e-7)
  # One scale for each channel, which stand first or last.
  assert found['Conv2D'].shape == (4, 3, 3, 1)
  assert found['depthwise'].shape == (1, 3, 3, 4)


def test_what_is_no_model(tmp_path):
  whole = (GOLDEN / 'quantized.tflite').read_bytes()
  path = tmp_path / 'a.tflite'
  for size in (0, 6, 8, 100, len(whole) // 2, len(whole) - 40):
    path.write_bytes(whole[:size])
    with pytest.raises(
      errors.UserError,
      match=re.escape(f'{path}: cannot be read (')
      + '.*, expected a TFLite model. Fetch the file again',
    ):
      weight_files.read(path)
  rng = np.random.default_rng(0)
  for _ in range(100):  # damaged anywhere: an error or arrays, never a crash
    damaged = bytearray(whole)
    damaged[rng.integers(8, len(whole))] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    with contextlib.suppress(ValueError):
      assert isinstance(tflite.read(path), dict)
