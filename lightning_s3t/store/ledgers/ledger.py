"""The ledger: the subjects of a store, its history and its contents. A protocol: any database can keep one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Protocol

from lightning_s3t.core.events import Event, Kind, MarkKind
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import StoreError

Tombstone = tuple[bytes, Cell]
"""The keyed hash of a forgotten subject, and the cell that the subject's data was in."""


class Mark(NamedTuple):
    """A mark of a subject who is not forgotten.

    Attributes:
        kind: "restricted": no fit trains on the subject, and nothing made from the data serves. "rectified" and
            "released": the data was changed, or is available again. "awaiting": the next fit trains on the corrected
            data.
        hash: The keyed hash of the subject.
        number: The request from which on no unit that is trained holds the (old) data; of "released" the request; of
            "awaiting" the position of the event.
        cell: The cell that the subject's data is in.
    """

    kind: MarkKind
    hash: bytes
    number: int
    cell: Cell


@dataclass(frozen=True)
class Artifact:
    """Something trained, as a ledger keeps it.

    Attributes:
        name: Its name, which a request that revokes it makes public: "0/2-0".
        cells: All cells whose data influenced it.
        key: The digest of everything that may have influenced it.
        digest: The SHA-256 of its snapshot.
        score: The metric that the script monitors, higher being better; None without one.
        provenance: Its origin, as JSON.
        as_of: The newest request when its data was chosen.
        mac: The authentication code, which shows that a holder of the store's key added it (`Authenticator.seal`).
    """

    name: str
    cells: tuple[Cell, ...]
    key: str
    digest: str
    score: float | None
    provenance: str
    as_of: int
    mac: str = ""

    @property
    def entry(self) -> ArtifactEntry:
        """Its short form."""
        return ArtifactEntry(self.name, self.as_of, self.digest, self.score, self.record, self.mac)

    @property
    def record(self) -> str:
        """The SHA-256 of key and provenance."""
        return sha256(f"{self.key}\n{self.provenance}".encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class ArtifactEntry:
    """The short fields of an `Artifact`, which its MAC covers; read for all artifacts at every opening.

    Attributes:
        name: Its name.
        as_of: The newest request when its data was chosen.
        digest: The SHA-256 of its snapshot.
        score: The metric that the script monitors; None without one.
        record: The SHA-256 of key and provenance.
        mac: The authentication code, which shows that a holder of the store's key added it.
    """

    name: str
    as_of: int
    digest: str
    score: float | None
    record: str
    mac: str


@dataclass(frozen=True)
class SetAside:
    """An artifact that was set aside: kept whole, and no longer among the artifacts.

    Attributes:
        id: Its number among the units that are set aside. Several may have the same name; all but the newest were made
            before a restriction during which the next was made.
        cells: All cells whose data influenced it.
        entry: The rest of it.
    """

    id: int
    cells: tuple[Cell, ...]
    entry: ArtifactEntry

    @property
    def name(self) -> str:
        """Its original name, which it gets again when put back."""
        return self.entry.name

    @property
    def as_of(self) -> int:
        """The newest request when its data was chosen."""
        return self.entry.as_of


@dataclass(frozen=True)
class OwnedFile:
    """A file that an artifact or an attempt owns.

    Attributes:
        path: Its path; within the store, relative to it.
        evidence: Evidence that distinguishes it from other files with this name; empty for snapshots, whose names are
            their digests.
    """

    path: str
    evidence: str = ""


@dataclass(frozen=True)
class Export:
    """An exported copy of an artifact, as a ledger stores it.

    Attributes:
        name: Its name, which a request that reaches it makes public: "0/2-0:1f0c".
        cells: All cells whose data influenced it.
        as_of: The newest request when it was made.
    """

    name: str
    cells: tuple[Cell, ...]
    as_of: int


@dataclass(frozen=True)
class QueuedFile:
    """A file to be erased.

    Attributes:
        path: Its path; within the store, relative to it.
        request: The number of the request that it goes for; None if it goes for none.
        size: Its bytes when it was queued; None if there was no such file.
        evidence: The evidence of its owner.
        left: Whether it was found and left alone, because it may belong to another program.
    """

    path: str
    request: int | None
    size: int | None
    evidence: str = ""
    left: bool = False


class Ledger(Protocol):
    """The operations that a store needs from a database.

    Methods that change something are called within `transaction`, which excludes other writers from its first statement
    on. Removed values (digests, keys, provenance, paths) must not be readable in any file of the database once the
    transaction has ended and `clear_traces` was called. A database that cannot promise this does not keep features of
    rows (`keeps_features`), and its documentation says what stays where. Every error is a `StoreError`.
    """

    keeps_features: bool
    """Whether rows may be added by `add_features`."""

    def transaction(self) -> AbstractContextManager[None]:
        """Run a block as one durable transaction that excludes other writers; an error undoes all of it."""

    def at_one_time(self) -> AbstractContextManager[None]:
        """Give a block a consistent view of the database from its first read on, regardless of concurrent writes."""

    def close(self) -> None:
        """Close the connections of this process."""

    # the store's own notes

    def notes(self, *names: str) -> dict[str, str]:
        """Return notes by name, from one consistent read; missing ones are left out."""

    def note(self, notes: Mapping[str, str]) -> None:
        """Set notes."""

    # subjects, by keyed hash

    def register(self, rows: Iterable[tuple[bytes, int]], generation: int = 0) -> None:
        """Note subjects of a generation, each with a band of risk, unless they are registered or forgotten."""

    def bands(self, hashes: Iterable[bytes]) -> dict[bytes, int]:
        """Return the bands of registered subjects."""

    def generations(self, hashes: Iterable[bytes]) -> dict[bytes, int]:
        """Return the generations of registered subjects."""

    def count_generations(self) -> dict[int, int]:
        """Return how many are registered by generation."""

    def merge_generations(self, into: int) -> None:
        """Move all subjects of later generations into one."""

    def forgotten(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Return the subjects with a tombstone."""

    def waiting(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Return the subjects with scheduled requests."""

    def schedule(self, rows: Iterable[tuple[bytes, str, Cell]]) -> None:
        """Schedule subjects who are not forgotten yet; the earlier time and the newer cell apply."""

    def unschedule(self, hashes: Iterable[bytes]) -> None:
        """Remove subjects from the schedule."""

    def scheduled(self) -> Iterator[tuple[bytes, str, Cell]]:
        """Return the scheduled subjects, with time and cell."""

    def due(self, time: str) -> list[Tombstone]:
        """Return the subjects who are due by a time (UTC, ISO 8601)."""

    def schedules(self) -> list[tuple[str, int]]:
        """Return the times of scheduled requests, and of how many subjects."""

    def bury(self, rows: Iterable[Tombstone], request: int) -> None:
        """Add tombstones for subjects, and remove them from the registry and from the waiting subjects."""

    def tombstones(self) -> Iterator[tuple[bytes, int, Cell]]:
        """Return hash, request and cell of everyone who is forgotten."""

    def count_forgotten(self) -> int:
        """Return how many tombstones there are."""

    def count_registered_and_forgotten(self) -> int:
        """Return how many have a tombstone and are registered too, which must not be."""

    def newest_requests(self, restrictions: bool = True) -> dict[Cell, int]:
        """Return, by cell, the newest request that blocks artifacts made before it.

        That is the newest number of a tombstone or of a mark "rectified", and of a mark "restricted" if these count.
        """

    def mark(self, marks: Iterable[Mark]) -> None:
        """Add marks; existing ones stay."""

    def unmark(self, marks: Iterable[Mark]) -> None:
        """Take marks away."""

    def marks(self, kind: MarkKind | None = None) -> list[Mark]:
        """Return the marks of a kind, or all."""

    def marks_of(self, hashes: Iterable[bytes], kind: MarkKind) -> list[Mark]:
        """Return the marks of a kind that some subjects have."""

    def lacks(self, cells: Collection[Cell]) -> bool:
        """Return whether a subject with data in one of the cells is forgotten or restricted."""

    def rehash(self, renew: Callable[[bytes], bytes]) -> None:
        """Replace the hash of every subject."""

    # events

    def head(self) -> tuple[int, str]:
        """Return position and digest of the newest event; 0 and `GENESIS` before the first."""

    def append(self, event: Event, forgotten: int | None = None) -> None:
        """Add an event, and with a request how many are forgotten after it."""

    def events(
        self, after: int = 0, request: int | None = None, kinds: Collection[Kind] | None = None
    ) -> Iterator[Event]:
        """Return the events after a position, in order, without checking them.

        Only those of a request, or of some kinds, if these are given.
        """

    def count_events(self) -> int:
        """Return how many events there are."""

    def digest_at(self, position: int) -> str | None:
        """Return the digest of an event."""

    def request_digests(self, requests: Collection[int]) -> dict[int, str]:
        """Return the digests of the events of requests, by their numbers; missing ones are left out."""

    def watermark(self) -> int:
        """Return the number of the newest request, 0 before the first; cheap enough to ask before every batch."""

    def request_named(self, request_id: str) -> int | None:
        """Return the number of the request with a caller's name."""

    def forgotten_after(self, request: int) -> int | None:
        """Return the number of forgotten subjects that was recorded with a request."""

    # replicas that may answer for a while without a look

    def add_replica(self, replica: str, max_staleness: float, request: int) -> None:
        """Note a replica, for how many seconds it may answer without a look, and the request that it knows of."""

    def look(self, replica: str) -> tuple[int, int | None]:
        """Return the newest request and the one that a replica has confirmed (None if unregistered), from one read."""

    def confirm(self, replica: str, request: int) -> bool:
        """Record that a replica knows of a request; return whether the replica is registered."""

    def replicas_behind(self, request: int) -> dict[str, float]:
        """Return the replicas that do not know of a request, and how many seconds each may answer without a look."""

    def remove_replicas(self, replicas: Collection[str], behind: int | None = None) -> None:
        """Take replicas out; only those that do not know of a request, if one is given."""

    # artifacts

    def reached(self, cells: Collection[Cell]) -> list[str]:
        """Return the artifacts that have one of the cells: the reach rule, by an index."""

    def reached_since(self, cells: Collection[Cell], request: int) -> bool:
        """Return whether a request newer than a given one reaches an artifact with these cells: the reverse lookup.

        All tombstones and marks count but those of kind "awaiting".
        """

    def add(self, artifact: Artifact, snapshot: str) -> None:
        """Add an attempted artifact, which owns its snapshot (whose path is given) and the attempt's files."""

    def remove(self, names: Collection[str]) -> list[OwnedFile]:
        """Remove artifacts, with all their data; return the files that they owned."""

    def scores(self, prefix: str = "") -> dict[str, float | None]:
        """Return the scores of the artifacts with this name prefix."""

    def digests(self, names: Collection[str] | None = None) -> dict[str, str]:
        """Return the digests of the snapshots of some artifacts, or of all."""

    def artifacts(self, names: Collection[str] | None = None) -> list[Artifact]:
        """Return all of some artifacts, or of every one, except for its cells."""

    def entries(self, names: Collection[str] | None = None) -> list[ArtifactEntry]:
        """Return the short form of some artifacts, or of all."""

    def seal(self, macs: Mapping[str, str]) -> None:
        """Replace the MACs of artifacts."""

    def ages(self) -> dict[str, int]:
        """Return by artifact the newest request when its data was chosen."""

    def index(self) -> Iterator[tuple[Cell, str]]:
        """Return the index that `reached` looks in: cells and artifacts."""

    def count_index(self) -> int:
        """Return how many entries the index has."""

    # artifacts that are set aside: no other method knows of them, but those of the files that they own

    def set_aside(self, names: Collection[str]) -> None:
        """Set artifacts aside; they keep their files."""

    def aside(self) -> list[SetAside]:
        """Return the artifacts that are set aside, in the order in which they were set aside."""

    def put_back(self, ids: Collection[int]) -> None:
        """Move artifacts back unchanged; their names must be free."""

    def remove_aside(self, ids: Collection[int]) -> list[OwnedFile]:
        """Remove artifacts that are set aside, with all their data; return the files that they owned."""

    def seal_aside(self, macs: Mapping[int, str]) -> None:
        """Replace the MACs of artifacts that are set aside."""

    # attempts, and the files that artifacts and attempts own

    def begin(self, name: str) -> None:
        """Note that an artifact is attempted."""

    def attempts(self, name: str | None = None) -> list[str]:
        """Return the artifacts that are attempted, or only one if it is."""

    def drop_attempts(self, names: Collection[str]) -> list[OwnedFile]:
        """Take attempts out; return the files that they owned."""

    def own(self, path: str, attempt: str | None = None, evidence: str = "") -> None:
        """Transfer a file from its owners to an attempt, or permanently to the store."""

    def hold(self, path: str, attempt: str) -> None:
        """Add an attempt to the owners of a file."""

    def disown(self, path: str) -> list[str]:
        """Remove a file from its owners; return its path if it had any."""

    def files_of(self, attempt: str) -> list[OwnedFile]:
        """Return the files that an attempt owns."""

    def files(self) -> Iterator[OwnedFile]:
        """Return the files that anything owns."""

    def needed(self, paths: Iterable[str]) -> set[str]:
        """Return those of the files that have an owner."""

    # exported copies

    def add_export(self, export: Export, files: Mapping[str, str]) -> None:
        """Add an exported copy, or another state of it, with the files that it owns from now on, each with evidence."""

    def exports(self) -> list[Export]:
        """Return the exported copies, in the order of their names."""

    def remove_exports(self, names: Collection[str]) -> list[OwnedFile]:
        """Take exported copies out; return the files that they owned."""

    # integer features of rows, by their source and their subjects' hashes

    def add_features(self, source: str, rows: Iterable[tuple[bytes, bytes, bytes, bytes]]) -> None:
        """Add rows: the subject's hash, a tag of the row's contents, the features, and a MAC."""

    def features(self, source: str) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Return hash, features and MAC of all rows of a source."""

    def features_of(self, hashes: Collection[bytes]) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        """Return source, hash, features and MAC of the rows of some subjects."""

    def feature_tags(self, source: str) -> Iterator[tuple[bytes, bytes]]:
        """Return hash and tag of every row of a source."""

    def remove_features(self, source: str, hashes: Collection[bytes]) -> None:
        """Take the rows of subjects out of a source."""

    def drop_features(self, source: str) -> None:
        """Take all rows of a source out."""

    def seal_features(self, mac: Callable[[str, bytes, bytes], bytes]) -> None:
        """Replace the MAC of every row with one of its source, hash and features."""

    # erasure

    def queue(self, files: Iterable[QueuedFile]) -> None:
        """Queue files for erasure."""

    def queued(self) -> list[QueuedFile]:
        """Return the queued files, by request."""

    def replace_queue(self, files: Iterable[QueuedFile]) -> None:
        """Note these files as the only ones that are still to be erased."""

    # copying a ledger, and giving one up

    def all_notes(self) -> dict[str, str]:
        """Return all notes."""

    def registered(self) -> Iterator[tuple[bytes, int, int]]:
        """Return hash, band and generation of everyone who is registered."""

    def owned(self) -> Iterator[tuple[str, OwnedFile]]:
        """Return the files that anything owns, each with its owner.

        That is an artifact's name, "attempt:" or "export:" before a name, "aside:" before the number of an artifact
        that is set aside, or nothing for the store.
        """

    def all_features(self) -> Iterator[tuple[str, bytes, bytes, bytes, bytes]]:
        """Return source, hash, tag, features and MAC of every row, source by source."""

    def artifacts_aside(self) -> list[tuple[int, Artifact]]:
        """Return all of the artifacts that are set aside, with their numbers, the first first."""

    def empty(self) -> None:
        """Remove everything."""

    def give_up(self, target: str, token: str) -> None:
        """Note that another store takes this one's place: from now on every transaction and look raises `MovedError`.

        Opening the ledger raises it too.
        """

    # upkeep

    def clear_traces(self, patience: float = 2.0) -> None:
        """Make removed values unreadable, outside a transaction; if a reader prevents this, the next call does it."""

    def compact(self) -> None:
        """Release the space of removed values, if it is large; within a transaction of the only writer."""

    def rewrite(self) -> None:
        """Rewrite the database, outside of a transaction, so that no copy of a replaced hash is left."""

    def problems(self, tombstones_only: bool = False) -> list[str]:
        """Return the problems that the database finds in itself, in all of it or where it matters most."""


UNDECODABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""Errors raised while decoding a corrupted value: databases do not detect a flipped bit in a text."""


@contextmanager
def ledger_errors(what: str) -> Iterator[None]:
    """Convert errors raised while decoding a value into `StoreError`.

    Args:
        what: The decoded value, for the message.

    Raises:
        StoreError: It cannot be decoded.
    """
    try:
        yield
    except StoreError:
        raise
    except UNDECODABLE as error:
        raise undecodable(what, error) from error


def undecodable(what: str, error: Exception) -> StoreError:
    """Return the error for a value that cannot be decoded.

    Args:
        what: The decoded value.
        error: The error that decoding raised.
    """
    return StoreError(
        f"{what} cannot be read ({type(error).__name__}: {error}): the ledger is damaged, or was changed. Restore the "
        "ledger from a backup (missing requests are carried out again from the journal), or train again into a new "
        "folder."
    )
