"""Correction and restriction: what goes, what is set aside, what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError, RevokedError, UnknownSubjectError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Receipt, RequestRecord, Store
from tests.store.backups import back_up, restore
from tests.store.correcting_store import (
    ANN,
    BOB,
    CLEO,
    PEOPLE,
    Data,
    begin,
    build,
    check,
    commit,
    commit_unless_revoked,
    keys_of,
    make,
    plan,
)
from tests.store.people_store import session
from tests.tiers import in_tier

REACHED = {"0/0", "0/0-1", "0/1-0"}  # by Ann, who is in slice 0


@pytest.fixture
def data() -> Data:
    return Data()


@pytest.fixture
def store(tmp_path: Path, data: Data) -> Iterator[Store]:
    with make(tmp_path / "store") as made:
        build(made, data)
        yield made


def wanted(store: Store, data: Data) -> dict[str, str]:
    """What a first fit would give on the data of today, without those who are forgotten or restricted."""
    return {str(unit): key for unit, key in plan(store, data).keys.items()}


def rectified(store: Store, *people: str) -> RequestRecord:
    receipt = store.rectify(people)
    assert isinstance(receipt, RequestRecord)
    return receipt


def test_a_correction_takes_out_what_a_request_to_forget_would_and_the_subject_stays(store: Store, data: Data) -> None:
    data.correct(ANN)
    receipt = rectified(store, ANN)
    assert (receipt.kind, set(receipt.revoked), receipt.revoked_units, receipt.erased_files) == (
        "rectify",
        REACHED,
        3,
        3,
    )
    assert receipt.serving == {"0": "0/1"}
    assert store.forgotten([ANN]) == set()
    check(store, data)
    build(store, data)
    assert keys_of(store) == wanted(store, data)
    check(store, data)


def test_a_fit_after_a_correction_gives_what_a_first_fit_on_the_corrected_data_gives(
    store: Store, data: Data, tmp_path: Path
) -> None:
    data.correct(ANN)
    store.rectify([ANN])
    build(store, data)
    with make(tmp_path / "scratch") as scratch:
        build(scratch, data)
        assert keys_of(scratch) == keys_of(store)


def test_a_correction_that_is_repeated_reaches_what_was_trained_since(store: Store, data: Data) -> None:
    store.rectify([ANN])
    assert rectified(store, ANN).revoked == ()
    build(store, data)
    assert set(rectified(store, ANN).revoked) == REACHED


def test_of_who_is_forgotten_there_is_nothing_to_correct_or_to_restrict(store: Store, data: Data) -> None:
    store.forget([ANN])
    build(store, data)
    for receipt in (rectified(store, ANN), store.restrict([ANN])):
        assert (receipt.already_forgotten, receipt.revoked, receipt.set_aside) == (1, (), ())
    assert store.count_restricted() == 0
    assert len(store.alive()) == 4


def test_unknown_subjects_are_refused_or_passed_over_by_a_correction(store: Store) -> None:
    with pytest.raises(UnknownSubjectError, match="has never seen 'nobody'"):
        store.rectify([ANN, "nobody"])
    assert store.request_number == 0
    receipt = store.rectify(["nobody"], strict=False)
    assert isinstance(receipt, RequestRecord)
    assert (receipt.unknown, receipt.revoked) == (1, ())


def test_a_correction_of_who_is_restricted_erases_what_was_set_aside_and_leaves_what_was_trained_meanwhile(
    store: Store, data: Data
) -> None:
    store.restrict([ANN])
    build(store, data)
    data.correct(ANN)
    receipt = rectified(store, ANN)
    assert (receipt.already_restricted, set(receipt.revoked)) == (1, REACHED)
    assert store.set_aside() == []
    assert len(store.alive()) == 4
    check(store, data)
    rectified(store, ANN)
    assert store.release([ANN]).returned == ()
    check(store, data)
    build(store, data)
    check(store, data)


def test_a_restriction_sets_aside_what_the_subject_reached_and_keeps_it(store: Store, data: Data) -> None:
    before = {path.name for path in (store.path / "snapshots").iterdir()}
    receipt = store.restrict([ANN])
    assert (receipt.kind, set(receipt.set_aside), receipt.set_aside_units) == ("restrict", REACHED, 3)
    assert (receipt.revoked, receipt.erased_files, receipt.serving) == ((), 0, {"0": "0/1"})
    assert {path.name for path in (store.path / "snapshots").iterdir()} == before
    assert [str(unit) for unit in store.alive()] == ["0/1"]
    with pytest.raises(RevokedError, match="is set aside"):
        store.load(UnitId(0, (0,)))
    found = store.status()
    assert (found.restricted, set(found.set_aside)) == (1, REACHED)
    check(store, data)


def test_a_release_puts_back_what_was_there_bit_for_bit(store: Store, data: Data) -> None:
    before = {unit: (record, store.load(unit)["w"].tolist()) for unit, record in store.alive().items()}
    store.restrict([ANN])
    receipt = store.release([ANN])
    assert (receipt.kind, set(receipt.returned), receipt.returned_units, receipt.revoked) == ("release", REACHED, 3, ())
    assert receipt.serving == {"0": "0/0-1"}
    assert {unit: (record, store.load(unit)["w"].tolist()) for unit, record in store.alive().items()} == before
    assert (store.set_aside(), store.count_restricted()) == ([], 0)
    assert begin(store, plan(store, data)) is None, "a fit trains what is there"
    check(store, data)


def test_a_release_displaces_what_was_trained_in_the_place_of_what_comes_back(store: Store, data: Data) -> None:
    before = keys_of(store)
    store.restrict([ANN])
    build(store, data)
    assert keys_of(store) != before
    check(store, data)
    receipt = store.release([ANN])
    assert (set(receipt.returned), set(receipt.revoked), receipt.erased_files) == (REACHED, REACHED, 3)
    assert keys_of(store) == before
    check(store, data)


def test_what_holds_the_data_of_two_comes_back_when_both_are_released_in_any_order(store: Store, data: Data) -> None:
    for first, second in ((ANN, CLEO), (CLEO, ANN), (ANN, BOB)):
        before = keys_of(store)
        store.restrict([ANN])
        build(store, data)
        store.restrict([second if first == ANN else CLEO])
        build(store, data)
        check(store, data)
        store.release([first])
        check(store, data)
        assert keys_of(store) != before
        store.release([second])
        check(store, data)
        assert keys_of(store) == before


def test_what_was_built_meanwhile_on_what_is_displaced_goes_with_it(tmp_path: Path, data: Data) -> None:
    with make(tmp_path / "store") as store:
        found = plan(store, data)
        commit(session(store).start_unit(UnitId(0, (0,)), found.keys[UnitId(0, (0,))]))
        before = keys_of(store)
        store.restrict([ANN])
        build(store, data)
        receipt = store.release([ANN])
        assert (receipt.returned, receipt.revoked) == (("0/0",), ("0/0", "0/0-1"))
        assert keys_of(store)["0/0"] == before["0/0"]
        check(store, data)


def test_a_child_whose_parent_was_trained_again_meanwhile_does_not_come_back(store: Store, data: Data) -> None:
    before = keys_of(store)
    store.restrict([ANN])  # 0/1-0 is set aside, 0/1 is not
    session(store).drop([UnitId(0, (1,))])
    build(store, data)
    receipt = store.release([ANN])
    assert receipt.returned == ("0/0", "0/0-1")
    assert keys_of(store)["0/1"] == before["0/1"]
    assert "0/1-0" in keys_of(store), "what was trained meanwhile serves on"
    check(store, data)


def test_forgetting_who_is_restricted_erases_what_was_set_aside_and_nothing_else(store: Store, data: Data) -> None:
    store.restrict([ANN])
    build(store, data)
    meanwhile = keys_of(store)
    receipt = store.forget([ANN])
    assert isinstance(receipt, RequestRecord)
    assert (receipt.kind, receipt.already_restricted, set(receipt.revoked)) == ("forget", 1, REACHED)
    assert receipt.erased_files == 3
    assert keys_of(store) == meanwhile
    assert (store.set_aside(), store.count_restricted(), store.forgotten(PEOPLE)) == ([], 0, {ANN})
    check(store, data)


def test_forgetting_another_reaches_what_is_set_aside(store: Store, data: Data) -> None:
    store.restrict([ANN])
    build(store, data)
    receipt = store.forget([BOB])
    assert isinstance(receipt, RequestRecord)
    assert sorted(receipt.revoked) == sorted([*REACHED, *REACHED])  # those set aside, and those in their place
    assert store.set_aside() == []
    store.release([ANN])
    check(store, data)


def test_who_is_restricted_twice_is_restricted_once(store: Store, data: Data) -> None:
    store.restrict([ANN])
    build(store, data)
    receipt = store.restrict([ANN])
    assert (receipt.already_restricted, receipt.set_aside) == (1, ())
    assert store.count_restricted() == 1
    check(store, data)


def test_who_is_unknown_can_be_restricted_before_any_fit(store: Store, data: Data) -> None:
    with pytest.raises(UnknownSubjectError):
        store.restrict(["nobody"])
    assert store.restrict(["nobody"], strict=False).unknown == 1
    assert store.restricted(["nobody", ANN]) == {"nobody"}
    assert store.release(["nobody"]).already_restricted == 1
    assert store.restricted(["nobody"]) == set()


def test_a_release_of_who_is_not_restricted_is_refused_whole(store: Store, data: Data) -> None:
    store.restrict([ANN])
    store.forget([BOB])
    for people in ([ANN, CLEO], [ANN, BOB], ["nobody"]):
        with pytest.raises(UnknownSubjectError, match="not restricted"):
            store.release(people)
    assert (store.count_restricted(), store.request_number) == (1, 2)
    with pytest.raises(UnknownSubjectError, match=f"'{BOB}' are forgotten, which cannot be undone"):
        store.release([BOB])


def test_a_name_gives_the_receipt_again_and_is_refused_for_another_kind(store: Store, data: Data) -> None:
    for ask in (store.restrict, store.release, store.rectify):
        first = ask([ANN], request_id=ask.__name__)  # type: ignore[operator]
        build(store, data)
        assert ask([ANN], request_id=ask.__name__) == first  # type: ignore[operator]
    assert store.request_number == 3
    with pytest.raises(ConfigurationError, match="one to restrict"):
        store.forget([ANN], request_id="restrict")


def test_who_waits_to_be_forgotten_later_can_be_restricted_until_then(store: Store, data: Data) -> None:
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    store.schedule([ANN], due)
    store.restrict([ANN])
    build(store, data)
    receipt = store.forget_due(due)
    assert receipt is not None
    assert set(receipt.revoked) == REACHED
    assert (store.forgotten([ANN]), store.count_restricted()) == ({ANN}, 0)
    check(store, data)


@pytest.mark.parametrize("kind", ["rectify", "restrict", "release", "forget"])
def test_a_unit_that_is_being_trained_when_a_request_comes_in_is_not_kept(
    tmp_path: Path, data: Data, kind: str
) -> None:
    with make(tmp_path / "store") as store:
        if kind == "release":
            store.restrict([ANN])
        attempt = begin(store, plan(store, data))
        assert attempt is not None
        getattr(store, kind)([ANN])
        with pytest.raises(RevokedError):
            attempt.check()
        with pytest.raises(RevokedError):
            commit(attempt)
        assert store.alive() == {}
        check(store, data)


def test_a_stale_unit_that_came_back_is_not_dropped_by_a_fit_that_has_not_seen_it(store: Store, data: Data) -> None:
    before = keys_of(store)
    store.restrict([ANN])
    build(store, data)
    data.correct(BOB)  # changed rows without a request: what serves is stale
    found = plan(store, data)
    store.release([ANN])
    with pytest.raises(RevokedError):
        begin(store, found)
    assert keys_of(store) == before


def test_a_restriction_erases_exported_copies(store: Store, data: Data, tmp_path: Path) -> None:
    from lightning_s3t.store.copies.exporting import make_export_name

    unit = UnitId(0, (0,))
    digest = store.alive()[unit].snapshot
    store.export(make_export_name(unit), unit, [digest], {tmp_path / "a.bin": b"x"})
    receipt = store.restrict([ANN])
    assert len(receipt.exports) == 1
    assert not (tmp_path / "a.bin").exists()
    check(store, data)


def test_a_receipt_says_what_was_asked_and_tells_no_place(store: Store) -> None:
    receipt = store.restrict([ANN])
    text = receipt.to_json()
    assert Receipt.from_json(text) == receipt.receipt
    assert '"kind": "restrict"' in text
    assert not any(unit in text for unit in REACHED)
    assert store.has_given(receipt.receipt)
    store.release([ANN])
    assert [one.kind for one in store.receipts()] == ["restrict", "release"]


def test_a_restored_backup_carries_corrections_and_restrictions_out_again(
    store: Store, data: Data, tmp_path: Path
) -> None:
    back_up(store.path, tmp_path / "backup.db")
    store.restrict([ANN])
    data.correct(CLEO)
    store.rectify([CLEO])
    store.close()
    restore(store.path, tmp_path / "backup.db")
    with Store.open(store.path) as again:
        assert again.restricted(PEOPLE) == {ANN}
        assert keys_of(again) == {}
        assert again.set_aside() == [UnitId(0, (0,))]
        check(again, data)
        again.release([ANN])
        again.forget([BOB])
    restore(store.path, tmp_path / "backup.db")
    with Store.open(store.path) as again:
        assert (again.count_restricted(), again.set_aside(), again.alive()) == (0, [], {})
        check(again, data)


def test_a_rotation_keeps_who_is_restricted_and_what_is_set_aside(store: Store, data: Data) -> None:
    before = keys_of(store)
    store.restrict([ANN])
    store.rotate_key()
    assert store.restricted(PEOPLE) == {ANN}
    build(store, data)
    check(store, data)
    with Store.open(store.path) as again:
        again.release([ANN])
        assert keys_of(again) == before
        check(again, data)


def test_a_damaged_unit_that_is_set_aside_is_named(store: Store) -> None:
    store.restrict([ANN])
    kept = store._ledger.aside()[0]
    (store.path / "snapshots" / f"{kept.entry.digest}.safetensors").write_bytes(b"damaged")
    assert store.verify().problems == (f"The snapshot of unit {kept.name}, which is set aside, is missing or damaged.",)


PERSON = st.sampled_from(PEOPLE)
REQUEST = st.tuples(st.sampled_from(["forget", "rectify", "restrict", "restrict", "release", "release"]), PERSON)
STEP = st.one_of(
    st.tuples(st.just("fit"), st.none()),
    st.tuples(st.just("fit"), st.none()),
    st.tuples(st.just("request"), REQUEST),
    st.tuples(st.just("request"), REQUEST),
    st.tuples(st.just("request during a fit"), REQUEST),
    st.tuples(st.sampled_from(["rotate", "reopen", "back up", "restore"]), st.none()),
)


def ask(store: Store, data: Data, kind: str, person: str) -> None:
    if kind == "rectify":
        data.correct(person)
    call: Callable[[list[str]], object] = getattr(store, kind)
    if kind == "release" and not store.restricted([person]):
        with pytest.raises(UnknownSubjectError):
            call([person])
        return
    call([person])


@settings(deadline=None, max_examples=in_tier(10, 100), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=3, max_size=14))
def test_whatever_is_asked_in_whatever_order_nothing_serves_that_must_not(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, tuple[str, str] | None]]
) -> None:
    folder, data = tmp_path_factory.mktemp("life"), Data()
    store, backup = make(folder / "store"), folder / "backup.db"
    build(store, data)
    for what, request in steps:
        if what == "fit":
            build(store, data)
            assert keys_of(store) == wanted(store, data)
        elif what == "rotate":
            store.rotate_key()
        elif what == "back up":
            back_up(store.path, backup)
        elif what in ("reopen", "restore"):
            store.close()
            if what == "restore" and backup.exists():
                restore(store.path, backup)
            store = Store.open(store.path)
        elif request is not None:
            as_loaded = dict(data.versions)
            attempt = begin(store, plan(store, data, as_loaded)) if what == "request during a fit" else None
            ask(store, data, *request)
            if attempt is not None:
                commit_unless_revoked(attempt)
        check(store, data)
    store.close()
