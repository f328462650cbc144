"""Authentication: codes that only the holder of a store's key can write, to protect its history against changes.

All data that decides who is forgotten and what may serve has a message authentication code (MAC), keyed BLAKE2b:

- each event of the chain, over its digest, and so over all events before it;
- the end of the chain, so that events cannot be cut off, and the number of the newest request;
- the tombstones and the marks (who is restricted, whose data was corrected), as one sum over all of them, to which an
  event adds new entries and from which it subtracts ended ones (MSet-Add-Hash: Clarke et al., ASIACRYPT 2003), bound to
  the newest request;
- the events that describe other tables (scheduled requests, exported copies), as another such sum, bound to the end of
  the chain, so that none of them can pass for another kind;
- each artifact, set aside or not, bound to the request that was the newest when its data was chosen;
- each row of the closed-form heads, and the records of their sums, bound to the newest request;
- the settings, which determine the place of every subject, and the notes of fits: the head's initial state, the
  sequences, the generations, the app's config.

A rotation of the keys makes all of them again but the first kind: events keep the code of the key that was in use. An
old key alone does not allow changes to such a history, not even to its old part, which later codes bind.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_s3t.core.events import GENESIS, Correction, Event, Kind, MarkRow, Request, Rotation
from lightning_s3t.errors import StoreError
from lightning_s3t.store.keys.identities import KEY_FILE, read_keys
from lightning_s3t.store.ledgers.ledger import ArtifactEntry, Ledger, Mark

_ID, _LAYERS, _HEAD, _TOMBSTONES, _SETTINGS = "store_id", "key_layers", "head_mac", "tombstones_mac", "settings_mac"
_LISTING, _FLOOR, _FLOOR_MAC = "listing_mac", "floor", "floor_mac"
LISTING: tuple[Kind, ...] = ("schedule", "cancellation", "export")
"""The kinds of events that authenticate the contents of ledger tables."""
_PLACE = "snapshots"  # the location of the snapshots, if not in the folder
_KEYS = "keys"  # the location of their keys, if they are encrypted
_FIXED = ("settings", "register", "base", "options", "generations", _FLOOR)  # notes of a fit
_SIZE = 32  # bytes
_PERSON = b"s3t-tombstone"
_ROW_SIZE, _ROW_PERSON = 16, b"s3t-floor-row"
_MARKED = b"s3t-mark"
_READ = (_ID, _LAYERS, _HEAD, _TOMBSTONES, _SETTINGS, _LISTING, _FLOOR_MAC, _PLACE, _KEYS, *_FIXED)
_SETTINGS_CHANGED = "the record of its settings or of its fits"
_END_CHANGED = "the end of its history"
_LISTING_CHANGED = "the history of its scheduled requests and exported copies"
_PEOPLE_CHANGED = "the list of its forgotten, restricted or corrected subjects"
_MODULUS = 1 << (8 * _SIZE)

_Buried = tuple[bytes, int, str]
"""A row of the tombstones: hash, request and cell."""


def new_identity() -> dict[str, str]:
    """Return the note that distinguishes a new store from others with the same key."""
    return {_ID: os.urandom(16).hex()}


class Authenticator:
    """Makes and checks a store's MACs. It writes within the caller's transaction.

    Args:
        folder: The store.
        ledger: Its ledger.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._derived: dict[tuple[int, str], bytes] = {}

    @property
    def identity(self) -> str:
        """A digest of the note that distinguishes the store from others with the same key."""
        return hashlib.sha256(self._ledger.notes(_ID).get(_ID, "").encode()).hexdigest()

    # the history

    def append(self, event: Event, forgotten: int | None = None, change: Change | None = None) -> None:
        """Add an event to the chain, with its MAC and the MACs that depend on it.

        Args:
            event: The next one.
            forgotten: Number of forgotten subjects after a request.
            change: The event's change to the lists of people, if the caller already has it; otherwise it is read.

        Raises:
            StoreError: The chain does not end where it was when it was last written to.
        """
        before = self._look()
        self._check_head(before)  # otherwise concurrent changes would get a valid MAC
        key, after, change = before.key, before.followed_by(event), change or change_of(event)
        macs = {_HEAD: after.head_mac, _FLOOR_MAC: after.floor_mac}
        macs[_LISTING] = after.masked_listing(before.listing + _sum_of_listing(key, [event]))
        if change is not None:
            added = _sum_of_tombstones(key, change.buried) + _sum_of_marks(key, change.marked)
            macs[_TOMBSTONES] = after.masked_people(before.people + added - _sum_of_marks(key, change.unmarked))
        self._ledger.append(replace(event, mac=_mac(key, "event", event.digest)), forgotten)
        self._ledger.note(macs)

    def check_head(self) -> None:
        """Check that the chain ends where it was when it was last written to.

        Raises:
            StoreError: It does not.
        """
        self._check_head(self._look())

    def is_right(self, event: Event, layers: int) -> bool:
        """Return whether an event has the MAC that belongs to it.

        Args:
            event: The event.
            layers: Number of keys in use when it was written.
        """
        return _same(event.mac, self._event_mac(event, layers))

    def is_unchanged(self, event: Event, layers: int) -> bool:
        """Return whether an event of the ledger is as it was written, and has its MAC.

        Args:
            event: The event.
            layers: Number of keys in use when it was written.
        """
        return event.follows(self._digest_before(event.position)) and self.is_right(event, layers)

    def events_since(self, position: int) -> Iterator[Event]:
        """Return the events from a position on, in a consistent read; reading to the end proves them unchanged.

        Args:
            position: That of the first.

        Raises:
            StoreError: Something was changed.
        """
        previous = self._digest_before(position)
        for event in self._ledger.events(after=position - 1):
            if event.position != position or not event.follows(previous):
                raise self._changed(f"event {position} of its history")
            yield event
            previous, position = event.digest, position + 1
        self.check_head()

    def listing(self) -> list[Event]:
        """Return the events that describe tables, proven to be complete, in a consistent read.

        Raises:
            StoreError: One was changed, or is missing.
        """
        return self._listing(self._look())

    # the floor

    def note_floor(self) -> None:
        """Write the MAC of the floor's record, bound to the newest request."""
        self._ledger.note({_FLOOR_MAC: self._look().floor_mac})

    def row_mac(self, source: str, owner: bytes, body: bytes) -> bytes:
        """Return the MAC of a row of a closed-form head.

        Args:
            source: The source of its features.
            owner: The subject, as the ledger hashes it now.
            body: Its features and target.
        """
        name = source.encode()
        data = len(name).to_bytes(2, "big") + name + len(owner).to_bytes(2, "big") + owner + body
        return hashlib.blake2b(data, key=self._key(), digest_size=_ROW_SIZE, person=_ROW_PERSON).digest()

    # artifacts

    def seal(self, names: Collection[str] | None = None) -> None:
        """Make the MACs of artifacts that were added, when the request that they name is in the history.

        Args:
            names: Their names; None for all.
        """
        entries = self._ledger.entries(names)
        aside = self._ledger.aside() if names is None else []
        of_aside = [one.entry for one in aside]
        digests, standing = self._digests([*entries, *of_aside]), self._look()
        key = standing.key
        self._check_head(standing)  # or the newest request might be one that is yet to come
        if any(entry.as_of not in digests for entry in (*entries, *of_aside)):
            raise self._changed("the number of a request")
        self._ledger.seal({entry.name: _artifact_mac(key, entry, digests) for entry in entries})
        if aside:
            self._ledger.seal_aside({one.id: _artifact_mac(key, one.entry, digests) for one in aside})

    def check_artifacts(self, names: Collection[str]) -> dict[str, ArtifactEntry]:
        """Check artifacts before they serve; return the existing ones by name.

        Args:
            names: Their names.

        Raises:
            StoreError: An artifact differs from the one that was added.
        """
        with self._ledger.at_one_time():
            entries, notes = self._ledger.entries(names), self._ledger.notes(_LAYERS, _ID)
            digests = self._digests(entries)
        key = self._derive(notes)
        for name in _wrong_artifacts(key, entries, digests):
            raise self._changed(f"the record of unit {name}")
        return {entry.name: entry for entry in entries}

    # all of a store

    def note(self, notes: Mapping[str, str]) -> None:
        """Set notes of a fit, and the MAC of all notes.

        Args:
            notes: By name.

        Raises:
            StoreError: Earlier notes were changed without the key.
        """
        standing = self._look()
        if not standing.settings_are_right:
            raise self._changed(_SETTINGS_CHANGED)
        self._ledger.note({**notes, _SETTINGS: replace(standing, notes={**standing.notes, **notes}).settings_mac})

    def renew(self) -> None:
        """Rewrite all MACs with the newest key, after a `check` or for a new store."""
        standing = self._look()
        listed = _sum_of_listing(standing.key, self._ledger.events(kinds=LISTING))
        self._ledger.note(
            {
                _SETTINGS: standing.settings_mac,
                _TOMBSTONES: standing.masked_people(self._sum_of_people(standing.key)),
                _LISTING: standing.masked_listing(listed),
                _FLOOR_MAC: standing.floor_mac,
                _HEAD: standing.head_mac,
            }
        )
        self._ledger.seal_features(self.row_mac)
        self.seal()

    def check(self) -> None:
        """Check everything but the events before the newest, within a consistent read or a transaction; fast.

        Raises:
            StoreError: Something was changed without the key.
        """
        for what in self.changed():
            raise self._changed(what)

    def changed(self) -> list[str]:
        """Return a description of what was changed without the key, except in events before the newest."""
        standing = self._look()
        found = {
            _SETTINGS_CHANGED: standing.settings_are_right,
            _END_CHANGED: standing.head_is_right,
            "the record of its floor": _same(standing.notes.get(_FLOOR_MAC, ""), standing.floor_mac),
            _PEOPLE_CHANGED: standing.people == self._sum_of_people(standing.key) % _MODULUS,
        }
        entries = [*self._ledger.entries(), *(one.entry for one in self._ledger.aside())]
        units = _wrong_artifacts(standing.key, entries, self._digests(entries))
        try:
            self._listing(standing)
        except StoreError:
            found[_LISTING_CHANGED] = False
        return [
            *(what for what, right in found.items() if not right),
            *(f"the record of unit {name}" for name in units),
        ]

    def wrong_events(self, history: Iterable[Event]) -> Iterator[int]:
        """Return the positions of events that do not have their MAC.

        Args:
            history: All events, in order.
        """
        layers = 1
        for event in history:
            layers = layers_after(event, layers)
            try:
                right = self.is_right(event, layers)
            except StoreError:  # more rotations than keys
                right = False
            if not right:
                yield event.position

    def _event_mac(self, event: Event, layers: int | None = None) -> str:
        return _mac(self._key(layers), "event", event.digest)

    def _look(self) -> _Standing:
        """Read what the MACs are bound to; within a transaction or a consistent read."""
        ledger = self._ledger
        notes, head, newest = ledger.notes(*_READ), ledger.head(), ledger.watermark()
        digest = ledger.request_digests([newest]).get(newest, GENESIS)
        return _Standing(self._derive(notes), notes, head, newest, digest)

    def _check_head(self, standing: _Standing) -> None:
        if not standing.head_is_right:
            raise self._changed(_END_CHANGED)

    def _listing(self, standing: _Standing) -> list[Event]:
        events = list(self._ledger.events(kinds=LISTING))
        unchanged = all(event.follows(self._digest_before(event.position)) for event in events)
        if not unchanged or standing.listing != _sum_of_listing(standing.key, events) % _MODULUS:
            raise self._changed(_LISTING_CHANGED)
        return events

    def _digests(self, entries: Iterable[ArtifactEntry]) -> dict[int, str]:
        return {0: GENESIS, **self._ledger.request_digests({entry.as_of for entry in entries})}

    def _sum_of_people(self, key: bytes) -> int:
        return _sum_of_tombstones(key, self._ledger.tombstones()) + _sum_of_marks(key, self._ledger.marks())

    def _digest_before(self, position: int) -> str:
        return GENESIS if position == 1 else self._ledger.digest_at(position - 1) or ""

    def _key(self, layers: int | None = None) -> bytes:
        return self._derive(self._ledger.notes(_LAYERS, _ID), layers)

    def _derive(self, notes: Mapping[str, str], layers: int | None = None) -> bytes:
        found = int(notes.get(_LAYERS, 0)) if layers is None else layers, notes.get(_ID, "")
        if found not in self._derived:
            keys = read_keys(self._folder)
            if not 0 < found[0] <= len(keys):
                raise StoreError(
                    f"The history of the store {self._folder} was written with {found[0]} keys, but {KEY_FILE} has "
                    f"{len(keys)}: it is an old copy. Restore the newest from a backup."
                )
            # not the keys themselves, which hash values that others choose
            key = keys[found[0] - 1]
            identity = found[1].encode()
            self._derived[found] = hashlib.blake2b(identity, digest_size=_SIZE, key=key, person=b"s3t-history").digest()
        return self._derived[found]

    def _changed(self, what: str) -> StoreError:
        return StoreError(
            f"In the store {self._folder}, {what} does not match what was written with the store's key: it was "
            "changed, or the ledger is damaged. Nothing is served. Restore the ledger from a backup (missing "
            "requests are carried out again from the journal). If it may have been changed on purpose, check who can "
            "write to the folder."
        )


