"""Tickets: the answer to a request that waits for a fit."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_s3t.core.events import RequestKind


@dataclass(frozen=True)
class Ticket:
    """The answer to a request that the next fit carries out: until then, the serving model has the (old) data in it.

    The request is on disk, so a crash does not lose it, and the next fit starts with it. That fit gives the receipt.

    Attributes:
        time: When it was recorded (UTC, ISO 8601).
        subjects: Number of subjects in the request.
        already_forgotten: Number of them that had been forgotten before.
        unknown: Number of them that the store had never seen; None without a registry.
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
        """Number of the subjects who wait for the next fit; unknown subjects have nothing to correct."""
        left_out = (self.unknown or 0) if self.kind == "rectify" else 0
        return self.subjects - self.already_forgotten - left_out
