"""The floor as a store keeps it: sums of integers from which requests subtract."""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.core.floor import PRETRAINED, FloorPart
from lightning_s3t.errors import DataError, RevokedError, StoreError, StoreMismatchError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.heads.feature_sums import FeatureRows, FeatureSums
from lightning_s3t.store.heads.floor import sum_rows
from tests.store.backups import back_up, restore
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, build, in_place, session
from tests.tiers import in_tier

PART = FloorPart(layer="head", width=5, outputs=3, bits=8, target_step=1.0)
OWNERS = [person for person in PEOPLE[:20] for _ in range(2)]


def rows_of(count: int, seed: int = 0) -> FeatureRows:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-127, 128, (count, PART.width), generator=generator, dtype=torch.int8)
    return FeatureRows(features, torch.randint(3, (count,), generator=generator).int())


ROWS = rows_of(len(OWNERS))


def rows_without(*people: str) -> FeatureRows:
    kept = [row for row, owner in enumerate(OWNERS) if owner not in people]
    return FeatureRows(ROWS.features[kept], ROWS.targets[kept])


def sums_of(rows: FeatureRows) -> FeatureSums:
    sums = FeatureSums(PART, "multiclass")
    sums.add(rows)
    return sums


def assert_same(found: FeatureSums | None, expected: FeatureSums) -> None:
    assert found is not None
    mine, theirs = found.to_tensors(), expected.to_tensors()
    assert {name: tensor.tolist() for name, tensor in mine.items()} == {n: t.tolist() for n, t in theirs.items()}


def add(store: Store, rows: FeatureRows = ROWS, owners: list[str] = OWNERS) -> None:
    building = session(store)
    building.register(PEOPLE)
    building.add_features(PRETRAINED, PART, "multiclass", rows, owners, [b""] * len(owners))
    building.complete_head(PRETRAINED)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", SETTINGS) as made:
        add(made)
        yield made


# the sums


@given(st.randoms(use_true_random=False), st.integers(0, 40), st.sampled_from(["multiclass", "multilabel"]))
def test_sums_are_those_of_the_rows_that_are_left_in_any_order_and_grouping(
    chance: random.Random, taken: int, task: str
) -> None:
    rows = ROWS if task == "multiclass" else FeatureRows(ROWS.features, torch.randint(2, (40, 3)).int())
    order, gone = chance.sample(range(40), 40), chance.sample(range(40), taken)
    sums, scratch = FeatureSums(PART, task), FeatureSums(PART, task)  # type: ignore[arg-type]
    for group in (order[:7], order[7:], []):
        sums.add(FeatureRows(rows.features[group], rows.targets[group]))
    cut = chance.randint(0, taken)
    for group in (gone[:cut], gone[cut:]):
        sums.subtract(FeatureRows(rows.features[group], rows.targets[group]))
    left = sorted(set(order) - set(gone))
    scratch.add(FeatureRows(rows.features[left], rows.targets[left]))
    assert_same(sums, scratch)


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_rows_and_sums_are_what_was_kept(task: str, bits: int) -> None:
    part = PART.model_copy(update={"bits": bits})
    features = ROWS.features.clamp(-part.limit, part.limit)
    features[0], features[1] = part.limit, -part.limit
    targets = ROWS.targets if task == "multiclass" else torch.randint(-(2**20), 2**20, (40, 3)).int()
    rows = FeatureRows(features, targets)
    encoded = rows.encode(bits)
    assert {len(row) for row in encoded} == {targets[0].numel() * 4 + -(-5 * bits // 8)}
    again = FeatureRows.decode(encoded, part, task)  # type: ignore[arg-type]
    assert again.features.equal(rows.features)
    assert again.targets.equal(rows.targets)
    sums = FeatureSums(PART, task)  # type: ignore[arg-type]
    sums.add(rows)
    assert_same(FeatureSums.from_tensors(sums.to_tensors(), PART, task), sums)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "kept_as"), [(133_144, torch.int32), (133_145, torch.int64)])
def test_sums_are_kept_in_the_fewest_bytes_that_hold_them(rows: int, kept_as: torch.dtype) -> None:
    part = PART.model_copy(update={"width": 2})
    sums = FeatureSums(part, "multiclass")
    sums.add(FeatureRows(torch.tensor([[127, -127]], dtype=torch.int8).repeat(rows, 1), torch.zeros(rows).int()))
    kept = sums.to_tensors()["gram"]
    assert kept.dtype == kept_as
    assert kept.tolist() == [rows * number for number in (127**2, -(127**2), 127**2, 127, -127, 1)]
    assert FeatureSums.from_tensors(sums.to_tensors(), part, "multiclass").gram.equal(sums.gram)