@dataclass(frozen=True)
class _Standing:
    """The values that a store's MACs are bound to, read once for any number of MACs.

    Attributes:
        key: The key in use.
        notes: The notes, including the MACs.
        head: Position and digest of the newest event.
        newest: The number of the newest request.
        digest: The digest of its event.
    """

    key: bytes
    notes: Mapping[str, str]
    head: tuple[int, str]
    newest: int
    digest: str

    def followed_by(self, event: Event) -> _Standing:
        """Return the same with one more event at the end of the chain."""
        head, newest = (event.position, event.digest), max(self.newest, event.request or 0)
        digest = self.digest if newest == self.newest else GENESIS
        return replace(
            self,
            head=head,
            newest=newest,
            digest=event.digest if event.kind == "request" and event.request == newest else digest,
        )

    @property
    def head_mac(self) -> str:
        return _mac(self.key, "head", *map(str, self.head), str(self.newest))

    @property
    def head_is_right(self) -> bool:
        return _same(self.notes.get(_HEAD, ""), self.head_mac)

    @property
    def settings_mac(self) -> str:
        place = [self.notes[_PLACE]] if _PLACE in self.notes else []  # most stores have none
        keys = [_KEYS, self.notes[_KEYS]] if _KEYS in self.notes else []
        return _mac(self.key, "settings", *(self.notes.get(name, "") for name in _FIXED), *place, *keys)

    @property
    def settings_are_right(self) -> bool:
        return _same(self.notes.get(_SETTINGS, ""), self.settings_mac)

    @property
    def floor_mac(self) -> str:
        return _mac(self.key, "floor", self.notes.get(_FLOOR, ""), self.digest)

    @property
    def people(self) -> int:
        """The sum over tombstones and marks; -1, which no sum is, where it cannot be read."""
        return self._unmasked(_TOMBSTONES, self._mask_of_people)

    @property
    def listing(self) -> int:
        """The sum over events that describe tables; -1 as above."""
        return self._unmasked(_LISTING, self._mask_of_listing)

    def masked_people(self, total: int) -> str:
        return f"{(total + self._mask_of_people) % _MODULUS:x}"

    def masked_listing(self, total: int) -> str:
        return f"{(total + self._mask_of_listing) % _MODULUS:x}"

    @property
    def _mask_of_people(self) -> int:
        # different for each request, so that two sums do not reveal what one tombstone adds
        return int(_mac(self.key, "tombstones", self.digest), 16)

    @property
    def _mask_of_listing(self) -> int:
        # another for each event, so that no older sum is ever right again
        return int(_mac(self.key, "listing of", self.head[1]), 16)

    def _unmasked(self, name: str, mask: int) -> int:
        try:
            return (int(self.notes.get(name, ""), 16) - mask) % _MODULUS
        except ValueError:
            return -1


