"""Effects: what a request does to the people and the units of a ledger, when it is made and when it is replayed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lightning_s3t.core.events import RequestKind
from lightning_s3t.core.units import Cell, reaches
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.heads.floor import RETURNING, drop, note_missing, subtract
from lightning_s3t.store.keys.authentication import Change
from lightning_s3t.store.ledgers.ledger import SetAside
from lightning_s3t.store.requests.erasure import queue, remove, remove_exports


@dataclass(frozen=True)
class Effect:
    """The effect of a request.

    Attributes:
        reached: The cells of units in service that it reached.
        shards: The shards of these units, and of the cells of all other subjects in the request.
        revoked: The names of the units that it removed, including units that had been set aside.
        set_aside: The units that are kept but no longer serve.
        returned: The units that had been set aside, and serve again.
        exports: The exported copies that it reached.
        subtracted_rows: Number of rows that were subtracted from the floor.
    """

    reached: frozenset[Cell]
    shards: tuple[int, ...]
    revoked: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    subtracted_rows: int = 0


@dataclass(frozen=True)
class Reach:
    """The reach of a request.

    Attributes:
        cells: The cells of serving units that it reaches.
        units: The names of these units.
        aside: The units that are set aside and that a request to forget or to correct reaches.
        exports: The exported copies that it reaches.
    """

    cells: frozenset[Cell]
    units: tuple[str, ...]
    aside: tuple[SetAside, ...]
    exports: tuple[str, ...]

    @property
    def revoked(self) -> tuple[str, ...]:
        """The names of the units that a request to forget or to correct revokes."""
        return tuple(sorted([*self.units, *(one.name for one in self.aside)]))


def find_reach(store: Backend, number: int, change: Change) -> Reach:
    """Return the reach of a request; nothing is changed.

    Args:
        store: The store's backend.
        number: The number of the request.
        change: The change to the lists of people.
    """
    return _find_reach(store, number, excluded_since(change))


def _find_reach(store: Backend, number: int, since: Mapping[Cell, int]) -> Reach:
    ledger = store.ledger
    # units in service are newer than all restrictions of their cells: only the current request reaches them
    cells = frozenset(cell for cell, as_of in since.items() if as_of == number)
    aside = [one for one in ledger.aside() if any(since.get(cell, 0) > one.as_of for cell in one.cells)]
    exports = [export.name for export in ledger.exports() if reaches(cells, export.cells)]
    return Reach(cells, tuple(sorted(ledger.reached(cells))), tuple(aside), tuple(exports))


def excluded_since(change: Change) -> dict[Cell, int]:
    """Return for each cell the number of the request since which newly trained units do not hold the subjects' data.

    Args:
        change: The change of a request to the lists of people.
    """
    found: dict[Cell, int] = {}
    for _, as_of, cell in (*change.buried, *((mark.hash, mark.number, mark.cell) for mark in change.marked)):
        found[cell] = max(as_of, found.get(cell, 0))
    return found


def carry_out(store: Backend, kind: RequestKind, number: int, change: Change) -> Effect:
    """Apply a request to the ledger, except for the event; within a transaction.

    It reaches artifacts that were made before its data was excluded from all fits, by this request or by an earlier one
    that restricted the subject. Units trained since do not hold the data, and stay.

    Args:
        store: The store's backend.
        kind: The kind of request.
        number: The number of the request.
        change: The change to the lists of people.
    """
    ledger = store.ledger
    people = {hash_ for hash_, _, _ in change.buried} | {mark.hash for mark in change.marked}
    since = excluded_since(change)
    for as_of in sorted({as_of for _, as_of, _ in change.buried}):
        ledger.bury([(hash_, cell) for hash_, number_, cell in change.buried if number_ == as_of], as_of)
    ledger.unmark(change.unmarked)
    ledger.mark(change.marked)
    shards = tuple(sorted({int(cell.partition("/")[0]) for cell in since}))
    if kind in RETURNING:
        note_missing(store)
    if kind == "release":
        returned, displaced = _put_back(store, number)
        return Effect(frozenset(), shards, revoked=displaced, returned=returned)
    reach = _find_reach(store, number, since)
    reached, names, exports, aside = reach.cells, reach.units, reach.exports, reach.aside
    if exports:
        remove_exports(store, exports, number)
    # with a release the next fit adds the rows again, as it adds the corrected rows after a correction
    rows = subtract(store, people, number)
    if kind == "restrict":
        drop(store, names, number)
        ledger.set_aside(names)
        return Effect(reached, shards, set_aside=names, exports=exports, subtracted_rows=rows)
    remove(store, names, number)
    _remove_aside(store, aside, number)
    return Effect(reached, shards, reach.revoked, exports=exports, subtracted_rows=rows)


def _put_back(store: Backend, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put back units that are no longer restricted; return their names, and the names of units that they displace.

    Of one name there may be several: each was made while those before it were set aside, without the data of the
    restricted. The oldest of the unblocked units holds the most data, and is the one that served before. The others are
    removed with the units built on them, and so is a unit whose parent was trained again since.
    """
    ledger = store.ledger
    blocked: dict[Cell, int] = {}
    for mark in ledger.marks("restricted"):
        blocked[mark.cell] = max(mark.number, blocked.get(mark.cell, 0))
    versions, serving = ledger.aside(), ledger.ages()
    made = _ages_by_name(versions, serving)
    free = [one for one in versions if all(blocked.get(cell, 0) <= one.as_of for cell in one.cells)]
    oldest: dict[str, SetAside] = {}
    for one in sorted(free, key=lambda one: one.as_of):
        oldest.setdefault(one.name, one)
    after, back = dict(serving), list[SetAside]()
    for name in sorted(oldest, key=lambda name: (len(name), name)):  # parents come before their children
        one, parent = oldest[name], name.rpartition("-")[0]
        stood_on = max((as_of for as_of in made.get(parent, ()) if as_of <= one.as_of), default=None)
        if parent and after.get(parent, -1) != stood_on:
            continue
        for built_on in [other for other in after if other == name or other.startswith(f"{name}-")]:
            del after[built_on]
        after[name] = one.as_of
        back.append(one)
    returned = {one.name for one in back}
    displaced = tuple(sorted(name for name in serving if name not in after or name in returned))
    remove(store, displaced, number)
    _remove_aside(store, [one for one in free if one not in back], number)
    ledger.put_back([one.id for one in back])
    return tuple(sorted(returned)), displaced


def _ages_by_name(versions: Collection[SetAside], serving: Mapping[str, int]) -> dict[str, list[int]]:
    found = {name: [as_of] for name, as_of in serving.items()}
    for one in versions:
        found.setdefault(one.name, []).append(one.as_of)
    return found


def _remove_aside(store: Backend, aside: Collection[SetAside], number: int) -> None:
    if aside:
        queue(store, store.ledger.remove_aside([one.id for one in aside]), number)
