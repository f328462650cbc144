"""The journal: a second copy of the chain of events, in an append-only file next to the ledger.

A ledger that is restored from a backup does not know who was forgotten since. The journal does: requests missing from
the ledger are carried out again when the store is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_s3t.core.events import Cancellation, Damage, Event, Exported, Merge, Request, Rotation, Schedule
from lightning_s3t.core.units import Place, UnitId
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.disk.files import open_own, read_unlinked, sync_folder
from lightning_s3t.store.disk.journal_file import FILE, last_event, parse_line
from lightning_s3t.store.disk.lock import ledger_lock
from lightning_s3t.store.generations import merge_again
from lightning_s3t.store.keys.authentication import change_of, layers_after
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Export
from lightning_s3t.store.requests.effects import carry_out
from lightning_s3t.store.requests.erasure import remove_lineages


@dataclass(frozen=True)
class JournalEnd:
    """The end of a journal.

    Attributes:
        position: The position of its newest event; 0 if it has none.
        digest: That event's digest.
        size: The end of its line, in bytes.
    """

    position: int
    digest: str
    size: int


def make_journal(folder: Path) -> None:
    """Create an empty journal if it does not exist; for the holder of the ledger's lock.

    Args:
        folder: The store.
    """
    path = folder / FILE
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        sync_folder(folder)


def write_journal(store: Backend, known: JournalEnd | None = None) -> JournalEnd:
    """Append the events that the journal is missing; durable when it returns.

    Args:
        store: The store's backend, in no transaction.
        known: The journal's end when this process last wrote it, since an event with many people is slow to read.

    Returns:
        Its new end.

    Raises:
        StoreError: The journal cannot be written, or contradicts the ledger.
    """
    ledger, folder = store.ledger, store.folder
    try:
        with ledger_lock(folder), open(folder / FILE, "r+b", opener=open_own) as file:
            size = os.fstat(file.fileno()).st_size
            found = known if known is not None and known.size == size else _end_of(folder, file.fileno())
            if found.position and found.digest != ledger.digest_at(found.position):
                raise StoreError(_fork_message(folder, found.position))
            events = list(ledger.events(after=found.position))
            lines = b"".join([event.to_json().encode() + b"\n" for event in events])
            if lines or found.size != size:
                os.ftruncate(file.fileno(), found.size)  # a line that a crash has left torn
                os.lseek(file.fileno(), found.size, os.SEEK_SET)
                _write_all(file.fileno(), lines)
                os.fsync(file.fileno())
            return JournalEnd(events[-1].position, events[-1].digest, found.size + len(lines)) if events else found
    except OSError as error:
        raise StoreError(
            f"The journal {folder / FILE} cannot be written ({error.strerror}). The ledger is still valid. The "
            "journal is brought up to date when the store is next opened."
        ) from error


def reconcile(store: Backend, keyring: Keyring) -> int:
    """Reconcile ledger and journal: carry out events again that only the journal has, and append missing ones to it.

    Args:
        store: The store's backend.
        keyring: The store's keys.

    Returns:
        Number of events that were carried out again.

    Raises:
        StoreError: The journal is missing or damaged, or contradicts the ledger.
    """
    folder, ledger = store.folder, store.ledger
    path = folder / FILE
    if not path.is_file():
        raise StoreError(
            f"The store {folder} has lost its {FILE}, which shows whether the ledger is the newest. Restore it from a "
            "backup. If it is lost, and you are certain that no request was carried out since the ledger was "
            "written, create an empty file of that name: it is then rewritten."
        )
    position, digest = ledger.head()
    with read_unlinked(path) as file:
        last, _ = last_event(folder, file.fileno())
    if last is None or last.position < position:
        if last is not None and last.digest != ledger.digest_at(last.position):
            raise StoreError(_fork_message(folder, last.position))
        write_journal(store)
        return 0
    if last.position == position:
        if last.digest != digest and ledger.digest_at(position) != last.digest:  # the ledger may have new events
            raise StoreError(_fork_message(folder, position))
        return 0
    return _replay(store, keyring)


def read_journal(path: Path) -> Iterator[Event]:
    """Return a journal's events in order; a last line without an end is a crash's, and left out.

    Args:
        path: The journal's file, or the store.

    Raises:
        StoreError: A line is not an event.
    """
    journal = path / FILE if path.is_dir() else path
    with read_unlinked(journal) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield parse_line(journal, line, f"in line {number}")


def _replay(store: Backend, keyring: Keyring) -> int:
    count, folder = 0, store.folder
    with store.ledger.transaction():
        store.authenticator.check_head()
        keyring.refresh()
        layers = keyring.layers
        position, digest = store.ledger.head()
        for event in read_journal(folder):
            if event.position == position and event.digest != digest:
                raise StoreError(_fork_message(folder, position))
            if event.position <= position:
                continue
            if event.position != position + count + 1 or not event.follows(digest):
                raise StoreError(_fork_message(folder, event.position))
            layers = layers_after(event, layers)
            if not store.authenticator.is_right(event, layers):
                raise _forged(folder, event)
            try:
                store.authenticator.append(event, _carry_out(store, keyring, event))
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise _unreadable(folder, event, error) from error
            digest, count = event.digest, count + 1
    return count


def _carry_out(store: Backend, keyring: Keyring, event: Event) -> int | None:
    """Apply an event again; return the number of forgotten subjects after a request."""
    change = change_of(event)
    if event.kind == "request" and event.request is not None and change is not None:
        request = event.read(Request)
        for _, _, cell in (*change.buried, *((mark.hash, mark.number, mark.cell) for mark in change.marked)):
            Place.parse(cell)  # or the request would reach nothing
        carry_out(store, request.kind, event.request, change)
        return request.forgotten
    if change is not None:
        store.ledger.mark(change.marked)
        return None
    if event.kind == "schedule":
        rows_later = [(bytes.fromhex(hash_), time, cell) for hash_, time, cell in event.read(Schedule).pending]
        store.ledger.schedule(rows_later)
    elif event.kind == "cancellation":
        store.ledger.unschedule(bytes.fromhex(hash_) for hash_ in event.read(Cancellation).pending)
    elif event.kind == "export":
        made = event.read(Exported)
        store.ledger.add_export(Export(made.name, made.cells, made.as_of), {})
    elif event.kind == "damage":
        remove_lineages(store, [UnitId.parse(unit) for unit in event.read(Damage).units])
    elif event.kind == "rotation":
        layers = event.read(Rotation).layers
        if layers != keyring.layers + 1:
            raise ValueError(f"a rotation to {layers} keys after {keyring.layers}")
        keyring.apply_rotation(layers)
    elif event.kind == "merge":
        merge_again(store, event.read(Merge))
    elif event.kind not in ("erasure", "handover", "acknowledgement"):
        raise ValueError(f"a {event.kind} without the number of a request")
    return None


def _unreadable(folder: Path, event: Event, error: Exception) -> StoreError:
    return StoreError(
        f"Event {event.position} of the journal {folder / FILE} cannot be carried out ({error}): it was written by "
        "another version of lightning_s3t, or was changed. Nothing is served. Use that version, or restore the "
        f"ledger and {FILE} from the same backup."
    )


def _forged(folder: Path, event: Event) -> StoreError:
    return StoreError(
        f"Event {event.position} of the journal {folder / FILE} was not written with the store's key: it was forged "
        f"or changed. Nothing is served. Restore the ledger and {FILE} from the same backup, and check who can write "
        "to the folder."
    )


def _end_of(folder: Path, descriptor: int) -> JournalEnd:
    last, size = last_event(folder, descriptor)
    return JournalEnd(0, "", size) if last is None else JournalEnd(last.position, last.digest, size)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _fork_message(folder: Path, position: int) -> str:
    return (
        f"The ledger and the journal of the store {folder} disagree about event {position}: one of them was changed, "
        f"or they belong to different stores. Nothing is served. Restore the ledger and {FILE} from the same backup."
    )
