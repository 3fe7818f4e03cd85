"""YAMNet: recorded and live scores, converters, real clips, bad weights."""

import dataclasses
import re
import warnings

from flax import linen as nn
import gin
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import conftest
from tests import contracts
from tests import random_weights
from v2meow_jax import audio
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weights
from v2meow_jax.embedders import audioset
from v2meow_jax.embedders import yamnet

CONFIG = yamnet.Config((12,) * 13 + (1024,))
# Step of the scores before the sigmoid in the quantised model.
STEP = 0.30812797


@pytest.fixture(scope='module')
def params():
  return random_weights.like(yamnet.expected(dataclasses.asdict(CONFIG)))


@pytest.fixture(scope='module')
def published(shared_data):
  path = shared_data / 'weights' / 'yamnet_spectra_in.tflite'
  return path, pretrained.load('yamnet_tflite', path)


@pytest.fixture(scope='module')
def network(published):
  """Patches to scores before the sigmoid, with the published weights."""
  config = weights.configure(yamnet.Config(), published[1])
  apply = jax.jit(yamnet.Network(config).apply)
  params = weights.without_config(published[1])
  return lambda patches: np.asarray(apply({'params': params}, patches)[1])


@pytest.fixture(scope='module')
def ears(published):
  return yamnet.YAMNet(published[1])


def _check_scores(logits, scores):
  """The quantised model cuts every activation to 8 bits; we do not."""
  found = 1 / (1 + np.exp(-logits))
  error = np.abs(found - scores)
  # Its last step alone is worth 0.25 * STEP / 2 = 0.039, or 0.077 in a tie.
  # Measured on the recorded patches: 0.044 at most, 2.0e-4 on average.
  assert error.max() < 0.1
  assert error.mean() < 1e-3
  np.testing.assert_array_equal(found.argmax(1), scores.argmax(1))
  five = lambda x: [set(row) for row in np.argsort(-x, 1)[:, :5]]
  shared = [len(a & b) for a, b in zip(five(found), five(scores))]
  # Measured: 4.6 of 5; classes of equal score are in any order.
  assert np.mean(shared) > 4
  # Where the sigmoid hides little: within a step and its neighbours.
  clear = (scores > 0.05) & (scores < 0.95)
  theirs = np.log(scores[clear] / (1 - scores[clear]))
  return np.abs(logits[clear] - theirs).max()


def test_recorded_scores(network, shared_data):
  recorded = np.load(shared_data / 'weights' / 'golden_yamnet_io.npz')
  logits = network(recorded['patches'])
  # Measured: 0.30, one step.
  assert _check_scores(logits, recorded['scores']) < 3 * STEP


# Steps of the activations that the quantised model reads, where they are not
# 6 / 255, and the codes that it cuts them to.
STEPS = {
  'conv_1': (0.04778896, -145, 110),
  'depthwise_13': (0.02195239, 0, 255),
  'classifier': (0.02331309, 0, 255),
}


def _round(call, args, kwargs, context):
  """Rounds what convolutions read, as the quantised model does."""
  if isinstance(context.module, nn.Conv | nn.Dense):
    step, low, high = STEPS.get(context.module.name, (6 / 255, 0, 255))
    args = (jnp.clip(jnp.round(args[0] / step), low, high) * step,)
  return call(*args, **kwargs)


def test_recorded_scores_with_their_rounding(published, shared_data):
  """Nothing but rounding lies between us and the quantised model."""
  recorded = np.load(shared_data / 'weights' / 'golden_yamnet_io.npz')
  network = yamnet.Network(weights.configure(yamnet.Config(), published[1]))

  @jax.jit
  def run(params, patches):
    with nn.intercept_methods(_round):
      return network.apply({'params': params}, patches)[1]

  logits = run(weights.without_config(published[1]), recorded['patches'])
  logits = np.clip(np.rint(logits / STEP), -228, 27) * STEP
  scores = np.clip(np.rint(256 / (1 + np.exp(-logits))), 0, 255) / 256
  # Measured: 99.6 % are equal, 99.8 % within one of their 256 steps; sums that
  # lie between two steps may be rounded to either.
  error = np.abs(scores - recorded['scores'])
  assert (error == 0).mean() > 0.99
  assert (error < 1.5 / 256).mean() > 0.995