@dataclass(frozen=True)
class Change:
    """The change of an event to the lists of people.

    Attributes:
        buried: The tombstones that it adds.
        marked: The marks that it adds.
        unmarked: The marks that it takes away.
    """

    buried: tuple[_Buried, ...]
    marked: tuple[Mark, ...]
    unmarked: tuple[Mark, ...]


def change_of(event: Event) -> Change | None:
    """Return an event's change to the lists of people; None if its kind does not change them.

    The tombstone of a restricted subject has the number of the restricting request: units trained since do not hold the
    data.

    Args:
        event: The event.
    """
    if event.kind == "correction":
        waiting = event.read(Correction).waiting
        return Change((), marks_of((("awaiting", hash_, event.position, cell) for hash_, cell in waiting)), ())
    if event.kind != "request" or event.request is None:
        return None
    request = event.read(Request)
    marked, unmarked = marks_of(request.marks), marks_of(request.unmarked)
    since = {mark.hash: mark.number for mark in unmarked if mark.kind == "restricted"}
    tombstones = [(bytes.fromhex(hash_), cell) for hash_, cell in request.tombstones]
    return Change(tuple((hash_, since.get(hash_, event.request), cell) for hash_, cell in tombstones), marked, unmarked)


def marks_of(rows: Iterable[MarkRow]) -> tuple[Mark, ...]:
    """Return marks as a ledger has them.

    Args:
        rows: As the body of an event has them.
    """
    return tuple(Mark(kind, bytes.fromhex(hash_), number, cell) for kind, hash_, number, cell in rows)


