"""Training of codecs: phases, codebooks, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from v2meow_jax import errors
from v2meow_jax import partitioning
from v2meow_jax import streams
from v2meow_jax import trainer
from v2meow_jax import weights
from v2meow_jax.codecs import fit_quantizer
from v2meow_jax.codecs import losses
from v2meow_jax.codecs import models
from v2meow_jax.codecs import rvq
from v2meow_jax.codecs import spectra
from v2meow_jax.codecs import spectral

SPEC = streams.get('spectral')
TINY = spectra.Config(
  width=48,
  expansion=1,
  encoder_blocks=1,
  decoder_blocks=1,
  num_features=16,
  kernel_size=3,
)
NETWORK = spectral.Network(TINY)
SECONDS = 0.48


def sounds(rng, batch=8):
  """Tones of six pitches; pitch and loudness change every 0.08 s."""
  steps = 6
  length = int(SECONDS * 16000) // steps
  seconds = np.arange(steps * length) / 16000
  hertz = np.array([220, 440, 700, 1200, 2000, 3300])
  hertz = hertz[rng.integers(0, len(hertz), (batch, steps))]
  loudness = 10 ** rng.uniform(-2, -0.7, (batch, steps))
  hertz, loudness = (np.repeat(x, length, axis=1) for x in (hertz, loudness))
  phase = rng.uniform(0, 2 * np.pi, (batch, 1))
  wave = loudness * np.sin(2 * np.pi * hertz * seconds + phase)
  noise = 1e-3 * rng.standard_normal(wave.shape)  # no digital silence
  return {'waveform': (wave + noise).astype('f4')}


def initial_variables(model, batch, seed=0):
  """The model's variables for batches such as `batch`."""
  shapes = {'waveform': batch['waveform'].shape}
  make = lambda: model.get_initial_variables(jax.random.PRNGKey(seed), shapes)
  return dict(jax.jit(make)())


def train(model, steps, seed=0, rate=3e-3):
  """Returns the variables after some steps, and the losses."""
  rng = np.random.default_rng(seed)
  batch = sounds(rng)
  variables = initial_variables(model, batch, seed)
  params = variables.pop('params')
  optimizer = optax.adam(rate)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, mutables, batch, key):
    if mutables:
      (loss, (_, mutables)), gradient = jax.value_and_grad(
        model.loss_fn, has_aux=True
      )(params, batch, key, mutables)
    else:
      (loss, _), gradient = jax.value_and_grad(model.loss_fn, has_aux=True)(
        params, batch, key
      )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, mutables, loss

  history = []
  for i in range(steps):
    params, state, variables, loss = step(
      params, state, variables, sounds(rng), jax.random.PRNGKey(i)
    )
    history.append(float(loss))
  return {'params': params, **variables}, history


@pytest.fixture(scope='module')
def autoencoder():
  """A tiny autoencoder after a short training."""
  model = models.CodecModel(
    NETWORK,
    'spectral',
    'autoencoder',
    latent_noise=0.02,
    complex_weight=0.0,  # phase takes longer to learn
  )
  return train(model, 1000)


@pytest.fixture(scope='module')
def weights_path(autoencoder, tmp_path_factory):
  """The same with fitted codebooks, as a file."""
  folder = tmp_path_factory.mktemp('codec')
  path = folder / 'autoencoder.safetensors'
  weights.save_params(path, {'params': autoencoder[0]['params']})
  rng = np.random.default_rng(5)

  def batches(split, batch_size, seed):
    assert (split, batch_size, seed) == ('train', 32, 3)
    return type(
      'Sounds',
      (),
      {'iterator': lambda self, start: iter(lambda: sounds(rng, 32), None)},
    )()

  output = folder / 'codec.safetensors'
  fit_quantizer.fit_quantizer(
    NETWORK, 'spectral', batches, path, output, 32, 1000, iterations=5, seed=3
  )
  return output


def test_autoencoder_learns(autoencoder):
  variables, history = autoencoder
  assert set(variables) == {'params'}
  assert np.mean(history[-5:]) < 0.4 * np.mean(history[:5])  # measured .26


def test_fitted_codec_reconstructs_better_than_shuffled_codes(weights_path):
  codec = spectral.SpectralCodec(weights.load_params(weights_path), TINY)
  rng = np.random.default_rng(9)
  waveform = sounds(rng)['waveform']
  codes = np.asarray(codec.encode(waveform))
  distance = lambda codes: float(
    losses.spectral_distance(waveform, codec.decode(codes)).mean()
  )
  whole, one = distance(codes), distance(codes[..., :1])
  # Another clip's codes, and this clip's codes in another order: measured .34
  # and .45. All levels against the first: .84 to .96.
  assert whole < 0.5 * distance(np.roll(codes, 1, axis=0))
  assert whole < 0.6 * distance(codes[:, rng.permutation(codes.shape[1])])
  assert whole < 0.99 * one