def test_activations_end_where_the_weights_say(params):
  loud = jax.tree.map(lambda x: 3 * x, params)
  patches = np.ones((1, 96, 64), np.float32)

  def embed(limit):
    network = yamnet.Network(dataclasses.replace(CONFIG, limit=limit))
    return np.asarray(jax.jit(network.apply)({'params': loud}, patches)[0])

  assert embed(6.0).max() <= 6 < embed(0.0).max()


def test_scores_of_the_interpreter(network, published):
  tf = pytest.importorskip('tensorflow')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # that it moves to another package
    interpreter = tf.lite.Interpreter(str(published[0]))
  interpreter.allocate_tensors()
  (given,) = interpreter.get_input_details()
  (made,) = interpreter.get_output_details()
  rng = np.random.default_rng(0)
  seconds = np.arange(15600) / 16000
  sounds = [
    rng.uniform(-0.5, 0.5, 15600),
    np.sin(2 * np.pi * 440 * seconds),
    np.sin(2 * np.pi * 3000 * seconds**2) * np.exp(-3 * seconds),
    rng.normal(0, 1, 15600) * (seconds % 0.25 < 0.01),
  ]
  patches = np.asarray(yamnet.LOG_MEL(np.array(sounds, np.float32)))
  scores = []
  for patch in patches:
    interpreter.set_tensor(given['index'], patch[None])
    interpreter.invoke()
    scores.append(interpreter.get_tensor(made['index'])[0])
  assert _check_scores(network(patches), np.array(scores)) < 5 * STEP


@pytest.mark.parametrize(
  'name, expected',
  [
    ('classical_strings_brahms_hungarian5.ogg', 'Bowed string instrument'),
    ('jazz_lounge_vibe_ace.ogg', 'Vibraphone'),
    ('metal_viper.mp3', 'Heavy metal'),
    ('guitar_solo.wav', 'Guitar'),
    ('not_music_speech.ogg', 'Speech'),
  ],
)
def test_real_clips(ears, shared_data, name, expected):
  path = shared_data / 'music' / name
  waveform = audio.read_mono(str(path), 16000, 10.0, 20.0)
  scores = 1 / (1 + np.exp(-ears.embed_windows(waveform[None])[0]))
  best = [ears.labels[i] for i in np.argsort(-scores.mean(0))[:6]]
  assert expected in best, best
  assert (best[0] == 'Music') == (not name.startswith('not_music')), best


def test_contract(params):
  contracts.check_hearing(yamnet.YAMNet(params, CONFIG), atol=1e-4)
  embedder = yamnet.YAMNet(params, CONFIG, stream='yamnet_embedding')
  assert embedder.labels == ()
  sound = np.sin(np.arange(20000) / 5).astype(np.float32)[None]
  vectors = embedder.embed_windows(sound)
  assert vectors.shape == (1, 1, 1024)
  dense = params['classifier']
  np.testing.assert_allclose(
    vectors @ dense['kernel'] + dense['bias'],
    yamnet.YAMNet(params, CONFIG).embed_windows(sound),
    atol=1e-4,
  )
  with pytest.raises(ValueError, match='YAMNet for stream `vggish`, expected'):
    yamnet.YAMNet(params, CONFIG, stream='vggish')


