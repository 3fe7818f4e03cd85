"""`python -m v2meow_jax.toy`."""

import sys

# Not here: the processes that help could not import it from `__main__`.
from v2meow_jax.toy import command

if __name__ == '__main__':
  sys.exit(command.main())
