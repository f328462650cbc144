"""Erasure: queued in the revoking transaction, then carried out, then recorded; a crash only delays it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from lightning_s3t.core.events import Erasure
from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.disk.files import sizes_of, unlink_all
from lightning_s3t.store.disk.lock import erasure_lock
from lightning_s3t.store.disk.scratch import clear_scratch
from lightning_s3t.store.heads.floor import drop
from lightning_s3t.store.history import record
from lightning_s3t.store.ledgers.ledger import OwnedFile, QueuedFile
from lightning_s3t.store.registered_files import Located, RegisteredFiles, ambiguous
from lightning_s3t.store.units import parse_unit


def remove(store: Backend, names: Collection[str], request: int | None) -> None:
    """Remove units and the heads on them from the ledger, and queue their files for erasure; within a transaction.

    Args:
        store: The store's backend.
        names: The units' names.
        request: The number of the request that revokes them; None if they are only stale.
    """
    if names:
        drop(store, names, request)
        queue(store, store.ledger.remove(names), request)


def remove_exports(store: Backend, names: Collection[str], request: int | None) -> None:
    """Remove exported copies from the ledger, and queue their files for erasure; within a transaction.

    Args:
        store: The store's backend.
        names: Their names.
        request: The number of the request that reaches them; None if they were never finished.
    """
    if names:
        queue(store, store.ledger.remove_exports(names), request)


def remove_lineages(store: Backend, units: Iterable[UnitId]) -> list[UnitId]:
    """Remove units from the ledger with all units built on them; within a transaction.

    Args:
        store: The store's backend.
        units: The units.

    Returns:
        All that were taken out, in order.
    """
    tops = [str(unit) for unit in units]
    gone = set(store.ledger.digests(tops)).union(*(store.ledger.scores(f"{top}-") for top in tops))
    remove(store, gone, None)
    return sorted(map(parse_unit, gone))


def drop_attempts(store: Backend, names: Collection[str]) -> None:
    """Remove attempts from the ledger, and queue their files for erasure; within a transaction.

    Args:
        store: The store's backend.
        names: The names of the units that were attempted.
    """
    queue(store, store.ledger.drop_attempts(names), None)


def erase_queued(store: Backend) -> None:
    """Remove every queued file, then record this, also in the chain of events.

    A registered file that is not proven to be the store's own is left alone and stays queued: `verify` names it.
    Remains of dead processes are removed too.

    Args:
        store: The store's backend.

    Raises:
        StoreError: A file could not be removed. All others are erased; this file stays queued. Or the ledger lists a
            path that a store never queues; then nothing is removed.
    """
    clear_scratch(store.folder)
    ledger = store.ledger
    _queue_unowned(store)
    queued, outside = _noted(store)
    if not queued:  # entries queued from now on are erased by the process that queues them
        return
    # before the transaction: to identify a checkpoint, all of it is read
    located = _locate(store.folder, [file for file in queued if file.path in outside]) if outside else {}
    with _delete_remote(store) as deleted, ledger.transaction():
        if ledger.queued() != queued:
            queued, outside = _noted(store)
        needed = ledger.needed([file.path for file in queued])  # two units may have equal snapshots
        wanted = [file for file in queued if file.path not in needed]
        ready = {path for path, found in located.items() if found.is_unchanged}
        ready |= {file.path for file in wanted if file.path not in outside} if deleted is None else deleted.keys()
        doomed = [file for file in wanted if file.path in ready]
        failed = _unlink(store, doomed, located, deleted)
        _record(store, [file for file in doomed if file.path not in failed], located)
        left = {file.path for file in doomed if file.path in located and located[file.path].is_left}
        later = {file.path for file in wanted} - {file.path for file in doomed} | failed.keys()
        kept = [replace(file, left=file.path in left) for file in wanted if file.path in left or file.path in later]
        ledger.replace_queue(kept)
    ledger.clear_traces()
    if failed:
        raise StoreError(_failed_message(store.folder, failed))


def is_erased(store: Backend, request: int) -> bool:
    """Return whether no file waits to be erased for a request or for an earlier one, which may have reached its data.

    Files that were left alone do not wait.

    Args:
        store: The store's backend.
        request: The number of the request.
    """
    queued = store.ledger.queued()
    return not any(file.request is not None and file.request <= request and not file.left for file in queued)


def _queue_unowned(store: Backend) -> None:
    """Queue the sums that this process wrote within a transaction that failed."""
    names, ledger = set(store.unsure), store.ledger
    if names - ledger.needed(names):
        with ledger.transaction():  # now none is being written
            known = ledger.needed(names) | {file.path for file in ledger.queued()}
            queue(store, map(OwnedFile, names - known), None)
    store.unsure.difference_update(names)


def clean_up(store: Backend) -> None:
    """Clean up after an interrupted fit: its checkpoints, and snapshots without a unit.

    Only for the holder of the fit lock: files of a fit in progress look the same.

    Args:
        store: The store's backend.
    """
    present = store.snapshots.names()
    with store.ledger.transaction():
        drop_attempts(store, store.ledger.attempts())  # an existing record of such a unit is from an earlier training
        queue(store, map(OwnedFile, present - store.ledger.needed(present)), None)
        store.ledger.compact()
    erase_queued(store)


def queue(store: Backend, owned: Iterable[OwnedFile], request: int | None) -> None:
    """Queue files for erasure; within a transaction.

    Args:
        store: The store's backend.
        owned: The files.
        request: The number of the request that they go for; None if they go for none.
    """
    files = list(owned)
    if files:
        sizes = _sizes_now(store, [file.path for file in files])
        store.ledger.queue([QueuedFile(file.path, request, sizes[file.path], file.evidence) for file in files])


def put_ahead(store: Backend, attempt: str, digest: str, data: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Upload a snapshot to remote storage, before the transaction that adds it to a unit.

    The attempt holds it before it exists, so that it is erased with the attempt, and not while the attempt needs it.

    Args:
        store: The store's backend.
        attempt: The name of the artifact that is attempted.
        digest: The snapshot's digest.
        data: Its bytes.
        check: Raises a RevokedError if the attempt must not continue.

    Raises:
        RevokedError: By `check`; nothing was put.
        StoreError: It cannot be uploaded, or an equal one that is queued cannot be erased.
    """
    name, ledger = store.snapshots.name(digest), store.ledger
    with ledger.transaction():
        check()
        ledger.hold(name, attempt)
        is_doomed = any(file.path == name for file in ledger.queued())
    if is_doomed:  # another process may be deleting it; after this, none is
        erase_queued(store)
    store.snapshots.put(digest, data)


