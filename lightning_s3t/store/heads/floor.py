"""Closed-form heads as a store keeps them: every row's integer features, and their sums, from which requests subtract.

There is one on the pretrained network's features, the floor, and one for each survivor that serves, on its own. A
certified head is the first of these, with parameters that are published with noise.
"""

from __future__ import annotations

import hmac
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.core.events import Request, RequestKind
from lightning_s3t.core.floor import PRETRAINED, CertifiedPart, FloorPart, Task
from lightning_s3t.errors import DamagedError, StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.heads.certified import publish, solve
from lightning_s3t.store.heads.feature_sums import FeatureRows, FeatureSums
from lightning_s3t.store.history import corrected_people, requests_since
from lightning_s3t.store.ledgers.ledger import QueuedFile, ledger_errors
from lightning_s3t.store.settings import check_settings
from lightning_s3t.store.snapshots.tensors import decode_snapshot, encode_snapshot

NOTE = "floor"
_CHUNK = 2048  # rows
_WHAT = "the closed-form head"
RETURNING: tuple[RequestKind, ...] = ("release", "rectify")
"""The requests after which a fit adds rows again that they, or an earlier one, have subtracted."""
_OF_CERTIFIED = ("certified", "published", "published_from")


@dataclass(frozen=True)
class FloorState:
    """A ledger's record of a closed-form head.

    Attributes:
        part: Its settings, as in the manifest.
        task: The kind of its targets.
        digest: The SHA-256 of the snapshot of its sums.
        rows: Number of rows in the sums.
        complete: Whether they were all rows of the data when a fit last looked; without units, whether they ever were.
        certified: The settings of a certified head; None for a head that is solved from the sums.
        published: The digest of the snapshot of a certified head's parameters; empty if they may not serve.
        published_from: The digest of the sums over the rows that they were solved from.
        lacks: Whether a release or a correction has left out rows that the next fit adds.
    """

    part: FloorPart
    task: Task
    digest: str = ""
    rows: int = 0
    complete: bool = False
    certified: CertifiedPart | None = None
    published: str = ""
    published_from: str = ""
    lacks: bool = False

    @property
    def serves(self) -> bool:
        """Whether the head may answer: it lacks no rows of the data, and requests have left some."""
        return self.complete and self.rows > 0 and (self.certified is None or bool(self.published))

    @property
    def served(self) -> str:
        """The digest of what is served: the sums to solve the head from, or its published parameters."""
        return self.digest if self.certified is None else self.published


def read_states(store: Backend) -> dict[str, FloorState]:
    """Return the ledger's records of the floor and of the heads on survivors, by the source of their features.

    Args:
        store: The store's backend.
    """
    kept = store.ledger.notes(NOTE).get(NOTE)
    if kept is None:
        return {}
    with ledger_errors("The record of the closed-form heads"):
        found: dict[str, Any] = json.loads(kept)
        return {source: _state_of(state) for source, state in found.items()}


def _state_of(kept: dict[str, Any]) -> FloorState:
    certified = kept.get("certified")
    return FloorState(
        **{
            **kept,
            "part": FloorPart.model_validate(kept["part"]),
            "certified": CertifiedPart.model_validate(certified) if certified is not None else None,
        }
    )


def check_part(states: Mapping[str, FloorState], part: FloorPart, where: str) -> None:
    """Compare the wanted settings of the floor with those of an existing floor.

    Args:
        states: The records of a store's heads, by source.
        part: The wanted settings.
        where: The path of the store.

    Raises:
        StoreMismatchError: Naming every setting that differs.
    """
    if PRETRAINED in states:
        kept, given = ({"floor": found.model_dump(mode="json")} for found in (states[PRETRAINED].part, part))
        check_settings(kept, given, where)


def load_sums(store: Backend, state: FloorState) -> FeatureSums:
    """Return the sums, after verifying them.

    Args:
        store: The store's backend.
        state: The ledger's record of them.

    Raises:
        DamagedError: Their snapshot is missing or damaged.
    """
    if not state.digest:
        return FeatureSums(state.part, state.task)
    tensors = decode_snapshot(store.snapshots.get(state.digest, _WHAT), _WHAT)
    tensors.pop("source", None)
    return FeatureSums.from_tensors(tensors, state.part, state.task)


def load_published(store: Backend, state: FloorState) -> Tensor:
    """Return the published parameters of a certified head, `[outputs, width + 1]`, after verifying them.

    Args:
        store: The store's backend.
        state: The ledger's record of the head.

    Raises:
        DamagedError: Their snapshot is missing or damaged.
    """
    theta = decode_snapshot(store.snapshots.get(state.published, _WHAT), _WHAT).get("theta")
    if theta is None or theta.shape != (state.part.outputs, state.part.width + 1):
        raise DamagedError(f"The snapshot of {_WHAT} has no parameters of {state.part.outputs} outputs.")
    return theta


