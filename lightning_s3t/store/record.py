"""Records of units that are built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_s3t.plan import UnitId


@dataclass(frozen=True)
class UnitRecord:
    """A unit that is built and not revoked.

    Attributes:
        unit: Its coordinates.
        key: The digest of all that may have influenced it.
        snapshot: The SHA-256 of its snapshot, which is also the file's name.
        score: The metric that the script monitors, higher being better; None without one.
        provenance: What it was made from, JSON-ready.
    """

    unit: UnitId
    key: str
    snapshot: str
    score: float | None
    provenance: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Candidate:
    """What has to be known of a unit to serve it.

    Attributes:
        snapshot: The SHA-256 of its snapshot.
        score: The metric that the script monitors, higher being better; None without one.
    """

    snapshot: str
    score: float | None