def test_classes_that_the_head_does_not_have_are_refused() -> None:
    with pytest.raises(DataError, match=r"classes from 0 to 3.*Expected classes from 0 to 2"):
        sums_of(FeatureRows(ROWS.features[:2], torch.tensor([0, 3]).int()))


def test_targets_of_too_many_steps_are_refused() -> None:
    sums = FeatureSums(PART.model_copy(update={"outputs": 1}), "regression")
    with pytest.raises(DataError, match="Use a larger step"):
        sums.add(FeatureRows(ROWS.features[:1], torch.tensor([[2**20 + 1]]).int()))


# requests


def test_a_request_leaves_the_sums_of_a_store_that_never_saw_the_person(store: Store, tmp_path: Path) -> None:
    receipt = store.forget(["user-3", "user-50"])
    assert receipt.subtracted_rows == 2
    with Store.create(tmp_path / "scratch", SETTINGS) as scratch:
        add(scratch, rows_without("user-3"), [owner for owner in OWNERS if owner != "user-3"])
        assert_same(store.load_head(), sums_of(rows_without("user-3")))
        assert store.heads() == scratch.heads()
        assert (store.path / "snapshots").exists()
        kept, theirs = ({p.name for p in (s.path / "snapshots").iterdir()} for s in (store, scratch))
        assert kept == theirs


def test_requests_add_up_until_nobody_is_left(store: Store) -> None:
    people = sorted(set(OWNERS))
    random.Random(1).shuffle(people)
    for count in range(0, len(people), 3):
        store.forget(people[count : count + 3])
        assert_same(store.load_head(), sums_of(rows_without(*people[: count + 3])))
    assert store.verify().passed
    assert store.load_head().rows == 0  # type: ignore[union-attr]


def test_a_request_erases_the_features_and_the_sums_before(store: Store) -> None:
    row = OWNERS.index("user-3")
    features = ROWS.features[row].numpy().tobytes()
    before = next(iter((store.path / "snapshots").iterdir()))
    assert features in b"".join(path.read_bytes() for path in store.path.rglob("ledger.db*"))
    receipt = store.forget(["user-3"])
    assert receipt.erased_files == 1
    assert not before.exists()
    assert features not in b"".join(path.read_bytes() for path in store.path.rglob("*") if path.is_file())


def test_who_is_forgotten_is_not_added_again(store: Store) -> None:
    store.forget(["user-3"])
    add(store, FeatureRows(ROWS.features[:8], ROWS.targets[:8]), ["user-3", "new", *["user-3"] * 6])
    assert store.load_head().rows == len(OWNERS) - 2 + 1  # type: ignore[union-attr]


@pytest.mark.parametrize("is_restricted", [False, True])
def test_rows_that_were_corrected_since_they_were_loaded_are_not_added(store: Store, is_restricted: bool) -> None:
    if is_restricted:
        store.restrict(["user-3"])
    loaded_at = Store.newest_event(store.path)
    store.rectify(["user-3"])
    if is_restricted:
        store.release(["user-3"])
    store.forget(["user-4"])  # the fit has planned again since
    session(store).add_features(PRETRAINED, PART, "multiclass", ROWS, OWNERS, [b""] * len(OWNERS), loaded_at)
    assert "user-3" not in owners_of(store)
    session(store).add_features(
        PRETRAINED, PART, "multiclass", ROWS, OWNERS, [b""] * len(OWNERS), Store.newest_event(store.path)
    )
    assert "user-3" in owners_of(store)


def owners_of(store: Store) -> set[str]:
    hashes = store._keyring.hashes(PEOPLE)
    return {hashes[hash_] for hash_, _, _ in store._ledger.features(PRETRAINED)}


def test_the_status_says_that_rows_are_missing_until_the_next_fit(tmp_path: Path) -> None:
    method = {"name": "closed_form", "guarantee": "exact", "response": "subtract"}
    with Store.create(tmp_path / "store", {**SETTINGS, "method": method}) as store:
        add(store)
        for request in (lambda: store.release(["user-3"]), lambda: store.rectify(["user-4"])):
            store.restrict(["user-3"])
            assert store.status().advice is None
            loaded_at = Store.newest_event(store.path)
            request()
            session(store).complete_head(PRETRAINED, loaded_at)  # a fit that ran meanwhile
            assert "it adds corrected rows, and the rows of released people" in str(store.status().advice)
            missing = session(store).find_stale_features(PRETRAINED, OWNERS, [b""] * len(OWNERS))
            kept = [row for row, owner in enumerate(OWNERS) if owner in missing]
            add(store, FeatureRows(ROWS.features[kept], ROWS.targets[kept]), [OWNERS[row] for row in kept])
            assert store.status().advice is None


