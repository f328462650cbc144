"""The keyring: the keys of a store as its ledger uses them, and their rotation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from hashlib import sha256

from lightning_s3t.core.events import Rotation
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import record
from lightning_s3t.store.keys.identities import (
    KEY_FILE,
    KEY_VARIABLE,
    Keys,
    add_layers,
    check_value,
    hash_subject,
    next_key,
    partition_secret,
    read_keys,
)


class Keyring:
    """Hashes subjects' ids as the ledger has them.

    Args:
        store: The store's backend.

    Raises:
        StoreError: The keys are missing, damaged, or those of another store.
    """

    def __init__(self, store: Backend) -> None:
        self._store = store
        self._folder = store.folder
        self._ledger = store.ledger
        # each thread's own: one may be in the middle of a rotation, or not yet know of one, while another hashes
        self._own = threading.local()
        self.refresh()

    @property
    def _keys(self) -> Keys:
        found: Keys | None = getattr(self._own, "keys", None)
        if found is None:
            self.refresh()
            found = self._own.keys
        return found

    @property
    def layers(self) -> int:
        """Number of keys in use: one, plus one for each rotation."""
        return len(self._keys)

    def refresh(self) -> None:
        """Apply a rotation by another process. Within a transaction, hashes match the ledger from then on."""
        # both at once: a rotation may come between two looks
        kept = self._ledger.notes("key_layers", "key_check")
        layers, check = int(kept.get("key_layers", 0)), kept.get("key_check")
        if layers == len(getattr(self._own, "keys", ())) > 0:
            return
        keys = read_keys(self._folder)
        if not 0 < layers <= len(keys) or check_value(keys[:layers]) != check:
            raise StoreError(
                f"The keys ({KEY_FILE}, or {KEY_VARIABLE} in the environment) are not those of the store "
                f"{self._folder}: no subject could be found. Restore them from a backup."
            )
        self._own.keys = keys[:layers]

    def hashes(self, subjects: Iterable[str]) -> dict[bytes, str]:
        """Return subjects by their keyed hash in the ledger; within a transaction, with the current keys.

        Args:
            subjects: Canonical ids.
        """
        self.refresh()
        keys = self._keys
        return {hash_subject(keys, subject): subject for subject in subjects}

    def hash_each(self, subjects: Sequence[str]) -> list[bytes]:
        """Return the keyed hash of each subject; within a transaction, with the current keys.

        Args:
            subjects: Canonical ids, which may be repeated.
        """
        found = {subject: hash_ for hash_, subject in self.hashes(set(subjects)).items()}
        return [found[subject] for subject in subjects]

    def forgotten(self, subjects: Iterable[str]) -> set[str]:
        """Return the forgotten subjects among those given, even if the key is rotated at the same time.

        Args:
            subjects: Canonical ids.
        """
        return self._among(subjects, self._ledger.forgotten)

    def restricted(self, subjects: Iterable[str]) -> set[str]:
        """Return the restricted subjects among those given, even if the key is rotated at the same time.

        Args:
            subjects: Canonical ids.
        """
        if not self._ledger.marks("restricted"):  # hashing millions of ids takes long
            return set()
        return self._among(subjects, lambda hashes: {m.hash for m in self._ledger.marks_of(hashes, "restricted")})

    def _among(self, subjects: Iterable[str], find: Callable[[Iterable[bytes]], set[bytes]]) -> set[str]:
        asked = list(subjects)
        while True:
            hashes, layers = self.hashes(asked), self.layers
            found = find(hashes)
            self.refresh()
            if self.layers == layers:
                return {hashes[hash_] for hash_ in found}

    def first_hashes(self, subjects: Iterable[str]) -> dict[str, str]:
        """Return the hashes under the first key alone, which a rotation does not change: for digests of slices.

        Args:
            subjects: Canonical ids.
        """
        keys = self._keys[:1]
        return {subject: hash_subject(keys, subject).hex() for subject in subjects}

    @property
    def partition_secret(self) -> bytes:
        """The secret of a secret partition."""
        return partition_secret(self._keys[0])

    def digest_of(self, subjects: Iterable[str]) -> str:
        """Return a keyed digest of several subjects, in any order, which a rotation does not change.

        Args:
            subjects: Canonical ids.
        """
        hashes = sorted(hash_subject(self._keys[:1], subject) for subject in set(subjects))
        return sha256(b"".join(hashes)).hexdigest()

    def renew(self, hash_: bytes, layers: int) -> bytes:
        """Return today's form of a hash that was made before rotations.

        Args:
            hash_: The hash.
            layers: Number of keys in use at that time.
        """
        return add_layers(self._keys[layers:], hash_)

    def rotate(self) -> None:
        """Start using a new key, which is on disk or in the environment before anything is hashed with it.

        Raises:
            StoreError: The environment provides the keys, and has no new one.
        """
        self.refresh()
        next_key(self._folder, read_keys(self._folder), self.layers)
        with self._ledger.transaction():
            self.refresh()
            self.apply_rotation(self.layers + 1)
            record(self._store, "rotation", None, asdict(Rotation(self.layers)))

    def apply_rotation(self, layers: int) -> None:
        """Hash every hash in the ledger with a new key; within a transaction.

        Args:
            layers: Number of keys in use afterwards.

        Raises:
            StoreError: There are fewer keys.
        """
        keys = read_keys(self._folder)
        if len(keys) < layers:
            raise StoreError(
                f"The store {self._folder} was rotated to {layers} keys, but {KEY_FILE} has {len(keys)}: it is an old "
                "copy. Restore the newest from a backup."
            )
        self._store.authenticator.check()  # otherwise concurrent changes would get a MAC of the new key
        self._ledger.rehash(lambda value: add_layers(keys[layers - 1 : layers], value))
        self._ledger.note(notes_of(keys[:layers]))
        self._store.authenticator.renew()
        self._own.keys = keys[:layers]


def notes_of(keys: Keys) -> dict[str, str]:
    """Return a ledger's notes on the keys in use.

    Args:
        keys: The keys.
    """
    return {"key_layers": str(len(keys)), "key_check": check_value(keys)}
