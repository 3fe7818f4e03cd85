"""What a user sees when something is wrong: one line that says what to do."""

import sys


class UserError(Exception):
  """A mistake in the input or its surroundings, not in the program.

  The message is one line: what was wrong, what was expected and what to do.
  The command line prints it behind `error: ` and exits with status 1.
  """


_warned: set[str] = set()


def warn(message: str) -> None:
  """Prints `warning: message` to stderr, once per message and process.

  Args:
    message: one line that says what happened and what follows from it.
  """
  if message not in _warned:
    _warned.add(message)
    print(f'warning: {message}', file=sys.stderr, flush=True)