def _keras_file(path, rng, params):
  """A file as Keras writes it, whose folded convolutions are `params`."""
  arrays = {}
  for ours, theirs in zip(yamnet._layers(), yamnet._keras_layers()):
    kernel, bias = params[ours]['kernel'], params[ours]['bias']
    if ours == 'classifier':
      arrays['dense/dense/kernel:0'] = kernel
      arrays['dense/dense/bias:0'] = bias
      continue
    variance = rng.uniform(0.5, 2, bias.shape)
    mean = rng.normal(0, 1, bias.shape)
    deviation = np.sqrt(variance + 1e-4)
    kind = 'kernel'
    kernel = kernel * deviation
    if 'depthwise' in theirs:
      kind, kernel = 'depthwise_kernel', kernel.transpose(0, 1, 3, 2)
    arrays[f'{theirs}/{theirs}/{kind}:0'] = kernel
    norm = f'{theirs}/bn/{theirs}/bn'
    arrays[f'{norm}/beta:0'] = bias + mean / deviation
    arrays[f'{norm}/moving_mean:0'] = mean
    arrays[f'{norm}/moving_variance:0'] = variance
  with h5py.File(path, 'w') as file:
    for name, array in arrays.items():
      file[name] = array.astype(np.float32)


def test_keras_weights(params, tmp_path, rng):
  path = tmp_path / 'yamnet.h5'
  _keras_file(path, rng, params)
  found = pretrained.load('yamnet', path)
  config = weights.read_config(found)
  assert config['channels'] == list(CONFIG.channels)
  assert config['limit'] == 0
  found = weights.flatten(weights.without_config(found))
  expected = weights.flatten(params)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6)
  with h5py.File(path, 'a') as file:
    del file['layer3/depthwise_conv/bn/layer3/depthwise_conv/bn/beta:0']
    file['spare/kernel:0'] = np.zeros(3)
  with pytest.raises(
    errors.UserError,
    match=re.escape(
      f'Weights of {path} do not fit: missing `layer3/depthwise_conv/bn/beta` '
      '(for `depthwise_3/bias`); unexpected `spare/kernel` of shape (3,).'
    ),
  ):
    pretrained.load('yamnet', path)


def test_other_weights(params, tmp_path):
  row = pretrained.get_checkpoint('yamnet_tflite')
  other = conftest.ROOT / 'tests' / 'golden' / 'quantized.tflite'
  with pytest.raises(errors.UserError, match='missing `layer 1 kernel`'):
    row.convert({'': other})
  path = tmp_path / 'yamnet_spectra_in.tflite'
  path.write_bytes(b'TFL3' * 9)
  with pytest.raises(errors.UserError, match='SHA-256 is .* expected 0a266465'):
    pretrained.load('yamnet_tflite', path)
  wrong = dict(params, classifier=params['conv_1'])
  with pytest.raises(
    errors.UserError, match=r'`classifier/bias` has shape \(12'
  ):
    yamnet.YAMNet(wrong, CONFIG)


def test_labels(shared_data):
  metadata = shared_data / 'metadata'
  for name, ids, names in (
    ('audioset_class_labels_indices.csv', audioset.IDS, audioset.NAMES),
    ('yamnet_class_map.csv', audioset.YAMNET_IDS, audioset.YAMNET_NAMES),
  ):
    lines = (metadata / name).read_text().splitlines()[1:]
    assert len(lines) == len(ids) == len(names)
    for place, line in enumerate(lines):
      name = names[place]
      name = f'"{name}"' if f'"{name}"' in line else name
      assert line == f'{place},{ids[place]},{name}'


def test_label_of_either_kind():
  assert len(audioset.IDS) == 527
  assert audioset.index('/m/04rlf') == audioset.index('music') == 137
  marks = audioset.multi_hot(['Music', '/m/09x0r'])
  assert marks.dtype == np.float32
  assert np.flatnonzero(marks).tolist() == [0, 137]
  with pytest.raises(errors.UserError) as error:
    audioset.index('Musik')
  assert str(error.value) == (
    'Label `Musik` is no class of AudioSet, expected an id such as `/m/09x0r` '
    'or a name such as `Speech`. Correct it.'
  )


def test_gin_makes_it(params):
  configs.parse(['embedders/yamnet.gin'])
  try:
    make = gin.query_parameter('EMBEDDER/macro.value').scoped_configurable_fn
    assert make(params, CONFIG).spec.name == 'yamnet'
  finally:
    gin.clear_config()
