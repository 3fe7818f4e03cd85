"""DAC and EnCodec: what both share, and parity with transformers."""

import json
import wave

import gin
import jax
import numpy as np
import pytest

from tests import contracts
from tests import toy
from tests.golden import codecs as golden
from v2meow_jax import bundles
from v2meow_jax import cli
from v2meow_jax import errors
from v2meow_jax import extraction
from v2meow_jax import manifests
from v2meow_jax import pretrained
from v2meow_jax import sources
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


def test_silence_one_sample_and_what_is_no_number(codec, rng):
  # Two clips, as in the contract: nothing is compiled again.
  hop = codec.hop
  silence = np.asarray(codec.encode(np.zeros((2, 3 * hop), 'f4')))
  sound = np.asarray(codec.decode(silence))
  assert sound.shape == (2, 3 * hop) and np.isfinite(sound).all()
  one = np.asarray(codec.encode(np.ones((2, 1), 'f4')))
  assert one.shape == (2, 1, codec.spec.num_levels)
  for bad in (np.nan, np.inf):
    waveform = rng.uniform(-1, 1, (2, 3 * hop)).astype('f4')
    waveform[0, 7] = bad
    with pytest.raises(ValueError, match='holds NaN or infinity, expected sam'):
      codec.encode(waveform)
  with pytest.raises(ValueError, match=r'of shape \(1, 0\), expected \[batch,'):
    codec.encode(np.zeros((1, 0), 'f4'))
  with pytest.raises(ValueError, match=r'of shape \(8, 1, 640\), expected'):
    codec.encode(np.zeros((8, 1, 640), 'f4'))
  assert [*codec.encode_chunks([])] == []


def write_wav(path, channels, rate, seconds):
  """A sound of many channels, not all alike."""
  time = np.arange(round(seconds * rate)) / rate
  phases = np.arange(channels)
  sound = 0.5 * np.sin(2 * np.pi * 440 * time[:, None] + phases)
  with wave.open(str(path), 'wb') as file:
    file.setnchannels(channels)
    file.setsampwidth(2)
    file.setframerate(rate)
    file.writeframes((32767 * sound).astype('<i2').tobytes())


def test_from_the_command_to_records_and_a_bundle(
  name, codec, folder, tmp_path, capsys
):
  path = str(tmp_path / 'codec.safetensors')
  convert = ['weights', 'convert', ROWS[name], '--path', str(folder)]
  assert cli.main([*convert, '--out', path]) == 0
  assert cli.main(['weights', 'check', path]) == 0
  assert f'{path}: {ROWS[name]}, ' in capsys.readouterr().out
  # As `v2meow prepare --codec` does, of eight channels at 192 kHz.
  sound = tmp_path / 'sound.wav'
  write_wav(sound, channels=8, rate=192_000, seconds=0.25)
  plan = extraction.make_plan(
    (name,),
    codec=path,
    gin_files=(
      'visual/scene.gin',
      f'codecs/{name}.gin',
      'tokenizers/spectral.gin',
      'style/none.gin',
      'runs/prepare.gin',
    ),
  )
  try:
    made = extraction.extractors(plan)
  finally:
    gin.clear_config()
  extraction.try_out(made)
  clip = manifests.Clip('a', sound, 0.0, None, 'train', '')
  source = sources.FileSource(clip)
  (codes,) = extraction.make_part(source, made).arrays.values()
  rate = codec.sample_rate_hz
  assert codes.shape == (int(0.25 * codec.spec.rate_hz), codec.spec.num_levels)
  mono = source.sound(rate)
  assert mono.shape == (rate // 4,)
  np.testing.assert_array_equal(
    codec.encode(mono[None])[0, : len(codes)], codes
  )
  # And `python -m v2meow_jax.bundles pack`.
  first, *rest = toy.gin_files(tmp_path)
  files = [first, *rest[:2], f'codecs/{name}.gin', *rest[2:]]
  with bundles.read_recipe(files) as recipe:
    parts = toy.parts(recipe) | {'codec': weights.load_params(path)}
  bundle = bundles.load(bundles.save(tmp_path / 'bundle', files, parts))
  assert bundle.codec.spec == codec.spec
  assert bundle.codec.network == codec.network  # not gin's dimensions
  assert bundle.models[-1].stage.target.spec == codec.spec
  parts['codec'] = weights.without_config(parts['codec'])
  with pytest.raises(errors.UserError, match='Part `codec`: Weights do not f'):
    bundles.save(tmp_path / 'other', files, parts)
