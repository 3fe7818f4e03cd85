"""Markers, shared data and seeded generators for all tests."""

import os
import pathlib

# Before anything imports JAX or TensorFlow.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def rng():
  """A seeded NumPy generator."""
  return np.random.default_rng(0)


@pytest.fixture(scope='session')
def shared_data():
  """Folder of real media beside the checkout; skips where it is missing."""
  path = ROOT.parent / 'shared' / 'data'
  if not path.is_dir():
    pytest.skip('missing: reference media in ../shared/data')
  return path
