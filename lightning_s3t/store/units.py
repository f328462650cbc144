"""Units in the ledger: which may serve, and their records."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightning_s3t.core.units import UnitId
from lightning_s3t.store.ledgers.ledger import Ledger, ledger_errors

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class UnitRecord:
    """A unit that is built and not revoked.

    Attributes:
        unit: Its coordinates.
        key: The digest of everything that may have influenced it.
        snapshot: The SHA-256 of its snapshot, which is also the file's name.
        score: The metric that the script monitors, higher being better; None without one.
        provenance: Its origin, JSON-ready.
    """

    unit: UnitId
    key: str
    snapshot: str
    score: float | None
    provenance: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ServableUnit:
    """The data needed to serve a unit.

    Attributes:
        snapshot: The SHA-256 of its snapshot.
        score: The metric that the script monitors, higher being better; None without one.
    """

    snapshot: str
    score: float | None


def read_units(ledger: Ledger, names: Collection[str] | None = None) -> dict[UnitId, UnitRecord]:
    """Return the units that may serve, in order.

    A unit with an incomplete lineage is left out: its model could not be assembled.

    Args:
        ledger: The ledger.
        names: The names of a unit and its ancestors, to read only these.
    """
    with ledger_errors("The record of a unit"):
        return _whole(
            {
                found.name: UnitRecord(
                    parse_unit(found.name), found.key, found.digest, found.score, json.loads(found.provenance)
                )
                for found in ledger.artifacts(names)
            }
        )


def read_servable(ledger: Ledger) -> dict[UnitId, ServableUnit]:
    """Return the units that may serve, as `read_units` does, without their provenance, which is slow to read.

    Args:
        ledger: The ledger.
    """
    with ledger_errors("The name of a unit"):
        return _whole({entry.name: ServableUnit(entry.digest, entry.score) for entry in ledger.entries()})


def find_snapshot(ledger: Ledger, lineage: Sequence[str]) -> str | None:
    """Return the digest of a unit's snapshot; None if the unit may not serve.

    Args:
        ledger: The ledger.
        lineage: The names of all units that it is built of, its own last.
    """
    found = ledger.digests(lineage)
    return found[lineage[-1]] if len(found) == len(lineage) else None


@functools.lru_cache(maxsize=1 << 16)
def parse_unit(name: str) -> UnitId:
    """Return the unit of a name; a served model reads the same names after every request.

    Args:
        name: For example "0/2-0".
    """
    return UnitId.parse(name)


def _whole(found: Mapping[str, _Found]) -> dict[UnitId, _Found]:
    """Return the units whose ancestors all exist, in order."""
    whole: set[str] = set()
    for name in sorted(found, key=len):  # parents come before their children
        parent = name.rpartition("-")[0]
        if not parent or parent in whole:
            whole.add(name)
    by_unit = {parse_unit(name): found[name] for name in whole}
    # as `sorted` does, which makes two tuples for every comparison
    return {unit: by_unit[unit] for unit in sorted(by_unit, key=lambda unit: (unit.shard, unit.prefix))}
