"""Embedders of one window at a time: many windows, few sizes."""

import numpy as np
import pytest

from tests import contracts
from v2meow_jax import streams
from v2meow_jax.embedders import windowed


@pytest.fixture
def make(monkeypatch):
  spec = streams.StreamSpec(
    'tiny', rate_hz=None, num_features=4, sample_rate_hz=100
  )
  monkeypatch.setitem(streams.STREAMS, 'tiny', spec)
  weight = np.arange(1, 5, dtype=np.float32)
  sizes = []

  def network(weight, windows):
    sizes.append(len(windows))  # when it is compiled
    return windows.mean(axis=1, keepdims=True) * weight

  def make(hop):
    embedder = windowed.Windowed('tiny', network, weight, 50, hop)
    embedder.sizes = sizes
    return embedder

  return make


def test_contract(make):
  contracts.check_hearing(make(0.25))


def test_any_number_of_windows(make, rng):
  embedder = make(0.5)
  for count in (1, 2, 3, 5, 16, 17, 40, 4):
    waveform = rng.uniform(-0.5, 0.5, (1, 50 * count)).astype(np.float32)
    found = embedder.embed_windows(waveform)
    means = waveform.reshape(count, 50).mean(1)
    expected = means[:, None] * np.arange(1, 5)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
  assert embedder.sizes == [1, 2, 4, 8, 16]


def test_hops_that_leave_sound_out(make):
  for hop in (0.0, -1.0, 0.51, float('nan')):
    with pytest.raises(
      ValueError, match='Embedder `tiny`: hop_seconds is .*, e'
    ):
      make(hop)
