"""Adversarial training: whose gradient goes where, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.codecs import test_models
from v2meow_jax import checkpoints
from v2meow_jax import optimizers
from v2meow_jax import partitioning
from v2meow_jax import trainer
from v2meow_jax import weights
from v2meow_jax.codecs import adversarial
from v2meow_jax.codecs import discriminators
from v2meow_jax.codecs import models
from v2meow_jax.codecs import soundstream

SOUNDSTREAM = soundstream.Config(channels=1, dilations=(1,), num_features=4)
DISCRIMINATORS = discriminators.Discriminators(
  discriminators.Config(
    scales=(2,),
    wave_channels=4,
    wave_max_channels=16,
    wave_strides=(4, 4),
    wave_group_size=16,
    stft_window=256,
    stft_hop=64,
    stft_channels=2,
  )
)


def make_model(phase='joint', network=None, stream='soundstream', **options):
  codec = models.CodecModel(
    network or soundstream.Network(SOUNDSTREAM),
    stream,
    phase,
    latent_noise=0.0,
    kmeans_iterations=1,
  )
  return adversarial.AdversarialModel(codec, DISCRIMINATORS, **options)


def short_sounds(rng, batch=4):
  """A quarter of a second of each of some sounds."""
  return {'waveform': test_models.sounds(rng, batch)['waveform'][:, :3840]}


def make_trainer(model, optimizer=None, **options):
  optimizer = optimizer or optimizers.partition(
    generator=optimizers.adamw(optimizers.constant(3e-3)),
    discriminators=optimizers.adamw(optimizers.constant(5e-3), b1=0.5),
  )
  batch = short_sounds(np.random.default_rng(0))
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  made = trainer.Trainer(model, optimizer, batch, 0, mesh, **options)
  made.initialize()
  return made


def copied(tree):
  """On the host: a step gives the old state's memory away."""
  return jax.tree.map(np.array, tree)


@pytest.fixture(scope='module')
def variables():
  batch = short_sounds(np.random.default_rng(3))
  model = make_model('autoencoder')
  variables = test_models.initial_variables(model, batch)
  return variables.pop('params'), variables, batch


@pytest.fixture(scope='module')
def gradients(variables):
  """Gradients by the weights of reconstruction, adversaries, features."""
  params, mutables, batch = variables

  @jax.jit
  def gradient(reconstruction, adversary, features):
    model = make_model(
      'autoencoder',
      reconstruction_weight=reconstruction,
      adversarial_weight=adversary,
      feature_weight=features,
    )
    key = jax.random.PRNGKey(0)
    loss = lambda params: model.loss_fn(params, batch, key, mutables)[0]
    return jax.grad(loss)(params)

  return gradient


def test_each_part_learns_from_its_own_losses_alone(gradients):
  alone = gradients(0.0, 0.0, 0.0)
  assert not any(np.any(g) for g in jax.tree.leaves(alone['generator']))
  for name, gradient in weights.flatten(alone['discriminators']).items():
    # What is added to all logits helps with the one as it harms with the other.
    assert np.any(gradient) or name.endswith('logits/bias'), name
  # What the codec is told does not reach the discriminators.
  told = gradients(1.0, 2.0, 3.0)
  for a, b in zip(
    *(jax.tree.leaves(g['discriminators']) for g in (alone, told))
  ):
    np.testing.assert_array_equal(a, b)


def test_codec_learns_what_the_adversaries_say(gradients, variables):
  params, _, batch = variables
  codec = make_model('autoencoder')._codec

  def loss(generator):
    estimate, _, _ = codec.generate(
      generator, batch['waveform'], jax.random.PRNGKey(0), {}, True
    )
    real, fake = (
      DISCRIMINATORS.apply({'params': params['discriminators']}, waveform)
      for waveform in (batch['waveform'], estimate)
    )
    adversary = discriminators.adversarial_loss(fake).mean()
    return adversary + 3.0 * discriminators.feature_distance(real, fake).mean()

  expected = jax.jit(jax.grad(loss))(params['generator'])
  ours = gradients(0.0, 2.0, 6.0)['generator']
  assert all(np.any(g) for g in jax.tree.leaves(expected['decoder']))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected)):
    scale = np.abs(b).max() + 1e-6
    np.testing.assert_allclose(a, 2.0 * b, atol=5e-5 * scale)  # measured 5e-6
  # All three weights are linear, and none is another's.
  a, b, c = (
    gradients(*weights)['generator']['decoder']['conv_out']['bias'][0]
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (2.0, 1.0, 1.0))
  )
  assert a != 0
  np.testing.assert_allclose(2.0 * a + b, c, rtol=1e-4)


