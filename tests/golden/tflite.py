"""A small TFLite model, and its constants as TensorFlow reads them.

`quantized.tflite` and `quantized.npz` were made by

    python -m tests.golden.tflite

with TensorFlow 2.21: two convolutions and a dense layer, all int8, each kernel
of the convolutions with a scale for each of its channels.
"""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent


def _make() -> bytes:
  import tensorflow as tf

  rng = np.random.default_rng(0)
  draw = lambda *shape: tf.constant(rng.normal(0, 1, shape).astype(np.float32))
  first, depthwise, dense = draw(3, 3, 1, 4), draw(3, 3, 4, 1), draw(4, 5)
  biases = draw(4), draw(4), draw(5)

  @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 1))])
  def network(x):
    x = tf.nn.relu6(tf.nn.conv2d(x, first, 1, 'SAME') + biases[0])
    x = tf.nn.depthwise_conv2d(x, depthwise, (1, 1, 1, 1), 'SAME') + biases[1]
    return tf.reduce_mean(x, (1, 2)) @ dense + biases[2]

  converter = tf.lite.TFLiteConverter.from_concrete_functions(
    [network.get_concrete_function()]
  )
  converter.optimizations = [tf.lite.Optimize.DEFAULT]
  converter.representative_dataset = lambda: (
    [rng.normal(0, 1, (1, 8, 8, 1)).astype(np.float32)] for _ in range(8)
  )
  converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
  return converter.convert()


def constants(path) -> dict[str, np.ndarray]:
  """Constants of a model as TensorFlow's interpreter reads and scales them."""
  import tensorflow as tf

  interpreter = tf.lite.Interpreter(str(path))
  arrays = {}
  for tensor in interpreter.get_tensor_details():
    try:
      array = interpreter.get_tensor(tensor['index'])
    except ValueError:  # what the graph computes
      continue
    found = tensor['quantization_parameters']
    if found['scales'].size:
      shape = [1] * array.ndim
      if found['scales'].size > 1:
        shape[found['quantized_dimension']] = -1
      array = (array - found['zero_points'].reshape(shape).astype(float)) * (
        found['scales'].reshape(shape).astype(float)
      )
    arrays[tensor['name']] = array
  return arrays


if __name__ == '__main__':
  path = FOLDER / 'quantized.tflite'
  path.write_bytes(_make())
  np.savez_compressed(FOLDER / 'quantized.npz', **constants(path))
