"""What is heard of a stage and of a codec is what they make of their clips."""

import functools
import types

import gin
import jax
import numpy as np
import pytest

from tests import test_gin
from tests import toy
from v2meow_jax import bundles
from v2meow_jax import configs
from v2meow_jax import errors
from v2meow_jax import listening
from v2meow_jax import network
from v2meow_jax import partitioning
from v2meow_jax import stages
from v2meow_jax import streams
from v2meow_jax import vocabularies
from v2meow_jax import weights
from v2meow_jax.codecs import models
from v2meow_jax.codecs import spectra
from v2meow_jax.codecs import spectral
from v2meow_jax.codecs import spectrogram

CLIPS = 3


def training(params, mutables=None):
  """What a listener needs of a `trainer.Trainer`."""
  state = types.SimpleNamespace(params=params, mutables=mutables or {})
  return types.SimpleNamespace(state=state, to_devices=lambda b: (b, 0))


@functools.cache
def codec():
  """Compiled once for all tests."""
  return spectrogram.SpectrogramCodec(toy.codec_weights(), toy.CODEC)


def make_codec(variables):
  jax.tree.map(np.testing.assert_array_equal, variables, codec().variables)
  return codec()


class Parrot:
  """Predicts codes that it is given."""

  def __init__(self, stage, codes):
    self.stage = stage
    self._codes = codes

  def predict_batch(self, params, batch):
    count = len(batch['decoder_target_tokens'])
    ids = vocabularies.flatten_levels(
      self._codes[:count] + params['add'], 512, self.stage.target_offset
    )
    return ids


@pytest.fixture(scope='module')
def weights_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('codec') / 'codec.safetensors'
  weights.save_params(path, toy.codec_weights())
  return path


@pytest.mark.parametrize('name', ['coarse', 'fine'])
@pytest.mark.parametrize(
  'architecture', [stages.DECODER_ONLY, stages.ENCODER_DECODER]
)
def test_a_stage_is_heard_with_its_levels(
  name, architecture, weights_path, rng
):
  stage = stages.make(
    name,
    semantic='spectral_semantic',
    acoustic='spectrogram',
    seconds=1.0,
    architecture=architecture,
  )
  codes = rng.integers(0, 500, (CLIPS, 25, 8), np.int32)
  first, count = stage.target.first_level, stage.target.num_levels
  target = codes[..., first : first + count]
  (view,) = stage.inputs
  given = codes[..., :4] if name == 'fine' else codes[..., :1]
  inputs = vocabularies.flatten_levels(given, view.spec.num_codes)
  ids = vocabularies.flatten_levels(target, 512, stage.target_offset)
  batch = {
    'decoder_target_tokens': ids,
    'decoder_loss_weights': np.ones_like(ids),
  }
  if architecture == stages.DECODER_ONLY:
    assert network.prefix_length(stage) == inputs.shape[1]
    batch = {
      'decoder_target_tokens': np.concatenate([inputs, ids], axis=1),
      'decoder_loss_weights': np.concatenate(
        [np.zeros_like(inputs), np.ones_like(ids)], axis=1
      ),
    }
  else:
    batch[f'encoder_{view.name}'] = inputs
  # The second crop ends after 20 positions of time.
  batch['decoder_loss_weights'][1, -5 * count :] = 0
  listener = listening.StageListener(make_codec, weights_path, num_clips=2)
  mesh = partitioning.make_mesh()
  listener.open(Parrot(stage, target), CLIPS, mesh)
  assert listener.sample_rate_hz == 16000
  parts = training({'add': np.int32(7)})
  sounds = listener.listen(parts, batch)
  assert sorted(sounds) == ['sample/0', 'sample/1', 'target/0', 'target/1']
  sampled = codes.copy()
  sampled[..., first : first + count] += 7
  levels = first + count
  for clip, length in ((0, 25 * 640), (1, 20 * 640)):
    for kind, expected in (('target', codes), ('sample', sampled)):
      np.testing.assert_array_equal(
        sounds[f'{kind}/{clip}'],
        np.asarray(codec().decode(expected[:2, :, :levels]))[clip, :length],
      )
  # What does not change is not said again.
  assert sorted(listener.listen(parts, batch)) == ['sample/0', 'sample/1']


