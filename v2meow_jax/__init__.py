"""V2Meow in JAX: music for silent video."""

__version__ = '0.1.0'
