"""The subjects of a request: where their data is, and which of them are unknown, restricted or forgotten."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from lightning_s3t.core.subjects import shorten
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import UnknownSubjectError
from lightning_s3t.plan import Partition
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Mark, Tombstone
from lightning_s3t.store.registry import is_registering


@dataclass(frozen=True)
class Asked:
    """The subjects of a request.

    Attributes:
        cells: By keyed hash, the cell of each subject's data.
        forgotten: Those who are forgotten.
        unknown: Those whom the store has never seen; None where it keeps no registry.
        restricted: By keyed hash, the mark of each who is restricted.
    """

    cells: dict[bytes, Cell]
    forgotten: set[bytes]
    unknown: set[bytes] | None
    restricted: dict[bytes, Mark]

    @property
    def count_unknown(self) -> int | None:
        """Number of subjects that the store has never seen; None without a registry."""
        return len(self.unknown) if self.unknown is not None else None

    @property
    def to_forget(self) -> list[Tombstone]:
        """Those who are not forgotten yet, in order."""
        return [(hash_, cell) for hash_, cell in sorted(self.cells.items()) if hash_ not in self.forgotten]

    @property
    def to_correct(self) -> list[Tombstone]:
        """Those whose data can be corrected, in order."""
        return [one for one in self.to_forget if one[0] not in (self.unknown or ())]


class Lookup:
    """Looks up the subjects of requests; within a transaction or a consistent read.

    Args:
        store: The store's backend.
        keyring: Its keys.
        partition: The partition of the subjects.
    """

    def __init__(self, store: Backend, keyring: Keyring, partition: Partition) -> None:
        self._folder = store.folder
        self._ledger = store.ledger
        self._keyring = keyring
        self._partition = partition
        self._registers = is_registering(store.ledger)  # fixed when a store is made

    def find(self, subjects: Iterable[str], strict: bool) -> Asked:
        """Look up the subjects of a request.

        Args:
            subjects: Canonical ids.
            strict: Refuse unknown subjects.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set, or is known in another Unicode form.
        """
        asked = self._keyring.hashes(subjects)
        ledger = self._ledger
        already, bands, generations = ledger.forgotten(asked), ledger.bands(asked), ledger.generations(asked)
        restricted = self._restricted(asked)
        unknown: set[bytes] | None = None
        if self._registers:
            # who was restricted before any fit is known by that alone
            unknown = asked.keys() - bands.keys() - already - restricted.keys()
            strangers = [asked[hash_] for hash_ in asked if hash_ in unknown]
            if strangers:
                self._check_spelling(strangers)
            if strangers and strict:
                raise UnknownSubjectError(_unknown_message(strangers, str(self._folder)))
        places = self._partition.places(
            asked.values(), [bands.get(hash_, 0) for hash_ in asked], [generations.get(hash_, 0) for hash_ in asked]
        )
        cells = {hash_: place.cell for hash_, place in zip(asked, list(places), strict=True)}
        cells |= {hash_: mark.cell for hash_, mark in restricted.items()}
        return Asked(cells, already, unknown, restricted)

    def _check_spelling(self, strangers: Iterable[str]) -> None:
        """Raise an error for an unknown id that the store knows in another Unicode form: both look the same."""
        forms = {form: subject for subject in strangers for form in _other_forms(subject)}
        hashes = self._keyring.hashes(forms)
        for hash_ in (*self._ledger.bands(hashes), *self._ledger.forgotten(hashes), *self._restricted(hashes)):
            form = hashes[hash_]
            raise UnknownSubjectError(
                f"The store {self._folder} has never seen {shorten(ascii(forms[form]))}, but it knows "
                f"{shorten(ascii(form))}, which is the same text in another Unicode form. Expected the spelling of "
                "the training data. Nothing was changed."
            )

    def find_waiting(self, due: Collection[Tombstone]) -> Asked:
        """Look up subjects whose scheduled request is carried out.

        Args:
            due: The subjects.
        """
        hashes = [hash_ for hash_, _ in due]
        unknown = set(hashes) - self._ledger.bands(hashes).keys() if self._registers else None
        return Asked(dict(due), set(), unknown, self._restricted(hashes))

    def _restricted(self, hashes: Iterable[bytes]) -> dict[bytes, Mark]:
        return {mark.hash: mark for mark in self._ledger.marks_of(hashes, "restricted")}


def _other_forms(subject: str) -> set[str]:
    if subject.isascii():
        return set()
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    return {unicodedata.normalize(form, subject) for form in forms} - {subject}


def list_shown(subjects: list[str]) -> str:
    """Return the first of several ids, and the number of further ones, for a message.

    Args:
        subjects: Ids.
    """
    return ", ".join(shorten(repr(subject)) for subject in subjects[:5]) + (
        f" and {len(subjects) - 5} more" if len(subjects) > 5 else ""
    )


def _unknown_message(unknown: list[str], store: str) -> str:
    return (
        f"The store {store} has never seen {list_shown(unknown)}. Expected ids of its training data. Nothing was "
        "changed. Check the spelling, or pass strict=False (--allow-unknown on the command line): unknown subjects are "
        "then kept out of every later fit."
    )