def test_a_stage_may_write_the_tokens_of_a_lower_layer(weights_path):
  stage = stages.make('fine', acoustic='spectrogram', seconds=1.0)
  layered = types.SimpleNamespace(
    spec=streams.get('layered'), below=codec(), sample_rate_hz=16000
  )
  listener = listening.StageListener(lambda _: layered, weights_path)
  listener.open(Parrot(stage, None), 4, partitioning.make_mesh())
  assert listener._codec is codec()


def test_a_stage_of_other_tokens_cannot_be_heard(weights_path):
  stage = stages.make(
    'semantic', visual=('scene',), semantic='spectral_semantic', seconds=1.0
  )
  listener = listening.StageListener(make_codec, weights_path)
  for model, what in (
    (Parrot(stage, None), 'stage `semantic`'),
    (object(), 'no stage'),
  ):
    with pytest.raises(errors.UserError) as error:
      listener.open(model, 4, partitioning.make_mesh())
    assert str(error.value) == (
      f'Codec `spectrogram` cannot make {what} heard, expected a stage that '
      'predicts `spectrogram`. Leave runs/listen.gin out.'
    )
  with pytest.raises(ValueError, match='num_clips is 0, expected at least 1.'):
    listening.CodecListener(num_clips=0)


@pytest.mark.parametrize('phase', ['autoencoder', 'joint'])
def test_a_codec_is_heard_beside_the_original(phase, rng):
  config = spectra.Config(
    width=16, encoder_blocks=1, decoder_blocks=1, num_features=8
  )
  net = spectral.Network(config)
  model = models.CodecModel(net, 'spectral', phase)
  waveform = 0.1 * rng.standard_normal((CLIPS, 4 * 640), np.float32)
  shapes = jax.eval_shape(
    lambda: model.get_initial_variables(
      jax.random.PRNGKey(0), {'waveform': waveform.shape}
    )
  )
  fill = lambda x: 0.3 * rng.standard_normal(x.shape, np.float32)
  params = jax.tree.map(fill, shapes['params'])
  levels = streams.get('spectral').num_levels
  width = config.stack * config.num_features
  codebooks = rng.standard_normal((levels, 512, width), np.float32)
  mutables = {}
  if phase == 'joint':
    mutables = {'quantizer': {'codebooks': codebooks}}
  listener = listening.CodecListener()
  listener.open(model, CLIPS, partitioning.make_mesh())
  sounds = listener.listen(training(params, mutables), {'waveform': waveform})
  assert sorted(sounds) == [
    *('original/0', 'original/1', 'reconstruction/0', 'reconstruction/1')
  ]
  np.testing.assert_array_equal(sounds['original/1'], waveform[1])
  if phase == 'joint':  # the codec that these weights make
    made = spectral.SpectralCodec(
      {'params': params, 'quantizer': {'codebooks': codebooks}}, config
    )
    expected = np.asarray(made.decode(made.encode(waveform)))
  else:
    expected = jax.jit(net.apply)({'params': params}, waveform)
  for clip in range(2):
    np.testing.assert_allclose(
      sounds[f'reconstruction/{clip}'], expected[clip], atol=1e-5
    )


def test_every_device_makes_equally_many(rng):
  for batch_size, num_clips, count in ((8, 2, 2), (8, 3, 3), (1, 4, 1)):
    listener = listening.CodecListener(num_clips)
    model = types.SimpleNamespace(
      spec=types.SimpleNamespace(sample_rate_hz=8000),
      reconstruct=lambda params, waveform, mutables: -waveform,
    )
    listener.open(model, batch_size, partitioning.make_mesh())
    waveform = rng.standard_normal((batch_size, 16), np.float32)
    sounds = listener.listen(training({}), {'waveform': waveform})
    made = [name for name in sounds if name.startswith('reconstruction/')]
    assert len(made) == count
    np.testing.assert_array_equal(sounds['reconstruction/0'], -waveform[0])


def test_gin_listens_with_the_bundled_codec():
  files = [*test_gin.recipe('coarse'), 'runs/listen.gin']
  path = bundles.MODELS['bundled'] / 'codec.safetensors'
  bindings = [*test_gin.BINDINGS, f"CODEC_WEIGHTS = '{path}'"]
  configs.parse(files, bindings, root='train.train')
  values = gin.get_bindings('train.train')
  gin.clear_config()
  listener = values['listener']
  listener.open(values['model'], 16, partitioning.make_mesh())
  assert listener.sample_rate_hz == 16000
  with pytest.raises(
    errors.UserError, match='Not set in the gin files: CODEC_W'
  ):
    configs.parse(files, test_gin.BINDINGS, root='train.train')
  gin.clear_config()
