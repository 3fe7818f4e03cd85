"""DAC and EnCodec: what both share, and parity with transformers."""

import json

import jax
import numpy as np
import pytest

from tests import contracts
from tests.golden import codecs as golden
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weight_files
from v2meow_jax import weights
from v2meow_jax.codecs import base
from v2meow_jax.codecs import dac
from v2meow_jax.codecs import encodec
from v2meow_jax.codecs import published

ROWS = {'dac': 'dac_16khz', 'encodec': 'encodec_24khz'}
CLASSES = {'dac': dac.Dac, 'encodec': encodec.Encodec}


@pytest.fixture(scope='module', autouse=True)
def quick_compiler():
  """Compiles in two thirds of the time."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


@pytest.fixture(scope='module', params=golden.CODECS)
def name(request):
  return request.param


@pytest.fixture(scope='module')
def recorded(name):
  """Config, arrays under their names, and what transformers makes of them."""
  config, shapes, found = golden.read(name)
  return config, golden.make_arrays(shapes), found


@pytest.fixture(scope='module')
def folder(name, recorded, tmp_path_factory):
  config, arrays, _ = recorded
  return golden.write_folder(tmp_path_factory.mktemp(name), config, arrays)


@pytest.fixture(scope='module')
def params(name, folder):
  return pretrained.load(ROWS[name], folder)


@pytest.fixture(scope='module')
def codec(name, params):
  return CLASSES[name](params)


def check_parity(codec, waveform, codes, decoded):
  """Compares with what transformers has made."""
  np.testing.assert_array_equal(codec.encode(waveform), codes)
  ours = np.asarray(codec.decode(codes))
  length = decoded.shape[1]
  # Measured: 3e-6 of the largest sample.
  np.testing.assert_allclose(ours[:, :length], decoded, atol=1e-5)
  # An odd stride costs DAC samples at the end; no other is missing.
  assert ours.shape == waveform.shape
  assert length >= ours.shape[1] - 64
  np.testing.assert_array_equal(ours[:, length:], 0)


def test_golden_files_chunk_by_chunk(name, codec, recorded, monkeypatch):
  """What lies in other chunks, before the clip and behind it, is seen."""
  monkeypatch.setattr(base, 'CHUNK', golden.CHUNK[name])
  for length in golden.LENGTHS:
    found = recorded[2]
    check_parity(
      codec,
      golden.make_waveform(length),
      found[f'codes_{length}'],
      found[f'decoded_{length}'],
    )
  # And where the pieces are cut decides nothing.
  waveform = golden.make_waveform(23)
  pieces = codec.encode_chunks(np.split(waveform, [0, 1, 2000, 7000], axis=1))
  np.testing.assert_array_equal(
    np.concatenate([*pieces], axis=1), codec.encode(waveform)
  )
  codes = found['codes_23']
  pieces = codec.decode_chunks(np.split(codes, [1, 8, 8, 20], axis=1))
  np.testing.assert_array_equal(
    np.concatenate([*pieces], axis=1), codec.decode(codes)
  )


def test_golden_files_as_a_whole(codec, recorded):
  """The network itself, without chunks or a stream."""
  found = recorded[2]
  waveform, codes = golden.make_waveform(23), found['codes_23']
  latents, ours = jax.jit(
    lambda waveform: (
      codec.quantize(waveform),
      codec.network.apply(
        {'params': codec.variables['params']},
        codec.latents(codes),
        method='decode',
      ),
    )
  )(waveform)
  np.testing.assert_allclose(latents, codec.latents(codes), atol=1e-5)
  decoded = found['decoded_23']
  np.testing.assert_allclose(ours[:, : decoded.shape[1]], decoded, atol=1e-5)


@pytest.mark.pretrained
def test_live_model_at_other_dimensions(name, tmp_path, monkeypatch):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  dimensions = {
    'dac': dict(
      encoder_hidden_size=3,
      decoder_hidden_size=48,
      downsampling_ratios=[2, 4, 5, 8],
      n_codebooks=12,
      codebook_dim=4,
    ),
    'encodec': dict(
      num_filters=4,
      hidden_size=12,
      upsampling_ratios=[8, 5, 4, 2],
      num_lstm_layers=1,
    ),
  }[name]
  model, arrays = golden.make_model(name, **dimensions)
  config = model.config.to_dict()
  golden.write_folder(tmp_path, config, arrays)
  codec = CLASSES[name](pretrained.load(ROWS[name], tmp_path))
  monkeypatch.setattr(base, 'CHUNK', 10)
  waveform = golden.make_waveform(17)
  check_parity(codec, waveform, *golden.compute(model, waveform))


def test_codec_keeps_the_contract(codec):
  contracts.check_codec(codec)


def test_weight_norm_in_both_spellings(name, recorded, rng):
  _, arrays, _ = recorded
  plain = published.without_weight_norm(arrays)
  new = {'g': 'parametrizations.weight.original0'}
  new['v'] = new['g'][:-1] + '1'
  spelt = {letter: {} for letter in ('old', 'new')}
  for key, array in plain.items():
    if array.ndim != 3 or not key.endswith('weight'):
      for found in spelt.values():
        found[key] = array
      continue
    stem = key.removesuffix('weight')
    # Along all axes but the first, as in PyTorch, of a direction of any length.
    norm = np.sqrt((array.astype('f8') ** 2).sum((1, 2), keepdims=True))
    direction = (array * rng.uniform(0.5, 2, norm.shape)).astype('f4')
    spelt['old'] |= {f'{key}_g': norm.astype('f4'), f'{key}_v': direction}
    spelt['new'] |= {stem + new['g']: norm.astype('f4')}
    spelt['new'] |= {stem + new['v']: direction}
  for found in spelt.values():
    assert len(found) > len(plain)
    again = published.without_weight_norm(found)
    assert again.keys() == plain.keys()
    for key, array in plain.items():
      np.testing.assert_allclose(again[key], array, rtol=1e-5, err_msg=key)


def test_a_direction_without_its_length_is_listed(recorded):
  kept = {'conv.weight_v': np.ones((2, 3, 4), 'f4')}
  assert published.without_weight_norm(kept) == kept


@pytest.mark.parametrize('name', golden.CODECS)
def test_weights_of_the_other_codec_are_refused(name):
  (other,) = set(golden.CODECS) - {name}
  config, shapes, _ = golden.read(name)
  _, others, _ = golden.read(other)
  row = pretrained.get_checkpoint(ROWS[name])
  arrays = golden.make_arrays(others)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weight_files, 'read_json', lambda path: config)
    patch.setattr(weight_files, 'read', lambda path: dict(arrays))
    with pytest.raises(errors.UserError) as error:
      row.convert(dict.fromkeys(row.files, 'nowhere'))
  text = str(error.value)
  assert text.startswith(f'Weights of {row.name} do not fit: missing `')
  # Everything is in the list.
  wanted = published.without_weight_norm(golden.make_arrays(shapes))
  books = [k for k in shapes if k.startswith('quantizer.layers')]
  for key in wanted.keys() - {k for k in books if 'embed' != k[-5:]}:
    level = int(key.split('.')[2]) if key in books else 0
    assert (f'missing `{key}` (for ' in text) == (level < 8), key
  assert 'unexpected `decoder.' in text and 'unexpected `encoder.' in text


def test_converted_weights_of_the_other_codec_are_refused(name, params):
  (other,) = set(golden.CODECS) - {name}
  with pytest.raises(errors.UserError, match='The config of the weights holds'):
    CLASSES[other](params)
  with pytest.raises(errors.UserError) as error:
    CLASSES[other](weights.without_config(params))
  text = str(error.value)
  for part in ('missing `params/', 'unexpected `params/', ' has shape (', '`q'):
    assert part in text


def test_files_that_are_damaged(name, recorded, folder, tmp_path):
  config, arrays, _ = recorded
  golden.write_folder(tmp_path, config, arrays)
  whole = (tmp_path / 'model.safetensors').read_bytes()
  (tmp_path / 'model.safetensors').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(
    errors.UserError, match='model.safetensors: cannot be read.*Fetch the file'
  ):
    pretrained.load(ROWS[name], tmp_path)
  lacking = {k: v for k, v in config.items() if k != 'sampling_rate'}
  (tmp_path / 'config.json').write_text(json.dumps(lacking))
  with pytest.raises(
    errors.UserError, match='says nothing of sampling_rate, expected the conf'
  ):
    pretrained.load(ROWS[name], tmp_path)
  # An array of another shape is found too.
  key = 'encoder.conv1.bias' if name == 'dac' else 'encoder.layers.0.conv.bias'
  golden.write_folder(tmp_path, config, arrays | {key: np.zeros(5, 'f4')})
  with pytest.raises(
    errors.UserError,
    match=r'`params/encoder/conv_in/conv/bias` has shape \(5,\), expected',
  ):
    pretrained.load(ROWS[name], tmp_path)


@pytest.mark.parametrize(
  'name, change, message',
  [
    (
      'dac',
      {'downsampling_ratios': [2, 4, 8, 8], 'n_codebooks': 9},
      'another codec than `dac`: hop 512, expected 320; num_levels 9, expected '
      '12. Use the',
    ),
    (
      'dac',
      {'sampling_rate': 44100},
      'sample_rate_hz 44100, expected 16000. Use the',
    ),
    (
      'encodec',
      {'normalize': True, 'audio_channels': 2},
      'a variant of EnCodec that is not built: audio_channels 2, expected 1; '
      'normalize True, expected False. Use facebook/encodec_24khz.',
    ),
    (
      'encodec',
      {'upsampling_ratios': [8, 5, 4, 4], 'sampling_rate': 32000},
      'another codec than `encodec`: sample_rate_hz 32000, expected 24000; '
      'hop 640, expected 320. Use the',
    ),
    (
      'encodec',
      {'target_bandwidths': [2.25]},
      'num_levels 3, expected 8. Use the',
    ),
  ],
)
def test_another_geometry_is_refused(name, change, message, tmp_path):
  config, _, _ = golden.read(name)
  golden.write_folder(tmp_path, config | change, {'a': np.zeros(1)})
  with pytest.raises(errors.UserError) as error:
    pretrained.load(ROWS[name], tmp_path)
  assert message in str(error.value)
  assert str(error.value).startswith(str(tmp_path / 'config.json'))


def test_silence_noise_and_what_is_no_number(codec, rng):
  hop = codec.hop
  silence = np.asarray(codec.encode(np.zeros((1, 3 * hop), 'f4')))
  sound = np.asarray(codec.decode(silence))
  assert sound.shape == (1, 3 * hop) and np.isfinite(sound).all()
  one = np.asarray(codec.encode(np.ones((1, 1), 'f4')))
  assert one.shape == (1, 1, codec.spec.num_levels)
  for bad in (np.nan, np.inf):
    waveform = rng.uniform(-1, 1, (1, 3 * hop)).astype('f4')
    waveform[0, 7] = bad
    with pytest.raises(ValueError, match='holds NaN or infinity, expected sam'):
      codec.encode(waveform)
  with pytest.raises(ValueError, match=r'of shape \(1, 0\), expected \[batch,'):
    codec.encode(np.zeros((1, 0), 'f4'))
  with pytest.raises(ValueError, match=r'of shape \(8, 1, 640\), expected'):
    codec.encode(np.zeros((8, 1, 640), 'f4'))
  assert [*codec.encode_chunks([])] == []
