"""The clock that staleness is measured with: each process's own."""

from __future__ import annotations

import time

DRIFT = 0.01
"""By how much the rates of two machines' clocks may differ: more than ten times what NTP corrects by."""


def own_clock() -> float:
    """Return seconds since some moment, which no correction of the time of day moves.

    Linux's CLOCK_BOOTTIME goes on while a machine sleeps; CLOCK_MONOTONIC, which `time.monotonic` is, stands still.

    Example:
        >>> before = own_clock()
        >>> own_clock() >= before
        True
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
