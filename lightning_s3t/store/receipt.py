"""Receipts: what was asked, revoked and erased, and what serves on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Receipt:
    """The answer to a deletion request. It holds no ids and no digests: it may be filed.

    Attributes:
        request: The request's number, from 1.
        time: When it was carried out (UTC, ISO 8601).
        subjects: How many subjects were asked for.
        already_forgotten: How many of them had been forgotten before.
        unknown: How many of them the store had never seen.
        revoked: The units that may never serve again.
        erased_files: How many files were removed.
        erased_bytes: Their size.
        serving: By shard, the unit that serves now, or None.
        versions: Of the packages that took part.

    Example:
        >>> receipt = Receipt(1, "2026-01-01T00:00:00+00:00", 1, 0, 0, ("0/1",), 1, 100, {"0": None}, {})
        >>> Receipt.from_json(receipt.to_json()) == receipt
        True
    """

    request: int
    time: str
    subjects: int
    already_forgotten: int
    unknown: int
    revoked: tuple[str, ...]
    erased_files: int
    erased_bytes: int
    serving: dict[str, str | None]
    versions: dict[str, str]

    def to_json(self) -> str:
        """Returns the receipt as a JSON document."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """Reads what `to_json` has written.

        Args:
            text: A JSON document.
        """
        data: dict[str, Any] = json.loads(text)
        return cls(**{**data, "revoked": tuple(data["revoked"])})
