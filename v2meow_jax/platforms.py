"""Which kind of device JAX looks for."""

import glob
import importlib.util
import os
import sys

# Files of a TPU that this machine holds: up to v4, and from v5e on.
_TPU_FILES = ('/dev/accel[0-9]*', '/dev/vfio/[0-9]*')


def settle() -> None:
  """Asks for the CPU where JAX would look in vain for a TPU.

  With libtpu installed (the extra `tpu`) JAX starts it on every machine, and
  where there is no TPU that fails with lines of warnings. So a machine that has
  libtpu, no TPU and no plugin for another accelerator is told to use its CPU.
  Any other is left to JAX, and so is what the user has said in JAX_PLATFORMS.

  To be called before the first computation; imports nothing.
  """
  if os.environ.get('JAX_PLATFORMS') or not _looks_in_vain():
    return
  os.environ['JAX_PLATFORMS'] = 'cpu'  # for processes that this one starts
  if 'jax' in sys.modules:  # which has read the variable already
    sys.modules['jax'].config.update('jax_platforms', 'cpu')


def _looks_in_vain() -> bool:
  return (
    _is_installed('libtpu')
    and not _is_installed('jax_plugins')
    and not any(glob.glob(pattern) for pattern in _TPU_FILES)
  )


def _is_installed(name: str) -> bool:
  return importlib.util.find_spec(name) is not None
