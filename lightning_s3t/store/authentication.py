"""Authentication: what only the holder of a store's key can write, so that nobody else can change its history.

Whatever decides who is forgotten and what may serve has a message authentication code (MAC), keyed BLAKE2b:

- each event of the chain, over its digest, and so over all events before it;
- the end of the chain, so that events cannot be cut off, and the number of the newest request;
- the tombstones and the marks (who is restricted, whose data was corrected), as one sum over all of them, to which an
  event adds its own, and from which it takes what it ends (MSet-Add-Hash: Clarke et al., ASIACRYPT 2003), bound to the
  newest request;
- the events that say what else the tables hold (who is scheduled, what was exported), as another such sum, bound to the
  end of the chain, so that none of them can pass for something else;
- each artifact, set aside or not, bound to the request that was the newest when its data was chosen;
- each row of the closed-form heads, and what is noted of their sums, bound to the newest request;
- the settings, which say where everybody is, and what fits note: the head's start, the sequences, the generations,
  the app's config.

A rotation of the keys makes all of them again but the first kind: events keep the code of the key that was in use.
Whoever has an old key alone can change nothing in such a history, not even from its time: later codes bind it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_s3t.core.events import GENESIS, Correction, Event, Kind, MarkRow, Request, Rotation
from lightning_s3t.errors import StoreError
from lightning_s3t.store.identities import KEY_FILE, read_keys
from lightning_s3t.store.ledger import ArtifactEntry, Ledger, Mark

_ID, _LAYERS, _HEAD, _TOMBSTONES, _SETTINGS = "store_id", "key_layers", "head_mac", "tombstones_mac", "settings_mac"
_LISTING, _FLOOR, _FLOOR_MAC = "listing_mac", "floor", "floor_mac"
LISTING: tuple[Kind, ...] = ("schedule", "cancellation", "export")
"""The kinds of events that say what is in tables of the ledger."""
_FIXED = ("settings", "register", "base", "options", "generations", _FLOOR)  # what a fit notes
_SIZE = 32  # bytes
_PERSON = b"s3t-tombstone"
_ROW_SIZE, _ROW_PERSON = 16, b"s3t-floor-row"
_MARKED = b"s3t-mark"
_SETTINGS_CHANGED = "what its settings are, or what its fits have noted"
_PEOPLE_CHANGED = "the list of those who are forgotten, restricted or corrected"
_MODULUS = 1 << (8 * _SIZE)

_Buried = tuple[bytes, int, str]
"""A row of the tombstones: hash, request and cell."""


def new_identity() -> dict[str, str]:
    """Return the note that tells a new store from others with the same key."""
    return {_ID: os.urandom(16).hex()}


class Authenticator:
    """Makes and checks a store's MACs. What it notes it notes within the caller's transaction.

    Args:
        folder: The store.
        ledger: Its ledger.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._derived: dict[tuple[int, str], bytes] = {}

    # the history

    def append(self, event: Event, forgotten: int | None = None) -> None:
        """Add an event to the chain, with its MAC and those that follow from it.

        Args:
            event: The next one.
            forgotten: How many are forgotten after a request.

        Raises:
            StoreError: The chain does not end where it was when it was last written to.
        """
        self.check_head()  # or what was changed meanwhile would get a MAC of ours
        change = change_of(event)
        total = self._read_sum() if change is not None else 0
        listed = self._read_listing()
        self._ledger.append(replace(event, mac=self._event_mac(event)), forgotten)
        self.note_head()
        if change is not None:
            added = self._sum(change.buried) + self._sum_of_marks(change.marked)
            self._note_sum(total + added - self._sum_of_marks(change.unmarked))
        self.note_floor()  # bound to the newest request, which this one may be
        self._note_listing(listed + self._sum_of_listing([event]))

    def note_head(self) -> None:
        """Note the MAC of the chain's end."""
        self._ledger.note({_HEAD: self._head_mac()})

    def check_head(self) -> None:
        """Check that the chain ends where it was when it was last written to.

        Raises:
            StoreError: It does not.
        """
        if not self._head_is_right():
            raise self._changed("the end of its history")

    def is_right(self, event: Event, layers: int) -> bool:
        """Return whether an event has the MAC that belongs to it.

        Args:
            event: The event.
            layers: How many keys were in use when it was written.
        """
        return _same(event.mac, self._event_mac(event, layers))

    def events_since(self, position: int) -> Iterator[Event]:
        """Return the events from one on; at one time. Read to the end, it proves that nothing was changed in them.

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
        """Return the events that say what tables hold, proven to be all that there were; at one time.

        Raises:
            StoreError: One was changed, or is missing.
        """
        events = list(self._ledger.events(kinds=LISTING))
        unchanged = all(event.follows(self._digest_before(event.position)) for event in events)
        if not unchanged or self._read_listing() != self._sum_of_listing(events) % _MODULUS:
            raise self._changed("what its history says of scheduled requests and exported copies")
        return events

    # the floor

    def note_floor(self) -> None:
        """Note the MAC of what is noted of the floor, bound to the newest request."""
        self._ledger.note({_FLOOR_MAC: self._floor_mac()})

    def row_mac(self, source: str, owner: bytes, body: bytes) -> bytes:
        """Return the MAC of a row of a closed-form head.

        Args:
            source: What its features are of.
            owner: The subject, as the ledger hashes it now.
            body: Its features and target.
        """
        name = source.encode()
        data = len(name).to_bytes(2, "big") + name + len(owner).to_bytes(2, "big") + owner + body
        return hashlib.blake2b(data, key=self._key(), digest_size=_ROW_SIZE, person=_ROW_PERSON).digest()

    # artifacts

    def seal(self, names: Iterable[str] | None = None) -> None:
        """Make the MACs of artifacts that were added, when the request that they name is in the history.

        Args:
            names: Their names; None for all.
        """
        entries = list(self._ledger.entries(None if names is None else list(names)))
        aside = self._ledger.aside() if names is None else []
        of_aside = [one.entry for one in aside]
        key, digests = self._key(), self._digests([*entries, *of_aside])
        self.check_head()  # or the newest request might be one that is yet to come
        if any(entry.as_of not in digests for entry in (*entries, *of_aside)):
            raise self._changed("the number of a request")
        self._ledger.seal({entry.name: _artifact_mac(key, entry, digests) for entry in entries})
        self._ledger.seal_aside({one.id: _artifact_mac(key, one.entry, digests) for one in aside})

    def check_artifacts(self, names: Iterable[str]) -> None:
        """Check artifacts before something of them is served.

        Args:
            names: Their names.

        Raises:
            StoreError: One is not what was added.
        """
        with self._ledger.at_one_time():
            wrong = self._wrong_artifacts(list(self._ledger.entries(list(names))))
        for name in wrong:
            raise self._changed(f"the record of unit {name}")

    # all of a store

    def note(self, notes: Mapping[str, str]) -> None:
        """Set what a fit notes, and the MAC of all of it.

        Args:
            notes: By name.

        Raises:
            StoreError: What was noted before was changed without the key.
        """
        if not self._settings_are_right():
            raise self._changed(_SETTINGS_CHANGED)
        self._ledger.note(notes)
        self._ledger.note({_SETTINGS: self._settings_mac()})

    def renew(self) -> None:
        """Make every MAC that has to be of the newest key again, after a `check`; and for a new store."""
        self._ledger.note({_SETTINGS: self._settings_mac()})
        self._note_sum(self._sum_of_all())
        self._note_listing(self._sum_of_listing(self._ledger.events(kinds=LISTING)))
        self.note_floor()
        self._ledger.seal_features(self.row_mac)
        self.note_head()
        self.seal()

    def check(self) -> None:
        """Check everything but the events before the newest, at one time or within a transaction; fast.

        Raises:
            StoreError: Something was changed without the key.
        """
        for what in self.changed():
            raise self._changed(what)

    def changed(self) -> list[str]:
        """Return what was changed without the key, except in events before the newest."""
        found = {
            _SETTINGS_CHANGED: self._settings_are_right(),
            "the end of its history": self._head_is_right(),
            "what is noted of its floor": _same(self._ledger.notes(_FLOOR_MAC).get(_FLOOR_MAC, ""), self._floor_mac()),
            _PEOPLE_CHANGED: self._read_sum() == self._sum_of_all() % _MODULUS,
        }
        units = self._wrong_artifacts([*self._ledger.entries(), *(one.entry for one in self._ledger.aside())])
        try:
            self.listing()
        except StoreError:
            found["what its history says of scheduled requests and exported copies"] = False
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

    def _head_mac(self) -> str:
        return _mac(self._key(), "head", *map(str, self._ledger.head()), str(self._ledger.watermark()))

    def _head_is_right(self) -> bool:
        return _same(self._ledger.notes(_HEAD).get(_HEAD, ""), self._head_mac())

    def _settings_are_right(self) -> bool:
        return _same(self._ledger.notes(_SETTINGS).get(_SETTINGS, ""), self._settings_mac())

    def _settings_mac(self) -> str:
        kept = self._ledger.notes(*_FIXED)
        return _mac(self._key(), "settings", *(kept.get(name, "") for name in _FIXED))

    def _floor_mac(self) -> str:
        newest = self._ledger.watermark()
        digest = self._ledger.request_digests([newest]).get(newest, GENESIS)
        return _mac(self._key(), "floor", self._ledger.notes(_FLOOR).get(_FLOOR, ""), digest)

    def _digests(self, entries: Iterable[ArtifactEntry]) -> dict[int, str]:
        return {0: GENESIS, **self._ledger.request_digests({entry.as_of for entry in entries})}

    def _wrong_artifacts(self, entries: list[ArtifactEntry]) -> list[str]:
        key, digests = self._key(), self._digests(entries)
        return [entry.name for entry in entries if not _same(entry.mac, _artifact_mac(key, entry, digests))]

    def _sum(self, rows: Iterable[_Buried]) -> int:
        key, new, parse = self._key(), hashlib.blake2b, int.from_bytes
        # with the length and the type of each part: no two rows are the same text
        texts = (
            f"{len(hash_)} {request!r} {cell!r} ".encode(errors="surrogatepass") + hash_
            for hash_, request, cell in rows
        )
        return sum(parse(new(text, key=key, digest_size=_SIZE, person=_PERSON).digest(), "big") for text in texts)

    def _sum_of_listing(self, events: Iterable[Event]) -> int:
        key = self._key()
        return sum(int(_mac(key, "listing", event.kind, event.digest), 16) for event in events if event.kind in LISTING)

    def _sum_of_marks(self, marks: Iterable[Mark]) -> int:
        key = self._key()
        items = (mark.hash + f"{mark.kind} {mark.number} {mark.cell}".encode() for mark in marks)
        digests = (hashlib.blake2b(item, key=key, digest_size=_SIZE, person=_MARKED).digest() for item in items)
        return sum(int.from_bytes(digest, "big") for digest in digests)

    def _sum_of_all(self) -> int:
        return self._sum(self._ledger.tombstones()) + self._sum_of_marks(self._ledger.marks())

    def _read_sum(self) -> int:
        return self._read_masked(_TOMBSTONES, self._mask())

    def _note_sum(self, total: int) -> None:
        self._ledger.note({_TOMBSTONES: f"{(total + self._mask()) % _MODULUS:x}"})

    def _read_listing(self) -> int:
        return self._read_masked(_LISTING, self._mask_of_listing())

    def _note_listing(self, total: int) -> None:
        self._ledger.note({_LISTING: f"{(total + self._mask_of_listing()) % _MODULUS:x}"})

    def _read_masked(self, name: str, mask: int) -> int:
        kept = self._ledger.notes(name).get(name, "")
        try:
            return (int(kept, 16) - mask) % _MODULUS
        except ValueError:
            return -1  # no sum is

    def _mask(self) -> int:
        # another for each request, so that two sums do not tell what one tombstone adds
        newest = self._ledger.watermark()
        digest = self._ledger.request_digests([newest]).get(newest, GENESIS)
        return int(_mac(self._key(), "tombstones", digest), 16)

    def _mask_of_listing(self) -> int:
        # another for each event, so that no older sum is ever right again
        return int(_mac(self._key(), "listing of", self._ledger.head()[1]), 16)

    def _digest_before(self, position: int) -> str:
        return GENESIS if position == 1 else self._ledger.digest_at(position - 1) or ""

    def _key(self, layers: int | None = None) -> bytes:
        kept = self._ledger.notes(_LAYERS, _ID)
        found = int(kept.get(_LAYERS, 0)) if layers is None else layers, kept.get(_ID, "")
        if found not in self._derived:
            keys = read_keys(self._folder)
            if not 0 < found[0] <= len(keys):
                raise StoreError(
                    f"The history of the store {self._folder} was written with {found[0]} keys, and {len(keys)} are "
                    f"there: {KEY_FILE} is an old copy. Restore the newest from a backup."
                )
            # not the keys themselves, which hash what others choose
            key = keys[found[0] - 1]
            identity = found[1].encode()
            self._derived[found] = hashlib.blake2b(identity, digest_size=_SIZE, key=key, person=b"s3t-history").digest()
        return self._derived[found]

    def _changed(self, what: str) -> StoreError:
        return StoreError(
            f"In the store {self._folder} {what} is not what was written with the store's key: it was changed, or "
            "ledger.db is damaged. Nothing is served. Restore ledger.db from a backup (what it lacks is carried out "
            "again from the journal); if somebody may have changed it, look who can write the folder."
        )


@dataclass(frozen=True)
class Change:
    """What an event changes in the lists of people.

    Attributes:
        buried: The tombstones that it adds.
        marked: The marks that it adds.
        unmarked: The marks that it takes away.
    """

    buried: tuple[_Buried, ...]
    marked: tuple[Mark, ...]
    unmarked: tuple[Mark, ...]


def change_of(event: Event) -> Change | None:
    """Return what an event changes in the lists of people; None if it is none that can.

    The tombstone of somebody who was restricted has the number of the request that has: what was trained since holds
    nothing of the data.

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


def _artifact_mac(key: bytes, entry: ArtifactEntry, digests: Mapping[int, str]) -> str:
    score = "" if entry.score is None else repr(float(entry.score))
    # of another history; or none, where there is no such request: no unit has this
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
        before: How many were in use before it.
    """
    if event.kind != "rotation":
        return before
    try:
        return event.read(Rotation).layers
    except (ValueError, TypeError):
        return before
