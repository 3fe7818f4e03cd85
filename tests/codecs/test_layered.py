"""The codec of two layers: what each gives, alone and together."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import contracts
from tests import toy
from v2meow_jax import errors
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import fit_quantizer
from v2meow_jax.codecs import layered
from v2meow_jax.codecs import losses
from v2meow_jax.codecs import models
from v2meow_jax.codecs import spectrogram
from v2meow_jax.toy import clips

SPEC = streams.get('layered')
SPLIT = streams.get('spectrogram').num_levels
TINY = layered.Config(
  width=48,
  expansion=1,
  encoder_blocks=1,
  decoder_blocks=1,
  num_features=16,
  kernel_size=3,
  below=toy.CODEC,
)
NETWORK = layered.Network(TINY)
SECONDS = 0.48


@pytest.fixture(scope='module')
def codec():
  """Both layers with random weights."""
  key = jax.random.key(0)
  waveform = jnp.zeros((1, 2 * SPEC.hop))
  params = NETWORK.init(key, waveform, mutable=['params'])['params']
  features = TINY.stack * TINY.num_features
  shape = (SPEC.num_levels - SPLIT, SPEC.num_codes, features)
  upper = {
    'params': params,
    'quantizer': {'codebooks': 0.3 * jax.random.normal(key, shape)},
  }
  return layered.LayeredCodec({**toy.codec_weights(), 'upper': upper}, TINY)


def test_codec_keeps_the_contract(codec):
  contracts.check_codec(codec)


def test_first_levels_are_those_of_the_codec_below(codec, rng):
  alone = spectrogram.SpectrogramCodec(toy.codec_weights(), toy.CODEC)
  waveform = rng.uniform(-0.5, 0.5, (2, 7 * SPEC.hop)).astype('f4')
  codes = np.asarray(codec.encode(waveform))
  np.testing.assert_array_equal(codes[..., :SPLIT], alone.encode(waveform))
  for levels in (1, SPLIT):
    np.testing.assert_array_equal(
      codec.decode(codes[..., :levels]), alone.decode(codes[..., :levels])
    )
  # From the next level on it is the upper layer that decodes.
  more = codec.decode(codes[..., : SPLIT + 1])
  assert not np.allclose(more, alone.decode(codes[..., :SPLIT]), atol=1e-3)


def test_decode_in_chunks_is_the_decoding_of_the_whole(codec, rng, monkeypatch):
  monkeypatch.setattr(base, 'CHUNK', 7)
  codes = rng.integers(0, SPEC.num_codes, (2, 23, SPEC.num_levels))
  whole = codec.network.apply(
    {'params': codec.variables['params']},
    codec.latents(codes),
    method='decode',
  )
  for cuts in ([], [7, 14], [1, 2, 13], [22]):
    pieces = codec.decode_chunks(np.split(codes, cuts, axis=1))
    together = np.concatenate([*pieces], axis=1)
    np.testing.assert_allclose(together, whole, atol=2e-5)


@pytest.mark.parametrize('layer', [0, 1])
def test_each_spectrum_sees_its_part_of_both_layers(codec, rng, layer):
  sizes = [TINY.below.num_features, TINY.num_features]
  below = TINY.stack * sizes[0]
  latents = rng.standard_normal((1, 6, below + TINY.stack * sizes[1]))
  unstack = functools.partial(codec.network.apply, {}, method='unstack')
  spectra = np.asarray(unstack(latents))
  assert spectra.shape == (1, 12, sum(sizes))
  # Time 4 is spectra 8 and 9, and each half of its latents is one of them.
  first = layer * below
  changed = latents.copy()
  changed[0, 4, first + sizes[layer] :][: sizes[layer]] += 1
  different = np.asarray(unstack(changed)) != spectra
  part = slice(layer * sizes[0], layer * sizes[0] + sizes[layer])
  expected = np.zeros_like(different)
  expected[0, 9, part] = True
  np.testing.assert_array_equal(different, expected)


def test_decoder_is_causal_in_both_layers(codec, rng):
  decode = lambda x: codec.network.apply(
    {'params': codec.variables['params']}, x, method='decode'
  )
  below = TINY.stack * TINY.below.num_features
  width = below + TINY.stack * TINY.num_features
  latents = jnp.asarray(rng.standard_normal((1, 10, width)), jnp.float32)
  gradient = jax.grad(lambda x: decode(x)[0, 5 * SPEC.hop])(latents)
  for part in (gradient[0, :, :below], gradient[0, :, below:]):
    reached = np.flatnonzero(np.abs(part).sum(1))
    assert reached.max() == 5
    assert reached.min() < 4


def music(seed, batch):
  """Excerpts of two seconds of toy music."""
  sound = clips.make_clip(0, 3, 4.0, 'numpy').waveform[16000:48000]
  rng = np.random.default_rng(seed)
  length = int(SECONDS * 16000)
  starts = rng.integers(0, len(sound) - length, batch)
  return {'waveform': np.stack([sound[s : s + length] for s in starts])}


def train(model, steps):
  """Returns the variables of a model after some steps."""
  batch = music(0, 8)
  shapes = {'waveform': batch['waveform'].shape}
  variables = dict(model.get_initial_variables(jax.random.key(0), shapes))
  params = variables.pop('params')
  optimizer = optax.adam(3e-3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, batch, key):
    args = [variables] if variables else []
    gradient, _ = jax.grad(model.loss_fn, has_aux=True)(
      params, batch, key, *args
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  for i in range(steps):
    params, state = step(params, state, music(i, 8), jax.random.key(i))
  return {'params': params, **variables}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """File of a layered codec whose upper layer went through its training."""
  folder = tmp_path_factory.mktemp('layered')
  below = spectrogram.SpectrogramCodec(toy.codec_weights(), toy.CODEC)
  make = functools.partial(
    models.CodecModel, NETWORK, 'layered', below=below, latent_noise=0.05
  )
  autoencoder = make('autoencoder')
  variables = train(autoencoder, 400)
  path = folder / 'autoencoder.safetensors'
  weights.save_params(path, autoencoder.export_variables(variables['params']))

  def batches(split, batch_size, seed):
    numbers = itertools.count(1000)
    iterator = lambda self, start: (music(i, batch_size) for i in numbers)
    return type('Music', (), {'iterator': iterator})()

  fitted = folder / 'fitted.safetensors'
  fit_quantizer.fit_quantizer(
    NETWORK, 'layered', batches, path, fitted, 32, 6000, 3, below=below
  )
  decoder = make('decoder', initial_weights=str(fitted))
  variables = train(decoder, 60)
  path = folder / 'codec.safetensors'
  exported = decoder.export_variables(
    variables['params'], {'quantizer': variables['quantizer']}
  )
  weights.save_params(path, exported)
  return path


def test_upper_layer_keeps_the_waveform(trained):
  codec = layered.LayeredCodec(weights.load_params(trained), TINY)
  waveform = music(99, 6)['waveform']
  codes = np.asarray(codec.encode(waveform))
  snr_db = lambda codes: float(
    losses.snr_db(waveform, codec.decode(codes)).mean()
  )
  whole = snr_db(codes)
  assert whole > 2  # measured 3.7, of the first level alone 3.0
  assert snr_db(codes[..., :SPLIT]) < 0
  assert whole > snr_db(codes[..., : SPLIT + 1]) + 0.2
  # The upper layer of another excerpt.
  other = np.roll(codes, 1, axis=0)
  swapped = np.concatenate([codes[..., :SPLIT], other[..., SPLIT:]], axis=-1)
  assert snr_db(swapped) < 0  # measured -2.2


def test_layer_below_stays_what_it_is(trained):
  given = weights.load_params(trained)
  upper = given.pop('upper')
  before = weights.flatten(toy.codec_weights())
  after = weights.flatten(given)
  assert after.keys() == before.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value)
  assert set(upper) == {'params', 'quantizer'}
  # Whoever knows the lower layer alone reads the same file.
  spectrogram.SpectrogramCodec(weights.load_params(trained), toy.CODEC)


def test_training_goes_on_from_a_whole_codec(trained):
  below = layered.read_below(str(trained), toy.CODEC)
  model = models.CodecModel(
    NETWORK, 'layered', 'decoder', below, initial_weights=str(trained)
  )
  shapes = {'waveform': (2, 10 * SPEC.hop)}
  variables = model.get_initial_variables(jax.random.key(0), shapes)
  upper = weights.load_params(trained)['upper']
  weights.check_params(upper['params'], variables['params'])
  np.testing.assert_array_equal(
    variables['quantizer']['codebooks'], upper['quantizer']['codebooks']
  )
  # And that of the lower layer from the same file.
  model = models.CodecModel(
    spectrogram.Network(toy.CODEC),
    'spectrogram',
    'decoder',
    initial_weights=str(trained),
  )
  variables = model.get_initial_variables(jax.random.key(0), shapes)
  weights.check_params(toy.codec_weights()['params'], variables['params'])


def test_training_needs_the_layer_below():
  with pytest.raises(errors.UserError) as error:
    layered.read_below(None, toy.CODEC)
  assert str(error.value) == (
    'No BELOW_WEIGHTS, expected the weights of a codec of '
    'codecs/spectrogram.gin, on which the upper layer is trained. Set '
    '--gin.BELOW_WEIGHTS.'
  )
