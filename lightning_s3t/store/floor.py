"""The floor as a store keeps it: every row's integer features, and their sums, from which a request subtracts."""

from __future__ import annotations

import hmac
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

from lightning_s3t.core.floor import FloorPart, Task
from lightning_s3t.errors import DamagedError, StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.feature_sums import FeatureRows, FeatureSums
from lightning_s3t.store.ledger import QueuedFile, ledger_errors
from lightning_s3t.store.tensors import decode_snapshot, encode_snapshot

NOTE = "floor"
_CHUNK = 8192  # rows
_WHAT = "the floor"


@dataclass(frozen=True)
class FloorState:
    """What a ledger notes of the floor.

    Attributes:
        part: What it is made with, as the settings have it.
        task: What its targets are.
        digest: The SHA-256 of the snapshot of its sums.
        rows: How many rows are in them.
        complete: Whether they were all rows of the data when a fit last looked.
    """

    part: FloorPart
    task: Task
    digest: str = ""
    rows: int = 0
    complete: bool = False


def read_state(store: Backend) -> FloorState | None:
    """Return what the ledger notes of the floor; None if there is no floor.

    Args:
        store: Where the store lies.
    """
    kept = store.ledger.notes(NOTE).get(NOTE)
    if kept is None:
        return None
    with ledger_errors("What the ledger notes of the floor"):
        found = json.loads(kept)
        return FloorState(**{**found, "part": FloorPart.model_validate(found["part"])})


def load_sums(store: Backend, state: FloorState) -> FeatureSums:
    """Return the sums, proven to be what was kept.

    Args:
        store: Where the store lies.
        state: What the ledger notes of them.

    Raises:
        DamagedError: Their snapshot is missing or damaged.
    """
    if not state.digest:
        return FeatureSums(state.part, state.task)
    tensors = decode_snapshot(store.snapshots.get(state.digest, _WHAT), _WHAT)
    return FeatureSums.from_tensors(tensors, state.part, state.task)


def sum_rows(store: Backend, state: FloorState) -> FeatureSums:
    """Return the sums over the rows that the ledger has: what those that are kept have to be.

    Args:
        store: Where the store lies.
        state: What the ledger notes of them.

    Raises:
        StoreError: A row is not what was added.
    """
    sums = FeatureSums(state.part, state.task)
    rows = store.ledger.features()
    while chunk := list(islice(rows, _CHUNK)):
        sums.add(_decode(store, state, chunk))
    return sums


def subtract(store: Backend, hashes: Collection[bytes], request: int | None) -> int:
    """Take subjects' rows out of the floor: out of the sums, and for good; within a transaction.

    Args:
        store: Where the store lies.
        hashes: The subjects.
        request: The number of the request; None if the rows are only stale.

    Returns:
        How many rows they had.

    Raises:
        StoreError: A row is not what was added; nothing has changed then.
    """
    state = read_state(store)
    if state is None:
        return 0
    found = list(store.ledger.features(hashes))
    if found:
        rows = _decode(store, state, found)
        store.ledger.remove_features(hashes)
        try:
            sums = load_sums(store, state)
            sums.subtract(rows)
        except DamagedError:  # lost, or an older ledger was restored: the rows that are left have them
            sums = sum_rows(store, state)
        _keep(store, state, sums, request)
    return len(found)


def add_rows(
    store: Backend,
    part: FloorPart,
    task: Task,
    rows: FeatureRows,
    owners: Sequence[bytes],
    tags: Sequence[bytes],
    as_of: int,
) -> None:
    """Add rows to the floor, except for those of subjects who may not be trained on; within a transaction.

    These are who is forgotten, who is restricted, and whose data was corrected since it was loaded.

    Args:
        store: Where the store lies.
        part: What the floor is made with.
        task: What its targets are.
        rows: The rows.
        owners: The subject of each, as the ledger hashes them now.
        tags: What tells each row's contents, or empty.
        as_of: The newest request when the data was loaded.

    Raises:
        StoreError: The rows have other targets than those that are there.
    """
    state = read_state(store) or FloorState(part, task)
    if state.task != task:
        raise StoreError(
            f"The floor of the store {store.folder} was made with targets of a {state.task} task, and now they are of "
            f"a {task} task. Expected the same data: give it its targets as before, or train into a new store."
        )
    people = set(owners)
    gone = store.ledger.forgotten(people)
    gone |= {mark.hash for mark in store.ledger.marks_of(people, "restricted")}
    gone |= {mark.hash for mark in store.ledger.marks_of(people, "rectified") if mark.number > as_of}
    kept = [index for index, owner in enumerate(owners) if owner not in gone]
    chosen = FeatureRows(rows.features[kept], rows.targets[kept])
    try:
        sums = load_sums(store, state)
    except DamagedError:
        sums = sum_rows(store, state)
    sums.add(chosen)
    store.ledger.add_features(
        (owners[index], tags[index], body, store.authenticator.row_mac(owners[index], body))
        for index, body in zip(kept, chosen.encode(), strict=True)
    )
    _keep(store, state, sums, None)


