"""A style stream of the clip's sound in training, and of words afterwards."""

import dataclasses

import numpy as np
import pytest

from tests import toy
from tests.embedders import mulan_examples
from v2meow_jax import bundles
from v2meow_jax import errors
from v2meow_jax import extraction
from v2meow_jax import prepare
from v2meow_jax import weights
from v2meow_jax.embedders import mulan

_FILES = ('style/mulan.gin', 'runs/prepare.gin')
_NONE = ('EXTRACTORS = ()', 'CODEC = None', 'TOKENIZER = None')


@dataclasses.dataclass(frozen=True)
class _Source:
  """A clip of noise."""

  clip_id: str = 'a'
  caption: str = 'zither'  # unknown, and of no use
  content: str = '1'

  def key(self):
    return self.content

  def sound(self, sample_rate_hz):
    rng = np.random.default_rng(int(self.content))
    return rng.uniform(-0.3, 0.3, int(0.9 * sample_rate_hz)).astype('f4')


@pytest.fixture
def embedder_path(tmp_path):
  path = tmp_path / 'mulan.safetensors'
  weights.save_params(path, mulan_examples.make_weights())
  return str(path)


@pytest.fixture
def plan(tmp_path, embedder_path):
  none = tmp_path / 'none.gin'
  none.write_text('\n'.join(_NONE))
  return extraction.make_plan(
    ('mulan',), gin_files=(*_FILES, str(none)), embedder=embedder_path
  )


def test_what_hears_gets_the_sound(tmp_path, plan, embedder_path):
  source = _Source()
  made = extraction.extractors(plan)
  part = extraction.make_part(source, made)
  assert part.seconds == pytest.approx(0.9)
  embedder = mulan.Mulan(weights.load_params(embedder_path))
  expected = embedder.embed_audio(source.sound(16000)[None])[0]
  np.testing.assert_allclose(part.arrays['mulan'], expected, atol=1e-6)
  # It follows from the sound and the weights, not from the caption.
  update = lambda s, m: extraction.update_part(s, m, str(tmp_path))
  assert update(source, made)
  assert not update(dataclasses.replace(source, caption='b'), made)
  assert update(dataclasses.replace(source, content='2'), made)
  other = mulan_examples.make_weights()
  other['params']['audio_projection']['bias'][0] += 1
  weights.save_params(embedder_path, other)
  assert extraction.extractors(plan).versions != made.versions


def test_weights_must_be_given(plan):
  with pytest.raises(
    errors.UserError, match='`mulan` was not given its weight'
  ):
    extraction.extractors(dataclasses.replace(plan, embedder=None))


def test_the_command_takes_their_path(monkeypatch, tmp_path):
  manifest = tmp_path / 'm.csv'
  manifest.write_text('file\na.mp4\n')
  plans = []

  def make_parts(clips, plan, folder, processes):
    plans.append(plan)
    return {clip.clip_id: 'no' for clip in clips}

  monkeypatch.setattr(prepare, 'make_parts', make_parts)
  flags = [str(manifest), '--out', str(tmp_path), '--streams', 'mulan']
  with pytest.raises(errors.UserError, match='Not one of 1 clips'):
    prepare.main([*flags, '--embedder', '/a/b.safetensors'])
  assert plans[0].embedder == '/a/b.safetensors'
  # Those of a model are its part `style`.
  (tmp_path / 'style.safetensors').touch()
  plan = extraction.make_plan(('mulan',), model=str(tmp_path))
  assert plan.embedder == str(tmp_path / 'style.safetensors')


def test_a_model_carries_what_reads_its_text(tmp_path):
  files = toy.gin_files(tmp_path, 'mulan')
  with bundles.read_recipe(files) as recipe:
    params = toy.parts(recipe)
  params['style'] = mulan_examples.make_weights()
  folder = bundles.save(tmp_path / 'model', files, params)
  style = bundles.load(folder).style
  expected = mulan.Mulan(params['style']).embed_text(['calm piano'])
  # Stored in bfloat16. Measured: 0.003.
  np.testing.assert_allclose(
    style.embed_text(['calm piano']), expected, atol=0.02
  )
  bare = {**params, 'style': params['style']['params']}
  with pytest.raises(
    errors.UserError, match='Part `style`: Embedder `mulan` wa'
  ):
    bundles.save(tmp_path / 'bare', files, bare)
