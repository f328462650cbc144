"""Tickets: the answer to a request that waits for a fit."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_s3t.core.events import RequestKind


@dataclass(frozen=True)
class Ticket:
    """The answer to a request that the next fit carries out: until then, what serves has the (old) data in it.

    The request is on disk: no crash loses it, and every fit begins with it. Its receipt comes from that fit.

    Attributes:
        time: When it was noted (UTC, ISO 8601).
        subjects: How many subjects were asked for.
        already_forgotten: How many of them had been forgotten before.
        unknown: How many of them the store had never seen; None where it keeps no registry.
        method: The unlearning method that will carry it out.
        kind: What was asked for: "forget" or "rectify".

    Example:
        >>> Ticket("2026-01-01T00:00:00.000+00:00", 2, 0, 0, "ssd").waiting
        2
    """

    time: str
    subjects: int
    already_forgotten: int
    unknown: int | None
    method: str
    kind: RequestKind = "forget"

    @property
    def waiting(self) -> int:
        """How many of the subjects wait for the next fit; of somebody unknown there is nothing to correct."""
        left_out = (self.unknown or 0) if self.kind == "rectify" else 0
        return self.subjects - self.already_forgotten - left_out
