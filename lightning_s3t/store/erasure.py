"""Erasure: noted in the transaction that revokes, then done, then recorded; a crash only delays it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path

from lightning_s3t.core.events import Erasure
from lightning_s3t.core.units import UnitId, reaches
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.files import size_of, unlink_all
from lightning_s3t.store.history import record
from lightning_s3t.store.ledger import QueuedFile, Tombstone
from lightning_s3t.store.snapshots import FOLDER
from lightning_s3t.store.units import parse_unit


def revoke(store: Backend, tombstones: Collection[Tombstone], request: int) -> tuple[list[str], list[str]]:
    """Make subjects forgotten, and take out the units and the exported copies that they reach; within a transaction.

    Args:
        store: Where the store lies.
        tombstones: Who is forgotten.
        request: The number of the request.

    Returns:
        The names of the units, and of the exported copies, in the order of the alphabet.
    """
    store.ledger.bury(tombstones, request)
    cells = {cell for _, cell in tombstones}
    reached = sorted(store.ledger.reached(cells))
    remove(store, reached, request)
    exports = [export.name for export in store.ledger.exports() if reaches(cells, export.cells)]
    remove_exports(store, exports, request)
    return reached, exports


def remove(store: Backend, names: Collection[str], request: int | None) -> None:
    """Take units out of the ledger and note their files for erasure; within a transaction.

    Args:
        store: Where the store lies.
        names: The units' names.
        request: The number of the request that revokes them; None if they are only stale.
    """
    if names:
        _queue(store, store.ledger.remove(names), request)


def remove_exports(store: Backend, names: Collection[str], request: int | None) -> None:
    """Take exported copies out of the ledger and note their files for erasure; within a transaction.

    Args:
        store: Where the store lies.
        names: Their names.
        request: The number of the request that reaches them; None if they were never finished.
    """
    if names:
        _queue(store, store.ledger.remove_exports(names), request)


def remove_lineages(store: Backend, units: Iterable[UnitId]) -> list[UnitId]:
    """Take units out of the ledger with all that was built on them; within a transaction.

    Args:
        store: Where the store lies.
        units: The units.

    Returns:
        All that were taken out, in order.
    """
    tops = [str(unit) for unit in units]
    gone = set(store.ledger.digests(tops)).union(*(store.ledger.scores(f"{top}-") for top in tops))
    remove(store, gone, None)
    return sorted(map(parse_unit, gone))


def drop_attempts(store: Backend, names: Collection[str]) -> None:
    """Take attempts out of the ledger and note their files for erasure; within a transaction.

    Args:
        store: Where the store lies.
        names: The names of the units that were attempted.
    """
    _queue(store, store.ledger.drop_attempts(names), None)


def erase_queued(store: Backend) -> None:
    """Remove every file that is noted for erasure, then record that, in the chain of events too.

    Args:
        store: Where the store lies.

    Raises:
        StoreError: A file could not be removed. All others are; it stays noted.
    """
    ledger = store.ledger
    if not ledger.queued():
        return
    with ledger.transaction():
        queued = ledger.queued()
        needed = ledger.needed([file.path for file in queued])  # two units may have equal snapshots
        doomed = [file for file in queued if file.path not in needed]
        failed = _unlink(store, [file.path for file in doomed])
        erased: dict[int, list[int]] = {}
        for file in doomed:
            if file.request is not None and file.size is not None and file.path not in failed:
                erased.setdefault(file.request, []).append(file.size)
        for request, sizes in erased.items():
            record(ledger, "erasure", request, asdict(Erasure(len(sizes), sum(sizes))))
        ledger.replace_queue([file for file in doomed if file.path in failed])
    ledger.clear_traces()
    if failed:
        raise StoreError(_failed_message(store.folder, failed))


def clean_up(store: Backend) -> None:
    """Clear away what a fit that was cut has left: its checkpoints, snapshots that no unit owns.

    Only for the holder of the fit lock: files of a fit in progress look the same.

    Args:
        store: Where the store lies.
    """
    with store.ledger.transaction():
        drop_attempts(
            store, store.ledger.attempts()
        )  # a record of such a unit, if there is one, is of a training before
        present = store.snapshots.names()
        _queue(store, present - store.ledger.needed(present), None)
        store.ledger.compact()
    erase_queued(store)


def _queue(store: Backend, paths: Iterable[str], request: int | None) -> None:
    files = [QueuedFile(path, request, _size_now(store, path)) for path in paths]
    if files:
        store.ledger.queue(files)


def _unlink(store: Backend, paths: Collection[str]) -> dict[str, OSError]:
    # within the transaction, which a commit needs too: none can come to need an equal file meanwhile
    snapshots = {path for path in paths if path.startswith(f"{FOLDER}/")}
    return store.snapshots.delete(snapshots) | unlink_all(path for path in paths if path not in snapshots)


def _size_now(store: Backend, path: str) -> int | None:
    try:
        return store.snapshots.size(path) if path.startswith(f"{FOLDER}/") else size_of(path)
    except OSError:  # must not keep a unit from being revoked: what is wrong with the file shows when it is erased
        return None


def _failed_message(folder: Path, failed: dict[str, OSError]) -> str:
    shown = "; ".join(f"{folder / path} ({error.strerror})" for path, error in list(failed.items())[:5])
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    return (
        f"What was to go is out of the ledger for good and never serves again, but {len(failed)} of its files could "
        f"not be erased: {shown}{more}. Remove the cause and open the store again: the erasure then goes on."
    )
