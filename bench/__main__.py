"""``python -m bench``."""

import sys

from bench import stopping
from bench.errors import EXIT_INTERRUPTED

stopping.install()  # before torch, whose import takes seconds
try:
    from bench.cli import main
except KeyboardInterrupt:
    sys.exit(EXIT_INTERRUPTED)

sys.exit(main())
