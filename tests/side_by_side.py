"""Speed side by side with T5X and transformers: equal sizes, run in turn.

  python -m tests.side_by_side decode [--batch 1 8] [--steps 250 2000]
  python -m tests.side_by_side train [--rounds 15]
  python -m tests.side_by_side codec [--codec dac encodec] [--seconds 30]

Prints one JSON line for each pair: the medians of both over all rounds but the
first, which compiles, in wall and in CPU time, and how many times as fast this
project is. A rival that is not installed (T5X: see docs/t5x.md; torch and
transformers: from the package index) is named on stderr and left out.
"""

import argparse
from collections.abc import Callable
import functools
import importlib.util
import json
import pathlib
import statistics
import sys
import time

import numpy as np

# Layers of encoder and of decoder, and so on: the same of all.
LAYERS, WIDTH, HEADS, HEAD_DIM, MLP, VOCAB = 4, 256, 4, 64, 1024, 1024
INPUTS = 64
TRAIN_BATCH, TRAIN_LENGTH = 8, 256
ACTIVATIONS = ('gelu', 'linear')
RATE = 1e-3

Run = Callable[[], None]


def _dimensions(arch: str, steps: int):
  from v2meow_jax import decoding_speed

  return decoding_speed.Dimensions(
    arch=arch,
    layers=LAYERS,
    embed_dim=WIDTH,
    heads=HEADS,
    head_dim=HEAD_DIM,
    mlp_dim=MLP,
    vocab=VOCAB,
    encoder_length=INPUTS,
    steps=steps,
    # GPT-2 has no gates.
    activations=ACTIVATIONS if arch == 'encoder_decoder' else ('gelu',),
  )


def decode_ours(arch: str, batch: int, steps: int) -> Run:
  """This project's loop."""
  import jax

  from v2meow_jax import decoding_speed

  model = _dimensions(arch, steps).model()
  params = decoding_speed.random_params(model)
  arguments = decoding_speed.random_arguments(model, batch, steps)
  return lambda: jax.block_until_ready(model.decode(params, *arguments))


def _t5x_model():
  """T5X's `examples/t5` of the same size, with random sampling."""
  import seqio
  from t5x import adafactor
  from t5x import decoding
  from t5x import models
  from t5x.examples.t5 import network

  module = network.Transformer(
    network.T5Config(
      vocab_size=VOCAB,
      emb_dim=WIDTH,
      num_heads=HEADS,
      num_encoder_layers=LAYERS,
      num_decoder_layers=LAYERS,
      head_dim=HEAD_DIM,
      mlp_dim=MLP,
      mlp_activations=ACTIVATIONS,
      dropout_rate=0.0,
      logits_via_embedding=False,
    )
  )
  vocabulary = seqio.PassThroughVocabulary(VOCAB)
  return models.EncoderDecoderModel(
    module=module,
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=adafactor.Adafactor(RATE),
    decode_fn=functools.partial(decoding.temperature_sample, topk=0),
  )


