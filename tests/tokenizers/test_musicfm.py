"""MusicFM against torch, librosa and transformers, and its loader."""

import json

import jax
import numpy as np
import pytest

from tests import contracts
from tests.golden import conformers
from tests.tokenizers import published
from v2meow_jax import errors
from v2meow_jax import pretrained
from v2meow_jax import weights
from v2meow_jax.tokenizers import musicfm

CHOICES = dict(layer=1, window_seconds=0.4, context_seconds=0.08)
PREFIX = 'state_dict.model.'


def _checkpoint(seed=0):
  """The arrays as they lie in the checkpoint, and some that nothing needs."""
  golden, arrays = published.read('musicfm', seed)
  arrays = {PREFIX + name: array for name, array in arrays.items()}
  arrays[f'{PREFIX}conv.conv.0.bn1.num_batches_tracked'] = np.array(3)
  arrays[f'{PREFIX}quantizer_melspec_2048_0.codebook'] = np.zeros((8, 2), 'f4')
  arrays['callbacks.best'] = np.array(1.0)
  return golden, arrays


@pytest.mark.parametrize('is_live', published.GOLDEN_AND_LIVE)
def test_matches_torch(is_live):
  golden, arrays = _checkpoint(seed=int(is_live))
  if is_live:
    golden = published.compute('musicfm', seed=1)
  waveform = conformers.make_waveform(9600, seed=int(is_live))
  mels = musicfm.log_mel(waveform)
  # Measured: 2e-7.
  assert published.error(mels, golden['mels']) < 2e-6
  variables = musicfm.translate(arrays, conformers.STATS)
  config = weights.configure(musicfm.Config(), variables)
  assert (config.conv_dim, config.num_heads, config.mlp_dim) == (4, 1, 24)
  # A window of the same length, of which all is heard. The first layer is the
  # convolutions, the last one has all blocks before it.
  for layer in (0, 2):
    choices = musicfm.Config(**CHOICES | {'layer': layer})
    tokenizer = musicfm.MusicFm(variables, choices)
    # Measured: 1e-6.
    assert (
      published.error(tokenizer.features(waveform), golden[f'layer_{layer}'])
      < 8e-6
    )


def test_padding_changes_nothing(rng):
  variables = musicfm.translate(_checkpoint()[1], conformers.STATS)
  config = musicfm.Config(layer=0)  # test_conformer.py has the blocks
  network = musicfm.Network(weights.configure(config, variables))
  frames = rng.standard_normal((1, 8, 4, 128)).astype('f4')
  mask = np.arange(8)[None] < 5
  filled = np.where(mask[..., None, None], frames, np.nan)
  params = {'params': variables['params']}
  run = jax.jit(network.apply)
  found = run(params, filled, mask)[:, :5]
  alone = run(params, frames[:, :5], mask[:, :5])
  # Measured: 2e-6 of values up to 3.
  np.testing.assert_allclose(found, alone, atol=1e-5)


def test_makes_tokens(rng):
  variables = musicfm.translate(_checkpoint()[1], conformers.STATS)
  row = pretrained.get_checkpoint('musicfm_msd')
  variables = pretrained.check(row, variables)
  config = musicfm.Config(**CHOICES)
  tokenizer = musicfm.MusicFm(variables, config=config)
  fitted = published.add_fit(
    tokenizer, rng.uniform(-0.5, 0.5, 48000).astype('f4')
  )
  pretrained.check(row, fitted)
  tokenizer = musicfm.MusicFm(fitted, config)
  contracts.check_tokenizer(tokenizer)
  assert tokenizer.encode(np.zeros((1, 24000))).shape == (1, 25, 1)


@pytest.mark.pretrained
def test_reads_the_published_files(tmp_path):
  torch = pytest.importorskip('torch', reason='missing: package torch')
  arrays = published.read('musicfm')[1]
  state = {f'model.{n}': torch.tensor(x) for n, x in arrays.items()}
  torch.save({'state_dict': state, 'epoch': 3}, tmp_path / 'pretrained_fma.pt')
  (tmp_path / 'fma_stats.json').write_text(json.dumps(conformers.STATS))
  found = pretrained.load('musicfm_fma', tmp_path)
  expected = musicfm.translate(_checkpoint()[1], conformers.STATS)
  np.testing.assert_array_equal(
    found['params']['projection']['kernel'],
    expected['params']['projection']['kernel'],
  )
  path = tmp_path / 'pretrained_fma.pt'
  path.write_bytes(path.read_bytes()[:-1000])
  with pytest.raises(errors.UserError, match='expected a PyTorch file of tens'):
    pretrained.load('musicfm_fma', tmp_path)


def test_published_geometry():
  """The defaults are the published dimensions."""
  shapes = pretrained.get_checkpoint('musicfm_fma').expected({})['params']
  assert shapes['projection']['kernel'].shape == (32 * 512, 1024)
  assert shapes['residual_1']['conv2']['kernel'].shape == (3, 3, 512, 512)
  layers = [n for n in shapes['conformer'] if n.startswith('layers_')]
  assert len(layers) == 12
  assert shapes['conformer']['layers_0']['mlp_0']['wi']['kernel'].shape == (
    1024, 4096,
  )  # fmt: skip


def test_another_checkpoint_is_refused():
  arrays = _checkpoint()[1]
  del arrays[f'{PREFIX}conv.linear.bias']
  arrays[f'{PREFIX}decoder.weight'] = np.zeros((2, 3), 'f4')
  with pytest.raises(errors.UserError) as error:
    musicfm.translate(arrays, conformers.STATS)
  assert str(error.value) == (
    'Weights of MusicFM do not fit: missing `conv.linear.bias` (for '
    '`projection/bias`); unexpected `decoder.weight` of shape (2, 3). Use the '
    'checkpoint that this converter is for.'
  )
  # Nothing of it at all: every name is listed.
  with pytest.raises(errors.UserError, match='missing `conv.linear.weight`'):
    musicfm.translate({'weight': np.zeros(3)}, conformers.STATS)
  with pytest.raises(errors.UserError) as error:
    musicfm.translate(_checkpoint()[1], {'melspec_2048_mean': 3.0})
  assert str(error.value) == (
    "The statistics of MusicFM have no number 'melspec_2048_std', expected "
    'melspec_2048_mean and melspec_2048_std. Use the JSON file beside its '
    'weights.'
  )
