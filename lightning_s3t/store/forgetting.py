"""Forgetting: a deletion request, revoked in one transaction and then erased."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_s3t.errors import UnknownSubjectError
from lightning_s3t.plan import Partition, UnitId, survivors
from lightning_s3t.store.erasure import erase_pending, queue_units
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.receipt import Receipt
from lightning_s3t.store.registry import read_bands
from lightning_s3t.store.units import read_scores


def forget(ledger: Ledger, store: Path, partition: Partition, asked: Mapping[str, str], strict: bool) -> Receipt:
    """Carries a request out.

    Args:
        ledger: The store's ledger.
        store: Its folder.
        partition: Where subjects belong.
        asked: The subjects: keyed hashes by canonical id.
        strict: Refuse unknown subjects.

    Raises:
        UnknownSubjectError: A subject is unknown and `strict` is set.
        StoreError: A file could not be erased. The request is carried out all the same.
    """
    with ledger.transaction() as connection:
        already = ledger.present("tombstones", asked.values())
        known = ledger.present("subjects", asked.values()) | already
        unknown = [subject for subject, hash_ in asked.items() if hash_ not in known]
        if unknown and strict:
            raise UnknownSubjectError(_unknown_message(unknown, store))
        new = {subject: hash_ for subject, hash_ in asked.items() if hash_ not in already}
        bands = read_bands(ledger, new.values())
        places = {subject: partition.place(subject, bands.get(hash_, 0)) for subject, hash_ in new.items()}
        reached = set(places.values())
        scores = read_scores(ledger)
        revoked = [unit for unit in scores if any(unit.reached_by(place) for place in reached)]
        left = {unit: score for unit, score in scores.items() if not any(unit.reached_by(place) for place in reached)}
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        number = connection.execute("INSERT INTO requests (time, receipt) VALUES (?, '')", (time,)).lastrowid
        assert number is not None
        connection.executemany(
            "INSERT INTO tombstones VALUES (?, ?, ?, ?)",
            [(new[subject], number, place.shard, place.slice) for subject, place in places.items()],
        )
        connection.executemany("DELETE FROM subjects WHERE hash = ?", [(hash_,) for hash_ in new.values()])
        queue_units(connection, store, revoked, number)
        receipt = Receipt(
            request=number,
            time=time,
            subjects=len(asked),
            already_forgotten=len(already),
            unknown=len(unknown),
            revoked=tuple(map(str, revoked)),
            erased_files=0,
            erased_bytes=0,
            serving=_serving(left, partition.shards),
            versions=dict(_versions()),
        )
        connection.execute("UPDATE requests SET receipt = ? WHERE number = ?", (receipt.to_json(), number))
    erase_pending(ledger, store)
    row = ledger.connection.execute("SELECT receipt FROM requests WHERE number = ?", (number,)).fetchone()
    return Receipt.from_json(row[0])


def _serving(alive: Mapping[UnitId, float | None], shards: int) -> dict[str, str | None]:
    best = survivors(alive, {unit: score for unit, score in alive.items() if score is not None})
    return {str(shard): str(best[shard]) if shard in best else None for shard in range(shards)}


def _unknown_message(unknown: list[str], store: Path) -> str:
    shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    return (
        f"The store {store} has never seen {shown}. Expected ids of its training data; nothing was forgotten. Check "
        "the spelling, or pass strict=False: unknown subjects then get a tombstone, and never enter a later fit."
    )


@functools.cache  # reading the packages' metadata takes longer than all else of a request that revokes nothing
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lightning-s3t", "torch", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