def complete(store: Backend, is_complete: bool) -> None:
    """Note whether the floor has all rows of the data; within a transaction.

    Args:
        store: Where the store lies.
        is_complete: Whether it has.
    """
    state = read_state(store)
    if state is not None and state.complete != is_complete:
        _note(store, replace(state, complete=is_complete))


def find_stale(store: Backend, expected: Iterable[tuple[bytes, bytes]]) -> tuple[set[bytes], set[bytes]]:
    """Compare the rows of the floor with those that it should have.

    Args:
        store: Where the store lies.
        expected: The subject of each row, as the ledger hashes them now, and what tells its contents, or empty.

    Returns:
        The subjects whose rows are there and should not be, or are others; and those whose rows have to be added.
    """
    wanted, there = _by_owner(expected), _by_owner(store.ledger.feature_tags())
    stale = {owner for owner, tags in there.items() if wanted.get(owner) != tags}
    return stale, {owner for owner in wanted if owner in stale or owner not in there}


def problems(store: Backend) -> Iterator[str]:
    """Return what is wrong with the floor, one sentence each.

    Args:
        store: Where the store lies.
    """
    state = read_state(store)
    if state is None:
        return
    try:
        with store.ledger.at_one_time():
            state = read_state(store) or state
            right = sum_rows(store, state)
    except StoreError as error:
        yield str(error)
        return
    try:
        kept = load_sums(store, state)
    except (DamagedError, StoreError) as error:
        if read_state(store) == state:  # else a request has replaced them
            yield f"The sums of the floor are damaged, and the next fit makes them again: {error}"
        return
    mine, theirs = kept.to_tensors(), right.to_tensors()
    if any(not mine[name].equal(theirs[name]) for name in mine):
        yield "The sums of the floor are not those of its rows: what it answers may hold data that it should not."


def repair(store: Backend) -> None:
    """Make sums again that are missing or damaged; within a transaction.

    Args:
        store: Where the store lies.
    """
    state = read_state(store)
    if state is not None and state.digest and not store.snapshots.is_whole(state.digest):
        _keep(store, state, sum_rows(store, state), None)


def _by_owner(rows: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = defaultdict(list)
    for owner, tag in rows:
        found[owner].append(tag)
    return {owner: sorted(tags) for owner, tags in found.items()}


def _decode(store: Backend, state: FloorState, found: Sequence[tuple[bytes, bytes, bytes]]) -> FeatureRows:
    for owner, body, mac in found:
        if not hmac.compare_digest(mac, store.authenticator.row_mac(owner, body)):
            raise StoreError(
                f"A row of the floor of the store {store.folder} is not what was written with the store's key: it was "
                "changed, or ledger.db is damaged. Nothing was changed. Restore ledger.db from a backup (what it lacks "
                "is carried out again from the journal)."
            )
    return FeatureRows.decode([body for _, body, _ in found], state.part, state.task)


def _keep(store: Backend, state: FloorState, sums: FeatureSums, request: int | None) -> None:
    """Keep sums in the place of those before, which are erased once the transaction has ended."""
    digest, data = encode_snapshot(sums.to_tensors())
    store.snapshots.put(digest, data)
    if digest != state.digest:
        store.ledger.own(store.snapshots.name(digest))
        if state.digest:
            before = store.snapshots.name(state.digest)
            size = store.snapshots.size(before)
            store.ledger.queue(QueuedFile(path, request, size) for path in store.ledger.disown(before))
    _note(store, replace(state, digest=digest, rows=sums.rows))


def _note(store: Backend, state: FloorState) -> None:
    found = {**asdict(state), "part": state.part.model_dump()}
    store.authenticator.note({NOTE: json.dumps(found, sort_keys=True)})
    store.authenticator.note_floor()
