"""The command that fits clusters: exact resume, bad files, what it says."""

import numpy as np
import pytest
import soundfile

from v2meow_jax import errors
from v2meow_jax import manifests
from v2meow_jax import streams
from v2meow_jax import weights
from v2meow_jax.tokenizers import base
from v2meow_jax.tokenizers import fit
from v2meow_jax.tokenizers import fitting
from v2meow_jax.tokenizers import spectral

NUM_CLIPS = 7


class Loudness(base.ClusterTokenizer):
  """Two numbers a position; counts how often it listens."""

  spec = streams.StreamSpec('loud', 25, num_codes=16, sample_rate_hz=16000)
  num_features = 2

  def __init__(self, params, stop_at=None):
    super().__init__(params)
    self.num_heard, self._stop_at = 0, stop_at

  def features(self, waveform):
    if self.num_heard == self._stop_at:
      raise KeyboardInterrupt
    self.num_heard += 1
    time = -(-len(waveform) // self.spec.hop)
    padded = np.pad(waveform, (0, time * self.spec.hop - len(waveform)))
    frames = padded.reshape(time, -1)
    return np.stack([100 * frames.mean(1), frames.std(1)], 1).astype('f4')


@pytest.fixture
def manifest(tmp_path, rng):
  rows = ['file,split']
  for i in range(NUM_CLIPS):
    envelope = np.repeat(rng.uniform(0.01, 0.4, 25), 640)
    samples = envelope * rng.standard_normal(16000)
    soundfile.write(tmp_path / f'{i}.wav', samples.clip(-1, 1), 16000)
    rows.append(f'{i}.wav,train')
  rows.append('missing.wav,test')
  path = tmp_path / 'm.csv'
  path.write_text('\n'.join(rows))
  return path


def _settings(**changes):
  return fitting.Settings(
    **{
      'start_seconds': 2,
      'epochs': 2,
      'shard_clips': 3,
      'batch_size': 20,
      **changes,
    }
  )


def test_a_fit_that_was_stopped_ends_as_one_that_was_not(manifest, tmp_path):
  run = lambda name, tokenizer: fit.fit(
    manifest, str(tmp_path / name), tokenizer, {'w': np.ones(2)}, _settings()
  )
  report = run('whole', Loudness)
  whole = weights.load_params(tmp_path / 'whole')
  # Before the first shard is saved, in the middle of the second, in epoch 2.
  for stop_at in (3, 7, 6):
    with pytest.raises(KeyboardInterrupt):
      run('parts', lambda params, n=stop_at: Loudness(params, n))
  assert (tmp_path / 'parts.state').exists()
  heard = []
  again = run(
    'parts', lambda params: heard.append(Loudness(params)) or heard[0]
  )
  assert heard[0].num_heard <= NUM_CLIPS + 4  # and not all of two epochs
  assert again == report
  parts = weights.load_params(tmp_path / 'parts')
  assert parts.keys() == {'w', 'mean', 'scale', 'centres'}
  for name, value in whole.items():
    np.testing.assert_array_equal(parts[name], value)
  assert not (tmp_path / 'parts.state').exists()
  assert 0.5 < report['used'] <= 1
  assert 1 < report['perplexity'] <= 16
  tokens = Loudness(whole).encode(np.ones((1, 1280), 'f4'))
  assert tokens.shape == (1, 2, 1)


def test_features_are_standardised(manifest, tmp_path):
  out = tmp_path / 'out'
  fit.fit(manifest, str(out), Loudness, {}, _settings(start_seconds=100))
  params = weights.load_params(out)
  points = np.concatenate(
    [
      Loudness({}).features(fitting.sources.FileSource(clip).sound(16000))
      for clip in manifests.read(manifest)[:NUM_CLIPS]
    ]
  )
  scaled = (points - params['mean']) * params['scale']
  np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(scaled.std(0), 1, atol=1e-3)


def test_state_of_another_fit_is_refused(manifest, tmp_path):
  out = str(tmp_path / 'out')
  with pytest.raises(KeyboardInterrupt):
    fit.fit(manifest, out, lambda p: Loudness(p, 6), {}, _settings())
  with pytest.raises(
    errors.UserError, match='is the state of a fit with another manifest'
  ):
    fit.fit(manifest, out, Loudness, {}, _settings(seed=1))


def test_a_bad_file_is_left_out_and_counted(manifest, tmp_path, caplog):
  (tmp_path / '3.wav').write_bytes(b'no sound')
  fit.fit(manifest, str(tmp_path / 'out'), Loudness, {}, _settings(epochs=1))
  assert '1 clips could not be read' in caplog.text
  for i in range(NUM_CLIPS):
    (tmp_path / f'{i}.wav').unlink()
  with pytest.raises(errors.UserError, match='None of 7 clips can be read'):
    fit.fit(manifest, str(tmp_path / 'no'), Loudness, {}, _settings())


def test_encoding_without_a_fit_says_what_is_missing():
  with pytest.raises(errors.UserError, match='has no clusters, expected weigh'):
    Loudness({}).encode(np.zeros((1, 640), 'f4'))
  with pytest.raises(errors.UserError, match='Clusters of tokenizer `loud`'):
    Loudness({'mean': np.zeros(3)})


def test_the_command_fits_the_bundled_tokenizer(tmp_path, rng, capsys):
  rows = ['file,split']
  for i in range(3):
    samples = 0.1 * rng.standard_normal(16000 * 10)
    # Notes of random loudness: 512 clusters want points that differ.
    samples[::4000] *= 3
    soundfile.write(tmp_path / f'{i}.wav', samples.clip(-1, 1), 16000)
    rows.append(f'{i}.wav,train')
  (tmp_path / 'm.csv').write_text('\n'.join(rows))
  argv = [f'--manifest={tmp_path / "m.csv"}']
  out = tmp_path / 'tokenizer.safetensors'
  assert fit.main([*argv, f'--out={out}']) == 0
  assert capsys.readouterr().out == f'{out}\n'
  params = weights.load_params(out)
  tokens = spectral.Spectral(params).encode(rng.standard_normal((1, 16000)))
  assert tokens.shape == (1, 25, 1)
  assert fit.main([*argv, f'--out={out}', '--start_seconds=5']) == 1
  assert 'at least 512 points' in capsys.readouterr().err
  nothing = tmp_path / 'none.csv'
  nothing.write_text('file,split\na.wav,test\n')
  assert fit.main([f'--manifest={nothing}', f'--out={out}']) == 1
  assert 'no clips of split `train`' in capsys.readouterr().err
