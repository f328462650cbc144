"""A store that is copied to another kind of place: the copy is what it was, and answers in its stead."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import ConfigurationError, MovedError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.ledgers.ledger import Export
from lightning_s3t.store.snapshots.snapshots import SnapshotFolder
from tests.object_storage import shared_storage
from tests.postgres_server import shared_server
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, in_place, session
from tests.store.test_floor import OWNERS, PART, ROWS, assert_same, rows_without, sums_of
from tests.store.test_floor import add as add_floor
from tests.tiers import nightly_except

ANN, BOB, EVE, DAN = in_place(0, 0), in_place(1, 0), in_place(1, 1), in_place(0, 1)
LATER = datetime.now(timezone.utc) + timedelta(hours=1)
KINDS = ["folder", "postgres", "shared folder", "bucket"]
PAIRS = [(one, two) for one in KINDS for two in KINDS]


@dataclass
class Place:
    """Where a store of some kind lies."""

    path: Path
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, path: Path) -> Place:
        options: dict[str, Any] = {} if kind == "folder" else {"ledger": shared_server().new_address()}
        if kind == "shared folder":
            options["snapshots"] = str(path.with_name(f"{path.name}-snapshots"))
        if kind == "bucket":
            options["snapshots"] = f"s3://{shared_storage().new_bucket()}/churn"
        return cls(path, kind, options)

    def snapshots(self) -> set[str]:
        """The names of the snapshots that lie there."""
        if self.kind == "bucket":
            bucket = self.options["snapshots"].split("/")[2]
            return {Path(key).name for key in shared_storage().left(bucket, "churn/snapshots/")}
        folder = Path(self.options.get("snapshots", self.path)) / "snapshots"
        return {path.name for path in folder.glob("*")}


def make(place: Place, checkpoint: Path) -> Store:
    """A store with something of everything in it."""
    store = Store.create(place.path, SETTINGS, key=b"k" * 32, **place.options)
    with store.building() as building:
        building.register(PEOPLE)
        building.note_options({"sequences": [[0, 1, 2]]})
        for number, unit in enumerate(UNITS):
            build(store, unit, number)
    store.forget([ANN], request_id="ticket-7")
    build(store, UNITS[0], 70.0, checkpoint)
    store.restrict([BOB])
    build(store, UnitId(1, (0,)), 71.0)
    store.schedule([EVE], LATER)
    store.rotate_key()
    store.rectify([DAN])
    return store


def seen(store: Store) -> list[Any]:
    """What users of a store see."""
    found = store.verify()
    return [
        {str(unit): store.load(unit)["w"].tolist() for unit in store.alive()},
        [replace(receipt, chain="") for receipt in store.receipts()],
        sorted(store.forgotten(PEOPLE)),
        sorted(store.restricted(PEOPLE)),
        store.pending(),
        sorted(map(str, store.set_aside())),
        store.count_generations(),
        store.options,
        store.settings,
        found.problems,
        found.events,
    ]


@pytest.mark.parametrize("kinds", nightly_except(PAIRS, ("folder", "postgres")))
def test_a_copy_is_what_the_store_was_and_the_store_is_given_up(kinds: tuple[str, str], tmp_path: Path) -> None:
    source, target = kinds
    here, there = Place.of(source, tmp_path / "here"), Place.of(target, tmp_path / "there")
    checkpoint = tmp_path / "last.ckpt"
    steps: list[tuple[int, int]] = []
    with make(here, checkpoint) as store:
        before = seen(store)
        store.copy(there.path, progress=lambda done, total: steps.append((done, total)), **there.options)
        for call in (lambda: store.request_number, lambda: store.forget([BOB])):
            with pytest.raises(MovedError, match=f"was copied to {there.path}, which has replaced it"):
                call()
    assert steps[-1][0] == steps[-1][1] == len(there.snapshots())
    for call in (Store.open, Store.newest_event, lambda path: Store.create(path, SETTINGS)):
        with pytest.raises(MovedError, match="was retired"):
            call(here.path)
    assert here.snapshots() == set()
    with Store.open(there.path) as copy:
        assert seen(copy) == before
        assert before[-2] == ()
        copy.release([BOB])  # what was set aside is whole
        copy.forget([in_place(0, 0, 1)])
        assert not checkpoint.exists()
        assert copy.verify().passed
        assert copy.receipts()[-1].left_files == 0


def test_an_interruption_once_the_copy_answers_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(replicas: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["lightning_s3t.store.copies.copying"], "wait_out", interrupt)
    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        before = seen(store)
        with pytest.raises(KeyboardInterrupt):
            store.copy(tmp_path / "there")
    with pytest.raises(MovedError):
        Store.open(tmp_path / "here")
    with Store.open(tmp_path / "there") as copy:
        assert seen(copy) == before
    assert not any((tmp_path / "here" / "snapshots").iterdir())


def test_an_export_that_is_begun_while_the_store_is_copied_leaves_nothing_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["lightning_s3t.store.copies.copying"]
    check, asked = module._check_equal, []  # type: ignore[attr-defined]
    unit, part = UnitId(1, (1,)), tmp_path / "away.part"

    def begin(*stores: Any) -> None:
        check(*stores)
        if not asked:  # the ledger is copied
            asked.append(1)
            with Store.open(tmp_path / "here") as other, other._ledger.transaction():
                other._ledger.add_export(Export(f"{unit}:1", unit.cells, other.request_number), {str(part): ""})

    monkeypatch.setattr(module, "_check_equal", begin)
    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        store.copy(tmp_path / "there")
    with Store.open(tmp_path / "there") as copy:
        assert copy.exports() == [f"{unit}:1"]


def test_a_restored_ledger_of_a_store_that_was_given_up_does_not_answer(tmp_path: Path) -> None:
    here = Place.of("folder", tmp_path / "here")
    make(here, tmp_path / "last.ckpt").close()
    shutil.copy(here.path / "ledger.db", tmp_path / "backup.db")
    with Store.open(here.path) as store:
        store.copy(tmp_path / "there")
    shutil.copy(tmp_path / "backup.db", here.path / "ledger.db")
    with pytest.raises(MovedError):
        Store.open(here.path)


def test_a_request_while_the_ledger_is_copied_is_in_the_copy(tmp_path: Path) -> None:
    asked = []

    def ask(done: int, total: int) -> None:
        if not asked:
            asked.append(done)
            with Store.open(tmp_path / "here") as other:
                other.forget([BOB])

    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        store.copy(tmp_path / "there", progress=ask)
    with Store.open(tmp_path / "there") as copy:
        assert BOB in copy.forgotten(PEOPLE)
        assert copy.verify().passed


def test_a_request_after_the_ledger_was_copied_has_it_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["lightning_s3t.store.copies.copying"]
    check, asked = module._check_equal, []  # type: ignore[attr-defined]

    def ask(*stores: Any) -> None:
        check(*stores)
        if not asked:
            asked.append(1)
            with Store.open(tmp_path / "here") as other:
                other.forget([BOB])

    monkeypatch.setattr(module, "_check_equal", ask)
    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        store.copy(tmp_path / "there")
    with Store.open(tmp_path / "there") as copy:
        assert BOB in copy.forgotten(PEOPLE)
        assert {f"{record.snapshot}.safetensors" for record in copy.alive().values()} <= {
            path.name for path in (tmp_path / "there" / "snapshots").iterdir()
        }
        assert copy.verify().passed


def test_a_fit_that_is_running_keeps_a_store_from_being_copied(tmp_path: Path) -> None:
    with (
        make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store,
        store.building(),
        Store.open(tmp_path / "here") as other,
        pytest.raises(StoreError, match="Another fit is running"),
    ):
        other.copy(tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("target", ["here", "here/in", ".", "used"])
def test_no_copy_lies_in_a_store_or_over_something_else(target: str, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        with pytest.raises((ConfigurationError, StoreError), match=r"Expected another folder|not empty"):
            store.copy(tmp_path / target)
        assert store.request_number == 3


def test_no_part_of_a_copy_is_in_the_store_that_it_replaces(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    with Store.create(tmp_path / "here", SETTINGS, keys=keys) as store:
        for target, other in (
            ("there", "here/keys"),
            ("there", "keys"),
            ("there", "keys/new"),
            ("x/../here/in", "new"),
        ):
            with pytest.raises(ConfigurationError, match=r"which the store .*here uses.*Nothing was changed"):
                store.copy(tmp_path / target, keys=tmp_path / other)
    assert {path.name for path in tmp_path.iterdir()} == {"here", "keys"}


def test_another_store_is_not_written_over(tmp_path: Path) -> None:
    Store.create(tmp_path / "other", SETTINGS).close()
    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        with pytest.raises(StoreError, match="is already a store"):
            store.copy(tmp_path / "other")
        assert store.request_number == 3
    assert Store.newest_event(tmp_path / "other") == 0


def with_floor(place: Place, checkpoint: Path) -> Store:
    """A store with a closed-form head on the pretrained features, and one on a unit."""
    store = make(place, checkpoint)
    add_floor(store)
    unit = str(next(iter(store.alive())))
    session(store).add_features(unit, PART, "multiclass", ROWS, OWNERS, [b"tag"] * len(OWNERS))
    session(store).complete_head(unit)
    return store


def test_the_closed_form_heads_go_along_with_their_rows(tmp_path: Path) -> None:
    gone = {ANN, BOB}  # forgotten, and restricted
    with with_floor(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        before, heads = seen(store), store.heads()
        rows = list(store._ledger.all_features())
        store.copy(tmp_path / "there")
    assert not any((tmp_path / "here" / "snapshots").iterdir())
    with Store.open(tmp_path / "there") as copy:
        assert seen(copy) == before
        assert copy.heads() == heads
        assert len(heads) == 2
        assert sorted(copy._ledger.all_features()) == sorted(rows)
        assert_same(copy.load_head(), sums_of(rows_without(*gone)))
        copy.rotate_key()
        copy.forget([DAN])
        assert_same(copy.load_head(), sums_of(rows_without(*gone, DAN)))
        assert copy.verify().passed


def test_a_store_with_a_floor_is_not_copied_into_a_database(tmp_path: Path) -> None:
    with with_floor(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        with pytest.raises(ConfigurationError, match=r"has closed-form heads.*leave out `ledger`"):
            store.copy(tmp_path / "there", ledger="postgresql://nowhere.invalid/ml")
        assert not (tmp_path / "there").exists()
        assert store.request_number == 3


def test_sums_that_a_request_replaces_while_the_store_is_copied_are_copied_too(tmp_path: Path) -> None:
    def ask(done: int, total: int) -> None:
        if done == total and BOB not in store.forgotten(PEOPLE):  # the snapshots are copied, the ledger is not
            with Store.open(tmp_path / "here") as other:
                other.forget([BOB])

    with with_floor(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        store.copy(tmp_path / "there", progress=ask)
    with Store.open(tmp_path / "there") as copy:
        assert_same(copy.load_head(), sums_of(rows_without(ANN, BOB)))
        assert copy.verify().passed


def test_rows_of_a_floor_that_were_changed_keep_a_store_from_being_given_up(tmp_path: Path) -> None:
    with with_floor(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        with sqlite3.connect(tmp_path / "here" / "ledger.db") as ledger:
            ledger.execute("UPDATE features SET body = zeroblob(length(body)) WHERE id = 1")
        ledger.close()
        with pytest.raises(StoreError, match=r"does not match what was written.*keeps answering"):
            store.copy(tmp_path / "there")
        assert store.request_number == 3
    with pytest.raises(StoreError, match="still answers"):
        Store.open(tmp_path / "there")


def test_a_damaged_snapshot_keeps_a_store_from_being_given_up(tmp_path: Path) -> None:
    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        digest = next(iter(store.alive().values())).snapshot
        (tmp_path / "here" / "snapshots" / f"{digest}.safetensors").write_bytes(b"damaged")
        with pytest.raises(StoreError, match="is damaged"):
            store.copy(tmp_path / "there")
        assert store.request_number == 3
    with pytest.raises(StoreError, match=r"There is no store|was never finished|unfinished"):
        Store.open(tmp_path / "there")


def test_what_a_removed_store_has_left_is_no_more_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(snapshots: SnapshotFolder, names: set[str]) -> dict[str, OSError]:
        return {name: OSError(5, "stuck") for name in names}

    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store, monkeypatch.context() as patched:
        patched.setattr(SnapshotFolder, "delete", stuck)
        store.copy(tmp_path / "there")
    assert any((tmp_path / "here" / "snapshots").iterdir())
    Store.open(tmp_path / "there").close()
    assert not any((tmp_path / "here" / "snapshots").iterdir())
    shutil.rmtree(tmp_path / "here")
    with Store.open(tmp_path / "there") as copy:
        assert copy.verify().passed


def test_a_copy_that_was_cut_keeps_nothing_that_a_request_revokes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with make(Place.of("folder", tmp_path / "here"), tmp_path / "last.ckpt") as store:
        with monkeypatch.context() as patched:
            patched.setattr("lightning_s3t.store.copies.copying.clear_begun", lambda store: "")  # as if it was killed
            with pytest.raises(KeyboardInterrupt):
                store.copy(tmp_path / "there", progress=cut)
        assert any((tmp_path / "there" / "snapshots").iterdir())
        with pytest.raises(StoreError):
            Store.open(tmp_path / "there")
    Store.open(tmp_path / "here").close()
    assert not any((tmp_path / "there" / "snapshots").iterdir())
    with Store.open(tmp_path / "here") as store:
        store.copy(tmp_path / "there")
    with Store.open(tmp_path / "there") as copy:
        assert copy.verify().passed


@pytest.mark.parametrize("decided", [True, False])
def test_a_strangers_store_that_claims_to_be_a_copy_touches_no_other_store(decided: bool, tmp_path: Path) -> None:
    make(Place.of("folder", tmp_path / "mine"), tmp_path / "last.ckpt").close()
    make(Place.of("folder", tmp_path / "theirs"), tmp_path / "their.ckpt").close()
    before = sorted(path.name for path in (tmp_path / "mine").rglob("*") if path.is_file())
    origin = {"folder": str(tmp_path / "mine"), "token": "x", "place": None, "owner": "", "decided": decided}
    begun = {"folder": str(tmp_path / "mine"), "place": None, "owner": ""}
    for inode in (4711, (tmp_path / "theirs").stat().st_ino):  # which they cannot know
        with sqlite3.connect(tmp_path / "theirs" / "ledger.db") as ledger:
            for name, note in (("moved_from", origin), ("copied_to", begun)):
                text = json.dumps({**note, "inode": inode})
                ledger.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, text))
        ledger.close()
        if decided:
            with Store.open(tmp_path / "theirs") as theirs:
                assert any("from which the store was copied" in problem for problem in theirs.verify().problems)
        else:
            with pytest.raises(StoreError, match="unfinished copy"):
                Store.open(tmp_path / "theirs")
        assert sorted(path.name for path in (tmp_path / "mine").rglob("*") if path.is_file()) == before
    with Store.open(tmp_path / "mine") as mine:
        assert mine.verify().passed


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("kinds", [("folder", "postgres"), ("postgres", "bucket"), ("folder", "folder")])
def test_a_kill_before_any_step_leaves_exactly_one_that_answers(
    first: int, kinds: tuple[str, str], tmp_path: Path
) -> None:
    killed(kinds, first, 8, tmp_path)


def killed(kinds: tuple[str, str], first: int, every: int, tmp_path: Path) -> None:
    answered = set()
    for fatal in itertools.count(first, every):
        base = tmp_path / str(fatal)
        base.mkdir()
        here, there = Place.of(kinds[0], base / "here"), Place.of(kinds[1], base / "there")
        with Store.create(here.path, SETTINGS, **here.options) as store:
            session(store).register(PEOPLE)
            for number, unit in enumerate(UNITS[:3]):
                build(store, unit, number)
            if kinds == ("folder", "folder"):
                add_floor(store)
            snapshots = len(here.snapshots())

        def work(here: Place = here, there: Place = there) -> Iterator[str]:
            with Store.open(here.path) as store:
                store.copy(there.path, **there.options)
            yield "copied"

        acknowledged, survived = acknowledged_until_killed(work, fatal)
        answers = [place for place in (here, there) if opens(place.path)]
        assert len(answers) == 1, f"{len(answers)} stores answer after a kill before step {fatal}"
        answered.add(answers[0] is there)
        assert not acknowledged or answers == [there]
        if answers == [here]:  # asked again, it goes on
            with Store.open(here.path) as store:
                store.forget([EVE])
                store.copy(there.path, **there.options)
        with Store.open(there.path) as copy:
            assert len(copy.alive()) == 3
            assert copy.verify().passed
        assert here.snapshots() == set()
        assert len(there.snapshots()) == snapshots
        if survived:
            break
    assert answered == {True, False}, "the kills went past what they should hit"


def opens(path: Path) -> bool:
    try:
        Store.open(path).close()
    except StoreError:
        return False
    return True
