"""Names of Hugging Face's wav2vec conformers, for `weights.translate`.

`Wav2Vec2BertModel` and `Wav2Vec2ConformerModel` call their parts the same.
Each function returns rows of the table: our name, theirs and what to do.
"""

from v2meow_jax import weights

Table = dict[str, weights.Entry]


def norm(ours: str, theirs: str) -> Table:
  """A layer norm."""
  return {f'{ours}/scale': f'{theirs}.weight', f'{ours}/bias': f'{theirs}.bias'}


def dense(ours: str, theirs: str) -> Table:
  """A linear map."""
  return {
    f'{ours}/kernel': (f'{theirs}.weight', lambda x: x.T),
    f'{ours}/bias': f'{theirs}.bias',
  }


def pointwise(ours: str, theirs: str) -> Table:
  """A convolution of one tap without bias: `[out, in, 1]` to `[in, out]`."""
  return {f'{ours}/kernel': (f'{theirs}.weight', lambda x: x[:, :, 0].T)}


def batch_norm(ours: str, theirs: str) -> Table:
  """A batch norm with its statistics."""
  return {
    **norm(ours, theirs),
    f'{ours}/mean': f'{theirs}.running_mean',
    f'{ours}/variance': f'{theirs}.running_var',
  }


def block(ours: str, theirs: str, inner_norm: str) -> Table:
  """A block of `conformer.Block`, without its positions.

  Args:
    ours: our name of the block.
    theirs: their name of the block.
    inner_norm: 'layer' or 'batch', as `conformer.Config.norm`.
  """
  attention, convolution = f'{theirs}.self_attn', f'{theirs}.conv_module'
  table = {
    **norm(f'{ours}/attention/norm', f'{theirs}.self_attn_layer_norm'),
    **dense(f'{ours}/attention/query', f'{attention}.linear_q'),
    **dense(f'{ours}/attention/key', f'{attention}.linear_k'),
    **dense(f'{ours}/attention/value', f'{attention}.linear_v'),
    **dense(f'{ours}/attention/out', f'{attention}.linear_out'),
    **norm(f'{ours}/convolution/norm', f'{convolution}.layer_norm'),
    **pointwise(f'{ours}/convolution/gate', f'{convolution}.pointwise_conv1'),
    **pointwise(f'{ours}/convolution/out', f'{convolution}.pointwise_conv2'),
    # [features, 1, taps] -> [taps, features]
    f'{ours}/convolution/kernel': (
      f'{convolution}.depthwise_conv.weight',
      lambda x: x[:, 0].T,
    ),
    **norm(f'{ours}/norm', f'{theirs}.final_layer_norm'),
  }
  for i in range(2):
    mine, step = f'{ours}/mlp_{i}', f'{theirs}.ffn{i + 1}'
    table |= norm(f'{mine}/norm', f'{step}_layer_norm')
    table |= dense(f'{mine}/wi', f'{step}.intermediate_dense')
    table |= dense(f'{mine}/wo', f'{step}.output_dense')
  mine = f'{ours}/convolution/inner_norm'
  if inner_norm == 'layer':
    table |= norm(mine, f'{convolution}.depthwise_layer_norm')
  else:
    table |= batch_norm(mine, f'{convolution}.batch_norm')
  return table
