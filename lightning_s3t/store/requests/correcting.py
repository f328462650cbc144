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
from lightning_s3t.store.requests.forgetting import Asked, Forgetting, list_shown, time_text
from lightning_s3t.store.requests.journal import write_journal


class Correcting:
    """Carries out requests to correct, to restrict and to release.

    Args:
        store: The store's backend.
        keyring: Its keys.
        manifest: The settings and the method of its units.
        forgetting: Carries out requests to forget.
    """

    def __init__(self, store: Backend, keyring: Keyring, manifest: Manifest, forgetting: Forgetting) -> None:
        self._store = store
        self._ledger = store.ledger
        self._keyring = keyring
        self._manifest = manifest
        self._forgetting = forgetting

    def rectify(self, subjects: Sequence[str], strict: bool, request_id: str | None) -> RequestRecord | Ticket:
        """Remove what the subjects' old data reached; if the method replaces its model, leave this to the next fit.

        Args:
            subjects: Canonical ids.
            strict: Raise an error for unknown subjects; otherwise nothing is done for them.
            request_id: The caller's name for the request; None without one.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: A file could not be erased. The request is still carried out.
        """
        name = self._forgetting.name("rectify", subjects, request_id)
        if self._forgetting.waits:
            self._forgetting.check_nameless(name)
            return self._wait(subjects, strict)
        with self._ledger.transaction():
            request = self._forgetting.find(name)
            if request is None:
                asked = self._forgetting.look_up(subjects, strict)
                number, there = self._ledger.watermark() + 1, set(self._ledger.marks_of(asked.cells, "rectified"))
                # nothing that was made since a restriction has the old data in it
                since = {hash_: mark.number for hash_, mark in asked.restricted.items()}
                marks = {
                    Mark("rectified", hash_, since.get(hash_, number), cell) for hash_, cell in _those_to_correct(asked)
                }
                change = Change((), tuple(sorted(marks - there)), ())
                request = self._forgetting.note(self._forgetting.carry_out("rectify", asked, change, name))
        return self._forgetting.finish(request)

    def restrict(self, subjects: Sequence[str], strict: bool, request_id: str | None) -> RequestRecord:
        """Set aside the units that the subjects' data reached.

        Args:
            subjects: Canonical ids.
            strict: Raise an error for unknown subjects; otherwise no fit trains on them either.
            request_id: The caller's name for the request; None without one.

        Raises:
            UnsupportedError: The method trains one model on everyone's data.
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: A file could not be erased. The request is still carried out.
        """
        self._check_restricts()
        name = self._forgetting.name("restrict", subjects, request_id)
        with self._ledger.transaction():
            request = self._forgetting.find(name)
            if request is None:
                asked = self._forgetting.look_up(subjects, strict)
                number = self._ledger.watermark() + 1
                new = asked.cells.keys() - asked.forgotten - asked.restricted.keys()
                marks = sorted(Mark("restricted", hash_, number, asked.cells[hash_]) for hash_ in new)
                change = Change((), tuple(marks), ())
                request = self._forgetting.note(self._forgetting.carry_out("restrict", asked, change, name))
        return self._forgetting.finish(request)

    def release(self, subjects: Sequence[str], request_id: str | None) -> RequestRecord:
        """End the restriction of subjects: units that were set aside only for them serve again.

        Args:
            subjects: Canonical ids.
            request_id: The caller's name for the request; None without one.

        Raises:
            UnsupportedError: The method cannot restrict.
            UnknownSubjectError: A subject is not restricted. Nothing was changed.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: A file could not be erased. The request is still carried out.
        """
        self._check_restricts()
        name = self._forgetting.name("release", subjects, request_id)
        with self._ledger.transaction():
            request = self._forgetting.find(name)
            if request is None:
                asked = self._forgetting.look_up(subjects, strict=False)
                self._check_restricted(subjects, asked)
                number = self._ledger.watermark() + 1
                ended = sorted(asked.restricted.values())
                marks = tuple(Mark("released", mark.hash, number, mark.cell) for mark in ended)
                change = Change((), marks, tuple(ended))
                request = self._forgetting.note(self._forgetting.carry_out("release", asked, change, name))
        return self._forgetting.finish(request)

    def _wait(self, subjects: Iterable[str], strict: bool) -> Ticket:
        with self._ledger.transaction():
            asked = self._forgetting.look_up(subjects, strict)
            rows = _those_to_correct(asked)
            if rows:  # once more for those who wait already: the fit that is running has not seen this correction
                position = self._ledger.head()[0] + 1
                self._ledger.mark(Mark("awaiting", hash_, position, cell) for hash_, cell in rows)
                waiting = tuple((hash_.hex(), cell) for hash_, cell in rows)
                record(self._store, "correction", None, asdict(Correction(self._keyring.layers, waiting)))
        write_journal(self._store)
        now, method = time_text(datetime.now(timezone.utc)), self._manifest.method.name
        return Ticket(now, len(asked.cells), len(asked.forgotten), asked.count_unknown, method, "rectify")

    def _check_restricts(self) -> None:
        if self._forgetting.waits:
            raise UnsupportedError(
                f"The method {self._manifest.method.name!r} trains one model on everyone's data. Without it nothing "
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


def _those_to_correct(asked: Asked) -> list[tuple[bytes, str]]:
    left_out = asked.forgotten | (asked.unknown or set())
    return [(hash_, cell) for hash_, cell in sorted(asked.cells.items()) if hash_ not in left_out]
