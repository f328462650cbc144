"""Where the output of an app goes while a command runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_STDOUT, _STDERR = 1, 2


@contextmanager
def output_to_stderr() -> Iterator[None]:
    """Send what this process, and the processes that train units, write to standard output to standard error."""
    sys.stdout.flush()
    kept = os.dup(_STDOUT)  # they inherit the descriptor, and not what `redirect_stdout` sets
    try:
        os.dup2(_STDERR, _STDOUT)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, _STDOUT)
        os.close(kept)
