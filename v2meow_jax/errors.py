"""What a user sees when something is wrong: one line that says what to do."""

import sys


class UserError(Exception):
  """A mistake in the input or its surroundings, not in the program.

  The message is one line: what was wrong, what was expected and what to do.
  The command line prints it behind `error: ` and exits with status 1.
  """


def describe_fault(error: Exception) -> str:
  """Returns one line about an error that is the program's own."""
  text = ' '.join(str(error).split())
  return (
    f'{type(error).__name__}: {text}. This is a fault of the program: please '
    'report it, with what V2MEOW_DEBUG=1 shows.'
  )


_warned: set[str] = set()


def warn(message: str) -> None:
  """Prints `warning: message` to stderr, once per message and process.

  Args:
    message: one line that says what happened and what follows from it.
  """
  if message not in _warned:
    _warned.add(message)
    print(f'warning: {message}', file=sys.stderr, flush=True)
