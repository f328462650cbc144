"""`s3t drill`: rehearses a restore on copies."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path

from lightning_s3t.columns import counted, printable


def drill(store: Path, backup: str, /, *, json: bool = False) -> int:
    """Rehearse a restore: open a backup of the ledger next to the store, with copies of its journal and keys.

    The store keeps running, and is not changed. Requests missing from the backup are carried out again from the
    journal, every snapshot is read, and the result is compared with the store. Exits with 1 if anything would be wrong.

    Args:
        store: The store's folder.
        backup: A ledger.db, or a folder with one. For a ledger in PostgreSQL: the address of a schema in another
            database that was restored from a backup; the drill changes this schema.
        json: Print the report as a JSON document.
    """
    from lightning_s3t.store import Store

    with Store.open(store, forget_due=False) as opened:
        found = opened.drill(backup)
    if json:
        print(json_format.dumps({"passed": found.passed, **asdict(found)}, indent=2))
        return 0 if found.passed else 1
    when = f", the newest of {found.backup_time}" if found.backup_time else ""
    print(printable(f"{found.backup} has {counted(found.backup_events, 'event')}{when}; the store has {found.events}."))
    if found.passed:
        print(
            f"The journal has the other {found.replayed}: {counted(found.replayed_requests, 'request')} would be "
            f"carried out again before the store serves ({counted(found.forgotten, 'subject')} to forget)."
        )
        others = "; the next fit trains the others" if found.restored_units < found.units else ""
        print(f"Of {counted(found.units, 'unit')}, {found.restored_units} would serve{others}.")
    for problem in found.problems:
        print(printable(f"WRONG  {problem}"))
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in found.seconds.items())
    print(f"{'The restore would be complete' if found.passed else 'Do not count on this backup'}: {steps}.")
    return 0 if found.passed else 1
