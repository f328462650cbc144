"""Correction and restriction: requests of subjects who stay in the training data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone

from lightning_s3t.core.events import Correction
from lightning_s3t.core.manifest import Manifest
from lightning_s3t.core.receipts import RequestRecord
from lightning_s3t.core.tickets import Ticket
from lightning_s3t.errors import UnknownSubjectError, UnsupportedError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import record
from lightning_s3t.store.keys.authentication import Change
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Mark
from lightning_s3t.store.requests.execution import RequestExecutor
from lightning_s3t.store.requests.journal import write_journal
from lightning_s3t.store.requests.lookup import Asked, Lookup, list_shown
from lightning_s3t.store.requests.scheduling import time_text


class Correcting:
    """Carries out requests to correct, to restrict and to release.

    Args:
        store: The store's backend.
        keyring: Its keys.
        manifest: The settings and the method of its units.
        lookup: Looks up the subjects of requests.
        executor: Carries requests out.
    """

    def __init__(
        self, store: Backend, keyring: Keyring, manifest: Manifest, lookup: Lookup, executor: RequestExecutor
    ) -> None:
        self._store = store
        self._ledger = store.ledger
        self._keyring = keyring
        self._method = manifest.method
        self._lookup = lookup
        self._executor = executor

    def rectify(self, subjects: Sequence[str], strict: bool, request_id: str | None) -> RequestRecord | Ticket:
        """Remove what the subjects' old data reached, as `Store.rectify` for canonical ids."""
        if self._method.waits:
            self._executor.check_nameless(request_id)
            return self._wait(subjects, strict)

        def change_for(asked: Asked, number: int) -> Change:
            there = set(self._ledger.marks_of(asked.cells, "rectified"))
            # nothing that was made since a restriction has the old data in it
            since = {hash_: mark.number for hash_, mark in asked.restricted.items()}
            marks = {Mark("rectified", hash_, since.get(hash_, number), cell) for hash_, cell in asked.to_correct}
            return Change((), tuple(sorted(marks - there)), ())

        return self._executor.carry_out_once("rectify", subjects, strict, request_id, change_for)

    def restrict(self, subjects: Sequence[str], strict: bool, request_id: str | None) -> RequestRecord:
        """Set aside the units that the subjects' data reached, as `Store.restrict` for canonical ids."""
        self._check_restricts()

        def change_for(asked: Asked, number: int) -> Change:
            new = asked.cells.keys() - asked.forgotten - asked.restricted.keys()
            return Change((), tuple(sorted(Mark("restricted", hash_, number, asked.cells[hash_]) for hash_ in new)), ())

        return self._executor.carry_out_once("restrict", subjects, strict, request_id, change_for)

    def release(self, subjects: Sequence[str], request_id: str | None) -> RequestRecord:
        """End the restriction of subjects, as `Store.release` for canonical ids."""
        self._check_restricts()

        def change_for(asked: Asked, number: int) -> Change:
            self._check_restricted(subjects, asked)
            ended = sorted(asked.restricted.values())
            return Change((), tuple(Mark("released", mark.hash, number, mark.cell) for mark in ended), tuple(ended))

        return self._executor.carry_out_once(
            "release", subjects, strict=False, request_id=request_id, change_for=change_for
        )

    def _wait(self, subjects: Iterable[str], strict: bool) -> Ticket:
        with self._ledger.transaction():
            asked = self._lookup.find(subjects, strict)
            rows = asked.to_correct
            if rows:  # once more for those who wait already: the fit that is running has not seen this correction
                position = self._ledger.head()[0] + 1
                self._ledger.mark(Mark("awaiting", hash_, position, cell) for hash_, cell in rows)
                waiting = tuple((hash_.hex(), cell) for hash_, cell in rows)
                record(self._store, "correction", None, asdict(Correction(self._keyring.layers, waiting)))
        write_journal(self._store)
        now, method = time_text(datetime.now(timezone.utc)), self._method.name
        return Ticket(now, len(asked.cells), len(asked.forgotten), asked.count_unknown, method, "rectify")

    def _check_restricts(self) -> None:
        if self._method.waits:
            raise UnsupportedError(
                f"The method {self._method.name!r} trains one model on everyone's data. Without it nothing "
                "would serve, so this method cannot restrict subjects. Expected a method that trains shards (S3T, "
                "SISA). To remove the data, forget the subjects and call fit."
            )

    def _check_restricted(self, subjects: Iterable[str], asked: Asked) -> None:
        hashes = self._keyring.hashes(subjects)
        missing = sorted(subject for hash_, subject in hashes.items() if hash_ not in asked.restricted)
        if not missing:
            return
        gone = sorted(hashes[hash_] for hash_ in asked.forgotten)
        why = f" {list_shown(gone)} are forgotten, which cannot be undone." if gone else ""
        raise UnknownSubjectError(
            f"{list_shown(missing)} are not restricted in the store {self._store.folder}.{why} Expected ids of "
            "restricted subjects. Nothing was changed."
        )
