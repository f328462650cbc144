"""Any history at all: the store against a model of it that is a few dictionaries."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightning_s3t.errors import RevokedError, UnknownSubjectError
from lightning_s3t.plan import Partition, UnitId, units_of
from lightning_s3t.store import Attempt, Store
from tests.store.people_store import session

PARTITION = Partition(2, 2, 0)
PEOPLE = [f"user-{number}" for number in range(12)]
UNITS = units_of(2, [(0, 1), (1, 0)])
FILES = ["first.ckpt", "last.ckpt"]
SOME = st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=3)


class History(RuleBasedStateMachine):
    """One fit at a time, as the callback goes about it, with requests and crashes whenever they come."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store.create(self.folder / "store", {"partition": PARTITION.settings})
        self.known: set[str] = set()
        self.forgotten: set[str] = set()
        self.alive: dict[UnitId, int] = {}  # the number that its tensor holds
        self.owner: dict[str, UnitId] = {}  # of each file
        self.requests = 0
        self.attempt: Attempt | None = None
        self.reached = False  # the attempt, by a request
        self.number = 0

    @rule(people=SOME)
    def register(self, people: list[str]) -> None:
        session(self.store).register(people)
        self.known |= set(people)

    @precondition(lambda self: self.attempt is None)
    @rule(unit=st.sampled_from(UNITS), file=st.none() | st.sampled_from(FILES))
    def start(self, unit: UnitId, file: str | None) -> None:
        if unit in self.alive or (unit.parent and unit.parent not in self.alive):
            return
        self.attempt, self.reached, self.number = (
            session(self.store).start_unit(unit, f"key-{unit}"),
            False,
            self.number + 1,
        )
        if file is not None:
            self.attempt.register_file(self.folder / file)
            (self.folder / file).write_text(str(unit))
            self.owner[file] = unit

    @precondition(lambda self: self.attempt is not None)
    @rule(score=st.none() | st.floats(-1, 1), twin=st.booleans())
    def finish(self, score: float | None, twin: bool) -> None:
        assert self.attempt is not None
        unit, number = self.attempt.unit, 0 if twin else self.number  # twins have equal snapshots
        if self.reached or (unit.parent and unit.parent not in self.alive):
            with pytest.raises(RevokedError):
                self.attempt.commit({"w": torch.tensor([number])}, {}, score)
            self._lose_files_of(unit)
        else:
            self.attempt.commit({"w": torch.tensor([number])}, {}, score)
            self.alive[unit] = number
        self.attempt = None

    @precondition(lambda self: self.attempt is not None)
    @rule()
    def abandon(self) -> None:
        assert self.attempt is not None
        self.attempt.abandon()
        self._lose_files_of(self.attempt.unit)
        self.attempt = None

    @rule(people=SOME, strict=st.booleans())
    def forget(self, people: list[str], strict: bool) -> None:
        unknown = set(people) - self.known - self.forgotten
        if strict and unknown:
            with pytest.raises(UnknownSubjectError):
                self.store.forget(people)
            return
        receipt = self.store.forget(people, strict=strict)
        places = [PARTITION.place(person) for person in set(people) - self.forgotten]
        revoked = [unit for unit in self.alive if any(map(unit.reached_by, places))]
        assert {UnitId.parse(text) for text in receipt.revoked} == set(revoked)
        assert receipt.already_forgotten == len(set(people) & self.forgotten)
        assert receipt.unknown == len(unknown)
        self.requests += 1
        self.forgotten |= set(people)
        self.reached |= self.attempt is not None and any(map(self.attempt.unit.reached_by, places))
        self._lose(revoked)
        reached, serving = {place.shard for place in places}, receipt.serving
        assert {int(shard) for shard in serving} == reached
        assert {text for text in serving.values() if text} <= {str(unit) for unit in self.alive}
        assert {shard for shard in reached if serving[str(shard)]} == reached & {unit.shard for unit in self.alive}

    @rule(unit=st.sampled_from(UNITS))
    def drop(self, unit: UnitId) -> None:
        session(self.store).drop([unit])
        self._lose([other for other in self.alive if unit in other.lineage])

    @rule()
    def end_the_process_and_open_again(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "store")
        if self.attempt is not None:  # what it had begun is cleared away
            self._lose_files_of(self.attempt.unit)
            self.attempt = None

    @invariant()
    def the_same_units_are_alive(self) -> None:
        assert set(self.store.alive()) == set(self.alive)
        assert {unit: int(self.store.load(unit)["w"]) for unit in self.alive} == self.alive

    @invariant()
    def the_same_subjects_are_forgotten(self) -> None:
        assert self.store.forgotten(PEOPLE) == self.forgotten
        assert self.store.request_number == len(self.store.receipts()) == self.requests

    @invariant()
    def no_file_is_there_that_nobody_owns(self) -> None:
        assert {path.name: path.read_text() for path in self.folder.glob("*.ckpt")} == {
            file: str(unit) for file, unit in self.owner.items()
        }
        digests = {record.snapshot for record in self.store.alive().values()}
        assert {path.stem for path in (self.store.path / "snapshots").iterdir()} == digests

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def _lose(self, units: list[UnitId]) -> None:
        for unit in units:
            del self.alive[unit]
            if self.attempt is None or self.attempt.unit != unit:
                self._lose_files_of(unit)

    def _lose_files_of(self, unit: UnitId) -> None:
        self.owner = {file: owner for file, owner in self.owner.items() if owner != unit}


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
