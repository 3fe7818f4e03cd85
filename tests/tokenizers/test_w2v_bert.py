"""w2v-BERT: what is masked and compared, that it learns, and its tokens."""

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import optax
import pytest

from tests import contracts
from tests.tokenizers import published
from v2meow_jax import partitioning
from v2meow_jax import trainer
from v2meow_jax import weights
from v2meow_jax.tokenizers import clustered
from v2meow_jax.tokenizers import w2v_bert
from v2meow_jax.tokenizers import w2v_bert_model

TINY = w2v_bert.Config(
  layer=1,
  window_seconds=0.4,
  context_seconds=0.08,
  embed_dim=32,
  contrastive_layers=1,
  masked_layers=1,
  num_heads=2,
  mlp_dim=48,
  kernel_size=3,
  conv_features=(4, 8),
  dropout_rate=0.0,
)
SECONDS = 1.0
# Compiling is what costs.
quick_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
STEPS = 150
CHOICES = dict(
  num_codes=16,
  code_dim=16,
  mask_length=3,
  mask_probability=0.12,
  num_distractors=10,
  gumbel_decay=0.97,
)


def melodies(rng, batch=8):
  """Four tones up or down, again and again: what is masked can be known."""
  steps = round(SECONDS * 25)
  hertz = np.array([220.0, 466.0, 988.0, 2093.0])
  first = rng.integers(0, 4, (batch, 1))
  way = rng.choice([-1, 1], (batch, 1))
  tone = hertz[(first + way * np.arange(steps)) % 4]
  tone = np.repeat(tone, 640, axis=1)
  phase = 2 * np.pi * np.cumsum(tone, axis=1) / 16000
  gain = rng.uniform(0.2, 0.6, (batch, 1))
  noise = 1e-3 * rng.standard_normal(tone.shape)
  return {'waveform': (gain * np.sin(phase) + noise).astype('f4')}


class Switched(w2v_bert_model.W2vBertModel):
  """Where `is_control`, the id to find is that of any other position."""

  is_control = False

  def _targets(self, ids, rng):
    shuffled = jax.random.permutation(rng, ids.ravel()).reshape(ids.shape)
    return jnp.where(self.is_control, shuffled, ids)


def initial(model, batch):
  """Parameters and the quantiser's state."""
  shapes = {'waveform': batch['waveform'].shape}

  @quick_jit
  def make():
    variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes)
    return variables['params'], {'quantizer': variables['quantizer']}

  return make()


