"""Weights such as others publish, made of golden files."""

import json
import warnings

import numpy as np
import pytest

from tests.golden import conformers

# What a test compares with: the file, or other weights through the package.
GOLDEN_AND_LIVE = [
  pytest.param(False, id='golden'),
  pytest.param(True, id='live', marks=pytest.mark.pretrained),
]


def read(name, seed=0):
  """A golden file and the random weights it is of."""
  golden = conformers.read(name)
  shapes = json.loads(str(golden['shapes']))
  return golden, conformers.make_arrays(shapes, seed)


def compute(name, seed):
  """What the published network computes; skips where it cannot be made."""
  for package in ('torch', 'transformers', 'librosa'):
    with warnings.catch_warnings():  # of theirs, not ours
      warnings.simplefilter('ignore')
      pytest.importorskip(package, reason=f'missing: package {package}')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return conformers.compute(name, seed)


def error(found, expected):
  """Largest difference, relative to the largest value."""
  found = np.asarray(found, np.float64)
  assert found.shape == expected.shape
  return np.abs(found - expected).max() / np.abs(expected).max()


def add_fit(tokenizer, waveform, seed=0):
  """Weights of a tokenizer whose centres are noise around its features."""
  mean, scale = tokenizer.standardise(tokenizer.features(waveform))
  rng = np.random.default_rng(seed)
  shape = (tokenizer.spec.num_codes, tokenizer.num_features)
  centres = rng.standard_normal(shape).astype('f4')
  return {**tokenizer.params, 'mean': mean, 'scale': scale, 'centres': centres}
