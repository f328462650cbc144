"""Events: the history of a store's units and subjects. A digest binds each event to all earlier ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from lightning_s3t.core.documents import STRICT, canonical, read_json
from lightning_s3t.core.guarantees import Certificate, Guarantee, Isolation
from lightning_s3t.core.units import Cell, Place
from lightning_s3t.errors import StoreError

Kind = Literal[
    "request",
    "schedule",
    "cancellation",
    "correction",
    "export",
    "handover",
    "acknowledgement",
    "erasure",
    "damage",
    "rotation",
    "merge",
]
RequestKind = Literal["forget", "rectify", "restrict", "release"]
"""What a request asks for: erasure, correction, restriction, or the end of a restriction."""

MarkKind = Literal["rectified", "restricted", "released", "awaiting"]
"""What is noted of a subject who stays: corrected, set aside, no longer set aside, or waiting for a fit."""

GENESIS = "0" * 64

Number = Annotated[int, Field(ge=1, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
MarkRow = tuple[MarkKind, str, int, str]
"""A mark in the body of an event: its kind, the keyed hash of the subject, a number, and the cell of the data."""

_Body = TypeVar("_Body")


@dataclass(frozen=True)
class Request:
    """The body of a "request": a request that was carried out.

    Attributes:
        subjects: Number of subjects in the request.
        already_forgotten: Number of them that had been forgotten before.
        unknown: Number of them that the store had never seen; None without a registry.
        revoked: The units that it revoked, including units that had been set aside.
        serving: For each shard that it reached, the unit that serves now.
        method: The unlearning method.
        guarantee: The guarantee of the remaining units.
        isolation: How units were isolated from each other during training.
        versions: Versions of the packages involved.
        layers: Number of keys that ids had been hashed with.
        forgotten: Total number of forgotten subjects after it.
        tombstones: The keyed hash and the cell of each newly forgotten subject.
        request_id: The caller's name for it; None without a name.
        asked: With a name, a keyed digest of all requested ids, which distinguishes a retry from another request under
            the same name.
        exports: The exported copies that it reached.
        subtracted_rows: Number of rows that were subtracted from the floor.
        kind: The kind of request.
        already_restricted: Number of the subjects that had been restricted before.
        set_aside: The units that are kept but no longer serve.
        returned: The units that had been set aside and serve again.
        cells: For a correction, the cells of all subjects whose data was corrected.
        marks: The marks of subjects who are not forgotten. The number is that of the request from which on no newly
            trained unit holds the data: this one, or an earlier one that restricted the subject. For subjects who wait
            for a fit it is the position of the event.
        unmarked: Earlier marks of theirs that no longer apply.
        certificate: The numbers of a certified guarantee.
    """

    __pydantic_config__ = STRICT

    subjects: Count
    already_forgotten: Count
    unknown: Count | None
    revoked: tuple[str, ...]
    serving: dict[str, str | None]
    method: str
    guarantee: Guarantee
    isolation: Isolation
    versions: dict[str, str]
    layers: Number
    forgotten: Count
    tombstones: tuple[tuple[str, str], ...]
    request_id: str | None = None
    asked: str | None = None
    exports: tuple[str, ...] = ()
    subtracted_rows: Count = 0
    kind: RequestKind = "forget"
    already_restricted: Count = 0
    set_aside: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    marks: tuple[MarkRow, ...] = ()
    unmarked: tuple[MarkRow, ...] = ()
    certificate: Certificate | None = None


@dataclass(frozen=True)
class Schedule:
    """The body of a "schedule": subjects to forget later.

    Attributes:
        layers: Number of keys that ids had been hashed with.
        pending: The keyed hash, the time and the cell of each of them.
        request_id: The caller's name for it; None without a name.
        asked: With a name, a keyed digest of all subjects in the request.
        received: The day on which the letter came (ISO 8601); None for the day of the event.
    """

    __pydantic_config__ = STRICT

    layers: Number
    pending: tuple[tuple[str, str, str], ...]
    request_id: str | None = None
    asked: str | None = None
    received: str | None = None


@dataclass(frozen=True)
class Cancellation:
    """The body of a "cancellation": subjects whose scheduled request is cancelled.

    Attributes:
        layers: Number of keys that ids had been hashed with.
        pending: The keyed hash of each of them.
        request_id: The name of the cancelled or refused request; None if subjects were named instead.
        reason: Why the request is refused; "" if it is cancelled. A request that was never scheduled can be refused.
    """

    __pydantic_config__ = STRICT

    layers: Number
    pending: tuple[str, ...]
    request_id: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Exported:
    """The body of an "export": a copy of a unit that was written outside the store.

    Attributes:
        name: Its name.
        cells: Every cell whose data has influenced it.
        as_of: The newest request when the export started.
    """

    __pydantic_config__ = STRICT

    name: str
    cells: tuple[str, ...]
    as_of: Count


@dataclass(frozen=True)
class Handover:
    """The body of a "handover": a recipient was handed an exported copy.

    Attributes:
        name: The name of the exported copy.
        recipient: The person or system that holds it.
    """

    __pydantic_config__ = STRICT

    name: str
    recipient: str


@dataclass(frozen=True)
class Acknowledgement:
    """The body of an "acknowledgement": a recipient has erased a copy that a request reached.

    Attributes:
        name: The name of the exported copy.
        recipient: The person or system that held it.
    """

    __pydantic_config__ = STRICT

    name: str
    recipient: str


@dataclass(frozen=True)
class Correction:
    """The body of a "correction": subjects on whose corrected data the next fit trains.

    Attributes:
        layers: Number of keys that ids had been hashed with.
        waiting: The keyed hash and the cell of each of them.
    """

    __pydantic_config__ = STRICT

    layers: Number
    waiting: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Erasure:
    """The body of an "erasure": files of revoked units that were removed.

    Attributes:
        files: Number of files.
        bytes: Their size.
        missing: Number of other registered files that were missing.
        left: Number of files that were left alone because they may not be the store's: changed files, or files of the
            store that this one is a copy of.
    """

    __pydantic_config__ = STRICT

    files: Count
    bytes: Count
    missing: Count
    left: Count


@dataclass(frozen=True)
class Damage:
    """The body of a "damage": units that were taken out of service because a snapshot was missing or changed.

    Attributes:
        units: Their names.
    """

    __pydantic_config__ = STRICT

    units: tuple[str, ...]


@dataclass(frozen=True)
class Rotation:
    """The body of a "rotation": a new key for ids.

    Attributes:
        layers: Number of keys in use since then.
    """

    __pydantic_config__ = STRICT

    layers: Number


@dataclass(frozen=True)
class Merge:
    """The body of a "merge": all generations after one became part of it.

    Attributes:
        into: The generation that stayed.
        shard: Its shard.
    """

    __pydantic_config__ = STRICT

    into: Number
    shard: Number

    def moved(self, cell: Cell) -> Cell:
        """Return the name that a cell has since then.

        Args:
            cell: Its name before.

        Example:
            >>> Merge(into=1, shard=5).moved("7/0"), Merge(into=1, shard=5).moved("4/0")
            ('5/0', '4/0')
        """
        place = Place.parse(cell)
        return Place(min(place.shard, self.shard), place.slice).cell


@dataclass(frozen=True)
class Event:
    """A link of the chain.

    Attributes:
        position: Counted from 1.
        kind: The kind of event.
        request: The number of the request that it belongs to, or None.
        time: When it happened (UTC, ISO 8601). Clocks can be wrong: the positions give the order.
        body: The details, JSON-ready: no ids and no digests of snapshots.
        digest: SHA-256 of all of the above and of the previous digest.
        mac: An authentication code of the digest under the store's key, which shows that a holder of the key wrote it.

    Example:
        >>> event = Event.after((0, GENESIS), "erasure", 1, {"files": 2, "bytes": 9, "missing": 0, "left": 0})
        >>> event.follows(GENESIS), event.read(Erasure).files
        (True, 2)
    """

    __pydantic_config__ = STRICT

    position: Number
    kind: Kind
    request: Number | None
    time: str
    body: dict[str, Any]
    digest: str
    mac: str = ""

    @classmethod
    def after(cls, head: tuple[int, str], kind: Kind, request: int | None, body: Mapping[str, Any]) -> Event:
        """Create the next event.

        Args:
            head: Position and digest of the previous event.
            kind: The kind of event.
            request: The number of the request that it belongs to, or None.
            body: The details, JSON-ready.
        """
        position, time = head[0] + 1, datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return cls(
            position, kind, request, time, dict(body), event_digest(head[1], position, kind, request, time, body)
        )

    def follows(self, previous: str) -> bool:
        """Return whether the event is unchanged since it was bound to the previous one.

        Args:
            previous: The digest of the previous event.
        """
        try:
            return self.digest == event_digest(previous, self.position, self.kind, self.request, self.time, self.body)
        except (
            TypeError,
            RecursionError,
        ):  # a flipped bit or an attacker changed a value's type or depth
            return False

    def read(self, kind: type[_Body]) -> _Body:
        """Return the body, checked.

        Args:
            kind: The class that describes it: `Request`, `Schedule`, `Cancellation`, `Correction`, `Exported`,
                `Erasure`, `Damage`, `Rotation` or `Merge`.

        Raises:
            ValueError: It is something different.
        """
        return read_json(kind, canonical(self.body))  # as in JSON: there, tuples are lists

    def to_json(self) -> str:
        """Return the event as a line of JSON."""
        return canonical(vars(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """Read the output of `to_json`.

        Args:
            line: A line of JSON.

        Raises:
            StoreError: It is something different.
        """
        try:
            return read_json(cls, line)
        except ValueError as error:
            raise StoreError(f"{line[:60]!r} is not an event of a store ({error}).") from error


def first_break(events: Iterable[Event]) -> int | None:
    """Return the position of the first event that does not follow from the previous one; None if all do.

    Args:
        events: All of them, in order.
    """
    previous = GENESIS
    for position, event in enumerate(events, start=1):
        if event.position != position or not event.follows(previous):
            return position
        previous = event.digest
    return None


def event_digest(
    previous: str, position: int, kind: str, request: int | None, time: str, body: Mapping[str, Any]
) -> str:
    """Return the digest that binds an event to the previous one.

    Args:
        previous: The digest of the previous event.
        position: Counted from 1.
        kind: The kind of event.
        request: The number of the request that it belongs to, or None.
        time: When it happened.
        body: The details, JSON-ready.
    """
    return hashlib.sha256(f"{previous}\n{canonical([position, kind, request, time, body])}".encode()).hexdigest()
