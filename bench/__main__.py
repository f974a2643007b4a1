"""``python -m bench``."""

import os
import signal
import sys

from bench import stopping
from bench.errors import EXIT_INTERRUPTED, EXIT_USER

stopping.install()  # before torch, whose import takes seconds
try:
    from bench.cli import main
except KeyboardInterrupt:
    sys.exit(EXIT_INTERRUPTED)


def _run() -> int:
    """Run the command; where its output cannot be written, say so in a line, or nothing to a reader who has left."""
    if sys.stdout is None:  # closed by who started it
        return main()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # an old terminal need not know every character
    try:
        status = main()
        sys.stdout.flush()
    except OSError:
        try:
            os.write(sys.stdout.fileno(), b"\n")  # refused too, if it was the output
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left as it ends
            if isinstance(error, BrokenPipeError):
                return 128 + signal.SIGPIPE
            print(f"error: standard output: cannot be written ({error.strerror})", file=sys.stderr)
            return EXIT_USER
        raise
    return status


sys.exit(_run())
