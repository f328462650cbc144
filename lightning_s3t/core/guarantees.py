"""Guarantees: what a method promises of an artifact after a request, and how its training was kept apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Guarantee = Literal["exact", "certified", "empirical"]
"""Bitwise what a training without the data gives; within (epsilon, delta) of it; or only as measured."""

Response = Literal["revoke", "replace"]
"""What a request does to a unit that it reaches: takes it out at once, or has the next fit put another in its place."""

Isolation = Literal["forkserver", "fork", "none"]
"""How units were kept apart: a fresh process each, a fork of the script each, or one process for all."""

_FROM_STRONGEST: tuple[Isolation, ...] = ("forkserver", "fork", "none")


def weakest(isolations: Iterable[Isolation]) -> Isolation:
    """Return the weakest of several isolations: what a receipt may claim of all units together.

    Args:
        isolations: Any number of them. Without any, nothing can be claimed.

    Example:
        >>> weakest(["forkserver", "fork"]), weakest([])
        ('fork', 'none')
    """
    return max(isolations, key=_FROM_STRONGEST.index, default="none")
