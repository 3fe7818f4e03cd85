"""A layer of a network, standardised, and k-means: windows, fits, bad input."""

import dataclasses

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contracts
from tests.tokenizers import published
from v2meow_jax import audio
from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import sources
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.tokenizers import clustered
from v2meow_jax.tokenizers import fit
from v2meow_jax.tokenizers import fitting

HOP = 640


@dataclasses.dataclass(frozen=True)
class Config(clustered.Config):
  """As those of networks: a dimension beside the choices."""

  layer: int = 1
  window_seconds: float = 0.4  # 10 positions
  context_seconds: float = 0.08  # 2
  width: int = 3


class Network(nn.Module):
  """Hears two positions to either side, and the mask."""

  config: Config
  num_layers = 2
  steps = 4
  bins = 160

  @property
  def embed_dim(self):
    return self.config.width

  @nn.compact
  def __call__(self, frames, mask):
    x = jnp.where(mask[..., None, None], frames, 0)
    x = x.reshape(*mask.shape, -1)
    x = nn.Dense(self.config.width, use_bias=False, name='dense')(x)
    padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
    length = mask.shape[1]
    return sum((i + 1) * padded[:, i : i + length] for i in range(5))


class Tokenizer(clustered.Clustered):
  """The waveform itself is heard."""

  spec = streams.get('w2v_bert')

  def __init__(self, params, config=Config()):
    super().__init__(params, Network(weights.configure(config, params)))

  def _frames(self, waveform):
    return waveform.reshape(-1, 160)


@pytest.fixture
def params(rng):
  kernel = rng.standard_normal((HOP, 3)).astype('f4')
  return {'params': {'dense': {'kernel': kernel}}}


def _sound(rng, length):
  return rng.uniform(-0.5, 0.5, length * HOP).astype('f4')


@pytest.mark.parametrize('length', [1, 9, 10, 11, 16, 17, 40])
def test_windows_give_what_the_whole_gives(params, length, rng):
  waveform = _sound(rng, length)
  tokenizer = Tokenizer(params)
  x = waveform.reshape(length, HOP) @ params['params']['dense']['kernel']
  padded = np.pad(x, ((2, 2), (0, 0)))
  expected = sum((i + 1) * padded[i : i + length] for i in range(5))
  found = tokenizer.features(waveform)
  assert found.dtype == np.float32
  # Measured: 3e-5 of values up to 100.
  np.testing.assert_allclose(found, expected, atol=2e-4)


def test_all_windows_are_one_compilation(params, rng, monkeypatch):
  tokenizer = Tokenizer(params)
  shapes = []
  run = tokenizer._run
  monkeypatch.setattr(
    tokenizer, '_run', lambda x, n: shapes.append((x.shape, n)) or run(x, n)
  )
  for length in (3, 14, 27):
    assert len(tokenizer.features(_sound(rng, length))) == length
  assert {shape for shape, _ in shapes} == {(10, 4, 160)}
  # A window begins 6 behind the last: 10 - 2 - 2.
  assert [num for _, num in shapes] == [3, 10, 8, 10, 10, 10, 9]


def test_a_token_is_its_own_time(params, rng):
  """A click in the second sample of a token's 640 reaches that token first."""
  tokenizer = Tokenizer(params)
  quiet = np.zeros(20 * HOP, 'f4')
  for token in (0, 7, 19):
    click = quiet.copy()
    click[token * HOP + 1] = 1
    heard = np.abs(tokenizer.features(click)).sum(1).nonzero()[0]
    assert heard.tolist() == [
      t for t in range(token - 2, token + 3) if 0 <= t < 20
    ]


def test_a_fit_is_the_contract(params, rng):
  waveform = _sound(rng, 50)
  variables = published.add_fit(Tokenizer(params), waveform)
  tokenizer = Tokenizer(variables)
  contracts.check_tokenizer(tokenizer)
  features = (tokenizer.features(waveform) - variables['mean']) * (
    variables['scale']
  )
  distance = np.linalg.norm(features[:, None] - variables['centres'], axis=2)
  np.testing.assert_array_equal(
    tokenizer.encode(waveform[None])[0, :, 0], distance.argmin(1)
  )


