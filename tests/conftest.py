"""Markers, shared data and seeded generators for all tests."""

import os
import pathlib
import signal

# Before anything imports JAX or TensorFlow.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')

import numpy as np
import pytest

# A shell's background jobs ignore Ctrl-C, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(scope='session')
def code_folder(tmp_path_factory):
  """Folder of compiled code, so that processes of one run compile once."""
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent  # of all workers
  folder = folder / 'code'
  os.environ['V2MEOW_CACHE'] = str(folder)
  yield folder
  del os.environ['V2MEOW_CACHE']


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory, code_folder):
  """Folder of a system of random weights that takes text."""
  from tests import toy  # imports JAX

  return toy.make_bundle(tmp_path_factory.mktemp('models') / 'tiny', 'caption')