def test_a_head_does_not_mix_two_units_of_one_name(store: Store) -> None:
    unit, (ann, bob) = UnitId(0, (0,)), (in_place(0, 0), in_place(0, 0, 1))
    build(store, unit, 1.0)
    store.restrict([ann])
    build(store, unit, 2.0)
    half, loaded = len(OWNERS) // 2, store.request_number
    rows, tags = FeatureRows(ROWS.features[:half], ROWS.targets[:half]), [b""] * half
    session(store).add_features(str(unit), PART, "multiclass", rows, OWNERS[:half], tags, None, loaded)
    store.release([ann])  # the first is back
    for call in (
        lambda: session(store).add_features(str(unit), PART, "multiclass", rows, OWNERS[half:], tags, None, loaded),
        lambda: session(store).complete_head(str(unit), None, loaded),
    ):
        with pytest.raises(RevokedError, match="A request has reached unit 0/0"):
            call()
    assert str(unit) not in store.heads()
    store.forget([bob])
    assert not store.alive()


def test_sums_that_would_not_be_exact_are_refused() -> None:
    part = PART.model_copy(update={"width": 1, "outputs": 1})
    sums = FeatureSums(part, "regression")
    sums.squares += 2**63 - 5
    with pytest.raises(DataError, match=r"sums over 1 rows are too large.*Use a larger step"):
        sums.add(FeatureRows(torch.ones(1, 1).to(torch.int8), torch.full((1, 1), 3).int()))
    other = FeatureSums(part, "regression")
    other.gram += 2.0**53
    with pytest.raises(DataError, match="too large"):
        FeatureSums(part, "regression").add_sums(other)


def test_what_is_stale_is_taken_out_and_what_is_missing_is_named(store: Store) -> None:
    data = [owner for owner in OWNERS if owner != "user-3"] + [
        "user-4",
        "new",
    ]  # one gone, one with a row more, one new
    missing = session(store).find_stale_features(PRETRAINED, data, [b""] * len(data))
    assert missing == {"user-4", "new"}
    assert_same(store.load_head(), sums_of(rows_without("user-3", "user-4")))
    assert not store.heads()[PRETRAINED].complete  # type: ignore[union-attr]


