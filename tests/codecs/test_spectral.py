"""The spectral codecs, and what every codec must satisfy."""

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
from v2meow_jax.codecs import spectra
from v2meow_jax.codecs import spectral
from v2meow_jax.codecs import spectrogram
from v2meow_jax.toy import clips

TINY = spectra.Config(
  width=8, expansion=1, encoder_blocks=1, decoder_blocks=2, num_features=4
)
TINY_SOUNDSTREAM = soundstream.Config(
  channels=1, dilations=(1,), num_features=4
)


TINY_SPECTROGRAM = spectrogram.Config(
  width=8, expansion=1, encoder_blocks=1, decoder_blocks=2, num_features=4
)
CODECS = {
  'spectral': (spectral.Network, spectral.SpectralCodec, TINY),
  'spectrogram': (
    spectrogram.Network,
    spectrogram.SpectrogramCodec,
    TINY_SPECTROGRAM,
  ),
  'soundstream': (
    soundstream.Network,
    soundstream.SoundStream,
    TINY_SOUNDSTREAM,
  ),
}


def make_codec(name):
  """A tiny codec with random weights."""
  network, make, config = CODECS[name]
  network = network(config)
  spec = streams.get(name)
  key = jax.random.PRNGKey(0)
  waveform = jnp.zeros((1, 2 * spec.hop))
  # Compiled, parameters alone are computed.
  init = lambda key: network.init(key, waveform, mutable=['params'])['params']
  params = jax.jit(init)(key)
  latents = jax.eval_shape(
    lambda p: network.apply({'params': p}, waveform, method='encode'), params
  )
  codebooks = 0.3 * jax.random.normal(
    key, (spec.num_levels, spec.num_codes, latents.shape[-1])
  )
  return make({'params': params, 'quantizer': {'codebooks': codebooks}}, config)


@pytest.fixture(scope='module', params=list(CODECS))
def codec(request):
  return make_codec(request.param)


def test_codec_keeps_the_contract(codec):
  contracts.check_codec(codec)


def test_encode_in_chunks_is_the_encoding_of_the_whole(codec, rng, monkeypatch):
  monkeypatch.setattr(base, 'CHUNK', 7)
  hop = codec.hop
  waveform = rng.uniform(-0.5, 0.5, (2, 23 * hop)).astype('f4')
  cuts = [*range(100, 3 * hop, 211), 17 * hop]
  codes = np.concatenate(
    [*codec.encode_chunks(np.split(waveform, cuts, axis=1))], axis=1
  )
  # The network itself, without padding, chunks or a compiled length: other
  # shapes round differently, so a latent may fall to the next code.
  encode = lambda params, waveform: codec.network.apply(
    {'params': params}, waveform, method='encode'
  )
  latents = jax.jit(encode)(codec.variables['params'], waveform)
  expected = base.rvq.encode(latents, codec.variables['quantizer']['codebooks'])
  assert codes.shape == expected.shape
  assert (codes != expected).mean() < 0.01  # measured 0


def test_decode_in_chunks_is_the_decoding_of_the_whole(codec, rng, monkeypatch):
  monkeypatch.setattr(base, 'CHUNK', 7)
  spec = codec.spec
  codes = rng.integers(0, spec.num_codes, (2, 23, spec.num_levels))
  # The network itself, without padding, chunks or a compiled length.
  decode = lambda params, latents: codec.network.apply(
    {'params': params}, latents, method='decode'
  )
  whole = jax.jit(decode)(
    codec.variables['params'],
    base.rvq.decode(codes, codec.variables['quantizer']['codebooks']),
  )
  decoded = codec.decode(codes)
  assert decoded.shape == whole.shape
  if (
    codec.spec.name != 'spectrogram'
  ):  # its search for phase amplifies rounding
    np.testing.assert_allclose(decoded, whole, atol=2e-5)
  for cuts in ([], [7, 14], [1, 2, 13], [22]):
    pieces = list(codec.decode_chunks(np.split(codes, cuts, axis=1)))
    together = np.concatenate(pieces, axis=1)
    np.testing.assert_array_equal(together, decoded)


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
  inverse = spectra.InverseStft(1280, 320)
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

  gradient_of = jax.jit(
    jax.grad(lambda x, sample: decode(x)[0, sample])  # one program for all
  )

  def reached(sample):
    gradient = np.asarray(gradient_of(latents, sample))
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
  gradient = jax.jit(jax.grad(lambda x: encode(x)[0, 3].sum()))(waveform)
  last = np.flatnonzero(np.asarray(gradient))[-1]
  # The window's very last sample has weight zero or nearly so.
  assert 4 * 640 + 470 < last < 4 * 640 + 480


def test_configurations_are_hashable_and_the_defaults_fit_the_rows():
  for _, _, config in CODECS.values():
    assert hash(config) == hash(dataclasses.replace(config))
  for name in ('spectral', 'spectrogram'):
    config = CODECS[name][2]
    assert config.hop * config.stack == streams.get(name).hop
  assert np.prod(soundstream.Config().strides) == streams.get('soundstream').hop


def _spectra(waveform):
  """Spectra of Hann windows centred on their hops: complex `[time, bins]`."""
  frames = np.lib.stride_tricks.sliding_window_view(
    np.pad(waveform, (480, 480)), 1280
  )[::320]
  return np.fft.rfft(frames * losses.hann_window(1280)).astype('c8')


