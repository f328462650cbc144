"""Units in the ledger: which are alive, and whether a request has reached one."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import TypeVar

from lightning_s3t.plan import UnitId
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.legible import legible
from lightning_s3t.store.record import Candidate, UnitRecord

Found = TypeVar("Found")


def read_units(ledger: Ledger) -> dict[UnitId, UnitRecord]:
    """Returns the units that may serve, in order.

    A unit whose lineage is not whole is left out: it could not be put together.

    Args:
        ledger: The ledger.
    """
    rows = ledger.connection.execute("SELECT unit, key, snapshot, score, provenance FROM units").fetchall()
    with legible("The record of a unit"):
        return _whole(
            {
                text: UnitRecord(_parse(text), key, snapshot, score, json.loads(provenance))
                for text, key, snapshot, score, provenance in rows
            }
        )


def read_candidates(ledger: Ledger) -> dict[UnitId, Candidate]:
    """Returns the units that may serve, as `read_units` does, without what they were made from: that is much to read.

    Args:
        ledger: The ledger.
    """
    rows = ledger.connection.execute("SELECT unit, snapshot, score FROM units").fetchall()
    with legible("The name of a unit"):
        return _whole({text: Candidate(snapshot, score) for text, snapshot, score in rows})


def read_scores(ledger: Ledger) -> dict[UnitId, float | None]:
    """Returns every unit in the ledger with its score, in order; faster than whole records.

    Args:
        ledger: The ledger.
    """
    rows = ledger.connection.execute("SELECT unit, score FROM units").fetchall()
    with legible("The name of a unit"):
        scores = {_parse(text): score for text, score in rows}
        return {unit: scores[unit] for unit in _in_order(scores)}


def read_snapshots(ledger: Ledger) -> dict[UnitId, str]:
    """Returns the digest of every unit's snapshot.

    Args:
        ledger: The ledger.
    """
    rows = ledger.connection.execute("SELECT unit, snapshot FROM units").fetchall()
    with legible("The name of a unit"):
        return {_parse(unit): snapshot for unit, snapshot in rows}


def find_snapshot(ledger: Ledger, unit: UnitId) -> str | None:
    """Returns the digest of a unit's snapshot; None if the unit may not serve.

    Args:
        ledger: The ledger.
        unit: The unit.
    """
    names = [str(ancestor) for ancestor in unit.lineage]
    marks = ",".join("?" * len(names))
    rows = ledger.connection.execute(f"SELECT unit, snapshot FROM units WHERE unit IN ({marks})", names)
    found: dict[str, str] = dict(rows.fetchall())
    return found.get(str(unit)) if len(found) == len(names) else None


def newest_request(ledger: Ledger) -> int:
    """Returns the number of the newest request, 0 before the first.

    Args:
        ledger: The ledger.
    """
    row = ledger.connection.execute("SELECT MAX(request) FROM events").fetchone()
    return row[0] or 0


def reached_since(ledger: Ledger, unit: UnitId, request: int) -> bool:
    """Says whether a request newer than a given one reaches a unit.

    Args:
        ledger: The ledger.
        unit: The unit.
        request: The number of a request.
    """
    marks = ",".join("?" * unit.stage)
    row = ledger.connection.execute(
        f"SELECT 1 FROM tombstones WHERE shard = ? AND slice IN ({marks}) AND request > ? LIMIT 1",
        (unit.shard, *unit.prefix, request),
    ).fetchone()
    return row is not None


def _whole(found: Mapping[str, Found]) -> dict[UnitId, Found]:
    """Returns the units whose ancestors are all there, in order."""
    whole: set[str] = set()
    for text in sorted(found, key=len):  # parents come before their children
        parent = text.rpartition("-")[0]
        if not parent or parent in whole:
            whole.add(text)
    by_unit = {_parse(text): found[text] for text in whole}
    return {unit: by_unit[unit] for unit in _in_order(by_unit)}


def _in_order(units: Iterable[UnitId]) -> list[UnitId]:
    # as `sorted` does, which makes two tuples for every comparison
    return sorted(units, key=lambda unit: (unit.shard, unit.prefix))


@functools.lru_cache(maxsize=1 << 16)
def _parse(text: str) -> UnitId:
    # a served model reads the same names after every request
    return UnitId.parse(text)