def _t5x_batch(batch: int, steps: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  ids = lambda length: rng.integers(2, VOCAB, (batch, length), np.int32)
  targets = ids(steps)
  return {
    'encoder_input_tokens': ids(INPUTS),
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': np.ones_like(targets),
  }


def decode_t5x(batch: int, steps: int) -> Run:
  """A run of T5X's `temperature_sample`."""
  import jax

  model = _t5x_model()
  features = _t5x_batch(batch, steps)
  shapes = {name: x.shape for name, x in features.items()}
  params = jax.jit(lambda key: model.get_initial_variables(key, shapes))(
    jax.random.PRNGKey(0)
  )['params']
  # No id ends a sequence: all steps are made.
  predict = jax.jit(
    lambda params, features, key: model.predict_batch_with_aux(
      params, features, decoder_params={'decode_rng': key, 'eos_id': -1}
    )[0]
  )
  key = jax.random.PRNGKey(0)

  def run():
    ids = jax.block_until_ready(predict(params, features, key))
    assert ids.shape == (batch, steps), ids.shape

  return run


def _transformers_run(model, batch: int, steps: int) -> Run:
  import torch

  rng = np.random.default_rng(0)
  ids = torch.tensor(rng.integers(2, VOCAB, (batch, INPUTS)))
  settings = {
    'attention_mask': torch.ones_like(ids),
    'do_sample': True,
    'top_k': 0,
    'max_new_tokens': steps,
    'min_new_tokens': steps,
    'pad_token_id': 0,
  }

  def run():
    with torch.inference_mode():
      found = model.eval().generate(ids, **settings)
    assert found.shape[1] >= steps, found.shape

  return run


def decode_gpt2(batch: int, steps: int) -> Run:
  """transformers' `generate` of a decoder without an encoder."""
  import transformers

  config = transformers.GPT2Config(
    vocab_size=VOCAB,
    n_positions=INPUTS + steps,
    n_embd=WIDTH,
    n_layer=LAYERS,
    n_head=HEADS,
    n_inner=MLP,
    bos_token_id=None,
    eos_token_id=None,
  )
  return _transformers_run(transformers.GPT2LMHeadModel(config), batch, steps)


def decode_t5(batch: int, steps: int) -> Run:
  """transformers' `generate` of an encoder and a decoder."""
  import transformers

  config = transformers.T5Config(
    vocab_size=VOCAB,
    d_model=WIDTH,
    d_kv=HEAD_DIM,
    d_ff=MLP,
    num_layers=LAYERS,
    num_heads=HEADS,
    feed_forward_proj='gated-gelu',
    tie_word_embeddings=False,
    decoder_start_token_id=0,
    eos_token_id=None,
  )
  model = transformers.T5ForConditionalGeneration(config)
  return _transformers_run(model, batch, steps)


def train_ours() -> Run:
  """A training step of this project."""
  from flax import linen as nn
  import jax

  from v2meow_jax import optimizers
  from v2meow_jax import partitioning
  from v2meow_jax import training_steps

  recipe = training_steps.Recipe(
    _dimensions('encoder_decoder', TRAIN_LENGTH).model(),
    optimizers.adafactor(lambda step: RATE),
    partitioning.RULES,
    TRAIN_BATCH,
  )
  mesh = partitioning.make_mesh((-1,) + (1,) * (len(partitioning.AXES) - 1))

  def in_mesh(call):
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(recipe.rules)):
      return call()

  training = in_mesh(lambda: recipe.trainer(mesh))
  in_mesh(training.initialize)
  batch, _ = in_mesh(lambda: training.to_devices(recipe.random_batch()))

  def run():
    result = in_mesh(lambda: training.step(batch))
    jax.block_until_ready((training.state, result))

  return run


def train_t5x() -> Run:
  """A training step of T5X."""
  import jax
  from t5x import train_state
  from t5x import trainer

  model = _t5x_model()
  features = _t5x_batch(TRAIN_BATCH, TRAIN_LENGTH)
  shapes = {name: x.shape for name, x in features.items()}
  variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes)
  state = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
  step = jax.jit(
    lambda state, features, key: trainer.train_with_lr(
      state, features, RATE, key, model, 1
    ),
    donate_argnums=0,
  )

  def run():
    nonlocal state
    state, metrics = step(state, features, jax.random.PRNGKey(0))
    jax.block_until_ready((state, metrics))

  return run


def codec_runs(name: str, seconds: float, batch: int) -> dict:
  """Pairs of runs, ours and transformers', of one codec at full size.

  Args:
    name: 'dac' or 'encodec'.
    seconds: of each clip of noise.
    batch: clips at once.

  Returns:
    `(ours, theirs)` by what they do: 'encode' and 'decode'.
  """
  import tempfile

  import torch

  from tests.golden import codecs as golden
  from v2meow_jax import codec_speed
  from v2meow_jax import pretrained

  dimensions = {
    'dac': dict(downsampling_ratios=[2, 4, 5, 8], n_codebooks=12),
    'encodec': {},
  }[name]
  model, arrays = golden.make_model(name, **dimensions)
  row = {'dac': 'dac_16khz', 'encodec': 'encodec_24khz'}[name]
  with tempfile.TemporaryDirectory() as folder:
    config = model.config.to_dict()
    golden.write_folder(pathlib.Path(folder), config, arrays)
    codec = codec_speed.CODECS[name](pretrained.load(row, folder))
  rng = np.random.default_rng(0)
  shape = (batch, round(seconds * codec.sample_rate_hz / codec.hop) * codec.hop)
  waveform = (0.3 * rng.standard_normal(shape)).astype(np.float32)
  codes, decoded = golden.compute(model, waveform)
  # The same work, or no comparison.
  ours = np.asarray(codec.encode(waveform))
  sound = np.asarray(codec.decode(codes))[:, : decoded.shape[1]]
  error = np.abs(sound - decoded).max() / np.abs(decoded).max()
  share = np.mean(ours == codes)
  print(
    f'{name}: {share:.6f} of the codes are equal; largest difference of the '
    f'waveforms {error:.2g} of the largest sample',
    file=sys.stderr,
  )
  if share < 0.99 or error > 1e-4:
    raise ValueError(f'{name}: {share} of the codes, waveforms off by {error}')
  sound, tokens = torch.tensor(waveform)[:, None], torch.tensor(codes)
  tokens = tokens.swapaxes(1, 2).long()

  def encode():
    with torch.inference_mode():
      if name == 'dac':
        model.encode(sound)
      else:
        model.encode(sound, bandwidth=6.0)

  def decode():
    with torch.inference_mode():
      if name == 'dac':
        model.decode(audio_codes=tokens)
      else:
        model.decode(tokens[None], [None])

  return {
    'encode': (lambda: np.asarray(codec.encode(waveform)), encode),
    'decode': (lambda: np.asarray(codec.decode(codes)), decode),
  }


