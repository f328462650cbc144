"""Events: what happened to the units and the people of a store, each bound to all before it by a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from lightning_s3t.core.documents import STRICT, canonical, read_json
from lightning_s3t.core.guarantees import Guarantee, Isolation
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
    """The body of a "request": one that was carried out.

    Attributes:
        subjects: How many subjects were asked for.
        already_forgotten: How many of them had been forgotten before.
        unknown: How many the store had never seen; None where it keeps no registry.
        revoked: The units that it revoked, those that were set aside too.
        serving: By shard that it reached, the unit that serves now.
        method: The unlearning method.
        guarantee: What is promised of the units that are left.
        isolation: How units were kept apart while they were trained.
        versions: Of the packages that took part.
        layers: How many keys had been used to hash ids.
        forgotten: How many subjects are forgotten in all, after it.
        tombstones: The keyed hash and the cell of each subject that it made forgotten.
        request_id: What the caller has named it; None without a name.
        asked: With a name, a keyed digest of all ids that were asked for, so that a retry can be told from another
            request under the same name.
        exports: The exported copies that it reached.
        subtracted_rows: How many rows were subtracted from the floor.
        kind: What was asked for.
        already_restricted: How many of the subjects had been restricted before.
        set_aside: The units that serve no more, and are kept.
        returned: The units that had been set aside, and serve again.
        cells: Of a correction, the cells of all whose data was corrected.
        marks: What is noted of the subjects who are not forgotten. The number is that of the request from which on
            no unit that is trained holds the data: this one, or an earlier one that has restricted the subject. Of
            those who wait for a fit it is the position of the event.
        unmarked: What was noted of them before, and is no longer.
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


@dataclass(frozen=True)
class Schedule:
    """The body of a "schedule": subjects who are to be forgotten later.

    Attributes:
        layers: How many keys had been used to hash ids.
        pending: The keyed hash, the time and the cell of each of them.
        request_id: What the caller has named it; None without a name.
        asked: A keyed digest of all subjects that were named, where it has a name.
    """

    __pydantic_config__ = STRICT

    layers: Number
    pending: tuple[tuple[str, str, str], ...]
    request_id: str | None = None
    asked: str | None = None


@dataclass(frozen=True)
class Cancellation:
    """The body of a "cancellation": subjects who are not to be forgotten later after all.

    Attributes:
        layers: How many keys had been used to hash ids.
        pending: The keyed hash of each of them.
        request_id: The name of the request that is cancelled or refused; None where subjects were named.
        reason: Why it is refused; "" where it is cancelled. A request may be refused that was never scheduled.
    """

    __pydantic_config__ = STRICT

    layers: Number
    pending: tuple[str, ...]
    request_id: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Exported:
    """The body of an "export": a copy of a unit that was written outside of the store, to take away.

    Attributes:
        name: Its name.
        cells: Every cell whose data has influenced it.
        as_of: The newest request when it was begun.
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
        recipient: Who or what holds it.
    """

    __pydantic_config__ = STRICT

    name: str
    recipient: str


@dataclass(frozen=True)
class Acknowledgement:
    """The body of an "acknowledgement": a recipient has erased a copy that a request reached.

    Attributes:
        name: The name of the exported copy.
        recipient: Who or what held it.
    """

    __pydantic_config__ = STRICT

    name: str
    recipient: str


@dataclass(frozen=True)
class Correction:
    """The body of a "correction": subjects on whose corrected data the next fit is to train.

    Attributes:
        layers: How many keys had been used to hash ids.
        waiting: The keyed hash and the cell of each of them.
    """

    __pydantic_config__ = STRICT

    layers: Number
    waiting: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Erasure:
    """The body of an "erasure": files of revoked units that were removed.

    Attributes:
        files: How many.
        bytes: Their size.
        missing: How many more were registered, and are not there any more.
        left: How many are still there, since they may be another program's: changed, or of the store that this one is a
            copy of.
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
        layers: How many keys are in use since.
    """

    __pydantic_config__ = STRICT

    layers: Number


@dataclass(frozen=True)
class Event:
    """A link of the chain.

    Attributes:
        position: Counted from 1.
        kind: What happened.
        request: The number of the request that it belongs to; None if it belongs to none.
        time: When (UTC, ISO 8601). Clocks go wrong: the order is that of the positions.
        body: What happened in full, JSON-ready: no ids and no digests of snapshots.
        digest: SHA-256 of all of the above and of the digest before.
        mac: A code under the store's key over the digest, which shows that the key's holder has written it.

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
        """Make the event that comes next.

        Args:
            head: Position and digest of the one before.
            kind: What happened.
            request: The number of the request that it belongs to, or None.
            body: What happened in full, JSON-ready.
        """
        position, time = head[0] + 1, datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return cls(
            position, kind, request, time, dict(body), event_digest(head[1], position, kind, request, time, body)
        )

    def follows(self, previous: str) -> bool:
        """Return whether the event is what it was when it was bound to the one before.

        Args:
            previous: The digest of the one before.
        """
        try:
            return self.digest == event_digest(previous, self.position, self.kind, self.request, self.time, self.body)
        except (TypeError, RecursionError):  # a flipped bit has changed the type of a value, or an attacker its depth
            return False

    def read(self, kind: type[_Body]) -> _Body:
        """Return the body, checked.

        Args:
            kind: The class that describes it: `Request`, `Schedule`, `Cancellation`, `Correction`, `Exported`,
                `Erasure`, `Damage` or `Rotation`.

        Raises:
            ValueError: It is something else.
        """
        return read_json(kind, canonical(self.body))  # as JSON: lists are tuples there

    def to_json(self) -> str:
        """Return the event as a line of JSON."""
        return canonical(vars(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """Read what `to_json` has written.

        Args:
            line: A line of JSON.

        Raises:
            StoreError: It is something else.
        """
        try:
            return read_json(cls, line)
        except ValueError as error:
            raise StoreError(f"{line[:60]!r} is not an event of a store ({error}).") from error


def first_break(events: Iterable[Event]) -> int | None:
    """Return the position of the first event that does not follow from the one before; None if all do.

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
    """Return the digest that binds an event to the one before.

    Args:
        previous: The digest of the one before.
        position: Counted from 1.
        kind: What happened.
        request: The number of the request that it belongs to, or None.
        time: When.
        body: What happened in full, JSON-ready.
    """
    return hashlib.sha256(f"{previous}\n{canonical([position, kind, request, time, body])}".encode()).hexdigest()
