import numpy as np
import pytest

from tests.metrics import signals
from v2meow_jax.metrics import reconstruction


def _sounds():
  return [signals.chords(n, 'major', 0.5, 1) for n in range(4)]


def test_noise_at_a_known_level():
  metric = reconstruction.Reconstruction()
  for number, sound in enumerate(_sounds()):
    noise = signals.noise(len(sound) / 16000, number)
    noise *= np.sqrt(np.mean(sound**2) / np.mean(noise**2))
    metric.update(
      f'{number}',
      sound,
      {'1': sound + 0.3162278 * noise, '4': sound + 0.1 * noise},
    )
  result = metric.result()
  assert result['num_clips'] == 4
  assert list(result['codings']) == ['1', '4']
  for levels, snr_db in (('1', 10), ('4', 20)):
    row = result['codings'][levels]
    assert row['snr_db']['value'] == pytest.approx(snr_db, abs=0.01)
    assert row['si_sdr_db']['value'] == pytest.approx(snr_db, abs=0.1)
    assert row['snr_db']['low'] <= row['snr_db']['value']
    assert row['snr_db']['value'] <= row['snr_db']['high']
  one, four = (result['codings'][k]['spectral_distance'] for k in ('1', '4'))
  assert one['low'] > four['high']


def test_si_sdr_ignores_gain_and_snr_does_not():
  metric = reconstruction.Reconstruction()
  for number, sound in enumerate(_sounds()):
    noise = signals.noise(len(sound) / 16000, number, 1e-3)
    metric.update(f'{number}', sound, {'1': 0.5 * (sound + noise)})
  row = metric.result()['codings']['1']
  assert row['snr_db']['value'] == pytest.approx(6.02, abs=0.05)
  assert row['si_sdr_db']['value'] > 35


def test_longer_decoded_sound_is_cut():
  metric = reconstruction.Reconstruction()
  for number, sound in enumerate(_sounds()[:3]):
    padded = np.concatenate([sound, np.ones(640, np.float32)])
    metric.update(f'{number}', sound, {'1': padded})
  values = metric.result()['codings']['1']
  assert values['spectral_distance']['value'] == pytest.approx(0, abs=1e-5)


def test_errors():
  metric = reconstruction.Reconstruction()
  sound = _sounds()[0]
  with pytest.raises(ValueError) as error:
    metric.update('a', sound, {'1': sound[:100]})
  assert str(error.value) == (
    f'Clip `a`: 100 decoded samples of {len(sound)}, expected as many numbers. '
    'Check the codec.'
  )
  metric.update('a', sound, {'1': sound})
  with pytest.raises(ValueError) as error:
    metric.update('b', sound, {'1': sound, '2': sound})
  assert str(error.value) == (
    'Clip `b` is coded as 1, 2, expected 1 as the clips before. Code all '
    'clips alike.'
  )
