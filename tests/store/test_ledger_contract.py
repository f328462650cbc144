"""The contract of a ledger, which every one keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.core.events import GENESIS, Event, first_break
from lightning_s3t.core.units import UnitId, reaches
from lightning_s3t.errors import StoreError
from lightning_s3t.plan import units_of
from lightning_s3t.store.ledgers.ledger import Artifact, Export, Ledger, Mark, OwnedFile, QueuedFile
from tests.store.backends import ERASING, LEDGERS

ANN, BOB, EVE = b"a" * 16, b"b" * 16, b"e" * 16
UNITS = units_of(2, [(0, 1, 2), (1, 2, 0)])


@pytest.fixture(params=LEDGERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_ledger(name: str, tmp_path: Path) -> Callable[[], Ledger]:
    return lambda: LEDGERS[name](tmp_path)


@pytest.fixture
def ledger(open_ledger: Callable[[], Ledger]) -> Iterator[Ledger]:
    opened = open_ledger()
    yield opened
    opened.close()


def artifact(unit: UnitId, as_of: int = 0, digest: str = "") -> Artifact:
    return Artifact(str(unit), unit.cells, f"key of {unit}.", digest or f"digest of {unit}.", 0.5, '{"rows": 1}', as_of)


def add(ledger: Ledger, unit: UnitId, as_of: int = 0, digest: str = "") -> None:
    made = artifact(unit, as_of, digest)
    ledger.begin(made.name)
    ledger.add(made, f"snapshots/{made.digest}")


def append(ledger: Ledger, request: int | None = None, forgotten: int | None = None) -> Event:
    event = Event.after(ledger.head(), "request" if request else "damage", request, {"units": []})
    ledger.append(event, forgotten)
    return event


def test_a_transaction_is_there_for_others_whole_or_not_at_all(
    ledger: Ledger, open_ledger: Callable[[], Ledger]
) -> None:
    other = open_ledger()
    with ledger.transaction():
        ledger.note({"a": "1", "b": "2"})
        assert other.notes("a", "b") == {}
    assert other.notes("a", "b", "c") == {"a": "1", "b": "2"}

    def fail() -> None:
        with ledger.transaction():
            ledger.note({"a": "9"})
            ledger.bury([(ANN, "0/0")], 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert other.notes("a") == {"a": "1"}
    assert ledger.forgotten([ANN]) == other.forgotten([ANN]) == set()
    other.close()


def test_transactions_come_one_after_the_other(ledger: Ledger, open_ledger: Callable[[], Ledger]) -> None:
    with ledger.transaction():
        ledger.note({"count": "0"})

    def count() -> None:
        mine = open_ledger()
        for _ in range(20):
            with mine.transaction():
                mine.note({"count": str(int(mine.notes("count")["count"]) + 1)})
        mine.close()

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.notes("count") == {"count": "60"}


def test_a_block_at_one_time_sees_nothing_of_what_is_written_meanwhile(
    ledger: Ledger, open_ledger: Callable[[], Ledger]
) -> None:
    other = open_ledger()
    with ledger.at_one_time():
        before = ledger.notes("a")
        with other.transaction():
            other.note({"a": "1"})
        assert ledger.notes("a") == before == {}
    assert ledger.notes("a") == {"a": "1"}
    other.close()


def test_who_is_forgotten_is_not_registered_and_does_not_wait(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.register([(ANN, 0), (BOB, 1), (BOB, 2)])
        ledger.schedule([(ANN, "2030", "0/0"), (EVE, "2031", "0/1"), (EVE, "2029", "0/1")])
        assert ledger.bands([ANN, BOB, EVE]) == {ANN: 0, BOB: 1}
        assert ledger.waiting([ANN, BOB, EVE]) == {ANN, EVE}
        assert ledger.schedules() == [("2029", 1), ("2030", 1)]
        assert ledger.due("2029") == [(EVE, "0/1")]
        ledger.bury([(ANN, "0/0"), (EVE, "0/1")], 3)
        ledger.register([(ANN, 0)])
        ledger.schedule([(EVE, "2030", "0/1")])
        ledger.bury([(ANN, "1/1")], 4)  # the first request counts
    assert ledger.bands([ANN, BOB, EVE]) == {BOB: 1}
    assert ledger.waiting([ANN, EVE]) == set()
    assert ledger.forgotten([ANN, BOB, EVE]) == {ANN, EVE}
    assert sorted(ledger.tombstones()) == [(ANN, 3, "0/0"), (EVE, 3, "0/1")]
    assert (ledger.count_forgotten(), ledger.count_registered_and_forgotten()) == (2, 0)
    assert ledger.newest_requests() == {"0/0": 3, "0/1": 3}


def test_thousands_are_looked_up_at_once(ledger: Ledger) -> None:
    hashes = [number.to_bytes(16, "big") for number in range(5000)]
    with ledger.transaction():
        ledger.register((hash_, 0) for hash_ in hashes[:4000])
        ledger.bury(((hash_, "0/0") for hash_ in hashes[3000:]), 1)
    assert ledger.bands(hashes).keys() == set(hashes[:3000])
    assert ledger.forgotten(hashes) == set(hashes[3000:])


def test_generations_are_kept_counted_and_merged(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.register([(ANN, 0)])
        ledger.register([(ANN, 0), (BOB, 1)], generation=1)
        ledger.register([(EVE, 0)], generation=2)
    assert ledger.generations([ANN, BOB, EVE, b"?"]) == {ANN: 0, BOB: 1, EVE: 2}
    assert ledger.count_generations() == {0: 1, 1: 1, 2: 1}
    with ledger.transaction():
        ledger.merge_generations(1)
        ledger.bury([(BOB, "2/0")], 1)
    assert ledger.generations([ANN, BOB, EVE]) == {ANN: 0, EVE: 1}
    assert ledger.bands([EVE]) == {EVE: 0}


def test_who_waits_can_move_and_every_hash_can_be_replaced(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.register([(BOB, 1)])
        ledger.schedule([(ANN, "2030", "0/0")])
        ledger.bury([(EVE, "1/1")], 1)
        ledger.schedule([(ANN, "2999", "0/2")])
        ledger.rehash(lambda hash_: bytes(reversed(hash_)) + b"!")
    assert ledger.due("2031") == [(ANN + b"!", "0/2")]
    assert ledger.bands([BOB + b"!", BOB]) == {BOB + b"!": 1}
    assert ledger.forgotten([EVE + b"!", EVE]) == {EVE + b"!"}


def test_events_come_back_in_order_as_a_chain(ledger: Ledger) -> None:
    assert ledger.head() == (0, GENESIS)
    assert ledger.watermark() == ledger.count_events() == 0
    with ledger.transaction():
        made = [append(ledger, 1, 5), append(ledger), append(ledger, 2, 7)]
    assert list(ledger.events()) == made
    assert first_break(ledger.events()) is None
    assert list(ledger.events(after=1)) == made[1:]
    assert list(ledger.events(request=2)) == made[2:]
    assert ledger.head() == (3, made[2].digest)
    assert (ledger.watermark(), ledger.count_events()) == (2, 3)
    assert [ledger.digest_at(position) for position in (2, 4)] == [made[1].digest, None]
    assert [ledger.forgotten_after(request) for request in (0, 1, 2)] == [None, 5, 7]


@settings(deadline=None, max_examples=25)
@given(st.sets(st.sampled_from(UNITS)), st.sets(st.tuples(st.integers(0, 1), st.integers(0, 2))))
@pytest.mark.parametrize("name", LEDGERS)
def test_the_index_finds_what_the_reach_rule_says(
    tmp_path_factory: pytest.TempPathFactory, name: str, units: set[UnitId], places: set[tuple[int, int]]
) -> None:
    ledger, cells = LEDGERS[name](tmp_path_factory.mktemp("ledger")), {f"{shard}/{slice_}" for shard, slice_ in places}
    with ledger.transaction():
        for unit in units:
            add(ledger, unit)
        ledger.bury([(ANN + cell.encode(), cell) for cell in cells], 5)
    reached = {unit for unit in units if reaches(cells, unit.cells)}
    assert set(ledger.reached(cells)) == {str(unit) for unit in reached}
    assert {unit for unit in units if ledger.reached_since(unit.cells, 4)} == reached
    assert not any(ledger.reached_since(unit.cells, 5) for unit in units)
    with ledger.transaction():
        ledger.remove([str(unit) for unit in reached])
    assert set(ledger.index()) == {(cell, str(unit)) for unit in units - reached for cell in unit.cells}
    assert ledger.count_index() == sum(unit.stage for unit in units - reached)
    assert ledger.reached(cells) == []
    ledger.close()


def test_an_artifact_comes_back_as_it_was_added(ledger: Ledger) -> None:
    first, second = UNITS[0], UnitId(1, (1, 2))
    with ledger.transaction():
        add(ledger, first)
        add(ledger, second, as_of=4)
    found = {one.name: one for one in ledger.artifacts()}
    assert found.keys() == {str(first), str(second)}
    for unit, as_of in ((first, 0), (second, 4)):
        kept, made = found[str(unit)], artifact(unit, as_of)
        assert (kept.key, kept.digest, kept.score, kept.provenance, kept.as_of) == (
            (made.key, made.digest, made.score, made.provenance, made.as_of)
        )
    assert ledger.ages() == {str(first): 0, str(second): 4}
    assert ledger.digests() == {str(first): artifact(first).digest, str(second): artifact(second).digest}
    assert ledger.digests([str(second), "0/7"]) == {str(second): artifact(second).digest}
    assert ledger.scores("1/") == {str(second): 0.5}
    assert ledger.scores() == {str(first): 0.5, str(second): 0.5}
    assert ledger.attempts() == []


def test_a_prefix_of_names_ends_at_its_last_letter(ledger: Ledger) -> None:
    with ledger.transaction():
        for unit in (UnitId(1, (0,)), UnitId(1, (0, 2)), UnitId(1, (0, 10)), UnitId(11, (0,)), UnitId(1, (1,))):
            add(ledger, unit)
    assert ledger.scores("1/").keys() == {"1/0", "1/0-2", "1/0-10", "1/1"}
    assert ledger.scores("1/0-").keys() == {"1/0-2", "1/0-10"}


def test_files_go_from_an_attempt_to_its_artifact_and_away_with_it(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.begin("0/0")
        ledger.own("/runs/a.ckpt", "0/0", "known by")
        ledger.own("/runs/\udcff.ckpt", "0/0")  # a name that is not UTF-8
    assert ledger.attempts() == ledger.attempts("0/0") == ["0/0"]
    assert ledger.attempts("0/1") == []
    assert set(ledger.files_of("0/0")) == {OwnedFile("/runs/a.ckpt", "known by"), OwnedFile("/runs/\udcff.ckpt")}
    with ledger.transaction():
        ledger.add(artifact(UnitId(0, (0,))), "snapshots/x")
    assert ledger.files_of("0/0") == []
    assert ledger.needed(["/runs/a.ckpt", "snapshots/x", "snapshots/y"]) == {"/runs/a.ckpt", "snapshots/x"}
    with ledger.transaction():
        owned = {OwnedFile("/runs/a.ckpt", "known by"), OwnedFile("/runs/\udcff.ckpt"), OwnedFile("snapshots/x")}
        assert set(ledger.files()) == owned
        assert set(ledger.remove(["0/0"])) == owned
    assert ledger.needed(["/runs/a.ckpt", "snapshots/x"]) == set()


def test_removing_an_artifact_leaves_an_attempt_of_the_same_name_alone(ledger: Ledger) -> None:
    with ledger.transaction():
        add(ledger, UnitId(0, (0,)))
        ledger.begin("0/0")
        ledger.own("/runs/a.ckpt", "0/0")
        assert ledger.remove(["0/0"]) == [OwnedFile("snapshots/digest of 0/0.")]
        assert ledger.attempts() == ["0/0"]
        assert ledger.drop_attempts(["0/0"]) == [OwnedFile("/runs/a.ckpt")]
    assert ledger.attempts() == []


def test_a_file_belongs_to_the_last_who_wrote_it_and_a_snapshot_to_all(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.own("snapshots/base")
        ledger.begin("0/0")
        ledger.own("/last.ckpt", "0/0")
        ledger.add(artifact(UnitId(0, (0,)), digest="same"), "snapshots/same")
        ledger.begin("1/0")
        ledger.own("/last.ckpt", "1/0")
        ledger.add(artifact(UnitId(1, (0,)), digest="same"), "snapshots/same")
        assert ledger.remove(["0/0"]) == [OwnedFile("snapshots/same")]
        everything = ["snapshots/base", "snapshots/same", "/last.ckpt"]
        assert ledger.needed(everything) == set(everything)
        ledger.remove(["1/0"])
        assert ledger.needed(everything) == {"snapshots/base"}


def test_an_attempt_can_hold_a_snapshot_beside_its_owners_and_hands_it_to_its_artifact(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.begin("0/0")
        ledger.add(artifact(UnitId(0, (0,)), digest="same"), "snapshots/same")
        for name in ("1/0", "1/1"):
            ledger.begin(name)
            ledger.hold("snapshots/same", name)
            ledger.hold("snapshots/same", name)
        assert ledger.remove(["0/0"]) == [OwnedFile("snapshots/same")]
        assert ledger.needed(["snapshots/same"]) == {"snapshots/same"}
        ledger.add(artifact(UnitId(1, (0,)), digest="same"), "snapshots/same")
        assert ledger.drop_attempts(["1/1"]) == [OwnedFile("snapshots/same")]
        assert ledger.needed(["snapshots/same"]) == {"snapshots/same"}
        assert ledger.remove(["1/0"]) == [OwnedFile("snapshots/same")]
        assert ledger.needed(["snapshots/same"]) == set()


def test_the_queue_of_erasures_is_kept_until_it_is_replaced(ledger: Ledger) -> None:
    files = [QueuedFile("/a", 1, 10), QueuedFile("/b", 2, None, "known by", left=True), QueuedFile("/c", None, 5)]
    with ledger.transaction():
        ledger.queue(files)
    assert set(ledger.queued()) == set(files)
    with ledger.transaction():
        ledger.replace_queue(files[1:2])
    assert ledger.queued() == files[1:2]


def test_compacting_loses_nothing(ledger: Ledger) -> None:
    kept = UnitId(1, (0,))
    with ledger.transaction():
        for shard in range(2000):
            ledger.add(artifact(UnitId(shard, (0,))), f"snapshots/{shard}")
        ledger.own("snapshots/base")
        ledger.begin("0/1")
        ledger.own("/a.ckpt", "0/1", "known by")
        ledger.remove([f"{shard}/0" for shard in range(2000) if shard != 1])
        ledger.compact()
    ledger.clear_traces()
    assert [one.digest for one in ledger.artifacts()] == [artifact(kept).digest]
    assert ledger.files_of("0/1") == [OwnedFile("/a.ckpt", "known by")]
    assert ledger.needed(["snapshots/base", "snapshots/1", "snapshots/2"]) == {"snapshots/base", "snapshots/1"}
    with ledger.transaction():
        add(ledger, UnitId(0, (0,)))
    assert ledger.digests(["0/0"]) == {"0/0": "digest of 0/0."}


@pytest.mark.parametrize("name", ERASING)
def test_what_was_removed_is_in_no_file(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.transaction():
        for unit in UNITS:
            add(ledger, unit)
        ledger.remove([str(unit) for unit in UNITS[:4]])
    ledger.clear_traces()
    contents = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    found = {unit for unit in UNITS if any(f"{what} of {unit}.".encode() in contents for what in ("key", "digest"))}
    assert found <= set(UNITS[4:])
    assert ledger.problems() == ledger.problems(tombstones_only=True) == []


def test_a_ledger_is_found_again(open_ledger: Callable[[], Ledger]) -> None:
    first = open_ledger()
    with first.transaction():
        first.bury([(ANN, "0/0")], 1)
        append(first, 1, 1)
    first.close()
    again = open_ledger()
    assert (again.watermark(), again.count_forgotten()) == (1, 1)
    again.rewrite()
    assert again.forgotten([ANN]) == {ANN}
    again.close()


def test_two_artifacts_of_one_name_are_refused(ledger: Ledger) -> None:
    def add_twice() -> None:
        with ledger.transaction():
            add(ledger, UNITS[0])
            add(ledger, UNITS[0])

    with pytest.raises(StoreError):
        add_twice()
    assert ledger.ages() == {}


def test_the_short_form_of_artifacts_and_their_codes(ledger: Ledger) -> None:
    with ledger.transaction():
        for unit in UNITS[:3]:
            add(ledger, unit)
    made = {artifact(unit).name: artifact(unit).entry for unit in UNITS[:3]}
    assert {entry.name: entry for entry in ledger.entries()} == made
    name = str(UNITS[0])
    assert list(ledger.entries([name, "0/7"])) == [made[name]]
    with ledger.transaction():
        ledger.seal({name: "code"})
    assert [entry.mac for entry in ledger.entries([name])] == ["code"]
    assert {one.name: one.mac for one in ledger.artifacts()}[name] == "code"
    assert {entry.mac for entry in ledger.entries([str(unit) for unit in UNITS[1:]])} == {""}


def test_requests_are_found_by_number_and_by_name(ledger: Ledger) -> None:
    with ledger.transaction():
        first = append(ledger, 1, 1)
        named = Event.after(ledger.head(), "request", 2, {"request_id": "ticket-7"})
        ledger.append(named, 2)
        append(ledger)
        ledger.append(Event.after(ledger.head(), "erasure", 2, {}))
    assert ledger.request_digests([1, 2, 3]) == {1: first.digest, 2: named.digest}
    assert ledger.request_digests([]) == {}
    assert [event.kind for event in ledger.events(kinds=("damage", "erasure"))] == ["damage", "erasure"]
    assert ledger.request_named("ticket-7") == 2
    assert ledger.request_named("ticket-8") is None


def test_who_waits_is_listed_and_taken_out(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.schedule([(ANN, "2030", "0/0"), (BOB, "2031", "0/1")])
        ledger.unschedule([ANN, EVE])
    assert list(ledger.scheduled()) == [(BOB, "2031", "0/1")]


def test_the_code_of_an_event_comes_back(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.append(replace(Event.after(ledger.head(), "damage", None, {"units": []}), mac="code"))
    assert [event.mac for event in ledger.events()] == ["code"]


def test_exports_own_files_until_they_are_removed(ledger: Ledger) -> None:
    first, second = Export("0/1:aa", ("0/1",), 0), Export("0/1-2:bb", ("0/1", "0/2"), 3)
    with ledger.transaction():
        ledger.add_export(first, {"/out/a": "", "/out/b": ""})
        ledger.add_export(second, {"/out/b": ""})  # the last who writes a file owns it
    assert ledger.exports() == sorted([first, second], key=lambda export: export.name)
    assert ledger.needed(["/out/a", "/out/b", "/out/c"]) == {"/out/a", "/out/b"}
    with ledger.transaction():
        assert ledger.remove_exports(["0/1:aa"]) == [OwnedFile("/out/a", "")]
    assert ledger.exports() == [second]
    assert ledger.needed(["/out/a", "/out/b"]) == {"/out/b"}


def test_marks_are_noted_found_and_taken_away(ledger: Ledger) -> None:
    restricted, again = Mark("restricted", ANN, 1, "0/0"), Mark("rectified", ANN, 2, "0/0")
    waiting = Mark("awaiting", BOB, 7, "0/1")
    with ledger.transaction():
        ledger.mark([restricted, again, waiting, restricted])
    assert sorted(ledger.marks()) == sorted([restricted, again, waiting])
    assert ledger.marks("restricted") == ledger.marks_of([ANN, BOB, EVE], "restricted") == [restricted]
    assert ledger.marks_of([BOB], "restricted") == []
    with ledger.transaction():
        ledger.rehash(lambda hash_: hash_ + b"!")
        ledger.unmark([again._replace(hash=ANN + b"!")])
    assert set(ledger.marks()) == {
        restricted._replace(hash=ANN + b"!"),
        waiting._replace(hash=BOB + b"!"),
    }


def test_marks_reach_as_tombstones_do_but_for_those_who_wait(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.bury([(EVE, "1/0")], 2)
        ledger.mark(
            [
                Mark("restricted", ANN, 3, "0/0"),
                Mark("rectified", BOB, 4, "0/1"),
                Mark("released", BOB, 5, "0/2"),
                Mark("awaiting", BOB, 6, "1/1"),
            ]
        )
    newest = {"1/0": 2, "0/0": 3, "0/1": 4, "0/2": 5}
    for cell, number in newest.items():
        assert ledger.reached_since([cell, "1/2"], number - 1)
        assert not ledger.reached_since([cell, "1/2"], number)
    assert not ledger.reached_since(["1/1"], 0)
    assert ledger.newest_requests() == {"1/0": 2, "0/0": 3, "0/1": 4}
    assert ledger.newest_requests(restrictions=False) == {"1/0": 2, "0/1": 4}
    assert [ledger.lacks([cell]) for cell in ("1/0", "0/0", "0/1", "0/2", "1/1")] == [True, True, False, False, False]


def test_what_is_set_aside_is_in_no_list_and_comes_back_as_it_was(ledger: Ledger) -> None:
    first, other = UNITS[0], UnitId(1, (1, 2))
    with ledger.transaction():
        ledger.begin(str(first))
        ledger.own("/a.ckpt", str(first), "known by")
        add(ledger, first)
        add(ledger, other)
    before = sorted(ledger.artifacts(), key=lambda one: one.name), sorted(ledger.index()), set(ledger.files())
    with ledger.transaction():
        ledger.set_aside([str(first)])
    (kept,) = ledger.aside()
    assert (kept.name, kept.as_of, kept.cells, kept.entry) == (str(first), 0, first.cells, artifact(first).entry)
    assert ledger.ages() == {str(other): 0}
    assert (ledger.digests([str(first)]), ledger.scores("0/"), ledger.reached(first.cells)) == ({}, {}, [])
    assert [entry.name for entry in ledger.entries()] == [one.name for one in ledger.artifacts()] == [str(other)]
    assert {artifact for _, artifact in ledger.index()} == {str(other)}
    assert ledger.needed(["/a.ckpt", f"snapshots/{kept.entry.digest}"]) == {"/a.ckpt", f"snapshots/{kept.entry.digest}"}
    with ledger.transaction():
        add(ledger, first, as_of=3, digest="another")  # another of that name, trained meanwhile
        ledger.set_aside([str(first)])
        assert [one.as_of for one in ledger.aside()] == [0, 3]
        newer = ledger.aside()[1]
        assert ledger.remove_aside([newer.id]) == [OwnedFile("snapshots/another")]
        ledger.put_back([kept.id])
    assert ledger.aside() == []
    assert (sorted(ledger.artifacts(), key=lambda one: one.name), sorted(ledger.index()), set(ledger.files())) == before


def test_what_is_set_aside_has_codes_and_outlives_compacting(ledger: Ledger) -> None:
    kept = UnitId(1, (0,))
    with ledger.transaction():
        for shard in range(2000):
            ledger.add(artifact(UnitId(shard, (0,))), f"snapshots/{shard}")
        ledger.set_aside([str(kept)])
        (aside,) = ledger.aside()
        ledger.seal_aside({aside.id: "code"})
        ledger.remove([f"{shard}/0" for shard in range(2000) if shard != 1])
        ledger.compact()
    (aside,) = ledger.aside()
    assert aside.entry == replace(artifact(kept).entry, mac="code")
    with ledger.transaction():
        ledger.put_back([aside.id])
    assert [(one.digest, one.mac) for one in ledger.artifacts()] == [(artifact(kept).digest, "code")]


@pytest.mark.parametrize("name", ERASING)
def test_what_was_set_aside_and_removed_is_in_no_file(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.transaction():
        add(ledger, UNITS[0])
        ledger.set_aside([str(UNITS[0])])
    with ledger.transaction():
        ledger.remove_aside([one.id for one in ledger.aside()])
    ledger.clear_traces()
    contents = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert not any(f"{what} of {UNITS[0]}.".encode() in contents for what in ("key", "digest"))


def test_rows_of_features_are_kept_by_source_or_refused(ledger: Ledger) -> None:
    def add() -> None:
        with ledger.transaction():
            ledger.add_features("pretrained", [(ANN, b"tag", b"features", b"code")])
            ledger.add_features("0/0", [(ANN, b"tag", b"others", b"code")])

    if ledger.keeps_features:
        add()
    else:
        with pytest.raises(StoreError, match="does not keep features"):
            add()
    found = [(ANN, b"features", b"code")] if ledger.keeps_features else []
    assert list(ledger.features("pretrained")) == found
    assert list(ledger.feature_tags("pretrained")) == [(hash_, b"tag") for hash_, _, _ in found]
    assert len(list(ledger.features_of([ANN, BOB]))) == 2 * len(found)
    everything = [("0/0", ANN, b"tag", b"others", b"code"), ("pretrained", ANN, b"tag", b"features", b"code")]
    assert list(ledger.all_features()) == (everything if ledger.keeps_features else [])
    with ledger.transaction():
        ledger.remove_features("pretrained", [ANN])
        ledger.drop_features("0/0")
    assert list(ledger.features_of([ANN])) == []


def test_replicas_are_noted_with_the_request_that_they_know_of(
    ledger: Ledger, open_ledger: Callable[[], Ledger]
) -> None:
    with ledger.transaction():
        ledger.add_replica("a", 1.5, 0)
        ledger.add_replica("b", 2.0, 0)
        append(ledger, request=1)
    other = open_ledger()
    assert (other.look("a"), other.look("nobody")) == ((1, 0), (1, None))
    assert other.replicas_behind(1) == {"a": 1.5, "b": 2.0}
    with other.transaction():
        assert other.confirm("a", 1)
        assert not other.confirm("nobody", 1)
    assert (ledger.look("a"), ledger.replicas_behind(1)) == ((1, 1), {"b": 2.0})
    with ledger.transaction():
        ledger.confirm("a", 0)  # never back
        ledger.remove_replicas(["a", "b"], behind=1)
    assert ledger.replicas_behind(2) == {"a": 1.5}
    with ledger.transaction():
        ledger.remove_replicas(["a"])
    assert ledger.replicas_behind(2) == {}
    other.close()
