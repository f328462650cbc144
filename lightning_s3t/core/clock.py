"""The clock for staleness: each process's own."""

from __future__ import annotations

import time

DRIFT = 0.01
"""By how much the rates of two machines' clocks may differ: more than ten times what NTP corrects by."""


def own_clock() -> float:
    """Return seconds since an arbitrary moment, unaffected by corrections of the time of day.

    Linux's CLOCK_BOOTTIME keeps running while a machine sleeps; CLOCK_MONOTONIC, which `time.monotonic` uses, stops.

    Example:
        >>> before = own_clock()
        >>> own_clock() >= before
        True
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
