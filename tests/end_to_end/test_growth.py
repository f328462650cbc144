"""People who come after the first fit: in a shard of their own (`newcomers="append"`), or in the slices of all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_s3t
from lightning_s3t import EnsembleModule
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import UnitId, units_of
from lightning_s3t.store import Store
from tests.end_to_end.test_fit import Interrupt
from tests.people import Classifier, People, PeopleData, UnitLog, assert_bitwise_equal, fit, make_trainer, tensors_of
from tests.tiers import nightly_except

OWN = units_of(1, [(0, 1), (1, 0)])  # what a shard has


def together(*groups: People) -> People:
    return People(
        torch.cat([people.features for people in groups]),
        torch.cat([people.labels for people in groups]),
        [owner for people in groups for owner in people.owners],
    )


def newcomers(name: str = "new", people: int = 12, seed: int = 1) -> People:
    made = People.make(people, seed=seed)
    return People(made.features, made.labels, [owner.replace("user", name) for owner in made.owners])


FIRST = People.make()
GROWN = together(FIRST, newcomers())
SHARD = {UnitId(2, unit.prefix) for unit in OWN}  # that of the first generation after the two shards of all


def append(store: Path, people: People, *callbacks: Any, **arguments: Any) -> None:
    fit(store, people, *callbacks, newcomers="append", **arguments)


def forget(store: Path, *people: str) -> Any:
    with Store.open(store) as opened:
        return opened.forget(people)


@pytest.fixture
def log(tmp_path: Path) -> UnitLog:
    return UnitLog(tmp_path / "units.txt")


@pytest.fixture(scope="module")
def grown(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained store with twelve people more, for copying only."""
    store = tmp_path_factory.mktemp("grown") / "store"
    shutil.copytree(trained, store)
    append(store, GROWN)
    return store


@pytest.fixture
def store(grown: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown, tmp_path / "store"))


def test_newcomers_have_a_shard_of_their_own_and_nothing_else_is_trained(
    trained: Path, tmp_path: Path, log: UnitLog
) -> None:
    shutil.copytree(trained, tmp_path / "store")
    append(tmp_path / "store", GROWN, log)
    assert {UnitId.parse(unit) for unit in log.units} == SHARD
    first, then = tensors_of(trained), tensors_of(tmp_path / "store")
    assert_bitwise_equal(first, {unit: tensors for unit, tensors in then.items() if unit not in SHARD})


def test_a_request_of_a_newcomer_reaches_their_generations_units_alone(store: Path) -> None:
    receipt = forget(store, "new-3")
    assert receipt.revoked
    assert {UnitId.parse(unit) for unit in receipt.revoked} < SHARD
    assert list(receipt.serving) == ["2"]


def test_a_request_of_an_early_subject_leaves_the_newcomers_units(store: Path) -> None:
    forget(store, "user-3")
    assert tensors_of(store).keys() > SHARD


def test_what_serves_on_is_what_it_would_be_had_the_newcomers_rows_been_anything_else(
    store: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "other")
    append(tmp_path / "other", GROWN.replaced("new-3"))
    forget(store, "new-3")
    forget(tmp_path / "other", "new-3")
    assert tensors_of(store).keys() & SHARD
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "other"))


@pytest.mark.parametrize("person", nightly_except(["new-3", "user-3"], "new-3"))
def test_a_rebuild_is_what_the_same_registrations_give_without_the_person(
    store: Path, tmp_path: Path, person: str
) -> None:
    forget(store, person)
    append(store, GROWN)
    for people in (FIRST, GROWN):
        append(tmp_path / "scratch", people.without(person))
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


@pytest.mark.nightly
def test_those_who_come_later_do_not_depend_on_a_generation_that_is_forgotten(
    store: Path, trained: Path, tmp_path: Path
) -> None:
    forget(store, *{f"new-{number}" for number in range(12)})
    after = together(FIRST, newcomers("later", seed=2))
    append(store, after)
    shutil.copytree(trained, tmp_path / "never")
    append(tmp_path / "never", after)
    without, never = tensors_of(store), tensors_of(tmp_path / "never")
    renamed = {UnitId(2 if unit.shard == 3 else unit.shard, unit.prefix): without[unit] for unit in without}
    assert {unit.shard for unit in without} == {0, 1, 3}
    assert_bitwise_equal(renamed, never)


def test_new_rows_of_a_known_subject_go_to_the_same_place(store: Path, log: UnitLog) -> None:
    more = newcomers("user", people=1, seed=3)
    append(store, together(GROWN, People(more.features, more.labels, ["user-3"] * 3)), log)
    with Store.open(store) as opened:
        place = opened.partition.place("user-3")
        assert len(opened.generations) == 2
    assert log.units
    assert all(UnitId.parse(unit).reached_by(place) for unit in log.units)


