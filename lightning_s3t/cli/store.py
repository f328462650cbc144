"""Commands of `s3t store`: pending, verify, consolidate, rotate-key, provenance."""

from __future__ import annotations

import json as json_format
from collections import defaultdict
from pathlib import Path

from lightning_s3t.columns import counted, printable


def pending(store: Path, /) -> None:
    """List the scheduled requests: when they are due, for how many subjects, and the requests' names.

    Args:
        store: The store's folder.
    """
    from lightning_s3t.store import Store

    with Store.open(store, forget_due=False) as opened:
        found, requests = opened.pending(), opened.scheduled_requests()
    names = defaultdict[str, list[str]](list)
    for request in requests:
        if request.request_id and request.state == "scheduled":
            names[request.due].append(request.request_id)
    for due, count in found:
        print(printable(f"{due}  {counted(count, 'subject')}  {', '.join(names[due])}".rstrip()))
    if not found:
        print("Nothing is scheduled.")


def verify(store: Path, /, *, json: bool = False) -> int:
    """Check a store: its history, every snapshot, that no revoked unit serves, and that it has no unknown files.

    Damaged units are taken out of service; the next fit trains them again. Exits with 1 if anything is wrong.

    Args:
        store: The store's folder.
        json: Print the result as a JSON document.
    """
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        found = opened.verify()
    if json:
        document = {
            "passed": found.passed,
            "problems": found.problems,
            "damaged": [str(unit) for unit in found.damaged],
            "events": found.events,
            "units": found.units,
            "skipped": found.skipped,
            "notes": found.notes,
        }
        print(json_format.dumps(document, indent=2))
        return 0 if found.passed else 1
    for problem in found.problems:
        print(printable(f"WRONG  {problem}"))
    for reason in found.skipped:
        print(f"skipped: {reason}")
    for note in found.notes:
        print(printable(f"note: {note}"))
    if found.damaged:
        print(
            f"{len(found.damaged)} damaged units, and the units built on them, were taken out of service. Call fit "
            "again."
        )
    verdict = "Nothing is wrong" if found.passed else f"{len(found.problems)} problems"
    print(f"{verdict}: {found.events} events and {found.units} snapshots were checked.")
    return 0 if found.passed else 1


def consolidate(store: Path, /, *, into: int | None = None) -> None:
    """Merge generations of people who came later, if that pays: fewer and larger shards then answer.

    The units of the generations that disappear are erased at once. The next fit trains only the merged generation, on
    all its people.

    Args:
        store: The store's folder.
        into: The generation to merge all later ones into, 1 or more; by default the one that pays.
    """
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        before = opened.partition.generations
        merged = opened.consolidate(into)
    if merged is None:
        print(
            f"There is nothing to gain from merging any of {counted(before, 'generation')} that came after the first."
        )
        return
    print(f"Generations {merged} to {before} are one now. Call fit with the same store: it trains that one alone.")


def rotate_key(store: Path, /) -> None:
    """Start to use a new key: every id in the store is hashed again. Nothing has to be retrained.

    Args:
        store: The store's folder.
    """
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        opened.rotate_key()
    print("A new key is in use. Back up subject.key: no request can be carried out without it.")


def provenance(store: Path, /, *, unit: str | None = None) -> None:
    """Print the provenance of the surviving units, as JSON.

    Args:
        store: The store's folder.
        unit: Print only this unit's, for example 0/2-0.
    """
    from lightning_s3t.plan import UnitId
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        found = opened.provenance(UnitId.parse(unit) if unit is not None else None)
    print(json_format.dumps(found, indent=2, sort_keys=True))
