"""Discriminators against SciPy, and the losses against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import discriminators as references
from v2meow_jax.codecs import discriminators

TINY = discriminators.Config(
  scales=(1, 4),
  wave_channels=4,
  wave_max_channels=16,
  wave_strides=(4, 2),
  wave_group_size=2,
  stft_window=64,
  stft_hop=16,
  stft_channels=2,
)


@pytest.fixture(scope='module')
def judged():
  """Parameters that are all other than zero, waveforms, judgements."""
  module = discriminators.Discriminators(TINY)
  rng = np.random.default_rng(0)
  waveform = rng.standard_normal((2, 333)).astype('f4')
  shapes = jax.eval_shape(module.init, jax.random.PRNGKey(0), waveform)
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype('f4') / max(x.size, 9) ** 0.5,
    shapes['params'],
  )
  return params, waveform, jax.jit(module.apply)({'params': params}, waveform)


def test_discriminators_match_scipy(judged):
  params, waveform, judgements = judged
  assert set(params) == {'stft', 'wave_1', 'wave_4'}
  assert len(judgements) == 3
  for clip in range(2):
    expected = [
      references.stft(params['stft'], waveform[clip], TINY),
      references.wave(params['wave_1'], waveform[clip], TINY, 1),
      references.wave(params['wave_4'], waveform[clip], TINY, 4),
    ]
    for ours, (logits, features) in zip(judgements, expected, strict=True):
      # Measured 6e-7.
      np.testing.assert_allclose(ours.logits[clip], logits, atol=5e-6)
      for a, b in zip(ours.features, features, strict=True):
        np.testing.assert_allclose(a[clip], b, atol=5e-6)


def test_sizes_are_the_papers():
  module = discriminators.Discriminators()
  waveform = jax.ShapeDtypeStruct((1, 16384), jnp.float32)
  judged, variables = jax.eval_shape(
    lambda w: module.init_with_output(jax.random.PRNGKey(0), w), waveform
  )
  stft, *waves = judged
  # Section III-D: T / (H 2^3) x F / 2^6, and logits over time alone.
  assert stft.features[0].shape == (1, 65, 512, 32)
  assert stft.features[-1].shape == (1, 9, 8, 512)
  assert stft.logits.shape == (1, 9)
  assert len(stft.features) == 7
  for scale, wave in zip((1, 2, 4), waves, strict=True):
    widths = [f.shape[-1] for f in wave.features]
    assert widths == [16, 64, 256, 1024, 1024, 1024]
    assert wave.logits.shape == (1, 16384 // scale // 4**4)
  kernel = variables['params']['wave_1']['down_2']['kernel']
  assert kernel.shape == (41, 4, 1024)  # a group has 4 inputs


def judgements(rng, num_clips=3):
  """Two discriminators with layers of different sizes."""
  draw = lambda *shape: rng.standard_normal(shape).astype('f4')
  return [
    discriminators.Judgement(
      draw(num_clips, 5),
      (draw(num_clips, 7, 2), 10 * draw(num_clips, 4, 3, 2)),
    ),
    discriminators.Judgement(draw(num_clips, 9), (draw(num_clips, 3, 8),)),
  ]


def test_hinge_losses_match_numpy(rng):
  real, fake = judgements(rng), judgements(rng)
  loss = discriminators.discriminator_loss(real, fake)
  adversarial = discriminators.adversarial_loss(fake)
  for clip in range(3):
    expected, expected_adversarial = 0.0, 0.0
    for r, f in zip(real, fake):
      for x in r.logits[clip]:
        expected += max(0, 1 - x) / len(r.logits[clip]) / 2
      for x in f.logits[clip]:
        expected += max(0, 1 + x) / len(f.logits[clip]) / 2
        expected_adversarial += max(0, 1 - x) / len(f.logits[clip]) / 2
    np.testing.assert_allclose(loss[clip], expected, rtol=1e-5)
    np.testing.assert_allclose(
      adversarial[clip], expected_adversarial, rtol=1e-5
    )


def test_feature_distance_matches_numpy(rng):
  real, fake = judgements(rng), judgements(rng)
  distance = discriminators.feature_distance(real, fake)
  for clip in range(3):
    layers = [
      (a[clip], b[clip])
      for r, f in zip(real, fake)
      for a, b in zip(r.features, f.features)
    ]
    expected = np.mean(
      [np.mean(np.abs(a - b)) / np.mean(np.abs(a)) for a, b in layers]
    )
    np.testing.assert_allclose(distance[clip], expected, rtol=1e-5)
  assert not discriminators.feature_distance(real, real).any()
  # Real features are the target: they get no gradient.
  gradient = jax.grad(
    lambda real: discriminators.feature_distance(real, fake).sum()
  )(real)
  assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_scales_that_are_no_powers_of_two_are_refused():
  with pytest.raises(ValueError) as error:
    discriminators.Config(scales=(1, 3))
  assert str(error.value) == (
    'scales has 3, expected powers of two. Set discriminators.Config.scales.'
  )
