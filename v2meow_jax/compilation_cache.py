"""Compiled code on the disk, so that only the first run has to wait for it."""

import hashlib
import os
import pathlib
import platform

from v2meow_jax import errors

VARIABLE = 'V2MEOW_CACHE'
OFF = 'off'


def folder() -> pathlib.Path | None:
  """Returns the folder of compiled code, or None where it is switched off.

  `$V2MEOW_CACHE`, or `v2meow` in the user's cache folder. Code that is compiled
  for one processor may crash on another, and a home folder may be shared: each
  kind of processor has its own folder, and each version of JAX.
  """
  import jax

  setting = os.environ.get(VARIABLE)
  if setting == OFF:
    return None
  if setting:
    base = pathlib.Path(setting)
  else:
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    base = pathlib.Path(caches) / 'v2meow'
  return base / f'jax-{jax.__version__}-{processor_kind()}'


def processor_kind() -> str:
  """Returns 8 digits: the same where processors know the same instructions."""
  return hashlib.sha256(_instructions().encode()).hexdigest()[:8]


def _instructions() -> str:
  """The instructions that this processor knows, as far as we can see."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  flags = [x for x in lines if x.lower().startswith(('flags', 'features'))]
  return '\n'.join([platform.machine(), platform.processor(), *flags[:1]])


def enable() -> None:
  """Lets JAX keep compiled code, unless it was told where already.

  Where the folder cannot be written there is a warning and no cache.
  """
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  if jax.config.jax_compilation_cache_dir:
    return
  path = folder()
  if path is None:
    return
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    errors.warn(
      f'{path}: compiled code cannot be kept here ({error.strerror}), so '
      f'every run compiles it anew. Set {VARIABLE} to a folder that can be '
      f'written, or to `{OFF}`.'
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  # A process that has compiled before has found that there is no cache.
  compilation_cache.reset_cache()
