"""The spectral codec, and what every codec must satisfy."""

import dataclasses

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from tests import contracts
from v2meow_jax import streams
from v2meow_jax.codecs import base
from v2meow_jax.codecs import losses
from v2meow_jax.codecs import soundstream
from v2meow_jax.codecs import spectral

TINY = spectral.Config(
  width=8, expansion=1, encoder_blocks=1, decoder_blocks=2, num_features=4
)
TINY_SOUNDSTREAM = soundstream.Config(
  channels=1, dilations=(1,), num_features=4
)


def make_codec(name):
  """A tiny codec with random weights."""
  if name == 'spectral':
    network, make, config = (
      spectral.Network(TINY),
      spectral.SpectralCodec,
      TINY,
    )
  else:
    network, make, config = (
      soundstream.Network(TINY_SOUNDSTREAM),
      soundstream.SoundStream,
      TINY_SOUNDSTREAM,
    )
  spec = streams.get(name)
  key = jax.random.PRNGKey(0)
  waveform = jnp.zeros((1, 2 * spec.hop))
  params = network.init(key, waveform, mutable=['params'])['params']
  latents = network.apply({'params': params}, waveform, method='encode')
  codebooks = 0.3 * jax.random.normal(
    key, (spec.num_levels, spec.num_codes, latents.shape[-1])
  )
  return make({'params': params, 'quantizer': {'codebooks': codebooks}}, config)


@pytest.fixture(scope='module', params=['spectral', 'soundstream'])
def codec(request):
  return make_codec(request.param)


def test_codec_keeps_the_contract(codec):
  contracts.check_codec(codec)


def test_decode_in_chunks_is_the_decoding_of_the_whole(codec, rng, monkeypatch):
  monkeypatch.setattr(base, 'CHUNK', 7)
  spec = codec.spec
  codes = rng.integers(0, spec.num_codes, (2, 23, spec.num_levels))
  # The network itself, without padding, chunks or a compiled length.
  whole = codec.network.apply(
    {'params': codec.variables['params']},
    base.rvq.decode(codes, codec.variables['quantizer']['codebooks']),
    method='decode',
  )
  np.testing.assert_allclose(codec.decode(codes), whole, atol=2e-5)
  for cuts in ([], [7, 14], [1, 2, 13], [22]):
    pieces = list(codec.decode_chunks(np.split(codes, cuts, axis=1)))
    together = np.concatenate(pieces, axis=1)
    assert together.shape == whole.shape
    np.testing.assert_allclose(together, whole, atol=2e-5)


def test_encode_does_not_depend_on_padding(codec, rng, monkeypatch):
  waveform = rng.standard_normal((1, 5 * codec.hop)).astype('f4')
  codes = []
  for chunk in (5, 8):
    monkeypatch.setattr(base, 'CHUNK', chunk)
    codes.append(np.asarray(codec.encode(waveform)))
  np.testing.assert_array_equal(codes[0], codes[1])


@pytest.mark.parametrize(
  'waveform, message',
  [
    (np.zeros(640), r'waveform of shape \(640,\), expected \[batch, samp'),
    (np.zeros((1, 0)), r'waveform of shape \(1, 0\), expected \[batch, sa'),
  ],
)
def test_encode_refuses_other_shapes(codec, waveform, message):
  with pytest.raises(ValueError, match=message):
    codec.encode(waveform)


def test_decode_refuses_other_codes(codec):
  spec = codec.spec
  with pytest.raises(ValueError, match=f'with 1 to {spec.num_levels} levels'):
    codec.decode(np.zeros((1, 3, spec.num_levels + 1), int))
  with pytest.raises(
    ValueError,
    match=f'codes from 0 to {spec.num_codes}, expected 0 to '
    f'{spec.num_codes - 1}. Take the vocabulary offsets off the tokens.',
  ):
    codec.decode(np.full((1, 3, 2), [0, spec.num_codes]))


def test_codebooks_of_another_geometry_are_refused(codec):
  variables = {
    'params': codec.variables['params'],
    'quantizer': {'codebooks': np.zeros((3, 5, 4), 'f4')},
  }
  levels = codec.spec.num_levels
  with pytest.raises(
    ValueError, match=rf'codebooks of shape \(3, 5, 4\), expected \[{levels}'
  ):
    base.Codec(codec.spec, codec.network, variables)


def test_inverse_stft_inverts_the_stft(rng):
  waveform = rng.standard_normal((2, 20 * 320)).astype('f4')
  window = losses.hann_window(1280)
  padded = np.pad(waveform, ((0, 0), (480, 480)))
  spectrum = np.fft.rfft(
    np.stack([padded[:, 320 * t : 320 * t + 1280] for t in range(20)], 1)
    * window
  ).astype('c8')
  inverse = spectral.InverseStft(1280, 320)
  np.testing.assert_allclose(
    inverse.apply({}, spectrum, np.ones((2, 20), 'f4')), waveform, atol=1e-4
  )
  # Where the frames overlap fully it is librosa's.
  theirs = librosa.istft(
    np.swapaxes(spectrum, 1, 2),
    hop_length=320,
    n_fft=1280,
    center=False,
    window='hann',
  )
  np.testing.assert_allclose(
    waveform[:, 480:-480], theirs[:, 960:-960], atol=1e-4
  )


def test_spectral_decoder_is_causal_but_for_half_a_window(rng):
  codec = make_codec('spectral')
  decode = lambda x: codec.network.apply(
    {'params': codec.variables['params']}, x, method='decode'
  )
  latents = jnp.asarray(rng.standard_normal((1, 10, 8)), jnp.float32)

  def reached(sample):
    gradient = jax.grad(lambda x: decode(x)[0, sample])(latents)
    return np.flatnonzero(np.abs(gradient).sum((0, 2)))

  # A sample's last frame starts at most 480 samples before it.
  assert reached(5 * 640).max() == 5
  assert reached(6 * 640 - 1).max() == 6
  assert reached(5 * 640).min() < 4


def test_spectral_encoder_sees_thirty_milliseconds_ahead(rng):
  codec = make_codec('spectral')
  encode = lambda x: codec.network.apply(
    {'params': codec.variables['params']}, x, method='encode'
  )
  waveform = jnp.asarray(rng.standard_normal((1, 6 * 640)), jnp.float32)
  gradient = jax.grad(lambda x: encode(x)[0, 3].sum())(waveform)
  last = np.flatnonzero(np.asarray(gradient))[-1]
  # The window's very last sample has weight zero or nearly so.
  assert 4 * 640 + 470 < last < 4 * 640 + 480


def test_configurations_are_hashable_and_the_defaults_fit_the_rows():
  for config in (spectral.Config(), soundstream.Config()):
    assert hash(config) == hash(dataclasses.replace(config))
  config = spectral.Config()
  assert config.hop * config.stack == streams.get('spectral').hop
  assert np.prod(soundstream.Config().strides) == streams.get('soundstream').hop
