"""What every extractor, codec, tokenizer, embedder and metric must satisfy."""

import numpy as np


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
  for levels in (1, spec.num_levels // 2, spec.num_levels):
    decoded = np.asarray(codec.decode(codes[..., :levels]))
    assert decoded.shape == (2, length * spec.hop)
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    pieces = list(
      codec.decode_chunks([codes[:, :1, :levels], codes[:, 1:, :levels]])
    )
    np.testing.assert_allclose(np.concatenate(pieces, 1), decoded, atol=2e-5)
  # Every level is heard.
  fewer = np.asarray(codec.decode(codes[..., : spec.num_levels - 1]))
  assert not np.allclose(fewer, decoded, atol=1e-6)


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
