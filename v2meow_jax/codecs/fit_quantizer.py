"""Fits a codec's codebooks to its trained autoencoder, by k-means.

The step between the phases 'autoencoder' and 'joint' (`models.py`):

  python -m v2meow_jax.codecs.fit_quantizer --gin_file=codecs/spectral.gin \
      --gin_file=codecs/fit_quantizer.gin --gin.MANIFESTS='["audio.csv"]' \
      --gin.CODEC_WEIGHTS='"autoencoder.safetensors"' \
      --gin.OUTPUT='"codec.safetensors"'
"""

from collections.abc import Callable, Sequence
import sys
from typing import Any

from absl import logging
import gin
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import configs
from v2meow_jax import streams
from v2meow_jax import train
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import rvq


def fit_quantizer(
  module,
  stream: str,
  batches: Callable[..., Any],
  weights_path: str,
  output_path: str,
  batch_size: int = 32,
  num_vectors: int = 100_000,
  iterations: int = 20,
  seed: int = 0,
  below: base.Codec | None = None,
) -> None:
  """Adds codebooks, fitted to a trained autoencoder's latents, to its weights.

  K-means per level on what the levels before left over, no gradient.

  Args:
    module: the network.
    stream: name of the codec's row in streams.py.
    batches: `batches(split=, batch_size=, seed=)` as for training; its split
      'train' is used.
    weights_path: safetensors file of the autoencoder.
    output_path: safetensors file to write.
    batch_size: crops per batch.
    num_vectors: latents to fit on.
    iterations: of k-means per level.
    seed: of the crops and of the k-means.
    below: codec of the first levels (`layered.py`), which need no codebooks.

  Raises:
    errors.UserError: weights or audio cannot be read.
  """
  spec = streams.get(stream)
  params = weights.load_params(weights_path)['params']
  encode = jax.jit(
    lambda params, waveform: module.apply(
      {'params': params}, waveform, method='encode'
    )
  )
  crops = batches(split='train', batch_size=batch_size, seed=seed).iterator(0)
  vectors, number = [], 0
  while number < num_vectors:
    latents = np.asarray(encode(params, next(crops)['waveform']))
    vectors.append(latents.reshape(-1, latents.shape[-1]))
    number += len(vectors[-1])
    logging.log_every_n_seconds(
      logging.INFO, '%d of %d latents', 30, number, num_vectors
    )
  codebooks = rvq.fit(
    jax.random.PRNGKey(seed),
    jnp.asarray(np.concatenate(vectors)[:num_vectors]),
    spec.num_levels - (below.spec.num_levels if below else 0),
    spec.num_codes,
    iterations,
  )
  weights.save_params(
    output_path, {'params': params, 'quantizer': {'codebooks': codebooks}}
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Fits as the command line says; returns the exit status."""
  arguments = train.parse_arguments(sys.argv[1:] if argv is None else argv)
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  try:
    configs.parse(
      arguments.gin_file,
      arguments.gin_bindings,
      [p for p in arguments.gin_search_paths.split(',') if p],
      root='fit_quantizer.fit_quantizer',
    )
    gin.get_configurable(fit_quantizer)()
  except Exception as e:  # pylint: disable=broad-except
    message = configs.one_line(e)
    if message is None:
      raise
    print(f'error: {message}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  # gin knows this module by its own name, not as `__main__`.
  from v2meow_jax.codecs import fit_quantizer as fit_module

  sys.exit(fit_module.main())