def test_rows_with_other_contents_are_stale(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        tags = [bytes([row]) for row in range(len(OWNERS))]
        session(store).add_features(PRETRAINED, PART, "multiclass", ROWS, OWNERS, tags)
        assert session(store).find_stale_features(PRETRAINED, OWNERS, tags) == set()
        assert session(store).find_stale_features(PRETRAINED, OWNERS, [b"x", *tags[1:]]) == {"user-0"}


def test_another_floor_is_refused(store: Store) -> None:
    with pytest.raises(StoreMismatchError, match="bits"):
        session(store).check_floor(PART.model_copy(update={"bits": 6}))


def test_a_rotation_of_the_key_keeps_the_floor(store: Store) -> None:
    store.rotate_key()
    assert store.verify().passed
    assert session(store).find_stale_features(PRETRAINED, OWNERS, [b""] * len(OWNERS)) == set()
    assert store.forget(["user-3"]).subtracted_rows == 2
    assert_same(store.load_head(), sums_of(rows_without("user-3")))


# crashes and backups


def test_a_request_that_is_killed_anywhere_is_whole_or_has_not_been(tmp_path: Path) -> None:
    with Store.create(tmp_path / "kept", SETTINGS) as made:
        add(made)
    path = tmp_path / "store"

    def work() -> Iterator[str]:
        with Store.open(path) as store:
            store.forget(["user-3"])
            yield "done"

    step = in_tier(3, 1)
    for fatal in itertools.count(1, step):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", path)
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(path) as store:
            is_gone = bool(store.forgotten(["user-3"]))
            assert is_gone or not acknowledged
            assert_same(store.load_head(), sums_of(rows_without(*["user-3"] * is_gone)))
            assert store.verify().passed, f"killed before change {fatal}: {store.verify().problems}"
        if survived:
            break
    assert fatal > 5


def test_a_restored_ledger_subtracts_again_although_its_sums_are_erased(store: Store, tmp_path: Path) -> None:
    back_up(store.path, tmp_path / "backup.db")
    store.forget(["user-3"])
    store.forget(["user-4"])
    store.close()
    restore(store.path, tmp_path / "backup.db")
    with Store.open(store.path) as restored:
        assert_same(restored.load_head(), sums_of(rows_without("user-3", "user-4")))
        assert restored.verify().passed


def test_a_backup_from_before_a_fit_that_replaced_the_sums_can_be_relied_on(store: Store, tmp_path: Path) -> None:
    back_up(store.path, tmp_path / "backup.db")
    later = rows_of(2, seed=1)
    with store.building() as building:
        building.register(["zoe"])
        building.add_features(PRETRAINED, PART, "multiclass", later, ["zoe", "zoe"], [b""] * 2)
        building.complete_head(PRETRAINED)
    found = store.drill(tmp_path / "backup.db")
    assert found.passed, found.problems
    (path,) = store.path.glob(f"snapshots/{store.heads()[PRETRAINED].digest}*")
    back_up(store.path, tmp_path / "newer.db")
    path.unlink()
    assert any("are damaged" in problem for problem in store.drill(tmp_path / "newer.db").problems)


def test_lost_sums_are_made_again_by_the_next_fit(store: Store) -> None:
    for path in (store.path / "snapshots").iterdir():
        path.unlink()
    assert any("sums of the closed-form head are damaged" in problem for problem in store.verify().problems)
    session(store).find_stale_features(PRETRAINED, OWNERS, [b""] * len(OWNERS))
    assert_same(store.load_head(), sums_of(ROWS))
    assert store.verify().passed


# somebody who can write the folder


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path / "ledger.db")
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def test_a_changed_row_is_found_before_it_is_subtracted(store: Store) -> None:
    change(store.path, "UPDATE features SET body = zeroblob(length(body)) WHERE id = 7")  # user-3's first
    with pytest.raises(StoreError, match="does not match what was written with the store's key"):
        store.forget(["user-3"])
    assert not store.forgotten(["user-3"])


def test_rows_that_have_changed_places_are_found(store: Store) -> None:
    change(store.path, "UPDATE feature_rows SET id = 100 - id WHERE id IN (7, 93)")
    change(store.path, "UPDATE feature_rows SET id = 40 - id")
    assert not store.verify().passed
    with pytest.raises(StoreError, match="does not match what was written with the store's key"):
        store.forget(["user-3"])


def test_sums_from_before_a_request_cannot_be_put_back(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path / "snapshots", tmp_path / "snapshots")
    connection = sqlite3.connect(store.path / "ledger.db")
    notes = connection.execute("SELECT name, value FROM notes WHERE name IN ('floor', 'floor_mac', 'settings_mac')")
    before = notes.fetchall()
    connection.close()
    store.forget(["user-3"])
    store.close()
    shutil.copytree(tmp_path / "snapshots", store.path / "snapshots", dirs_exist_ok=True)
    for name, value in before:
        change(store.path, "UPDATE notes SET value = ? WHERE name = ?", value, name)
    with pytest.raises(StoreError, match="the record of its floor"):
        Store.open(store.path)


def test_sums_that_are_not_those_of_the_rows_are_found(store: Store) -> None:
    with store._backend.ledger.transaction():
        store._backend.ledger.remove_features(PRETRAINED, [next(iter(store._keyring.hashes(["user-3"])))])
    assert any("do not match its rows" in problem for problem in store.verify().problems)
    assert sum_rows(store._backend, store.heads()[PRETRAINED]).rows == len(OWNERS) - 2  # type: ignore[arg-type]


def test_a_request_of_another_process_in_between_is_seen(store: Store) -> None:
    """Sums that this process remembers count only while the ledger names them."""
    store.forget(["user-0"])
    with Store.open(store.path) as other:
        other.forget(["user-1"])
    store.forget(["user-2"])
    assert_same(store.load_head(), sums_of(rows_without("user-0", "user-1", "user-2")))


def test_a_request_that_fails_half_way_leaves_nothing_behind_in_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    store.forget(["user-0"])
    with monkeypatch.context() as patch:
        patch.setattr("lightning_s3t.store.requests.effects.remove", fail)  # the sums are written by then
        with pytest.raises(RuntimeError, match="full"):
            store.forget(["user-1"])
    store.forget(["user-2"])
    assert_same(store.load_head(), sums_of(rows_without("user-0", "user-2")))
    assert store.verify().passed
