"""From a video to a video with music, with a tiny system of random weights."""

import os
import pathlib

import av
import numpy as np
import pytest
import soundfile

from tests import conftest
from tests import toy
from v2meow_jax import audio
from v2meow_jax import cascade
from v2meow_jax import cli
from v2meow_jax import compilation_cache
from v2meow_jax import controls as controls_lib
from v2meow_jax import errors
from v2meow_jax import generate
from v2meow_jax import loudness
from v2meow_jax import music as music_lib
from v2meow_jax import outputs
from v2meow_jax import prompting


@pytest.fixture(scope='module')
def generator(tiny_model):
  return generate.load(tiny_model)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  """A video of 4.3 s: longer than two windows, no whole number of them."""
  return toy.make_video(tmp_path_factory.mktemp('clips') / 'clip.mp4', 4.3)


@pytest.fixture(scope='module')
def music(generator, clip):
  return generator.generate(clip, seed=5)


@pytest.fixture
def work(tmp_path, monkeypatch, clip):
  """A working folder with the clip in it."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'clip.mp4').write_bytes(clip.read_bytes())
  return tmp_path


def _generate(model, *arguments) -> int:
  return cli.main(['generate', '--model', str(model), *map(str, arguments)])


def _seconds(path, kind: str) -> float:
  """Where the last packet of a track ends."""
  with av.open(str(path)) as container:
    (stream,) = getattr(container.streams, kind)
    return max(
      float((packet.pts + packet.duration) * packet.time_base)
      for packet in container.demux(stream)
      if packet.pts is not None and packet.duration
    )


def _pictures(path) -> list[bytes]:
  with av.open(str(path)) as container:
    packets = container.demux(container.streams.video[0])
    return [bytes(packet) for packet in packets if packet.size]


def test_music_is_as_long_as_the_picture_and_below_full_scale(music):
  assert music.sample_rate_hz == 16000
  assert music.waveform.dtype == np.float32
  assert music.waveform.shape == (round(4.3 * 16000),)
  assert music.picture.seconds == pytest.approx(4.3)
  assert 0.01 < np.abs(music.waveform).max() < 1
  # Little is left of peaks of noise above full scale.
  found = loudness.measure(music.waveform, 16000)
  assert found == pytest.approx(loudness.TARGET_LUFS, abs=1.5)


def test_tokens_have_the_shapes_of_their_streams(music):
  # 4.3 s, rounded up to 0.2 s where all streams have a position.
  shapes = {name: codes.shape for name, codes in music.tokens.items()}
  assert shapes == {'spectral_semantic': (110, 1), 'spectrogram': (110, 8)}
  for codes in music.tokens.values():
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < 512


def test_same_seed_same_music_other_seed_other_music(generator, clip, music):
  again = generator.generate(clip, seed=5)
  np.testing.assert_array_equal(again.waveform, music.waveform)
  other = generator.generate(clip, seed=6)
  for name, codes in other.tokens.items():
    assert np.mean(codes == music.tokens[name]) < 0.5


def test_a_long_clip_begins_as_its_first_window_alone(generator, clip, music):
  # One window, without a prompt and without padding.
  first = generator.generate(clip, seed=5, duration=2.0)
  assert first.picture.is_cut
  for name, codes in first.tokens.items():
    assert len(codes) == 50
    # The fine windows of the long clip start where those of this one do.
    np.testing.assert_array_equal(codes, music.tokens[name][:50])


def test_the_stream_is_the_whole_piece_by_parts(generator, clip, music):
  chunks = list(generator.stream(clip, seed=5))
  assert len(chunks) > 1
  assert {chunk.dtype for chunk in chunks} == {np.dtype('f4')}
  np.testing.assert_array_equal(np.concatenate(chunks), music.waveform)
  with pytest.raises(errors.UserError, match='need the whole piece'):
    next(generator.stream(clip, best_of=2))


def test_a_stream_that_nobody_reads_ends(generator, clip):
  chunks = generator.stream(clip)
  next(chunks)
  chunks.close()
  assert not generator._scheduler._pieces


def test_a_stream_says_what_is_wrong_with_the_video(generator, tmp_path):
  with pytest.raises(errors.UserError, match='no such file'):
    next(generator.stream(tmp_path / 'gone.mp4'))


@pytest.mark.parametrize('start', [1, 4])
def test_tokens_after_a_seam_are_those_of_one_pass(generator, music, start):
  # All that was made before the seam fits into the window behind it.
  controls = controls_lib.Controls(seed=5)
  given = {name: codes[: start * 5] for name, codes in music.tokens.items()}
  piece = generator._begin(controls, 5, None, given, start)
  generator._see_all(piece, music.picture)
  with generator._scheduler.running(piece):
    generator._perform(piece).finish()
  tokens = piece.tokens
  np.testing.assert_array_equal(
    tokens['spectral_semantic'], music.tokens['spectral_semantic']
  )
  np.testing.assert_array_equal(
    tokens['spectrogram'][:, :4], music.tokens['spectrogram'][:, :4]
  )


def test_best_of_keeps_the_piece_with_the_highest_score(generator, clip, music):
  best = generator.compose(music.picture, seed=4, best_of=3)
  assert [*best.scores] == ['4', '5', '6']
  assert all(score < 0 for score in best.scores.values())
  seed = int(max(best.scores, key=best.scores.get))
  alone = generator.compose(music.picture, seed=seed)
  np.testing.assert_array_equal(best.waveform, alone.waveform)
  assert not alone.scores


def test_a_part_made_anew_leaves_the_rest_as_it_is(generator, music):
  other = generator.compose(music.picture, seed=5, replace=[(1.0, 2.6, 9)])
  changed = np.nonzero(other.waveform != music.waveform)[0]
  assert 16000 <= changed.min() < 16010
  assert 2.6 * 16000 - 10 < changed.max() < 2.6 * 16000
  # No jump where old and new meet.
  step = np.abs(np.diff(music.waveform)).max()
  assert np.abs(np.diff(other.waveform)).max() < 1.5 * step
  for name, codes in other.tokens.items():
    same = (codes == music.tokens[name]).all(axis=1)
    assert same[:25].all() and same[65:].all()
    assert not same[25:65].all()
  # One after the other, and the next seed where none is named.
  twice = generator.compose(
    music.picture, seed=5, replace=[(1.0, 2.6, 9), (4.0, 4.3)]
  )
  np.testing.assert_array_equal(twice.waveform[:64000], other.waveform[:64000])
  assert (twice.waveform[64000:] != other.waveform[64000:]).any()
  with pytest.raises(errors.UserError, match='ends behind the music'):
    generator.compose(music.picture, replace=[(4.0, 9.0)])


def test_music_goes_on_from_sound(generator, music, tmp_path):
  path = tmp_path / 'intro.wav'
  intro = music.waveform[: int(1.5 * 16000)]
  audio.write_wav(path, 0.5 * intro, 16000)
  options = {'prompt_audio': str(path), 'seed': 8}
  longer = generator.compose(music.picture, **options)
  # 1.4 s on the grid of 0.2 s, of which the last 30 ms go over.
  kept = longer.waveform[:21900]
  assert np.corrcoef(kept, intro[:21900])[0, 1] > 0.995
  gain = longer.gains[0] / 2
  assert kept.std() == pytest.approx(gain * intro[:21900].std(), rel=0.1)
  # The stages go on from what they would have made of it.
  given = prompting.read(
    path, generator.bundle, generator._grid_hz, music.picture.seconds
  )
  for name, codes in longer.tokens.items():
    np.testing.assert_array_equal(codes[:35], given.tokens[name])
  streamed = generator.stream(music.picture.path, **options)
  np.testing.assert_array_equal(np.concatenate(list(streamed)), longer.waveform)


def test_guidance_changes_the_music(generator, music):
  tokens = lambda **options: generator.compose(
    music.picture, seed=5, **options
  ).tokens['spectral_semantic']
  drums = tokens(text='drums')
  assert (tokens(text='drums', style_guidance=3.0) != drums).any()
  assert (
    tokens(text='drums', style_guidance=3.0, negative_text='slow')
    != tokens(text='drums', style_guidance=3.0)
  ).any()
  plain = music.tokens['spectral_semantic']
  assert (tokens(visual_guidance=3.0) != plain).any()


def test_music_depends_on_the_picture(generator, music, tmp_path):
  other = toy.make_video(tmp_path / 'other.mp4', 4.3, seed=9)
  codes = generator.generate(other, seed=5).tokens['spectral_semantic']
  assert (codes != music.tokens['spectral_semantic']).any()


def test_sampling_options_of_each_stage(generator, music):
  compose = lambda **options: (
    generator.compose(music.picture, seed=5, **options).tokens
  )
  greedy = compose(temperature=(0, 0, 0))
  np.testing.assert_array_equal(
    greedy['spectrogram'],
    generator.compose(music.picture, seed=6, temperature=(0, 0, 0)).tokens[
      'spectrogram'
    ],
  )
  np.testing.assert_array_equal(
    compose(top_k=(1, 1, 1))['spectrogram'], greedy['spectrogram']
  )
  # Only the fine stage changes: the coarse levels are the first four.
  fine = compose(top_p=(1.0, 1.0, 1e-6))['spectrogram']
  before = music.tokens['spectrogram']
  np.testing.assert_array_equal(fine[:, :4], before[:, :4])
  assert (fine[:, 4:] != before[:, 4:]).any()
  with pytest.raises(ValueError, match='^temperature is -1, expected 0 or'):
    compose(temperature=(1, -1, 1))


def test_text_changes_the_music(generator, music):
  calm = generator.compose(music.picture, seed=5, text='slow calm piano')
  fast = generator.compose(music.picture, seed=5, text='fast energetic drums')
  semantic = lambda m: m.tokens['spectral_semantic']
  assert (semantic(calm) != semantic(fast)).any()
  with pytest.raises(errors.UserError, match='qwertz'):
    generator.compose(music.picture, seed=5, text='qwertz')


def test_text_without_a_style_is_a_warning(
  generator, music, monkeypatch, capsys
):
  monkeypatch.setattr(errors, '_warned', set())
  bundle = generator.bundle
  deaf = generate.Generator.__new__(generate.Generator)
  vars(deaf).update(vars(generator))
  deaf.bundle = bundle.__class__(**{**vars(bundle), 'style': None})
  silent = deaf.compose(music.picture, seed=5, text='calm')
  assert silent.tokens
  assert capsys.readouterr().err == (
    'warning: Model tiny takes no text: --text changes nothing.\n'
  )


def test_duration_beyond_the_video(generator, clip):
  with pytest.raises(errors.UserError) as caught:
    generator.generate(clip, duration=6)
  assert str(caught.value) == (
    f'{clip}: lasts 4.30 s, expected at least the duration of 6 s that was '
    'asked for. Make it shorter or leave it out.'
  )


def test_one_single_picture(generator, tmp_path):
  path = toy.make_video(tmp_path / 'still.mp4', seconds=0.1)
  still = generator.generate(path)
  assert len(still.waveform) == 1600
  assert np.isfinite(still.waveform).all()


def test_progress_names_every_phase(generator, clip):
  told = []
  generator.generate(clip, progress=lambda *what: told.append(what))
  assert list(dict.fromkeys(phase for phase, _ in told)) == [*generate.PHASES]
  last = dict(told)
  for phase in generate.PHASES:
    assert last[phase] == pytest.approx(4.3, abs=0.2)


def test_video_with_music(tiny_model, work, capsys):
  before = (work / 'clip.mp4').read_bytes()
  assert _generate(tiny_model, 'clip.mp4') == 0
  said = capsys.readouterr()
  assert said.out == 'clip.v2meow.mp4\n'
  assert said.err == ''
  assert _pictures('clip.v2meow.mp4') == _pictures('clip.mp4')
  assert _seconds('clip.v2meow.mp4', 'video') == pytest.approx(4.3, abs=0.05)
  assert _seconds('clip.v2meow.mp4', 'audio') == pytest.approx(4.3, abs=0.1)
  with av.open('clip.v2meow.mp4') as container:
    assert container.streams.audio[0].codec_context.name == 'aac'
  assert (work / 'clip.mp4').read_bytes() == before
  assert sorted(os.listdir()) == [
    'clip.mp4',
    'clip.v2meow.json',
    'clip.v2meow.mp4',
  ]


def test_batch_gives_what_each_gives_alone(tiny_model, work, capsys):
  toy.make_video(work / 'other.mp4', 2.5, seed=3)
  alone = ['clip.mp4', '--seed', '5', '--format', 'wav', '--out', 'alone/']
  assert _generate(tiny_model, *alone) == 0
  assert capsys.readouterr().out == 'alone/clip.v2meow.wav\n'
  batch = ['other.mp4', 'gone.mp4', 'clip.mp4', '--seed', '5', '--samples', 2]
  assert _generate(tiny_model, *batch, '--out', 'all', '--format', 'both') == 1
  said = capsys.readouterr()
  names = [
    f'all/{stem}.v2meow.seed{seed}.{suffix}'
    for stem in ('other', 'clip')
    for seed in (5, 6)
    for suffix in ('mp4', 'wav')
  ]
  assert said.out.splitlines() == names
  assert said.err == (
    'error: gone.mp4: no such file, expected a media file. Check the path.\n'
    'error: 2 of 6 pieces failed, 4 were made\n'
  )
  read = lambda name: pathlib.Path(name).read_bytes()
  assert read('all/clip.v2meow.seed5.wav') == read('alone/clip.v2meow.wav')
  assert read('all/clip.v2meow.seed6.wav') != read('alone/clip.v2meow.wav')
  samples, rate = soundfile.read('alone/clip.v2meow.wav', dtype='int16')
  assert rate == 16000
  assert samples.shape == (round(4.3 * 16000),)
  made = [x.split('/')[1] for x in names]
  made += [x.replace('.mp4', '.json') for x in made if x.endswith('.mp4')]
  assert sorted(os.listdir('all')) == sorted(made)


def test_duration_cuts_picture_and_music(tiny_model, work):
  arguments = ['clip.mp4', '--duration', '1.5', '--out', 'x.mp4']
  assert _generate(tiny_model, *arguments) == 0
  assert _seconds('x.mp4', 'audio') == pytest.approx(1.5, abs=0.1)
  assert _seconds('x.mp4', 'video') == pytest.approx(1.5, abs=0.1)


def test_failure_on_the_way_leaves_nothing_behind(
  tiny_model, work, monkeypatch, capsys
):
  def fail(self, path):
    del self
    raise errors.UserError(f'{path}: disk is full. Make room.')

  monkeypatch.setattr(music_lib.Music, 'write', fail)
  assert _generate(tiny_model, 'clip.mp4', '--duration', '1') == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err == 'error: clip.v2meow.mp4: disk is full. Make room.\n'
  assert os.listdir() == ['clip.mp4']


def test_weights_that_do_not_fit_are_named(generator):
  runner = generator._runners[0]
  params = dict(runner._params[0])
  del params['token_embedder']
  broken = runner.__class__(runner.model, params, runner.grid_hz, 0.5)
  with pytest.raises(errors.UserError) as caught:
    broken.compile(cascade.Settings(runner.model.options))
  assert str(caught.value).startswith(
    'The weights of stage `semantic` do not fit its network ('
  )


def _videos():
  folder = conftest.ROOT.parent / 'shared' / 'data'
  found = [*folder.glob('video/*'), *folder.glob('video_edge/*')]
  return sorted(str(path.relative_to(folder)) for path in found)


@pytest.mark.slow
@pytest.mark.parametrize('name', _videos())
def test_every_real_video_is_usable_or_says_why(
  name, shared_data, generator, tmp_path
):
  path = shared_data / name
  if path.name in ('audio_only.mp4', 'truncated_no_moov.mp4'):
    with pytest.raises(errors.UserError, match='expected') as caught:
      generator.see(path)
    assert str(caught.value).startswith(f'{path}: ')
    return
  music = generator.generate(path)
  written = music.write(tmp_path / 'music.mp4')
  picture = _seconds(written, 'video')
  assert _seconds(written, 'audio') == pytest.approx(picture, abs=0.1)
  assert 0 < np.abs(music.waveform).max() < 1


# Names of outputs.


def test_names_of_outputs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = lambda *args: [
    [str(path) for path in piece.paths] for piece in outputs.plan(*args)
  ]
  assert names(['a/clip.mov'], [0]) == [['clip.v2meow.mp4']]
  assert names(['clip.mov'], [0], None, 'wav') == [['clip.v2meow.wav']]
  assert names(['clip.mov'], [3, 4]) == [
    ['clip.v2meow.seed3.mp4'],
    ['clip.v2meow.seed4.mp4'],
  ]
  assert names(['a.mp4', 'b.mp4'], [0], 'x') == [
    ['x/a.v2meow.mp4'],
    ['x/b.v2meow.mp4'],
  ]
  assert names(['a.mp4'], [0], 'x.wav') == [['x.wav']]
  assert names(['a.mp4'], [0], 'x.mkv') == [['x.mkv']]
  assert names(['a.mp4'], [0], 'x.MKV', 'both') == [['x.mkv', 'x.wav']]
  assert names(['a.mp4'], [0], 'x.mp4', 'both') == [['x.mp4', 'x.wav']]
  assert names(['a.mp4'], [0, 1], 'x.mp4') == [
    ['x.seed0.mp4'],
    ['x.seed1.mp4'],
  ]
  assert names(['a.mp4'], [0], 'v1.2/') == [['v1.2/a.v2meow.mp4']]
  (tmp_path / 'v1.2').mkdir()
  assert names(['a.mp4'], [0], 'v1.2') == [['v1.2/a.v2meow.mp4']]
  # Named twice, made once.
  assert names(['a.mp4', 'a.mp4'], [0]) == [['a.v2meow.mp4']]


# The folder of compiled code.


def test_folder_of_compiled_code(tmp_path, monkeypatch):
  monkeypatch.setenv('V2MEOW_CACHE', str(tmp_path / 'own'))
  folder = compilation_cache.folder()
  assert folder.parent == tmp_path / 'own'
  assert folder.name.startswith('jax-')
  monkeypatch.delenv('V2MEOW_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert compilation_cache.folder() == tmp_path / 'xdg/v2meow' / folder.name
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  assert compilation_cache.folder().parent == tmp_path / 'home/.cache/v2meow'
  monkeypatch.setenv('V2MEOW_CACHE', 'off')
  assert compilation_cache.folder() is None


def test_compiled_code_is_kept(generator, music, code_folder):
  del generator, music  # made before
  (folder,) = code_folder.iterdir()
  kept = [path.name for path in folder.iterdir()]
  assert len([name for name in kept if name.startswith('jit_decode-')]) >= 5


def test_no_folder_of_compiled_code_is_a_warning(tmp_path, monkeypatch, capsys):
  import jax

  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('V2MEOW_CACHE', str(tmp_path / 'file'))
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  folder = compilation_cache.folder()
  assert capsys.readouterr().err == (
    f'warning: {folder}: compiled code cannot be kept here (Not a directory), '
    'so every run compiles it anew. Set V2MEOW_CACHE to a folder that can be '
    'written, or to `off`.\n'
  )