def _noted(store: Backend) -> tuple[list[QueuedFile], set[str]]:
    """Return the queued files, and which of their paths are registered files rather than snapshots."""
    queued = store.ledger.queued()
    paths = {file.path for file in queued}
    outside = paths - store.snapshots.owned(paths)
    for path in outside:
        if not os.path.isabs(path):
            raise StoreError(
                f"The ledger of the store {store.folder} lists {path!r} for erasure, which is neither a snapshot nor "
                "a registered file: the ledger was changed. Nothing was removed, and nothing is served. Restore the "
                "ledger from a backup."
            )
    return queued, outside


@contextmanager
def _delete_remote(store: Backend) -> Iterator[dict[str, OSError | None] | None]:
    """Delete snapshots in remote storage; the block records it. None where they do not.

    That takes as long as the network does, so no transaction waits for it. A snapshot that is being deleted cannot be
    added to a unit at the same time: a writer holds the snapshot first (`put_ahead`), and waits for the block to end if
    it is queued for erasure.

    Yields:
        The snapshots to delete, and for each that still exists, why.
    """
    if not store.snapshots.is_remote:
        yield None
        return
    with erasure_lock(store.folder):
        _note_sizes(store)
        names = [file.path for file in _doomed_snapshots(store)]
        yield dict.fromkeys(names) | store.snapshots.delete(names)