def test_decoder_phase_moves_the_decoder_only(weights_path):
  model = models.CodecModel(
    NETWORK, 'spectral', 'decoder', initial_weights=str(weights_path)
  )
  before = weights.load_params(weights_path)
  after, history = train(model, 30, rate=1e-3)
  assert np.mean(history[-5:]) < np.mean(history[:5])
  for name, value in weights.flatten(after['params']).items():
    same = np.array_equal(value, weights.flatten(before['params'])[name])
    assert same == name.startswith('encoder'), name
  np.testing.assert_array_equal(
    after['quantizer']['codebooks'], before['quantizer']['codebooks']
  )
  exported = model.export_variables(
    after['params'], {'quantizer': after['quantizer']}
  )
  assert set(exported['quantizer']) == {'codebooks'}
  spectral.SpectralCodec(exported, TINY)


def test_joint_phase_initialises_codebooks_from_the_first_batch():
  model = models.CodecModel(
    NETWORK, 'spectral', 'joint', kmeans_iterations=3, full_probability=1.0
  )
  rng = np.random.default_rng(2)
  batch = sounds(rng)
  variables = initial_variables(model, batch)
  quantizer = {'quantizer': variables['quantizer']}
  assert not np.any(quantizer['quantizer']['codebooks'])
  loss_fn = jax.jit(model.loss_fn)
  _, (_, first) = loss_fn(
    variables['params'], batch, jax.random.PRNGKey(1), quantizer
  )
  latents = jax.jit(functools.partial(NETWORK.apply, method='encode'))(
    {'params': variables['params']}, batch['waveform']
  )
  codes = rvq.encode(latents, first['quantizer']['codebooks'])
  error = jnp.square(
    latents - rvq.decode(codes, first['quantizer']['codebooks'])
  ).mean()
  assert error < 0.1 * latents.var()
  # A second step moves the codebooks, it does not fit them again.
  _, (_, second) = loss_fn(
    variables['params'], batch, jax.random.PRNGKey(2), first
  )
  moved = np.abs(
    second['quantizer']['codebooks'] - first['quantizer']['codebooks']
  ).max(-1)
  used = np.asarray(second['quantizer']['counts']) > 0.1
  assert 0 < moved[used].max() < 0.1


def test_joint_phase_gives_the_encoder_a_gradient_and_eval_keeps_codebooks(
  weights_path,
):
  model = models.CodecModel(
    NETWORK, 'spectral', 'joint', initial_weights=str(weights_path)
  )
  batch = sounds(np.random.default_rng(2))
  variables = initial_variables(model, batch)
  mutables = {'quantizer': variables['quantizer']}
  loss = lambda p: model.loss_fn(p, batch, jax.random.PRNGKey(0), mutables)[0]
  gradient = jax.jit(jax.grad(loss))(variables['params'])
  for name, value in weights.flatten(gradient).items():
    assert np.abs(value).max() > 0, name
  _, (metrics, after) = jax.jit(model.eval_fn)(
    variables['params'], batch, mutables
  )
  np.testing.assert_array_equal(
    after['quantizer']['codebooks'], mutables['quantizer']['codebooks']
  )
  # The metric is the distance of what the shipped codec would decode.
  codec = spectral.SpectralCodec(weights.load_params(weights_path), TINY)
  decoded = codec.decode(codec.encode(batch['waveform']))
  np.testing.assert_allclose(
    metrics['spectral_distance'].compute(),
    losses.spectral_distance(batch['waveform'], decoded).mean(),
    rtol=1e-4,
  )


def test_microbatches_of_a_mean_are_refused():
  model = models.CodecModel(NETWORK, 'spectral', 'autoencoder')
  model.averages_microbatches = False
  batch = sounds(np.random.default_rng(0))
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  with pytest.raises(errors.UserError) as error:
    trainer.Trainer(model, optax.adam(1e-3), batch, 0, mesh, microbatches=2)
  assert str(error.value) == (
    'MICROBATCHES is 2, expected 1: the loss of `CodecModel` is a mean over '
    'the batch, and those of microbatches are summed. Set a smaller '
    'BATCH_SIZE to save memory.'
  )


def test_unknown_phase_is_refused():
  with pytest.raises(
    ValueError,
    match=(
      'Unknown phase `train`, expected one of autoencoder, joint, decoder.'
    ),
  ):
    models.CodecModel(NETWORK, 'spectral', 'train')


def test_decoder_phase_needs_weights():
  with pytest.raises(ValueError, match='Set CodecModel.initial_weights.'):
    models.CodecModel(NETWORK, 'spectral', 'decoder')