def _search(waveform, iterations=8, momentum=1.0):
  search = spectrogram.PhaseSearch(1280, 320, 3, iterations, momentum)
  magnitudes = np.abs(_spectra(waveform))[None]
  found = search.apply({}, magnitudes, np.ones(magnitudes.shape[:2], 'f4'))
  return np.asarray(spectra.InverseStft(1280, 320).apply({}, *found))


@pytest.fixture(scope='module')
def music():
  """Two seconds of toy music: drums, bass, chords."""
  return clips.make_clip(0, 3, 4.0, 'numpy').waveform[16000:48000]


def test_phase_search_finds_a_sound_with_these_magnitudes(music):
  found = _search(music)[0]
  wanted = np.abs(_spectra(music))
  error = lambda sound: (
    np.linalg.norm(np.abs(_spectra(sound)) - wanted) / np.linalg.norm(wanted)
  )
  assert error(found) < 0.03  # measured .019: -34 dB
  rounds = [error(_search(music, n)[0]) for n in (1, 2, 8)]
  assert rounds == sorted(rounds, reverse=True)
  assert error(found) < 0.7 * error(_search(music, momentum=0.0)[0])  # .53
  # The magnitudes with random phase: .5.
  rng = np.random.default_rng(0)
  random = np.exp(2j * np.pi * rng.random(wanted.shape))
  inverse = spectra.InverseStft(1280, 320)
  noise = inverse.apply(
    {}, (wanted * random).astype('c8')[None], np.ones((1, len(wanted)), 'f4')
  )
  assert error(found) < 0.3 * error(np.asarray(noise)[0])


def test_phase_search_in_chunks_is_that_of_the_whole(music):
  magnitudes = np.abs(_spectra(music))[None]
  search = spectrogram.PhaseSearch(1280, 320, 3, 4, 1.0)
  valid = np.ones(magnitudes.shape[:2], 'f4')
  whole, _ = search.apply({}, magnitudes, valid)
  np.testing.assert_allclose(np.abs(whole), magnitudes, atol=1e-3)
  _, shapes = jax.eval_shape(
    lambda m, v: search.apply({'stream': {}}, m, v, mutable=['stream']),
    magnitudes[:, :25],
    valid[:, :25],
  )
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  pieces, valids = [], []
  for first in range(0, magnitudes.shape[1], 25):
    piece = slice(first, first + 25)
    (made, late), state = search.apply(
      state, magnitudes[:, piece], valid[:, piece], mutable=['stream']
    )
    pieces.append(made)
    valids.append(late)
  together = np.concatenate(pieces, axis=1)
  np.testing.assert_allclose(together[:, 3:], whole[:, :-3], atol=1e-4)
  np.testing.assert_array_equal(together[:, :3], 0)
  # The three frames before the first one do not exist.
  np.testing.assert_array_equal(
    np.concatenate(valids, axis=1)[0, :4], [0, 0, 0, 1]
  )


def test_gradient_passes_the_search_by(music):
  magnitudes = np.abs(_spectra(music[:6400]))[None]
  search = spectrogram.PhaseSearch(1280, 320, 3, 2, 1.0)
  valid = np.ones(magnitudes.shape[:2], 'f4')
  power = lambda m: jnp.square(jnp.abs(search.apply({}, m, valid)[0])).sum()
  np.testing.assert_allclose(
    jax.grad(power)(magnitudes), 2 * magnitudes, rtol=1e-3, atol=1e-3
  )


def test_phase_search_keeps_a_tone_a_tone():
  tone = 0.3 * np.sin(2 * np.pi * 443.7 * np.arange(16000) / 16000)
  found = _search(tone.astype('f4'))[0, 3200:-3200]
  power = np.abs(np.fft.rfft(found * np.hanning(len(found)))) ** 2
  hertz = np.fft.rfftfreq(len(found), 1 / 16000)
  # All but 1 % of its power lies within 10 Hz of the tone.
  assert power[np.abs(hertz - 443.7) < 10].sum() > 0.99 * power.sum()
  assert np.sqrt(2 * np.mean(found**2)) == pytest.approx(0.3, rel=0.03)


def test_reconstruction_with_perfect_magnitudes_is_the_original(music):
  codec = make_codec('spectrogram')
  wanted = np.abs(_spectra(music))[None]

  class Perfect(spectrogram.Network):
    def magnitudes(self, latents):
      return jnp.asarray(wanted)

  network = Perfect(TINY_SPECTROGRAM)
  waveform = music[None]
  variables = {'params': codec.variables['params']}
  apply = lambda *args, method: np.asarray(
    network.apply(variables, *args, method=method)
  )
  latents = np.zeros((1, len(music) // 640, 8), 'f4')
  same = apply(latents, waveform, method='reconstruct')
  np.testing.assert_allclose(same, waveform, atol=1e-3)
  # Decoding has only the magnitudes: other samples, a like sound.
  decoded = apply(latents, method='decode')
  distance = float(losses.spectral_distance(waveform, decoded)[0])
  assert distance < 0.35
  assert losses.snr_db(waveform, decoded)[0] < 6
