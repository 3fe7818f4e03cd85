"""Tests of configs.py: where gin files are looked for."""

import gin

from v2meow_jax import configs


def test_includes_are_found_after_the_search_path_was_restored():
  before = list(gin.config._LOCATION_PREFIXES)
  configs.parse(['stages/fine.gin'])
  gin.config._LOCATION_PREFIXES[:] = ['']  # as a bundle does behind itself
  try:
    configs.parse(['stages/fine.gin'])  # includes model.gin
    assert 'DROPOUT_RATE' in gin.config_str()
  finally:
    gin.config._LOCATION_PREFIXES[:] = before
    gin.clear_config()
