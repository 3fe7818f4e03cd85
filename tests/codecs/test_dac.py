"""DAC: its activations, quantiser, delays and export."""

import jax
import numpy as np
import pytest

from tests.golden import codecs as golden
from v2meow_jax import exporting
from v2meow_jax import pretrained
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import dac


@pytest.fixture(scope='module')
def codec(tmp_path_factory):
  config, shapes, _ = golden.read('dac')
  config['hop_length'] = 512  # as older files say; the ratios say 320
  folder = golden.write_folder(
    tmp_path_factory.mktemp('dac'), config, golden.make_arrays(shapes)
  )
  return dac.Dac(pretrained.load('dac_16khz', folder))


def test_defaults_are_those_of_the_published_weights():
  config, spec = dac.Config(), streams.get('dac')
  assert np.prod(config.strides) == spec.hop == 320
  assert config.num_features == 1024
  network = dac.Network(config)
  expected = pretrained.get_checkpoint('dac_16khz').expected({})
  number = lambda tree: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
  # Of transformers' model, whose upsampling has one bias for all its phases.
  phases = sum(1536 // 2**i * (s - 1) for i, s in enumerate([8, 5, 4, 2], 1))
  assert number(expected['params']) == 73_834_401 + phases
  assert network.encode_delay == 8 and network.delay == 3141


@pytest.mark.parametrize('limit', [1e-3, 1, 30, 1e3, 1e5])
def test_sine_squared(limit, rng):
  x = rng.uniform(-limit, limit, 10_000).astype('f4')
  expected = np.sin(x.astype('f8')) ** 2
  found = jax.jit(dac.sine_squared)(x)
  # Measured: 1.2e-7, one rounding of a number below 1.
  np.testing.assert_allclose(found, expected, atol=4e-7)
  small = np.abs(x) < 0.1
  np.testing.assert_allclose(found[small], expected[small], rtol=1e-6)


def test_sine_squared_has_its_derivative(rng):
  x = rng.uniform(-9, 9, 1000).astype('f4')
  np.testing.assert_allclose(
    jax.grad(lambda x: dac.sine_squared(x).sum())(x),
    np.sin(2 * x.astype('f8')),
    atol=2e-6,
  )


def test_quantiser_is_that_of_numpy(codec, rng):
  """One vector and one level at a time, in float64."""
  quantizer = {
    k: np.asarray(v) for k, v in codec.variables['quantizer'].items()
  }
  latents = rng.standard_normal((2, 5, 8)).astype('f4')
  codes = np.zeros((2, 5, 12), int)
  total = np.zeros((2, 5, 8))
  for place in np.ndindex(2, 5):
    rest = latents[place].astype('f8')
    for level in range(12):
      entries = quantizer['codebooks'][level].astype('f8')
      projected = rest @ quantizer['in_kernel'][level]
      projected += quantizer['in_bias'][level]
      unit = projected / np.linalg.norm(projected)
      units = [entry / np.linalg.norm(entry) for entry in entries]
      code = np.argmin([np.sum((unit - other) ** 2) for other in units])
      codes[(*place, level)] = code
      made = entries[code] @ quantizer['out_kernel'][level]
      made += quantizer['out_bias'][level]
      rest, total[place] = rest - made, total[place] + made
  np.testing.assert_array_equal(dac.quantize(quantizer, latents), codes)
  np.testing.assert_allclose(dac.dequantize(quantizer, codes), total, atol=1e-5)


def test_levels_behind_the_first_are_not_needed(codec, rng):
  codes = rng.integers(0, 1024, (1, 2, 12))
  quantizer = codec.variables['quantizer']
  few = dac.dequantize(quantizer, codes[..., :3])
  cut = {name: array[:3] for name, array in quantizer.items()}
  np.testing.assert_array_equal(few, dac.dequantize(cut, codes[..., :3]))
  assert not np.allclose(few, codec.latents(codes))


def test_exported_decoder_makes_the_same_sound(codec, rng, monkeypatch):
  """As another runtime calls it: chunks, a state of zeros, a delay."""
  monkeypatch.setattr(base, 'CHUNK', 12)
  program = exporting.codec_program(codec, 12, 1)
  exported = program.export(['cpu'])
  arguments = program.describe()['arguments']
  state = {
    a['name']: np.zeros(a['shape'], a['dtype'])
    for a in arguments
    if a['name'].startswith('state')
  }
  assert state['state/decoder_clock/length'].shape == ()
  flat = weights.flatten({'params': codec.variables})
  codes = rng.integers(0, 1024, (1, 15, 12)).astype('i4')
  padded, pieces = np.pad(codes, ((0, 0), (0, 33), (0, 0))), []
  for first in range(0, 48, 12):
    given = {
      **flat,
      **state,
      'codes': padded[:, first : first + 12],
      'num_valid': np.int32(np.clip(15 - first, 0, 12)),
    }
    results = exported.call(*(given[a['name']] for a in arguments))
    named = dict(
      zip((r['name'] for r in program.describe()['results']), results)
    )
    state = {name: named[name] for name in state}
    pieces.append(named['waveform'])
  delay = codec.network.delay
  sound = np.concatenate(pieces, axis=1)[:, delay : delay + 15 * 320]
  np.testing.assert_allclose(sound, codec.decode(codes), atol=1e-6)