@pytest.fixture(scope='module')
def trained():
  """A tiny codec, and adversaries that start at step 20 of 100."""
  model = make_model(
    'autoencoder',
    test_models.NETWORK,
    'spectral',
    feature_weight=0.3,
    adversarial_weight=0.1,
    start_step=20,
  )
  training = make_trainer(model)
  rng = np.random.default_rng(1)
  history, states = [], [copied(training.state.params)]
  for step in range(100):
    batch, _ = training.to_devices(short_sounds(rng))
    history.append(jax.device_get(training.step(batch)))
    if step == 19:
      states.append(copied(training.state.params))
  return model, training, history, states


def test_codec_learns_beside_its_adversaries(trained):
  _, _, history, _ = trained
  values = lambda name: [float(h['metrics'][name].compute()) for h in history]
  distance = values('spectral_distance')
  assert np.mean(distance[-10:]) < 0.8 * np.mean(distance[:10])  # measured .66
  terms = np.array(
    [
      values('spectral_distance'),
      0.6 * np.array(values('complex_distance')),
      0.1 * np.array(values('adversarial_loss')),
      0.3 * np.array(values('feature_distance')),
    ]
  )
  np.testing.assert_allclose(values('loss'), terms.sum(0), rtol=1e-4)
  assert 'gradient_norm_generator' in history[0]


def test_adversaries_wait_for_their_start(trained):
  _, training, history, (initial, at_start) = trained
  for a, b in zip(
    *(jax.tree.leaves(p['discriminators']) for p in (initial, at_start))
  ):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(
    *(jax.tree.leaves(p['generator']) for p in (initial, at_start))
  ):
    assert np.any(a != b)
  norms = np.array([h['gradient_norm_discriminators'] for h in history])
  assert (norms[:20] == 0).all()
  assert norms[20] > 0  # later zero wherever all logits are beyond the hinge
  judged = [h['metrics']['feature_distance'].compute() for h in history]
  assert not np.any(judged[:20]) and np.all(judged[20:])
  assert training.state.mutables['adversary']['steps'] == 100


def test_adversaries_tell_held_out_sounds_from_the_codecs(trained):
  model, training, _, _ = trained
  rng = np.random.default_rng(77)
  real = short_sounds(rng, 32)['waveform']
  params = training.state.params
  fake = jax.jit(lambda w: model.reconstruct(params, w, {}))(real)
  judge = jax.jit(
    lambda w: [
      j.logits.mean(1)
      for j in DISCRIMINATORS.apply({'params': params['discriminators']}, w)
    ]
  )
  logits = np.concatenate([np.mean(judge(w), axis=0) for w in (real, fake)])
  difference = lambda x: x[:32].mean() - x[32:].mean()
  shuffled = [difference(rng.permutation(logits)) for _ in range(500)]
  assert difference(logits) > 1.2 * max(shuffled)  # measured 1.7


def test_a_checkpoint_is_the_whole_training(trained, tmp_path):
  _, training, _, _ = trained
  manager = checkpoints.Checkpoints(tmp_path)
  manager.save(training.state, 100)
  manager.wait()
  batch, _ = training.to_devices(short_sounds(np.random.default_rng(9)))
  ends = []
  for _ in range(2):  # goes on, and goes on again from what was saved
    training.step(batch)
    ends.append(jax.device_get(checkpoints.to_tree(training.state)))
    training.state = manager.restore(100, training.abstract)
  manager.close()
  state = ends[0]['state']['param_states']
  assert set(state) == {'generator', 'discriminators'}
  assert ends[0]['flax_mutables']['adversary']['steps'] == 101
  jax.tree.map(np.testing.assert_array_equal, *ends)


