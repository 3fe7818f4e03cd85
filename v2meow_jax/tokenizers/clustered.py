"""Semantic tokens as AudioLM makes them: k-means of a layer of a network.

(Borsos et al., 2022, section III.B.) The features of a layer are standardised,
each dimension by its own mean and deviation over the training set, and the
nearest of the centres of k-means is the token.

A long clip goes through the network in windows of one length, so that there is
one compilation and memory does not grow; the ends of a window, which hear less
than the middle, are left to its neighbours.
"""

import abc
from collections.abc import Mapping
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v2meow_jax import waveforms
from v2meow_jax import weights
from v2meow_jax.tokenizers import base

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Config:
  """What every such tokenizer chooses.

  Attributes:
    layer: layer whose output is the features; 0 is the input of the first. A
      file with a k-means fit says it, too, and wins.
    window_seconds: what the network hears at once.
    context_seconds: at either end of a window, what is only heard.
  """

  layer: int = 7
  window_seconds: float = 30.0
  context_seconds: float = 5.0


class Clustered(base.ClusterTokenizer):
  """Clusters of what a network makes of the sound.

  Attributes:
    params: see `base.ClusterTokenizer`; `params` among them are the network's.
      Their config says the layer, so that a fit is not taken for another's.
    network: a module with `config` (a `Config`), `num_layers`, `embed_dim`,
      `steps` and `bins`, that maps `[batch, time, steps, bins]` and a mask
      `[batch, time]` to the config's layer, `[batch, time, embed_dim]`.
  """

  def __init__(self, params: Mapping, network: nn.Module):
    """Makes a tokenizer.

    Args:
      params: see the attribute; with or without a fit and a config.
      network: see the attribute.

    Raises:
      UserError: the weights are those of another network.
      ValueError: the layer or the windows make no sense.
    """
    self.network = network
    config = network.config
    self._window = self.spec.length(config.window_seconds)
    self._context = self.spec.length(config.context_seconds)
    if self._context < 0 or self._window <= 2 * self._context:
      raise ValueError(
        f'Windows of {config.window_seconds:g} s with '
        f'{config.context_seconds:g} s of context at either end, expected '
        'windows longer than both. Set other seconds.'
      )
    if not 0 <= config.layer <= network.num_layers:
      raise ValueError(
        f'Layer {config.layer} of tokenizer `{self.spec.name}`, expected 0 to '
        f'{network.num_layers}. Set another layer.'
      )
    arrays = weights.without_config(params)
    rest = {k: v for k, v in arrays.items() if k not in self.FIT}
    weights.check_params({'params': parameter_shapes(network)}, rest)
    says = weights.read_config(params) | {'layer': config.layer}
    super().__init__(weights.add_config(arrays, says))
    on_device = jax.device_put(arrays['params'])

    @jax.jit
    def run(params, frames, num_valid):
      mask = jnp.arange(self._window) < num_valid
      out = network.apply({'params': params}, frames[None], mask[None])
      return out[0].astype(jnp.float32)

    self._run = lambda frames, num: np.asarray(run(on_device, frames, num))

  @property
  def num_features(self) -> int:
    return self.network.embed_dim

  def features(self, waveform: Array) -> Array:
    """Computes the features of a clip, as they are.

    Args:
      waveform: float32 `[samples]` at `spec.sample_rate_hz`, about [-1, 1].

    Returns:
      float32 `[time, features]`, time = samples / spec.hop rounded up.

    Raises:
      ValueError: the waveform has another rank, is empty or is not finite.
    """
    waveform = waveforms.check(np.asarray(waveform)[None])[0]
    length = -(-len(waveform) // self.spec.hop)
    waveform = np.pad(waveform, (0, length * self.spec.hop - len(waveform)))
    network = self.network
    frames = self._frames(waveform)
    # [time * steps, bins] -> [time, steps, bins]
    frames = frames.reshape(length, network.steps, network.bins)
    stride = self._window - 2 * self._context
    num_windows = max(1, -(-(length - 2 * self._context) // stride))
    pieces = []
    for i in range(num_windows):
      start = i * stride
      piece = frames[start : start + self._window]
      padding = self._window - len(piece)
      out = self._run(np.pad(piece, ((0, padding), (0, 0), (0, 0))), len(piece))
      first = self._context if i else 0
      is_last = i == num_windows - 1
      last = len(piece) if is_last else self._window - self._context
      pieces.append(out[first:last])
    return np.concatenate(pieces)

  @abc.abstractmethod
  def _frames(self, waveform: Array) -> Array:
    """Maps float32 `[samples]`, a multiple of the hop, to what is heard.

    Returns:
      float32 `[time * steps, bins]`.
    """


def parameter_shapes(network: nn.Module) -> dict:
  """Shapes of a network's parameters."""
  frames = jax.ShapeDtypeStruct((1, 4, network.steps, network.bins), 'float32')
  mask = jax.ShapeDtypeStruct((1, 4), bool)
  variables = jax.eval_shape(network.init, jax.random.key(0), frames, mask)
  return nn.meta.unbox(variables)['params']


def expected(network: nn.Module, num_codes: int, is_fitted: bool) -> dict:
  """Shapes of the weights of a tokenizer, for `pretrained.Checkpoint`."""
  features = network.embed_dim
  shapes = {'params': parameter_shapes(network)}
  if is_fitted:
    fit = {'mean': (features,), 'scale': (features,)}
    fit['centres'] = (num_codes, features)
    shapes |= {k: jax.ShapeDtypeStruct(v, 'float32') for k, v in fit.items()}
  return shapes
