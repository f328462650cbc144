"""Tickets: the answer to a deletion request that waits for a fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ticket:
    """The answer to a deletion request that the next fit carries out: until then, what serves has the data in it.

    The request is on disk: no crash loses it, and every fit begins with it. Its receipt comes from that fit.

    Attributes:
        time: When it was noted (UTC, ISO 8601).
        subjects: How many subjects were asked for.
        already_forgotten: How many of them had been forgotten before.
        unknown: How many of them the store had never seen; None where it keeps no registry.
        method: The unlearning method that will carry it out.

    Example:
        >>> Ticket("2026-01-01T00:00:00.000+00:00", 2, 0, 0, "ssd").waiting
        2
    """

    time: str
    subjects: int
    already_forgotten: int
    unknown: int | None
    method: str

    @property
    def waiting(self) -> int:
        """How many of the subjects wait for the next fit."""
        return self.subjects - self.already_forgotten