@pytest.fixture(scope='module')
def learnt():
  """What the model and its control know of melodies that they never heard.

  The metrics of both, and the model's parameters.
  """
  model = Switched(TINY, **CHOICES)
  first = initial(model, melodies(np.random.default_rng(0)))
  optimizer = optax.adam(3e-3)

  @quick_jit
  def step(params, state, mutables, batch, key, is_control):
    model.is_control = is_control
    gradient, (_, mutables) = jax.grad(model.loss_fn, has_aux=True)(
      params, batch, key, mutables
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, mutables

  @quick_jit
  def evaluate(params, batch, mutables, is_control):
    model.is_control = is_control
    metrics = model.eval_fn(params, batch, mutables)[1][0]
    return {name: metric.compute() for name, metric in metrics.items()}

  found = []
  for is_control in (True, False):
    rng = np.random.default_rng(0)
    params, mutables = first
    state = optimizer.init(params)
    for i in range(STEPS):
      params, state, mutables = step(
        params,
        state,
        mutables,
        melodies(rng),
        jax.random.PRNGKey(i),
        is_control,
      )
    held_out = melodies(np.random.default_rng(1), 64)
    found.append(evaluate(params, held_out, mutables, is_control))
  return *found, params


def test_masked_prediction_beats_chance_and_shuffled_targets(learnt):
  control, found, _ = learnt
  # Measured: 0.61 against 0.25 of always the commonest code.
  assert found['masked_accuracy'] > found['commonest_code'] + 0.15
  assert found['code_perplexity'] > 3
  assert found['contrastive_accuracy'] > 0.3
  # Measured: 0.06 against 0.21. It knows no more than its commonest code.
  assert control['masked_accuracy'] < control['commonest_code'] + 0.05
  assert found['masked_accuracy'] > control['masked_accuracy'] + 0.15


def test_draws_spans():
  draw = lambda seed: w2v_bert_model.draw_spans(
    jax.random.key(seed), (200, 60), 0.065, 10
  )
  mask = np.asarray(draw(0))
  # 0.49 of an endless clip; one span more than by chance: 0.552 measured.
  assert 0.52 < mask.mean() < 0.58
  assert mask.any(axis=1).all()
  assert not np.array_equal(mask, draw(1))
  for row in mask:
    edges = np.diff(np.pad(row.astype(int), 1)).nonzero()[0].reshape(-1, 2)
    for start, end in edges:
      assert end - start >= 10 or end == 60
  # No start at all still masks one span.
  alone = np.asarray(
    w2v_bert_model.draw_spans(jax.random.key(0), (50, 30), 0.0, 10)
  )
  assert (alone.sum(axis=1) == 10).all()


def test_draws_distractors_of_other_masked_positions():
  mask = np.zeros((3, 12), bool)
  mask[0, 3:6] = mask[1, [0, 11]] = mask[2] = True
  others = np.asarray(
    w2v_bert_model.draw_distractors(jax.random.key(0), mask, 200)
  )
  for row in range(3):
    where = mask[row].nonzero()[0]
    for position in where:
      drawn = set(others[row, position].tolist())
      assert drawn == set(where.tolist()) - {position}


def test_contrastive_loss_written_out(rng):
  model = w2v_bert_model.W2vBertModel(TINY, num_codes=6, num_distractors=5)
  context = rng.standard_normal((1, 8, 4)).astype('f4')
  codes = rng.standard_normal((6, 4)).astype('f4')
  ids = np.array([[0, 1, 1, 2, 3, 4, 5, 0]])
  mask = np.array([[True] * 6 + [False] * 2])
  key = jax.random.key(3)
  loss, best = model._contrast(context, codes[ids], ids, mask, key)
  others = w2v_bert_model.draw_distractors(key, mask, 5)
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  for t in range(6):
    right = cosine(context[0, t], codes[ids[0, t]]) / 0.1
    wrong = [
      cosine(context[0, t], codes[ids[0, s]]) / 0.1
      for s in np.asarray(others[0, t])
      if ids[0, s] != ids[0, t]  # the same code is no mistake
    ]
    expected = np.log(np.exp([right, *wrong]).sum()) - right
    np.testing.assert_allclose(loss[0, t], expected, rtol=1e-4)
    assert best[0, t] == (right > max(wrong))


@pytest.fixture(scope='module')
def gradients():
  """Maps two clips to loss, metrics and gradient of first parameters."""
  model = w2v_bert_model.W2vBertModel(TINY, **CHOICES)
  params, mutables = initial(model, {'waveform': np.zeros((2, 16000))})
  step = quick_jit(jax.value_and_grad(model.loss_fn, has_aux=True))

  def run(batch):
    key = jax.random.PRNGKey(0)
    (loss, (metrics, _)), gradient = step(params, batch, key, mutables)
    return loss, metrics, weights.flatten(gradient)

  return run


def test_gradients_reach_all_but_what_is_not_used(gradients, rng):
  """Codes get theirs through the softmax, both modules and the encoder."""
  for name, value in gradients(melodies(rng, 2))[2].items():
    # A key's bias moves all scores of a query alike: nothing.
    if not name.endswith('key/bias'):
      assert np.abs(value).max() > 0, name


def test_silence_has_a_finite_loss(gradients):
  loss, _, gradient = gradients({'waveform': np.zeros((2, 16000), 'f4')})
  assert np.isfinite(loss)
  assert all(np.isfinite(x).all() for x in gradient.values())


def test_loss_is_a_sum_over_clips_for_microbatches(gradients, rng):
  batch = melodies(rng, 2)
  loss, metrics, _ = gradients(batch)
  assert 2 < metrics['loss'].count < 50
  # Two clips: about twice the mean of a masked position.
  np.testing.assert_allclose(loss, 2 * metrics['loss'].compute(), rtol=0.5)
  training = trainer.Trainer(
    w2v_bert_model.W2vBertModel(TINY, **CHOICES),
    optax.sgd(1e-3),
    batch,
    0,
    partitioning.make_mesh(),
    microbatches=2,
  )
  # Not compiled, which takes long: the state keeps its shapes and types.
  shapes = training.lower_step(batch).out_info[0].mutables
  assert shapes['quantizer']['updates'].shape == ()


def test_axes_name_what_a_mesh_cuts():
  model = w2v_bert_model.W2vBertModel(TINY, **CHOICES)
  found = {}

  def make():
    made = model.get_initial_variables(
      jax.random.PRNGKey(0), {'waveform': (2, 16000)}
    )
    found.update(flax.traverse_util.flatten_dict(made.pop('params_axes')))
    return made

  params = flax.traverse_util.flatten_dict(jax.eval_shape(make)['params'])
  names = {'/'.join(path): axes.names for path, axes in found.items()}
  block = 'network/contrastive/layers_0'
  assert names[f'{block}/mlp_0/wi/kernel_axes'] == ('embed', 'mlp')
  assert names[f'{block}/attention/out/kernel_axes'] == ('joined_kv', 'embed')
  for path, axes in found.items():
    path = (*path[:-1], path[-1].removesuffix('_axes'))
    assert len(params[path].shape) == len(axes.names)


def test_exported_weights_make_tokens(learnt, tmp_path, rng):
  model = w2v_bert_model.W2vBertModel(TINY, **CHOICES)
  path = tmp_path / 'params.safetensors'
  weights.save_params(path, model.export_variables(learnt[2]))
  variables = weights.load_params(path)
  choices = w2v_bert.Config(layer=1, window_seconds=0.4, context_seconds=0.08)
  tokenizer = w2v_bert.W2vBert(variables, config=choices)
  made = tokenizer.network.config
  assert made.dimensions() == TINY.dimensions()
  waveform = melodies(rng, 1)['waveform'][0]
  tokenizer = w2v_bert.W2vBert(published.add_fit(tokenizer, waveform), choices)
  contracts.check_tokenizer(tokenizer)
  codes = tokenizer.encode(waveform[None])
  assert len(np.unique(codes)) > 3
  assert tokenizer.encode(np.zeros((1, 16000))).shape == (1, 25, 1)


def test_mels_are_the_same_in_training_and_in_the_tokenizer(rng):
  waveform = melodies(rng, 1)['waveform']
  tokenizer = w2v_bert.W2vBert.__new__(w2v_bert.W2vBert)
  found = tokenizer._frames(waveform[0]).reshape(1, -1, 4, 80)
  expected = w2v_bert.log_mel(waveform)
  # Measured: 4e-5.
  np.testing.assert_allclose(found, expected, atol=2e-4)
  # librosa's window is in the middle of its 1024 samples: 312 later.
  spectrum = librosa.feature.melspectrogram(
    y=np.pad(waveform[0], 120 + 312),
    sr=16000,
    n_fft=1024,
    win_length=400,
    hop_length=160,
    n_mels=80,
    fmin=20,
    fmax=8000,
    htk=True,
    norm=None,
    center=False,
  )
  spectrum = (np.log(np.maximum(spectrum.T, 1e-6)) + 3.5) / 5
  # Measured: 2e-5.
  np.testing.assert_allclose(found[0].reshape(-1, 80), spectrum, atol=1e-4)


def test_padding_changes_nothing(learnt, rng):
  network = w2v_bert.Network(TINY)
  params = {'params': learnt[2]['network']}
  frames = rng.standard_normal((1, 8, 4, 80)).astype('f4')
  mask = np.arange(8)[None] < 5
  filled = np.where(mask[..., None, None], frames, np.nan)
  run = quick_jit(network.apply)
  found = run(params, filled, mask)[:, :5]
  alone = run(params, frames[:, :5], mask[:, :5])
  # Measured: 1e-6.
  np.testing.assert_allclose(found, alone, atol=1e-5)


def test_paper_geometry():
  """XL has 0.6 G parameters (table 1)."""
  shapes = clustered.parameter_shapes(w2v_bert.Network(w2v_bert.Config()))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert abs(count / 0.6e9 - 1) < 0.05
  assert len(shapes['contrastive']) == len(shapes['masked']) == 12


@pytest.mark.parametrize('num_samples', [6400, 16001])
def test_clips_that_cannot_be_masked(num_samples):
  model = w2v_bert_model.W2vBertModel(TINY)
  with pytest.raises(ValueError) as error:
    model.get_initial_variables(
      jax.random.PRNGKey(0), {'waveform': (2, num_samples)}
    )
  assert str(error.value) == (
    f'Clips of {num_samples} samples, expected a multiple of 640 and more than '
    'the 10 positions of a masked span. Set other CROP_SECONDS.'
  )


def test_config_says_every_dimension():
  choices = (
    'layer', 'window_seconds', 'context_seconds', 'dropout_rate', 'remat',
    'dtype',
  )  # fmt: skip
  names = {field.name for field in dataclasses.fields(w2v_bert.Config)}
  assert names - w2v_bert.Config().dimensions().keys() == set(choices)