def in_turn(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
  """Runs each in turn; median wall and CPU seconds of all but the first."""
  taken = {name: {'wall': [], 'cpu': []} for name in runs}
  for count in range(1 + rounds):
    for name, run in runs.items():
      wall, cpu = time.perf_counter(), time.process_time()
      run()
      if count:
        taken[name]['wall'].append(time.perf_counter() - wall)
        taken[name]['cpu'].append(time.process_time() - cpu)
  return {
    name: {
      clock: statistics.median(seconds) for clock, seconds in clocks.items()
    }
    for name, clocks in taken.items()
  }


def report(what: dict, ours: Run, rival: str, other: Run, rounds: int) -> None:
  """Runs a pair and prints its line; times in ms a step."""
  steps = what.get('steps', 1)
  medians = in_turn({'ours': ours, rival: other}, rounds)
  line = dict(what) | {'rival': rival, 'rounds': rounds}
  for clock in ('wall', 'cpu'):
    for name, clocks in medians.items():
      line[f'{name}_{clock}_ms'] = round(1e3 * clocks[clock] / steps, 4)
    ratio = medians[rival][clock] / medians['ours'][clock]
    line[f'times_as_fast_{clock}'] = round(ratio, 3)
  print(json.dumps(line), flush=True)


def is_there(rival: str) -> bool:
  """Whether a rival can be imported; says on stderr what is missing."""
  packages = ('t5x',) if rival == 't5x' else ('torch', 'transformers')
  for package in packages:
    if not importlib.util.find_spec(package):
      how = (
        'docs/t5x.md says how to set it up'
        if package == 't5x'
        else f'pip install {package}'
      )
      print(
        f'{rival} is left out: package `{package}` is not installed; {how}.',
        file=sys.stderr,
      )
      return False
  return True


def main(argv: list[str]) -> int:
  """Runs the comparisons of a command; 1 where there is nobody to compare."""
  parser = argparse.ArgumentParser(prog='python -m tests.side_by_side')
  parser.add_argument('what', choices=('decode', 'train', 'codec'))
  parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--steps', type=int, nargs='+', default=[250, 2000])
  parser.add_argument('--codec', nargs='+', default=['dac', 'encodec'])
  parser.add_argument('--seconds', type=float, default=30.0, help='of codec')
  parser.add_argument('--rounds', type=int, help='default: 5, train: 15')
  parser.add_argument(
    '--torch_threads',
    type=int,
    help="of the rivals on torch (default: torch's own); on a busy machine its "
    'threads wait for one another, and 1 is the fastest',
  )
  parser.add_argument('--rival', nargs='+', choices=('t5x', 't5', 'gpt2'))
  args = parser.parse_args(argv)
  rivals = args.rival or ['t5x', 't5', 'gpt2']
  if args.what == 'train':
    rivals = ['t5x']
  elif args.what == 'codec':
    rivals = ['transformers']
  rivals = [rival for rival in rivals if is_there(rival)]
  if args.torch_threads and {'t5', 'gpt2', 'transformers'} & set(rivals):
    import torch

    torch.set_num_threads(args.torch_threads)
  for rival in rivals:
    if args.what == 'train':
      what = {'what': 'train', 'batch': TRAIN_BATCH}
      report(what, train_ours(), rival, train_t5x(), args.rounds or 15)
      continue
    if args.what == 'codec':
      for codec in args.codec:
        pairs = codec_runs(codec, args.seconds, args.batch[0])
        for run, (ours, theirs) in pairs.items():
          what = {'what': run, 'codec': codec, 'seconds': args.seconds}
          what['batch'] = args.batch[0]
          report(what, ours, rival, theirs, args.rounds or 5)
      continue
    make = {'t5x': decode_t5x, 't5': decode_t5, 'gpt2': decode_gpt2}[rival]
    arch = 'decoder_only' if rival == 'gpt2' else 'encoder_decoder'
    for steps in args.steps:
      for batch in args.batch:
        what = {'what': 'decode', 'arch': arch, 'batch': batch, 'steps': steps}
        ours = decode_ours(arch, batch, steps)
        report(what, ours, rival, make(batch, steps), args.rounds or 5)
  return 0 if rivals else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