@pytest.mark.nightly
def test_a_fit_that_is_cut_and_goes_on_makes_no_generation(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        append(tmp_path / "store", FIRST, Interrupt("1/0", RuntimeError))
    append(tmp_path / "store", FIRST)
    append(tmp_path / "store", FIRST)
    fit(tmp_path / "scratch", FIRST)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


@pytest.mark.nightly
def test_who_comes_before_anything_is_trained_came_with_the_first(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        append(tmp_path / "store", FIRST, Interrupt("0/0", RuntimeError))
    append(tmp_path / "store", GROWN)
    fit(tmp_path / "scratch", GROWN)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


@pytest.mark.nightly
def test_each_fit_may_choose(store: Path, tmp_path: Path) -> None:
    later = together(GROWN, newcomers("later", seed=2))
    fit(store, later)  # "retrain"
    with Store.open(store) as opened:
        assert opened.generations_of(["user-1", "new-1", "later-1"]) == {"user-1": 0, "new-1": 1, "later-1": 0}
        assert opened.count_generations() == (52, 12)
    fit(tmp_path / "scratch", together(FIRST, newcomers("later", seed=2)))
    found, scratch = tensors_of(store), tensors_of(tmp_path / "scratch")
    assert_bitwise_equal({unit: found[unit] for unit in found if unit not in SHARD}, scratch)


def test_a_few_who_are_too_few_are_passed_over_until_more_come(trained: Path, tmp_path: Path, log: UnitLog) -> None:
    shutil.copytree(trained, tmp_path / "store")
    with pytest.warns(UserWarning, match="too few people came later for 2 slices"):
        append(tmp_path / "store", together(FIRST, newcomers(people=1)), log)
    assert not tensors_of(tmp_path / "store").keys() & SHARD
    append(tmp_path / "store", GROWN)
    with Store.open(tmp_path / "store") as opened:
        assert opened.count_generations() == (40, 12)
    assert tensors_of(tmp_path / "store").keys() > SHARD


def test_merged_generations_are_what_they_would_be_had_all_come_together(
    store: Path, trained: Path, tmp_path: Path, log: UnitLog
) -> None:
    after = together(GROWN, newcomers("later", seed=2))
    append(store, after)
    with Store.open(store) as opened:
        assert opened.partition.all_shards == 4
        assert opened.consolidate(into=1) == 1
        assert opened.partition.all_shards == 3
        assert set(opened.alive()) == {*units_of(2, [(0, 1), (1, 0)]), *SHARD}, "what stays serves on"
    append(store, after, log)
    assert {UnitId.parse(unit) for unit in log.units} == SHARD
    shutil.copytree(trained, tmp_path / "together")
    append(tmp_path / "together", after)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "together"))


def test_the_ensemble_has_the_newcomers_shard(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        assert list(served.survivors) == [0, 1, 2]
        before = served(torch.zeros(2, 8))
        served.forget(["new-3"])
        assert served.survivors[2].stage < 2
        assert not served(torch.zeros(2, 8)).equal(before)


@pytest.mark.parametrize(
    "people",
    [GROWN, pytest.param(together(GROWN, newcomers("later", seed=2)), marks=pytest.mark.nightly)],
    ids=["all", "and new ones"],
)
def test_an_audit_finds_everybody_where_they_are(store: Path, people: People) -> None:
    forget(store, "new-3")
    trainer = make_trainer(store, newcomers="append")
    report = lightning_s3t.audit(trainer, Classifier(), datamodule=PeopleData(people.without("new-3")), units="all")
    assert report.passed, report
    assert any(unit.unit.startswith("2/") for unit in report.units)


def test_provenance_and_status_name_the_generation(store: Path) -> None:
    with Store.open(store) as opened:
        assert opened.provenance(UnitId(2, (0,)))[0]["generation"] == 1
        assert "generation" not in opened.provenance(UnitId(0, (0,)))[0]
        found = opened.status()
    assert (found.shards, len(found.states), sorted(found.serving)) == (3, 3, [0, 1, 2])
    assert [(one.shard, one.subjects) for one in found.generations] == [(2, 12)]
    assert found.capacity == found.full_capacity


@pytest.mark.nightly
def test_without_a_registry_they_are_retrained_and_the_fit_says_so(tmp_path: Path) -> None:
    append(tmp_path / "store", FIRST, keep_registry=False)
    with pytest.warns(UserWarning, match="newcomers='append' needs the registry"):
        append(tmp_path / "store", GROWN, keep_registry=False)
    fit(tmp_path / "scratch", GROWN)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


def test_a_retraining_fit_names_the_other_way(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "store")
    with pytest.warns(UserWarning, match=r"12 subjects came later; with S3T\(newcomers='append'\)"):
        fit(tmp_path / "store", GROWN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"newcomers": "wait"}, "`newcomers`"), ({"newcomers": "append", "method": "retrain"}, "one model on all data")],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(tmp_path / "store", **arguments)