def sum_rows(store: Backend, state: FloorState, source: str = PRETRAINED) -> FeatureSums:
    """Return the sums over the ledger's rows, which the stored sums have to equal.

    Args:
        store: The store's backend.
        state: The ledger's record of them.
        source: The source of the features.

    Raises:
        StoreError: A row differs from the one that was added.
    """
    sums = FeatureSums(state.part, state.task)
    for rows in _read_rows(store, state, source):
        sums.add(rows)
    return sums


def subtract(store: Backend, hashes: Collection[bytes], request: int | None, sources: Collection[str] = ()) -> int:
    """Remove subjects' rows from all closed-form heads and their sums, permanently; within a transaction.

    Args:
        store: The store's backend.
        hashes: The subjects.
        request: The number of the request; None if the rows are only stale.
        sources: The sources whose features are removed; empty for all.

    Returns:
        Number of their rows in the floor.

    Raises:
        StoreError: A row differs from the one that was added. Nothing was changed.
    """
    states = read_states(store)
    chosen = {source: state for source, state in states.items() if not sources or source in sources}
    found: dict[str, list[tuple[bytes, bytes, bytes]]] = defaultdict(list)
    if chosen and hashes:
        for source, owner, body, mac in store.ledger.features_of(hashes):
            found[source].append((owner, body, mac))
    rows = {source: _decode(store, chosen[source], source, found[source]) for source in chosen.keys() & found.keys()}
    for source in sorted(rows):
        sums = _load_or_sum(store, source, states[source])
        sums.subtract(rows[source])
        store.ledger.remove_features(source, hashes)
        _keep(store, states, source, sums, request)
        if states[source].published:
            _publish(store, states, source, request)
    if rows:
        _note(store, states)
    return len(rows.get(PRETRAINED, ()))


def count_rows(store: Backend, hashes: Collection[bytes]) -> int:
    """Return how many rows of subjects are in the floor.

    Args:
        store: The store's backend.
        hashes: The subjects.
    """
    if PRETRAINED not in read_states(store):
        return 0
    return sum(source == PRETRAINED for source, *_ in store.ledger.features_of(hashes))


def add_rows(
    store: Backend,
    source: str,
    part: FloorPart,
    task: Task,
    rows: FeatureRows,
    owners: Sequence[bytes],
    tags: Sequence[bytes],
    loaded_at: int | None = None,
    certified: CertifiedPart | None = None,
) -> None:
    """Add rows to a closed-form head, except for those of subjects who may not be trained on; within a transaction.

    These are forgotten or restricted subjects, and those whose data was corrected since it was loaded.

    Args:
        store: The store's backend.
        source: The source of the features.
        part: The floor's settings.
        task: The kind of its targets.
        rows: The rows.
        owners: The subject of each, as the ledger hashes them now.
        tags: A tag of each row's contents, or empty.
        loaded_at: The position of the newest event when the data was loaded; None for now.
        certified: The settings of a certified head; None for a head that is solved from the sums.

    Raises:
        StoreError: The rows have a different kind of targets than the existing ones.
    """
    states = read_states(store)
    state = states.setdefault(source, FloorState(part, task, certified=certified))
    if state.task != task:
        raise StoreError(
            f"The closed-form head of the store {store.folder} was made with targets of a {state.task} task, but now "
            f"they are those of a {task} task. Expected the same data: use the targets as before, or train into a new "
            "store."
        )
    gone = _kept_out(store, set(owners), loaded_at)
    kept = [index for index, owner in enumerate(owners) if owner not in gone]
    chosen = FeatureRows(rows.features[kept], rows.targets[kept])
    sums = _load_or_sum(store, source, state)
    sums.add(chosen)
    store.ledger.add_features(
        source,
        (
            (owners[index], tags[index], body, store.authenticator.row_mac(source, owners[index], body))
            for index, body in zip(kept, chosen.encode(part.bits), strict=True)
        ),
    )
    _keep(store, states, source, sums, None)
    _note(store, states)


def _kept_out(store: Backend, people: set[bytes], loaded_at: int | None) -> set[bytes]:
    ledger = store.ledger
    gone = ledger.forgotten(people) | {mark.hash for mark in ledger.marks_of(people, "restricted")}
    return gone if loaded_at is None else gone | corrected_people(ledger, people, loaded_at)


def drop(store: Backend, sources: Collection[str], request: int | None) -> None:
    """Take heads on survivors out with all their rows; within a transaction. Others are left alone.

    Args:
        store: The store's backend.
        sources: The names of units that no longer serve.
        request: The number of the request that revokes them; None if they are only stale.
    """
    states = read_states(store)
    gone = sorted(states.keys() & set(sources))
    for source in gone:
        store.ledger.drop_features(source)
        state = states.pop(source)
        _let_go(store, state.digest, request)
        _let_go(store, state.published, request)
    if gone:
        _note(store, states)


