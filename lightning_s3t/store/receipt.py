"""Receipts: what was asked, revoked and erased, and what serves on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from lightning_s3t.errors import StoreError
from lightning_s3t.store.chain import read_events
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.legible import legible

FORMAT = 1
_TYPES: dict[str, tuple[type, ...]] = {
    "request": (int,),
    "time": (str,),
    "subjects": (int,),
    "already_forgotten": (int,),
    "unknown": (int, type(None)),
    "revoked": (list,),
    "erased_files": (int,),
    "erased_bytes": (int,),
    "serving": (dict,),
    "versions": (dict,),
    "position": (int,),
    "chain": (str,),
}


@dataclass(frozen=True)
class Receipt:
    """The answer to a deletion request. It holds no ids and no digests of snapshots: it may be filed.

    Attributes:
        request: The request's number, from 1.
        time: When it was carried out (UTC, ISO 8601).
        subjects: How many subjects were asked for.
        already_forgotten: How many of them had been forgotten before.
        unknown: How many of them the store had never seen; None where it keeps no registry.
        revoked: The units that may never serve again.
        erased_files: How many files were removed.
        erased_bytes: Their size.
        serving: By shard, the unit that served then, or None.
        versions: Of the packages that took part.
        position: Of the newest event in the store's chain that belongs to the request.
        chain: That event's digest: whoever has it can tell whether the store's history was changed since.

    Example:
        >>> receipt = Receipt(1, "2026-01-01T00:00:00+00:00", 1, 0, 0, ("0/1",), 1, 100, {"0": None}, {}, 2, "ab12")
        >>> Receipt.from_json(receipt.to_json()) == receipt
        True
    """

    request: int
    time: str
    subjects: int
    already_forgotten: int
    unknown: int | None
    revoked: tuple[str, ...]
    erased_files: int
    erased_bytes: int
    serving: dict[str, str | None]
    versions: dict[str, str]
    position: int
    chain: str

    def to_json(self) -> str:
        """Returns the receipt as a JSON document (schema: docs/receipt.schema.json)."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """Reads what `to_json` has written; a signature is passed over.

        Args:
            text: A JSON document.

        Raises:
            StoreError: It is no receipt.
        """
        try:
            data: Any = json.loads(text, object_pairs_hook=_each_name_once)
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"The receipt is no JSON document: {error}. Expected what `s3t forget --json` prints."
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise StoreError(f"The document has format {found!r}. Expected a receipt of format {FORMAT}.")
        wrong = [
            name
            for name, kinds in _TYPES.items()
            if not isinstance(data.get(name, ...), kinds) or isinstance(data.get(name), bool)
        ]
        if wrong:
            raise StoreError(f"The receipt lacks {', '.join(wrong)}, or they are of another type than expected.")
        return cls(**{field.name: data[field.name] for field in fields(cls)} | {"revoked": tuple(data["revoked"])})


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # readers differ in which of two they take: a signature would be right for one of them alone
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is in it twice")
    return found


def read_receipt(ledger: Ledger, request: int) -> Receipt:
    """Returns the receipt of a request: what its events say.

    Args:
        ledger: The ledger.
        request: The request's number.

    Raises:
        StoreError: The history of the request was damaged or changed.
    """
    with legible(f"Request {request}"):
        first, *erasures = list(read_events(ledger, request=request))
        body, last = first.body, ([first, *erasures])[-1]
        return Receipt(
            request=request,
            time=first.time,
            subjects=body["subjects"],
            already_forgotten=body["already_forgotten"],
            unknown=body["unknown"],
            revoked=tuple(body["revoked"]),
            erased_files=sum(event.body["files"] for event in erasures),
            erased_bytes=sum(event.body["bytes"] for event in erasures),
            serving=body["serving"],
            versions=body["versions"],
            position=last.position,
            chain=last.digest,
        )