def test_each_optimizer_moves_its_own_part():
  rng = np.random.default_rng(0)
  draw = lambda: {
    part: {'w': jnp.asarray(rng.standard_normal((3, 2)), jnp.float32)}
    for part in ('generator', 'discriminators')
  }
  params, gradients = draw(), draw()
  alone = {
    'generator': optimizers.adamw(optimizers.constant(1e-2), clip_norm=0.1),
    'discriminators': optimizers.adafactor(optimizers.constant(1e-3)),
  }
  together = optimizers.partition(**alone)
  updates, state = together.update(gradients, together.init(params), params)
  for part, optimizer in alone.items():
    expected, its = optimizer.update(
      gradients[part], optimizer.init(params[part]), params[part]
    )
    for a, b in ((updates[part], expected), (state[part], its)):
      jax.tree.map(np.testing.assert_array_equal, a, b)
  # A part whose rate is zero stays.
  still = optimizers.adamw(optimizers.constant(0.0))
  for part, other in (list(alone), list(alone)[::-1]):
    mixed = optimizers.partition(**{part: still, other: alone[other]})
    updates, _ = mixed.update(gradients, mixed.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved[part]['w'], params[part]['w'])
    assert np.all(moved[other]['w'] != params[other]['w'])
  rates = optimizers.learning_rates(together, 0)
  assert rates == pytest.approx(
    {'learning_rate_generator': 1e-2, 'learning_rate_discriminators': 1e-3}
  )
  assert optimizers.learning_rates(still, 0) == {'learning_rate': 0.0}
  assert optimizers.learning_rates(optax.adam(1.0), 0) == {}


class Lines:
  """Two lines through points, each its own part; a mean over the batch."""

  loss_is_mean = True
  averages_microbatches = adversarial.AdversarialModel.averages_microbatches

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    del rng, input_types
    size = input_shapes['waveform'][1]
    return {'params': {part: jnp.ones(size) for part in ('generator', 'judge')}}

  def loss_fn(self, params, batch, rng):
    del rng
    x = batch['waveform']
    loss = jnp.square(x @ params['generator']).mean()
    loss += jnp.abs(x @ params['judge'] - 1.0).mean()
    return loss, models.averages(loss=loss)


def test_microbatches_are_the_batch_in_parts():
  sgd = optax.sgd(1.0)
  rate = optimizers.constant(1.0)
  part = optimizers.Optimizer(sgd.init, sgd.update, rate)
  optimizer = optimizers.partition(generator=part, judge=part)
  results = []
  for count in (1, 2):
    training = make_trainer(Lines(), optimizer, microbatches=count)
    batch, _ = training.to_devices(short_sounds(np.random.default_rng(5)))
    result = jax.device_get(training.step(batch))
    result['loss_metric'] = result.pop('metrics')['loss'].compute()
    results.append((result, jax.device_get(training.state.params)))
  assert 'gradient_norm_judge' in results[0][0]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    *results,
  )


def test_export_is_the_codec_alone():
  batch = short_sounds(np.random.default_rng(3), 2)
  model = make_model()
  mutables = test_models.initial_variables(model, batch)
  params, quantizer = mutables.pop('params'), mutables['quantizer']
  shape = quantizer['codebooks'].shape
  quantizer['codebooks'] = jax.random.normal(jax.random.PRNGKey(1), shape)
  exported = model.export_variables(params, mutables)
  assert set(exported) == {'params', 'quantizer'}
  codec = soundstream.SoundStream(exported, SOUNDSTREAM)
  decoded = codec.decode(codec.encode(batch['waveform']))
  heard = jax.jit(model.reconstruct)(params, batch['waveform'], mutables)
  np.testing.assert_allclose(heard, decoded, atol=1e-4 * np.abs(decoded).max())
