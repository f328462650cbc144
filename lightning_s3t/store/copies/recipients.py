"""Recipients: who was handed an exported copy, and who has said that theirs is erased."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_s3t.core.events import Acknowledgement, Event, Exported, Handover, Merge, Request
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import read_record, record
from lightning_s3t.store.keys.authentication import change_of
from lightning_s3t.store.ledgers.ledger import ledger_errors
from lightning_s3t.store.requests.effects import excluded_since
from lightning_s3t.store.requests.erasure import is_erased
from lightning_s3t.store.requests.journal import write_journal

FORMAT = 1
_LONGEST = 200


@dataclass(frozen=True)
class HandedCopy:
    """An exported copy that a recipient holds, or held.

    Attributes:
        export: The name of the exported copy.
        recipient: The holder: a team, a company, a model that was distilled from it.
        request: The request that reached it; None if none has.
        acknowledged: When the recipient's copy was acknowledged as erased (UTC, ISO 8601); None if it was not.
    """

    export: str
    recipient: str
    request: int | None = None
    acknowledged: str | None = None


@dataclass(frozen=True)
class Completion:
    """Whether everything that a request reached is erased, including copies elsewhere; for the person who asked.

    Attributes:
        request: The request's number.
        request_id: The caller's name for it; None without a name.
        kind: The kind of request.
        complete: Whether nothing is left: no file waits to be erased or was left alone, and every copy is acknowledged.
        time: The time of its newest event (UTC, ISO 8601).
        exports: Number of exported copies that the request reached, or that an earlier one reached and a recipient
            still held. Their files were erased where they were written.
        copies: Number of copies of these that recipients held.
        acknowledged: Of how many the recipient has said that they are erased. That is their word.
        left_files: Number of files that were left alone because they may not be the store's.
        position: The position of the newest of its events in the store's history.
        chain: That event's digest, which binds all events before it.
    """

    request: int
    request_id: str | None
    kind: str
    complete: bool
    time: str
    exports: int
    copies: int
    acknowledged: int
    left_files: int
    position: int
    chain: str

    def document(self) -> dict[str, Any]:
        """Return it as a JSON-ready document, to print or to sign."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """Return it as a JSON document."""
        return json.dumps(self.document(), indent=2, sort_keys=True)


def hand_over(store: Backend, export: str, recipient: str) -> None:
    """Note that a recipient was handed an exported copy; a second time changes nothing.

    Args:
        store: The store's backend.
        export: The copy's name.
        recipient: The holder of the copy.

    Raises:
        ConfigurationError: The copy does not exist, a request has reached it, or the recipient has no name.
    """
    _check_recipient(recipient)
    with store.ledger.transaction():
        known = _read(store)
        if export not in known.exports:
            raise ConfigurationError(
                f"The store {store.folder} has no exported copy {export!r}. Expected a name that `s3t export` printed."
            )
        if known.exports[export] is not None:
            raise ConfigurationError(
                f"Request {known.exports[export]} reached the exported copy {export}: do not hand it out. Export again."
            )
        if not any((copy.export, copy.recipient) == (export, recipient) for copy in known.copies):
            record(store, "handover", None, asdict(Handover(export, recipient)))
    write_journal(store)


def acknowledge(store: Backend, export: str, recipient: str) -> None:
    """Note that a recipient has erased their copy; a second time changes nothing.

    Args:
        store: The store's backend.
        export: The copy's name.
        recipient: The holder of the copy.

    Raises:
        ConfigurationError: The recipient was not handed the copy, or no request has reached it.
    """
    with store.ledger.transaction():
        copies = [copy for copy in read_copies(store) if (copy.export, copy.recipient) == (export, recipient)]
        if not copies:
            raise ConfigurationError(
                f"{recipient!r} was not handed the exported copy {export!r}. Expected a recipient and a copy that "
                "`s3t recipients list` shows."
            )
        if copies[0].request is None:
            raise ConfigurationError(
                f"No request has reached the exported copy {export}, so there is nothing to acknowledge."
            )
        if copies[0].acknowledged is None:
            record(store, "acknowledgement", None, asdict(Acknowledgement(export, recipient)))
    write_journal(store)


def read_copies(store: Backend) -> list[HandedCopy]:
    """Return the copies that were handed to recipients, in that order, in a consistent read.

    Args:
        store: The store's backend.

    Raises:
        StoreError: The history was changed.
    """
    return _read(store).copies


def read_completion(store: Backend, request: int) -> Completion:
    """Return whether everything that a request reached is erased.

    Args:
        store: The store's backend.
        request: The request's number.

    Raises:
        ConfigurationError: The request does not exist.
        StoreError: The history was changed.
    """
    newest = store.ledger.watermark()
    if not 1 <= request <= newest:
        raise ConfigurationError(f"There is no request {request}. Expected one of 1 to {newest}.")
    found = read_record(store, request)
    position, chain, time = found.position, found.chain, found.time
    with store.ledger.at_one_time():
        known = _read(store)
        erased = is_erased(store, request)
    held = known.held.get(request, set())
    copies = [one for one in known.copies if one.request == request or (one.export, one.recipient) in held]
    exports = {*found.exports, *(export for export, _ in held)}
    for event in (known.newest[name] for name in sorted(exports) if name in known.newest):
        position, chain, time = max((position, chain, time), (event.position, event.digest, event.time))
    done = sum(copy.acknowledged is not None for copy in copies)
    return Completion(
        request,
        found.request_id,
        found.kind,
        done == len(copies) and not found.left_files and erased,
        time,
        len(exports),
        len(copies),
        done,
        found.left_files,
        position,
        chain,
    )


@dataclass(frozen=True)
class _Known:
    """The history of exported copies.

    Attributes:
        exports: By the name of every copy that was ever exported, the request that reached it; None if none has.
        copies: Those that were handed to recipients, in that order.
        newest: The newest acknowledgement of each export that has one.
        held: By request, the copies, with their recipients, of exports that an earlier one had reached, that hold its
            data too, and that were not acknowledged when it was made.
    """

    exports: dict[str, int | None]
    copies: list[HandedCopy]
    newest: dict[str, Event]
    held: dict[int, set[tuple[str, str]]]


def _read(store: Backend) -> _Known:
    # one walk: each proves the whole history
    exports, newest, made = dict[str, int | None](), dict[str, Event](), dict[str, Exported]()
    handed, acknowledged = dict[tuple[str, str], None](), dict[tuple[str, str], str]()
    held = dict[int, set[tuple[str, str]]]()
    with ledger_errors("An exported copy"):
        for event in store.authenticator.events_since(1):
            if event.kind == "export":
                export = event.read(Exported)
                exports.setdefault(export.name, None)
                made[export.name] = export
            elif event.kind == "merge":
                merged = event.read(Merge)
                made = {name: replace(one, cells=tuple(map(merged.moved, one.cells))) for name, one in made.items()}
            elif event.kind == "handover":
                given = event.read(Handover)
                handed[given.name, given.recipient] = None
            elif event.kind == "acknowledgement":
                said = event.read(Acknowledgement)
                acknowledged.setdefault((said.name, said.recipient), event.time)
                newest[said.name] = event
            elif event.kind == "request" and event.request is not None:
                outstanding = {copy for copy in handed.keys() - acknowledged.keys() if exports.get(copy[0]) is not None}
                holding = _holding(event, [made[name] for name, _ in outstanding]) if outstanding else set()
                held[event.request] = {copy for copy in outstanding if copy[0] in holding}
                exports |= {name: exports.get(name) or event.request for name in event.read(Request).exports}
    copies = [HandedCopy(*copy, exports.get(copy[0]), acknowledged.get(copy)) for copy in handed]
    return _Known(exports, copies, newest, held)


def _holding(event: Event, made: Iterable[Exported]) -> set[str]:
    """Return those of some exported copies that hold data which a request takes out of use."""
    change = change_of(event)
    if change is None or event.read(Request).kind == "release":
        return set()
    since = excluded_since(change)
    return {one.name for one in made if any(since.get(cell, 0) > one.as_of for cell in one.cells)}


def _check_recipient(recipient: str) -> None:
    if not recipient.strip() or len(recipient) > _LONGEST or not recipient.isprintable():
        raise ConfigurationError(
            f"The recipient is {recipient[:40]!r}. Expected the name of the team or system that holds the copy, up "
            f"to {_LONGEST} characters on one line."
        )