def complete(store: Backend, source: str, is_complete: bool, loaded_at: int | None = None) -> FloorState | None:
    """Note whether a closed-form head has all rows of the data that it should have; within a transaction.

    A certified head is published from them, unless it has been.

    Args:
        store: The store's backend.
        source: The source of its features.
        is_complete: Whether it has.
        loaded_at: The position of the newest event when the data was loaded; None for now.

    Returns:
        The head's record then; None without one.
    """
    states = read_states(store)
    before = states.get(source)
    if before is None:
        return None
    lacks = before.lacks
    if lacks and is_complete:
        since = requests_since(store.ledger, loaded_at) if loaded_at is not None else ()
        with ledger_errors("The history of requests"):
            lacks = any(event.read(Request).kind in RETURNING for event in since)
    state = states[source] = replace(before, complete=is_complete, lacks=lacks)
    if state.certified and is_complete and state.published_from != state.digest:
        _publish(store, states, source, None)
    if states[source] != before:
        _note(store, states)
    return states[source]


def note_missing(store: Backend) -> None:
    """Note that the next fit adds rows to the heads: a release or a correction has left them out; in a transaction.

    Args:
        store: The store's backend.
    """
    states = read_states(store)
    found = {source: replace(state, lacks=True) for source, state in states.items()}
    if found != states:
        _note(store, found)


def find_stale(store: Backend, source: str, expected: Iterable[tuple[bytes, bytes]]) -> tuple[set[bytes], set[bytes]]:
    """Compare the rows of a closed-form head with the expected ones.

    Args:
        store: The store's backend.
        source: The source of its features.
        expected: The subject of each row, as the ledger hashes it now, and a tag of its contents, or empty.

    Returns:
        The subjects whose rows are outdated or should not be there, and those whose rows have to be added.
    """
    wanted, there = _by_owner(expected), _by_owner(store.ledger.feature_tags(source))
    stale = {owner for owner, tags in there.items() if wanted.get(owner) != tags}
    return stale, {owner for owner in wanted if owner in stale or owner not in there}


def problems(store: Backend) -> Iterator[str]:
    """Return the problems of the floor and of the heads on survivors, one sentence each.

    Args:
        store: The store's backend.
    """
    for source in read_states(store):
        try:
            with store.ledger.at_one_time():
                state = read_states(store).get(source)
                right = sum_rows(store, state, source) if state is not None else None
        except StoreError as error:
            yield str(error)
            continue
        if state is None or right is None:  # a request has taken the unit out
            continue
        try:
            kept = load_sums(store, state)
        except (DamagedError, StoreError) as error:
            if read_states(store).get(source) == state:  # otherwise a request has replaced them
                yield _damage(source, error)
            continue
        mine, theirs = kept.to_tensors(), right.to_tensors()
        if any(not mine[name].equal(theirs[name]) for name in mine):
            what = f"The sums of {_named(source)} do not match its rows"
            yield f"{what}: its answers may include data that they should not."
        yield from _problems_of_published(store, source, state)


def _problems_of_published(store: Backend, source: str, state: FloorState) -> Iterator[str]:
    if not state.published:
        return
    try:
        load_published(store, state)
    except (DamagedError, StoreError) as error:
        if read_states(store).get(source) == state:  # otherwise a request has replaced them
            yield _damage_of_published(error)


def problems_of_replaced(store: Backend, kept: Collection[str]) -> Iterator[str]:
    """Return those of the problems of a restored store that a later fit explains, which replaced the snapshots.

    Args:
        store: The restored store's backend.
        kept: The digests of the snapshots of heads that the store has today.
    """
    for source, state in read_states(store).items():
        try:
            if state.digest not in kept:
                load_sums(store, state)
        except DamagedError as error:
            yield _damage(source, error)
        try:
            if state.published and state.published not in kept:
                load_published(store, state)
        except DamagedError as error:
            yield _damage_of_published(error)


def _named(source: str) -> str:
    return "the closed-form head" if source == PRETRAINED else f"the head on unit {source}"


def _damage(source: str, error: StoreError) -> str:
    return f"The sums of {_named(source)} are damaged, and the next fit rebuilds them: {error}"


def _damage_of_published(error: StoreError) -> str:
    return f"The certified head is damaged, and the next fit publishes another: {error}"


def repair(store: Backend) -> None:
    """Make sums again that are missing or damaged; within a transaction.

    Args:
        store: The store's backend.
    """
    found = read_states(store)
    states = dict(found)
    for source, state in found.items():
        if state.digest and not store.snapshots.is_whole(state.digest):
            _keep(store, states, source, sum_rows(store, state, source), None)
        if state.published and not store.snapshots.is_whole(state.published):
            _publish(store, states, source, None)
    if states != found:
        _note(store, states)


