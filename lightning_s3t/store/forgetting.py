"""Forgetting: a deletion request, revoked in one transaction and then erased."""

from __future__ import annotations

import functools
import platform
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_s3t.errors import ConfigurationError, StoreError, UnknownSubjectError
from lightning_s3t.plan import Partition, Place, UnitId, survivors
from lightning_s3t.store.chain import append
from lightning_s3t.store.erasure import erase_pending, queue_units
from lightning_s3t.store.journal import write_journal
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.receipt import Receipt, read_receipt
from lightning_s3t.store.registry import is_registering, read_bands
from lightning_s3t.store.tombstones import Burial, bury, note_pending, total_before
from lightning_s3t.store.units import newest_request, read_scores


class Forgetting:
    """Carries the requests of a store out, now or when they are due.

    Args:
        folder: The store.
        ledger: Its ledger.
        keyring: Its keys.
        partition: Where subjects belong.
    """

    def __init__(self, folder: Path, ledger: Ledger, keyring: Keyring, partition: Partition) -> None:
        self._folder = folder
        self._ledger = ledger
        self._keyring = keyring
        self._partition = partition

    def forget(self, subjects: Iterable[str], strict: bool) -> Receipt:
        """Carries a request out.

        Args:
            subjects: Canonical ids.
            strict: Refuse unknown subjects.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            StoreError: A file could not be erased. The request is carried out all the same.
        """
        with self._ledger.transaction() as connection:
            places, already, unknown = self._look_up(subjects, strict)
            new = [(hash_, place) for hash_, place in places.items() if hash_ not in already]
            request = self._revoke(connection, new, len(places), len(already), unknown)
        return self._finish(request)

    def schedule(self, subjects: Iterable[str], due: datetime, strict: bool) -> int:
        """Notes a request that is to be carried out later.

        Args:
            subjects: Canonical ids. Of two times for a subject, the earlier counts.
            due: When.
            strict: Refuse unknown subjects.

        Returns:
            How many subjects were noted; those who are forgotten already are not.

        Raises:
            ConfigurationError: The time has no time zone.
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
        """
        if due.tzinfo is None:
            raise ConfigurationError(f"The time {due.isoformat()} has no time zone. Expected one: 2027-01-31T12:00Z.")
        with self._ledger.transaction() as connection:
            places, already, _ = self._look_up(subjects, strict)
            rows = [
                (hash_, _text(due), place.shard, place.slice) for hash_, place in places.items() if hash_ not in already
            ]
            note_pending(connection, rows)
            if rows:
                body = {
                    "layers": self._keyring.layers,
                    "pending": [[hash_.hex(), *rest] for hash_, *rest in sorted(rows)],
                }
                append(connection, "schedule", None, body)
        write_journal(self._ledger, self._folder)
        return len(rows)

    def forget_due(self, now: datetime) -> Receipt | None:
        """Carries out what is due, as one request.

        Args:
            now: The time.

        Returns:
            The receipt; None if nothing is due.

        Raises:
            StoreError: A file could not be erased. The request is carried out all the same.
        """
        query = "SELECT hash, shard, slice FROM pending WHERE due <= ?"
        if self._ledger.connection.execute(f"{query} LIMIT 1", (_text(now),)).fetchone() is None:
            return None
        with self._ledger.transaction() as connection:
            rows = connection.execute(query, (_text(now),)).fetchall()
            if not rows:  # another process was faster
                return None
            new = [(hash_, Place(shard, slice_)) for hash_, shard, slice_ in rows]
            unknown: int | None = None
            if is_registering(self._ledger):
                unknown = len(new) - len(self._ledger.present("subjects", (hash_ for hash_, _ in new)))
            request = self._revoke(connection, new, len(new), 0, unknown)
        return self._finish(request)

    def _look_up(self, subjects: Iterable[str], strict: bool) -> tuple[dict[bytes, Place], set[bytes], int | None]:
        self._keyring.refresh()
        asked = {self._keyring.hash(subject): subject for subject in subjects}
        already = self._ledger.present("tombstones", asked)
        unknown: int | None = None
        if is_registering(self._ledger):
            known = self._ledger.present("subjects", asked) | already
            strangers = [subject for hash_, subject in asked.items() if hash_ not in known]
            if strangers and strict:
                raise UnknownSubjectError(_unknown_message(strangers, self._folder))
            unknown = len(strangers)
        bands = read_bands(self._ledger, asked)
        places = {hash_: self._partition.place(subject, bands.get(hash_, 0)) for hash_, subject in asked.items()}
        return places, already, unknown

    def _revoke(
        self, connection: sqlite3.Connection, new: list[Burial], subjects: int, already: int, unknown: int | None
    ) -> int:
        reached = {place for _, place in new}
        scores = read_scores(self._ledger)
        revoked = [unit for unit in scores if any(unit.reached_by(place) for place in reached)]
        left = {unit: score for unit, score in scores.items() if not any(unit.reached_by(place) for place in reached)}
        request = newest_request(self._ledger) + 1
        total = total_before(connection, request) + len(new)
        bury(connection, new, request)
        queue_units(connection, self._folder, revoked, request)
        body = {
            "subjects": subjects,
            "already_forgotten": already,
            "unknown": unknown,
            "revoked": [str(unit) for unit in revoked],
            "serving": _serving(left, self._partition.shards),
            "versions": _versions(),
            "layers": self._keyring.layers,
            "forgotten": total,
            "tombstones": [[hash_.hex(), place.shard, place.slice] for hash_, place in sorted(new)],
        }
        append(connection, "request", request, body)
        return request

    def _finish(self, request: int) -> Receipt:
        try:
            try:
                write_journal(self._ledger, self._folder)
            finally:  # the disk may be full: all the more is to be erased
                erase_pending(self._ledger, self._folder)
            write_journal(self._ledger, self._folder)
        except StoreError as error:
            raise StoreError(
                f"Request {request} is carried out, and nothing that it reached serves again, but what follows is not "
                f"done: {error} The next opening of the store goes on with it."
            ) from error
        return read_receipt(self._ledger, request)


def _text(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds")


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