def test_a_fit_says_its_layer_and_its_dimensions(params, rng, tmp_path):
  given = weights.add_config(params, {'width': 3, 'source': 'somewhere'})
  tokenizer = Tokenizer(given, config=Config(layer=2, width=7))
  path = tmp_path / 'fitted.safetensors'
  weights.save_params(path, published.add_fit(tokenizer, _sound(rng, 9)))
  again = Tokenizer(weights.load_params(path))
  assert again.network.config == Config(layer=2, width=3)
  found = weights.read_config(weights.load_params(path))
  assert found == {'layer': 2, 'width': 3, 'source': 'somewhere'}


def test_without_a_fit(params):
  with pytest.raises(errors.UserError) as error:
    Tokenizer(params).encode(np.zeros((1, HOP)))
  assert str(error.value) == (
    'Tokenizer `w2v_bert` has no clusters, expected weights with mean, scale, '
    'centres. Fit them with `python -m v2meow_jax.tokenizers.fit`.'
  )


def test_the_command_fits_it(params, tmp_path):
  rng = np.random.default_rng(0)
  sound = rng.uniform(-0.5, 0.5, 60 * 16000).astype('f4')
  audio.write_wav(str(tmp_path / 'a.wav'), sound, 16000)
  (tmp_path / 'a.csv').write_text('file\na.wav\n')
  out = tmp_path / 'fitted.safetensors'
  fit.fit(
    str(tmp_path / 'a.csv'), str(out), Tokenizer, params, fitting.Settings()
  )
  found = weights.load_params(out)
  assert weights.read_config(found) == {'layer': 1}
  heard = sources.FileSource(manifests.read(tmp_path / 'a.csv')[0]).sound(16000)
  codes = Tokenizer(found, Config(layer=2)).encode(heard[None])
  assert len(np.unique(codes)) > 500
  assert Tokenizer(found, Config(layer=2)).network.config.layer == 1


def test_all_that_does_not_fit_is_listed(params, rng):
  fitted = published.add_fit(Tokenizer(params), _sound(rng, 9))
  wrong = {**fitted, 'centres': fitted['centres'][:7]}
  del wrong['scale']
  with pytest.raises(errors.UserError, match='Fit it again or choose other'):
    Tokenizer(wrong)
  wrong = {**fitted, 'params': {'dense': {'bias': np.zeros(3)}}}
  with pytest.raises(errors.UserError) as error:
    Tokenizer(wrong | {'more': np.zeros(2)})
  assert str(error.value) == (
    'Weights do not fit the model: missing `params/dense/kernel`; unexpected '
    '`more`; unexpected `params/dense/bias`. Use the weights and the gin files '
    'that belong together.'
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      dict(window_seconds=0.16),
      'Windows of 0.16 s with 0.08 s of context at either end, expected '
      'windows longer than both. Set other seconds.',
    ),
    (
      dict(layer=3),
      'Layer 3 of tokenizer `w2v_bert`, expected 0 to 2. Set another layer.',
    ),
  ],
)
def test_choices_that_make_no_sense(params, change, message):
  with pytest.raises(ValueError) as error:
    Tokenizer(params, config=dataclasses.replace(Config(), **change))
  assert str(error.value) == message


@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    (np.zeros(0), 'Waveform of 0 samples'),
    (np.full(9, np.nan), 'NaN or infinity'),
    (np.zeros((2, 9)), 'expected .batch, samples.'),
  ],
)
def test_bad_waveforms(params, bad, message):
  with pytest.raises(ValueError, match=message):
    Tokenizer(params).features(bad)


def test_silence_is_one_token(params, rng):
  fitted = published.add_fit(Tokenizer(params), _sound(rng, 20))
  codes = Tokenizer(fitted).encode(np.zeros((1, 30 * HOP), 'f4'))
  assert len(np.unique(codes)) == 1