def _by_owner(rows: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = defaultdict(list)
    for owner, tag in rows:
        found[owner].append(tag)
    return {owner: sorted(tags) for owner, tags in found.items()}


def _load_or_sum(store: Backend, source: str, state: FloorState) -> FeatureSums:
    """Return the sums, to be changed; if they are lost, or an older ledger was restored, sum the existing rows."""
    digest, sums = store.kept_sums.pop(source, (None, None))
    if sums is not None and digest == state.digest:
        return sums
    try:
        return load_sums(store, state)
    except DamagedError:
        return sum_rows(store, state, source)


def _read_rows(store: Backend, state: FloorState, source: str) -> Iterator[FeatureRows]:
    rows = store.ledger.features(source)
    while chunk := list(islice(rows, _CHUNK)):
        yield _decode(store, state, source, chunk)


def _decode(store: Backend, state: FloorState, source: str, found: Sequence[tuple[bytes, bytes, bytes]]) -> FeatureRows:
    for owner, body, mac in found:
        if not hmac.compare_digest(mac, store.authenticator.row_mac(source, owner, body)):
            raise StoreError(
                f"A row of a closed-form head of the store {store.folder} does not match what was written with the "
                "store's key: it was changed, or the ledger is damaged. This call changed nothing. Restore the ledger "
                "from a backup (missing requests are carried out again from the journal)."
            )
    return FeatureRows.decode([body for _, body, _ in found], state.part, state.task)


def _keep(store: Backend, states: dict[str, FloorState], source: str, sums: FeatureSums, request: int | None) -> None:
    """Store sums in place of the previous ones, which are erased after the transaction, for `_note`."""
    # with the source, so that no two heads ever own one file
    named = {**sums.to_tensors(), "source": torch.frombuffer(bytearray(source.encode()), dtype=torch.uint8)}
    digest = _put(store, named, states[source].digest, request)
    states[source] = replace(states[source], digest=digest, rows=sums.rows)
    if source == PRETRAINED:  # of heads on survivors there may be many
        store.kept_sums[source] = (digest, sums)


def _publish(store: Backend, states: dict[str, FloorState], source: str, request: int | None) -> None:
    """Publish a certified head from the rows that are left, in place of the previous one; or none, if there are none.

    It is also none if rounding errors keep the parameters too far from the minimum: the head then does not serve.
    """
    state = states[source]
    assert state.certified is not None
    parts = list(_read_rows(store, state, source))
    solution = None
    if parts:
        rows = FeatureRows(torch.cat([part.features for part in parts]), torch.cat([part.targets for part in parts]))
        start = _last_published(store, state)
        solution = solve(rows, state.part, state.task, state.certified, start)
        if solution is None and start is not None:  # whether one is published must not depend on the head before
            solution = solve(rows, state.part, state.task, state.certified)
    if solution is None:
        _let_go(store, state.published, request)
        digest = ""
    else:
        digest = _put(store, {"theta": publish(solution, state.certified)}, state.published, request)
    states[source] = replace(state, published=digest, published_from=state.digest)


def _last_published(store: Backend, state: FloorState) -> Tensor | None:
    try:
        return load_published(store, state) if state.published else None
    except DamagedError:
        return None


def _put(store: Backend, tensors: Mapping[str, Tensor], before: str, request: int | None) -> str:
    """Store a snapshot in place of a previous one, which is erased after the transaction; return its digest."""
    digest, data = encode_snapshot(tensors)
    store.unsure.add(store.snapshots.name(digest))
    store.snapshots.put(digest, data)
    if digest != before:
        store.ledger.own(store.snapshots.name(digest))
        _let_go(store, before, request)
    return digest


def _let_go(store: Backend, digest: str, request: int | None) -> None:
    """Note a snapshot for erasure."""
    if digest:
        before = store.snapshots.name(digest)
        size = store.snapshots.size(before)
        store.ledger.queue(QueuedFile(path, request, size) for path in store.ledger.disown(before))


def _note(store: Backend, states: Mapping[str, FloorState]) -> None:
    found = {source: _plain(state) for source, state in states.items()}
    store.authenticator.note({NOTE: json.dumps(found, sort_keys=True)})
    store.authenticator.note_floor()


def _plain(state: FloorState) -> dict[str, Any]:
    found = {**asdict(state), "part": state.part.model_dump()}
    if not state.lacks:
        del found["lacks"]
    if state.certified is None:
        return {name: value for name, value in found.items() if name not in _OF_CERTIFIED}
    return {**found, "certified": state.certified.model_dump()}
