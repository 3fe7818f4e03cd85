"""Small things with known answers: videos, and a system of random weights."""

import pathlib

import av
import jax
import numpy as np

from v2meow_jax import bundles
from v2meow_jax.codecs import spectrogram

# A whole system in seconds: tiny networks, windows of 2 s and 1 s.
_GIN_FILES = (
  'sizes/tiny.gin',
  'visual/scene.gin',
  'codecs/spectrogram.gin',
  'tokenizers/spectral.gin',
)
_SHORT = """
from __gin__ import dynamic_registration
from v2meow_jax import stages
from v2meow_jax.codecs import spectrogram

semantic/stages.make.seconds = 2.0
coarse/stages.make.seconds = 2.0
fine/stages.make.seconds = 1.0
spectrogram.Config:
  width = 16
  encoder_blocks = 1
  decoder_blocks = 1
  num_features = 8
"""
CODEC = spectrogram.Config(
  width=16, encoder_blocks=1, decoder_blocks=1, num_features=8
)

# Systems without a stage: bindings behind `gin_files`.
NO_SEMANTIC = [
  'bundles.Recipe.semantic = None',
  'coarse/stages.make.semantic = None',
  'coarse/stages.make.visual = %VISUAL',
]
NO_FINE = [
  'bundles.Recipe.fine = None',
  'coarse/stages.make.coarse_levels = None',
]


def _fill(shapes, rng: np.random.Generator, scale: float):
  """Random arrays in the place of shapes; no compilation."""
  return jax.tree.map(
    lambda x: (scale * rng.standard_normal(x.shape)).astype(np.float32), shapes
  )


def codec_weights(seed: int = 0) -> dict:
  """Random weights of the tiny codec."""
  rng = np.random.default_rng(seed)
  network = spectrogram.Network(CODEC)
  waveform = jax.ShapeDtypeStruct((1, 640), np.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), waveform)
  return {
    'params': _fill(shapes['params'], rng, 0.3),
    'quantizer': {
      'codebooks': rng.standard_normal(
        (8, 512, CODEC.stack * CODEC.num_features)
      ).astype(np.float32)
    },
  }


def gin_files(folder: pathlib.Path, style: str = 'none') -> list[str]:
  """The gin files of the tiny system; writes one of them into `folder`."""
  path = folder / f'short_{style}.gin'
  path.write_text(_SHORT)
  return [*_GIN_FILES, f'style/{style}.gin', 'generate.gin', str(path)]


def parts(recipe: bundles.Recipe, seed: int = 0) -> dict:
  """Random weights of all parts of the tiny system."""
  rng = np.random.default_rng(seed)
  made = {'codec': codec_weights(seed)}
  if recipe.semantic:
    draw = np.random.default_rng([seed, 1]).standard_normal
    points = [draw((n, 36)) for n in (1, 1, 512)]
    made['tokenizer'] = {
      name: x.squeeze().astype(np.float32)
      for name, x in zip(('mean', 'scale', 'centres'), points)
    }
  for model in recipe.models:
    shapes = jax.eval_shape(
      lambda key, model=model: model.get_initial_variables(
        key, model.feature_shapes(1)
      )['params'],
      jax.random.key(0),
    )
    made[model.stage.name] = _fill(shapes, rng, 0.5)
  return made


def make_bundle(
  folder: pathlib.Path, style: str = 'none', seed: int = 0, **options
) -> pathlib.Path:
  """Writes a bundle of the tiny system to `folder`."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  files = gin_files(folder.parent, style)
  with bundles.read_recipe(files) as recipe:
    params = parts(recipe, seed)
  return bundles.save(folder, files, params, **options)


def make_video(
  path: pathlib.Path,
  seconds: float = 3.0,
  rate: int = 10,
  size: tuple[int, int] = (48, 64),
  codec: str = 'mpeg4',
  seed: int = 0,
) -> pathlib.Path:
  """Writes a video of moving colours without sound."""
  rng = np.random.default_rng(seed)
  base = rng.integers(0, 255, (*size, 3), np.uint8)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    for i in range(round(seconds * rate)):
      picture = np.roll(base, 3 * i, axis=1)
      frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path