def _note_sizes(store: Backend) -> None:
    """Note how much is about to be deleted: a crash after that must not make a receipt forget it."""
    unsized = [file.path for file in _doomed_snapshots(store) if file.size is None]
    found = {path: size for path, size in store.snapshots.sizes(unsized).items() if size is not None}
    if found:
        with store.ledger.transaction():
            there = [file for file in store.ledger.queued() if file.size is None and file.path in found]
            store.ledger.queue(replace(file, size=found[file.path]) for file in there)


def _doomed_snapshots(store: Backend) -> list[QueuedFile]:
    with store.ledger.at_one_time():
        queued, outside = _noted(store)
        snapshots = [file for file in queued if file.path not in outside]
        needed = store.ledger.needed([file.path for file in snapshots])
    return [file for file in snapshots if file.path not in needed]


def _locate(folder: Path, files: Collection[QueuedFile]) -> dict[str, Located]:
    registered = RegisteredFiles(folder)
    doubtful = ambiguous(file.path for file in files)
    return {
        file.path: Located("unproven")
        if file.path in doubtful
        else registered.locate(OwnedFile(file.path, file.evidence))
        for file in files
    }


def _unlink(
    store: Backend,
    doomed: Collection[QueuedFile],
    located: Mapping[str, Located],
    deleted: Mapping[str, OSError | None] | None,
) -> dict[str, OSError]:
    # within the transaction, which a commit needs too, so no unit can come to need an equal file at the same time
    snapshots = [file.path for file in doomed if file.path not in located]
    outside = {located[file.path].path: file.path for file in doomed if file.path in located}
    failed = dict[str, OSError]()
    if outside:
        failed = {outside[path]: error for path, error in unlink_all([path for path in outside if path]).items()}
    if deleted is None:
        return store.snapshots.delete(snapshots) | failed
    return {path: error for path in snapshots if (error := deleted[path]) is not None} | failed


def _record(store: Backend, done: Iterable[QueuedFile], located: Mapping[str, Located]) -> None:
    """Add an event for each request whose files were handled."""
    by_request: dict[int, list[QueuedFile]] = {}
    for file in done:
        if file.request is not None:
            by_request.setdefault(file.request, []).append(file)
    for request, files in sorted(by_request.items()):
        sizes, missing, left, is_news = list[int](), 0, 0, False
        for file in files:
            found = located.get(file.path)
            size = found.size if found is not None and found.state == "found" else file.size
            if found is not None and found.is_left:
                left, is_news = left + 1, is_news or not file.left
            elif size is not None:
                sizes.append(size)
            elif found is not None and found.state == "missing":
                missing += 1
        if sizes or missing or is_news:
            record(store, "erasure", request, asdict(Erasure(len(sizes), sum(sizes), missing, left)))


def _sizes_now(store: Backend, paths: Collection[str]) -> dict[str, int | None]:
    # an unreadable file must not prevent a unit from being revoked; the erasure reports the problem
    snapshots = store.snapshots.owned(paths)
    outside = [path for path in paths if path not in snapshots]
    # the transaction must not wait for a network: see `_note_sizes`
    found = dict.fromkeys(snapshots) if store.snapshots.is_remote else store.snapshots.sizes(snapshots)
    return found | (sizes_of(outside) if outside else {})


def _failed_message(folder: Path, failed: dict[str, OSError]) -> str:
    shown = "; ".join(f"{folder / path} ({error.strerror})" for path, error in list(failed.items())[:5])
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    return (
        f"The data is out of the ledger and never serves again, but {len(failed)} of its files could not be erased: "
        f"{shown}{more}. Remove the cause and open the store again: the erasure then continues."
    )
