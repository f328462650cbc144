"""`s3t copy`: copies a store to another kind of ledger or snapshots."""

from __future__ import annotations

import sys
from pathlib import Path


def copy(
    source: Path, target: Path, /, *, ledger: str | None = None, snapshots: str | None = None, keys: str | None = None
) -> None:
    """Move a store: copy it, and retire the original; then the copy answers.

    Copies between a folder, PostgreSQL with a folder, and PostgreSQL with a bucket. Requests are carried out during the
    copy; no fit may run. The copy is compared with the original before the original is retired. Then every process that
    has the original open refuses to answer, and the original's snapshots are erased. After an interruption exactly one
    of the two answers: if it is the original, copy again.

    Args:
        source: The store's folder.
        target: The folder of the copy: new, or empty.
        ledger: Address of the copy's ledger: postgresql://user@host/database?schema=name; by default a file in its
            folder.
        snapshots: Location of the copy's snapshots: s3://bucket/prefix, or a folder; by default TARGET.
        keys: Folder for the copy's keys, to encrypt its snapshots; needed if those of SOURCE are encrypted.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lightning_s3t.store import Store

    columns = TextColumn("snapshots"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Store.open(source) as store, Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("snapshots", total=None)
        store.copy(target, ledger, snapshots, lambda done, total: bar.update(task, completed=done, total=total), keys)
    print(
        f"{target} has replaced {source}, which no longer answers. Use {target} as the store from now on, and restart "
        "everything that serves."
    )
    print(f"Once everything works, remove {source}, and the schema of its ledger if it is in a database.")
