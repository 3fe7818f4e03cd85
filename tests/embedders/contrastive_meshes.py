"""Loss and gradient of the smallest MuLan on 1 and on 8 devices, as JSON.

XLA_FLAGS=… python -m tests.embedders.contrastive_meshes FOLDER
"""

import json
import pathlib
import sys

import jax
import numpy as np

from tests.embedders import mulan_examples
from v2meow_jax import partitioning
from v2meow_jax.embedders import contrastive

BATCH_SIZE = 16


def make_batch() -> dict[str, np.ndarray]:
  """Tones and texts, two of which are equal and lie on different devices."""
  rng = np.random.default_rng(0)
  config = mulan_examples.make_config()
  # A tone each, up to 4 kHz.
  phase = np.outer(np.arange(BATCH_SIZE), np.arange(config.num_samples))
  waveform = 0.3 * np.sin(phase * np.pi / 32)
  waveform += 0.01 * rng.standard_normal(waveform.shape)
  tokens = np.zeros((BATCH_SIZE, 1, 8), np.int32)
  tokens[..., 0] = 2
  tokens[..., 1:4] = rng.integers(4, 10, (BATCH_SIZE, 1, 3))
  tokens[..., 4] = 3
  tokens[-1] = tokens[0]
  return {'waveform': waveform.astype(np.float32), 'tokens': tokens}


def main(folder: str) -> None:
  vocabulary = mulan_examples.write_vocabulary(
    pathlib.Path(folder) / 'vocabulary.txt'
  )
  config = mulan_examples.make_config(resnet_blocks=(1,))
  model = contrastive.ContrastiveModel(vocabulary, config)
  towers = mulan_examples.make_weights(resnet_blocks=(1,))['params']
  params = {'towers': towers, 'log_temperature': np.float32(-1)}
  batch = make_batch()
  results = []
  for devices in (jax.devices()[:1], jax.devices()):
    mesh = jax.sharding.Mesh(
      np.array(devices).reshape(-1, 1, 1), ('data', 'fsdp', 'model')
    )
    on_devices = jax.device_put(batch, partitioning.batch_sharding(mesh))
    everywhere = jax.device_put(params, partitioning.replicated(mesh))
    step = jax.jit(jax.value_and_grad(model.eval_fn, has_aux=True))
    (_, metrics), gradient = jax.device_get(step(everywhere, on_devices))
    metrics = {name: float(m.compute()) for name, m in metrics.items()}
    results.append((metrics, jax.tree.leaves(gradient)))
  (one, expected), (eight, found) = results
  scale = max(float(abs(leaf).max()) for leaf in expected)
  error = max(float(abs(a - b).max()) for a, b in zip(expected, found))
  print(
    json.dumps(
      {
        'devices': len(jax.devices()),
        'one': one,
        'eight': eight,
        'gradient': scale,
        'error': error,
      }
    )
  )


if __name__ == '__main__':
  main(sys.argv[1])
