"""How fast a codec encodes and decodes, for `benchmark.py`."""

import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import dac
from v2meow_jax.codecs import encodec
from v2meow_jax.codecs import soundstream

CODECS = {
  'dac': dac.Dac,
  'encodec': encodec.Encodec,
  'soundstream': soundstream.SoundStream,
}
_ROUNDS = 3


def load(name: str, path: str | os.PathLike | None = None) -> base.Codec:
  """Makes a codec.

  Args:
    name: one of `CODECS`.
    path: its safetensors file; random weights of full size without.

  Raises:
    UserError: the weights cannot be read or do not fit.
  """
  made = weights.load_params(path) if path else random_variables(name)
  return CODECS[name](made)


def random_variables(name: str) -> dict:
  """Random weights of a codec at full size."""
  rng = np.random.default_rng(0)

  def draw(path, spec):
    leaf = path[-1].key
    if 'bias' in leaf:
      return np.zeros(spec.shape, np.float32)
    values = rng.standard_normal(spec.shape, np.float32)
    # What passes a kernel keeps its size.
    inputs = np.prod(spec.shape[:-1]) if 'kernel' in leaf else 1
    return values / np.sqrt(inputs, dtype=np.float32)

  return jax.tree_util.tree_map_with_path(draw, _shapes(name))


def _shapes(name: str) -> dict:
  if name != 'soundstream':
    return {'dac': dac, 'encodec': encodec}[name].shapes()
  spec, config = streams.get(name), soundstream.Config()
  waveform = jax.ShapeDtypeStruct((1, spec.hop), jnp.float32)
  network = soundstream.Network(config)
  variables = jax.eval_shape(network.init, jax.random.key(0), waveform)
  books = (spec.num_levels, spec.num_codes, config.num_features)
  return {
    'params': variables['params'],
    'quantizer': {'codebooks': jax.ShapeDtypeStruct(books, jnp.float32)},
  }


def measure(
  name: str,
  seconds: float,
  batch: int = 1,
  path: str | os.PathLike | None = None,
) -> dict:
  """Encodes and decodes noise.

  Args:
    name: one of `CODECS`.
    seconds: of each clip.
    batch: clips at once.
    path: see `load`.

  Returns:
    What was measured, medians; seconds unless the name says otherwise. Real
    time factors are seconds of work for each second of sound.

  Raises:
    UserError: see `load`.
  """
  codec = load(name, path)
  rng = np.random.default_rng(0)
  shape = (batch, round(seconds * codec.sample_rate_hz))
  waveform = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
  line = {
    'codec': name,
    'weights': os.path.basename(path) if path else 'random',
    'seconds': seconds,
    'batch': batch,
    'parameters': sum(x.size for x in jax.tree.leaves(codec.variables)),
  }
  encode = lambda sound: np.asarray(codec.encode(sound))
  decode = lambda codes: np.asarray(codec.decode(codes))
  given = waveform
  for what, run in (('encode', encode), ('decode', decode)):
    # The first call compiles what serves every length.
    compiled, _ = _time(run, given[:, :1])
    rounds = [_time(run, given) for _ in range(_ROUNDS)]
    taken = statistics.median(seconds for seconds, _ in rounds)
    line[f'{what}_seconds'] = taken
    line[f'{what}_real_time_factor'] = taken / (seconds * batch)
    line[f'{what}_compile_seconds'] = compiled
    given = rounds[0][1]
  return line


def _time(run, given: np.ndarray) -> tuple[float, np.ndarray]:
  start = time.perf_counter()
  made = run(given)
  return time.perf_counter() - start, made
