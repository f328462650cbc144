"""Scheduled requests: who waits to be forgotten, and where, is what the history says."""

from __future__ import annotations

from lightning_s3t.core.events import Cancellation, Event, Schedule
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.keyring import Keyring


def check_scheduled(store: Backend, keyring: Keyring) -> None:
    """Check that nobody has taken a scheduled request out, moved it, or made one up.

    Args:
        store: Where the store lies.
        keyring: The store's keys.

    Raises:
        StoreError: Somebody has.
    """
    ledger = store.ledger
    with ledger.at_one_time():
        keyring.refresh()
        expected: dict[bytes, tuple[str, Cell]] = {}
        for event in store.authenticator.listing():
            _carry_on(expected, store, keyring, event)
        gone = ledger.forgotten(expected)
        found = {hash_: (due, cell) for hash_, due, cell in ledger.scheduled()}
    wrong = {hash_: what for hash_, what in expected.items() if hash_ not in gone}.items() ^ found.items()
    if wrong:
        raise StoreError(
            f"{len({hash_ for hash_, _ in wrong})} scheduled requests of the store {store.folder} are not what its "
            "history says: they were changed without the store's key, or the ledger is damaged. Nothing is served. "
            "Restore the ledger from a backup (what it lacks is carried out again from the journal)."
        )


def _carry_on(expected: dict[bytes, tuple[str, Cell]], store: Backend, keyring: Keyring, event: Event) -> None:
    try:
        if event.kind == "cancellation":
            cancelled = event.read(Cancellation)
            for hash_ in cancelled.pending:
                expected.pop(keyring.renew(bytes.fromhex(hash_), cancelled.layers), None)
        if event.kind != "schedule":
            return
        scheduled = event.read(Schedule)
        for hash_, due, cell in scheduled.pending:
            renewed = keyring.renew(bytes.fromhex(hash_), scheduled.layers)
            earlier = expected.get(renewed, (due, cell))[0]
            expected[renewed] = (min(due, earlier), cell)
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"Event {event.position} of the store {store.folder}, which schedules requests, cannot be read ({error}). "
            "Nothing is served. Restore the ledger from a backup."
        ) from error