def _sum_of_tombstones(key: bytes, rows: Iterable[_Buried]) -> int:
    new, parse = hashlib.blake2b, int.from_bytes
    # with the length and the type of each part: no two rows are the same text
    texts = (
        f"{len(hash_)} {request!r} {cell!r} ".encode(errors="surrogatepass") + hash_ for hash_, request, cell in rows
    )
    return sum(parse(new(text, key=key, digest_size=_SIZE, person=_PERSON).digest(), "big") for text in texts)


def _sum_of_marks(key: bytes, marks: Iterable[Mark]) -> int:
    items = (mark.hash + f"{mark.kind} {mark.number} {mark.cell}".encode() for mark in marks)
    digests = (hashlib.blake2b(item, key=key, digest_size=_SIZE, person=_MARKED).digest() for item in items)
    return sum(int.from_bytes(digest, "big") for digest in digests)


def _sum_of_listing(key: bytes, events: Iterable[Event]) -> int:
    return sum(int(_mac(key, "listing", event.kind, event.digest), 16) for event in events if event.kind in LISTING)


def _wrong_artifacts(key: bytes, entries: Iterable[ArtifactEntry], digests: Mapping[int, str]) -> list[str]:
    return [entry.name for entry in entries if not _same(entry.mac, _artifact_mac(key, entry, digests))]


def _artifact_mac(key: bytes, entry: ArtifactEntry, digests: Mapping[int, str]) -> str:
    score = "" if entry.score is None else repr(float(entry.score))
    # the digest of another history, or a value that no unit has if the request does not exist
    chain = digests.get(entry.as_of, "")
    return _mac(key, "artifact", entry.name, str(entry.as_of), chain, entry.digest, score, entry.record)


def _mac(key: bytes, *parts: str) -> str:
    data = "\0".join([f"{len(part)}:{part}" for part in parts]).encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=_SIZE, key=key).hexdigest()


def _same(found: str, expected: str) -> bool:
    return hmac.compare_digest(found.encode(errors="surrogatepass"), expected.encode())


def layers_after(event: Event, before: int) -> int:
    """Return how many keys are in use with an event: with a rotation, the new one is.

    Args:
        event: The event.
        before: Number of keys in use before it.
    """
    if event.kind != "rotation":
        return before
    try:
        return event.read(Rotation).layers
    except (ValueError, TypeError):
        return before
