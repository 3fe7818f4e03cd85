"""Our quantiser with real weights: Lyra's, a SoundStream for speech.

Its 46 codebooks of 16 entries lie in a TensorFlow Lite file, with features and
codes that it gave for three seconds of music.
"""

import re
import warnings

import numpy as np
import pytest

from v2meow_jax.codecs import rvq

LEVELS = 46


@pytest.fixture(scope='module')
def recorded(shared_data):
  with np.load(shared_data / 'weights' / 'golden_lyra_io.npz') as npz:
    return dict(npz)


@pytest.fixture(scope='module')
def codebooks(shared_data):
  """float32 `[46, 16, 64]`: constants named `transpose`, `transpose_1` …"""
  path = str(shared_data / 'weights' / 'lyra_quantizer.tflite')
  try:
    from ai_edge_litert.interpreter import Interpreter
  except ImportError:
    tf = pytest.importorskip('tensorflow')
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # that it is to be found elsewhere
      interpreter = tf.lite.Interpreter(path)
  else:
    interpreter = Interpreter(path)
  found = {}
  for tensor in interpreter.get_tensor_details():
    match = re.fullmatch(r'transpose(?:_(\d+))?', tensor['name'])
    if match and tuple(tensor['shape']) == (16, 64):
      found[int(match[1] or 0)] = interpreter.get_tensor(tensor['index'])
  assert sorted(found) == list(range(LEVELS))
  return np.stack([found[level] for level in range(LEVELS)])


def test_codes_are_the_recorded_ones(recorded, codebooks):
  codes = np.asarray(rvq.encode(recorded['features'], codebooks))
  share = np.mean(codes == recorded['codes'])
  assert share == 1.0


def test_sums_are_the_recorded_ones(recorded, codebooks):
  codes = recorded['codes'].astype(np.int32)
  np.testing.assert_allclose(
    rvq.decode(codes, codebooks), recorded['dequantised'], atol=1e-6
  )
  # Of the first levels alone the sum is farther from the features.
  errors = [
    np.linalg.norm(
      rvq.decode(codes[:, :levels], codebooks) - recorded['features']
    )
    for levels in (1, 4, 16, LEVELS)
  ]
  assert errors == sorted(errors, reverse=True)
