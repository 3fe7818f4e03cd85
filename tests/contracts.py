"""What every extractor, codec, tokenizer, embedder and metric must satisfy."""

import numpy as np
import pytest


def check_codec(codec):
  """Shapes, dtypes, lengths and levels of a `codecs.base.Codec`."""
  spec = codec.spec
  assert codec.sample_rate_hz == spec.sample_rate_hz
  assert codec.hop == spec.hop == spec.sample_rate_hz / spec.rate_hz
  rng = np.random.default_rng(0)
  for num_samples in (1, spec.hop - 1, spec.hop, spec.hop + 1, 3 * spec.hop):
    waveform = rng.uniform(-0.5, 0.5, (2, num_samples)).astype(np.float32)
    codes = np.asarray(codec.encode(waveform))
    length = -(-num_samples // spec.hop)
    assert codes.shape == (2, length, spec.num_levels)
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < spec.num_codes
    # What lies behind the end is silence.
    padded = np.pad(waveform, ((0, 0), (0, length * spec.hop - num_samples)))
    np.testing.assert_array_equal(codec.encode(padded), codes)
    # A clip is coded as it is alone.
    np.testing.assert_array_equal(codec.encode(waveform[1:]), codes[1:])
  check_encode_chunks(codec, rng)
  for bad, message in (
    (waveform[0], r'of shape \(\d+,\), expected \[batch, samples\]'),
    (waveform[:, :0], 'with at least one sample'),
    (waveform[..., None].repeat(8, 2), 'Mix to mono and add the batch axis'),
    (np.where(waveform > 0.4, np.nan, waveform), 'NaN or infinity'),
  ):
    with pytest.raises(ValueError, match=message):
      codec.encode(bad)
  silence = np.zeros((2, spec.hop), np.float32)
  assert np.isfinite(codec.decode(codec.encode(silence))).all()
  assert codec.decode(codes[:, :0]).shape == (2, 0)
  with pytest.raises(ValueError, match='expected whole numbers'):
    codec.decode(codes / 2)
  fewer = None
  for levels in (1, spec.num_levels - 1, spec.num_levels):
    decoded = np.asarray(codec.decode(codes[..., :levels]))
    assert decoded.shape == (2, length * spec.hop)
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    pieces = list(
      codec.decode_chunks([codes[:, :1, :levels], codes[:, 1:, :levels]])
    )
    np.testing.assert_allclose(np.concatenate(pieces, 1), decoded, atol=2e-5)
    # Further levels are heard.
    assert fewer is None or not np.allclose(fewer, decoded, atol=1e-6)
    fewer = decoded


def check_encode_chunks(codec, rng):
  """Codes of a clip do not depend on how it comes."""
  # Longer than what is computed at once, and no whole number of positions.
  waveform = rng.uniform(-0.5, 0.5, (2, 230 * codec.hop + 7)).astype('f4')
  ends = codec.hop * np.array([0, 1, 103, 200]) + np.array([0, 3, 0, 1])
  pieces = list(codec.encode_chunks(np.split(waveform, ends, axis=1)))
  assert len(pieces) > 1
  assert {piece.dtype for piece in pieces} == {np.dtype(np.int32)}
  np.testing.assert_array_equal(
    np.concatenate(pieces, 1), codec.encode(waveform)
  )
  # What is far behind changes nothing, what is there does.
  other = waveform.copy()
  other[:, 150 * codec.hop :] = 0
  codes = [np.asarray(codec.encode(w)) for w in (waveform, other)]
  np.testing.assert_array_equal(codes[0][:, :100], codes[1][:, :100])
  assert (codes[0][:, 151:] != codes[1][:, 151:]).any()
  assert list(codec.encode_chunks([])) == []
  waveform[0, -1] = np.nan
  with pytest.raises(ValueError, match='NaN or infinity'):
    list(codec.encode_chunks(np.split(waveform, ends, axis=1)))


def check_tokenizer(tokenizer):
  """Shapes, dtypes, lengths and range of a `tokenizers.base.Tokenizer`."""
  spec = tokenizer.spec
  rng = np.random.default_rng(0)
  for num_samples in (1, spec.hop - 1, spec.hop, spec.hop + 1, 9 * spec.hop):
    waveform = rng.uniform(-0.5, 0.5, (2, num_samples)).astype(np.float32)
    codes = tokenizer.encode(waveform)
    length = -(-num_samples // spec.hop)
    assert codes.shape == (2, length, spec.num_levels)
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < spec.num_codes
    # What lies behind the end is silence, and a clip is coded as it is alone.
    padded = np.pad(waveform, ((0, 0), (0, length * spec.hop - num_samples)))
    np.testing.assert_array_equal(tokenizer.encode(padded), codes)
    np.testing.assert_array_equal(tokenizer.encode(waveform[1:]), codes[1:])


def check_embedder(embedder, texts):
  """Shape, dtype and independence of an `embedders.base.Embedder`."""
  vectors = embedder.embed_text(texts)
  assert not embedder.spec.is_timed
  assert vectors.shape == (len(texts), embedder.spec.num_features)
  assert vectors.dtype == np.float32
  assert np.isfinite(vectors).all()
  np.testing.assert_array_equal(embedder.embed_text(texts[1:]), vectors[1:])
  # Between texts: one of them at the ends, and only ratios of weights count.
  mix = lambda *weights: embedder.mix_texts(list(zip(texts, weights)))
  np.testing.assert_array_equal(mix(3), vectors[0])
  for weights, row in (((2, 0), 0), ((0, 0.1), 1)):
    np.testing.assert_allclose(mix(*weights), vectors[row], atol=1e-6)
  between = mix(1, 3)
  assert between.shape == vectors.shape[1:]
  assert between.dtype == np.float32
  np.testing.assert_allclose(between, mix(0.25, 0.75), atol=1e-6)
  assert (between != vectors[:2]).any(axis=1).all()


def check_hearing(embedder, atol=1e-5):
  """Windows, lengths and independence of an `embedders.base.Embedder`."""
  spec = embedder.spec
  assert not spec.is_timed
  assert 0 < embedder.hop_seconds <= embedder.window_seconds
  window = round(embedder.window_seconds * spec.sample_rate_hz)
  rng = np.random.default_rng(0)
  for num_samples in (1, window, window + 1, round(2.5 * window)):
    waveform = rng.uniform(-0.5, 0.5, (2, num_samples)).astype(np.float32)
    windows = embedder.embed_windows(waveform)
    assert windows.shape[::2] == (2, spec.num_features)
    assert windows.shape[1] >= 1
    assert windows.dtype == np.float32
    assert np.isfinite(windows).all()
    # A clip is heard as it is alone.
    np.testing.assert_allclose(
      embedder.embed_windows(waveform[1:]), windows[1:], atol=atol
    )
    vectors = embedder.embed_audio(waveform)
    assert vectors.shape == (2, spec.num_features)
    assert vectors.dtype == np.float32
    if embedder.is_unit_length:
      np.testing.assert_allclose(np.linalg.norm(windows, axis=2), 1, atol=1e-5)
      np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    else:
      np.testing.assert_allclose(vectors, windows.mean(1), atol=atol)
  assert windows.shape[1] >= 2  # a window and a half behind the first
  # The first window hears nothing of what comes behind it.
  louder = waveform.copy()
  louder[:, window + round(0.1 * window) :] *= 0.1
  again = embedder.embed_windows(louder)
  np.testing.assert_allclose(again[:, 0], windows[:, 0], atol=atol)
  assert not np.allclose(again[:, -1], windows[:, -1], atol=atol)
  silence = embedder.embed_audio(np.zeros((1, window), np.float32))
  assert np.isfinite(silence).all()
  if embedder.labels:
    assert len(embedder.labels) == spec.num_features
  for bad in (np.full((1, window), np.nan), np.zeros((1, 0)), np.zeros(9)):
    try:
      embedder.embed_windows(bad)
    except ValueError:
      continue
    raise AssertionError(f'{bad.shape} was heard')
