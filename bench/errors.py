"""The one exception that means "the user can fix this", and what each exit status means."""

import json

EXIT_FAILED = 1  # a run or a check failed
EXIT_USER = 2  # a mistake of the user's
EXIT_BUSY = 3  # another process works on the run
EXIT_TERMINATED = 75  # SIGTERM; the same command continues
EXIT_INTERRUPTED = 130  # Ctrl-C; the same command continues


class UserError(Exception):
    """A mistake of the user's: its message is one line that says what was expected, what was found and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def found_in(error: Exception) -> str:
    """What an exception tells of a file that could not be read, for a message to say after "found"."""
    first_line = str(error).partition("\n")[0]
    if isinstance(error, OSError):
        return "none" if isinstance(error, FileNotFoundError) else (error.strerror or first_line).lower()
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"no JSON: {first_line}"
    return f"nothing by the name of {first_line}" if isinstance(error, KeyError) else first_line
