"""Requests that wait for another unit: both come at once, or neither, wherever the process is killed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import session

UNIT = UnitId(0, (0,))
SETTINGS = {
    "partition": {"shards": 1, "slices": 1, "seed": 0},
    "method": {"name": "ssd", "guarantee": "empirical", "response": "replace"},
}


def make(path: Path) -> None:
    """A store with one unit that somebody's request waits for."""
    with Store.create(path, SETTINGS) as store:
        session(store).register(["ann", "bob"])
        session(store).start_unit(UNIT, "key").commit({"w": torch.zeros(2)}, {}, None)
        store.forget(["ann"])


def replace(path: Path) -> Iterator[str]:
    with Store.open(path) as store, store.building() as building:
        receipt = building.replace(
            building.start_unit(UNIT, "without ann"), {"w": torch.ones(2)}, {}, None, store.due()
        )
        yield f"request {receipt.request}"


@pytest.mark.nightly
def test_wherever_it_is_killed_the_old_unit_serves_and_the_request_waits_or_the_new_one_and_it_is_done(
    tmp_path: Path,
) -> None:
    seen = set()
    for fatal in itertools.count(1):
        path = tmp_path / str(fatal)
        make(path)
        lines, lived = acknowledged_until_killed(lambda: replace(path), fatal)  # noqa: B023
        with Store.open(path) as store:
            tensors = store.load(UNIT)["w"].tolist()
            state = (tensors, store.request_number, len(store.due()), store.forgotten(["ann"]) == {"ann"})
            assert state in (([0.0, 0.0], 0, 1, False), ([1.0, 1.0], 1, 0, True))
            assert store.verify().problems == ()
            assert state[1] == 1 or not lines  # what was acknowledged is done
        seen.add(state[1])
        if lived:
            break
    assert seen == {0, 1}


def test_a_unit_for_requests_that_were_cancelled_meanwhile_is_not_kept(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(tmp_path / "store") as store, store.building() as building:
        due, attempt = store.due(), building.start_unit(UNIT, "without ann")
        store.cancel(["ann"])
        with pytest.raises(RevokedError, match="were cancelled"):
            building.replace(attempt, {"w": torch.ones(2)}, {}, None, due)
        assert building.carry_out(due, None) is None
        assert building.carry_out(due, UNIT) is None
        assert (store.request_number, store.load(UNIT)["w"].tolist()) == (0, [0.0, 0.0])
        assert store.verify().passed


def test_opening_a_store_does_not_carry_out_what_waits_for_a_fit(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        assert store.forget_due() is None
        assert store.request_number == 0
        assert store.candidates()


def test_an_older_ledger_with_the_journal_of_a_newer_one_takes_the_old_unit_out(tmp_path: Path) -> None:
    # the request is carried out again from the journal, and of the new unit the old ledger knows nothing
    path = tmp_path / "store"
    make(path)
    kept = (path / "ledger.db").read_bytes()
    assert list(replace(path)) == ["request 1"]
    (path / "ledger.db").write_bytes(kept)
    with Store.open(path) as store:
        assert store.forgotten(["ann"]) == {"ann"}
        assert store.candidates() == {}


def test_a_unit_that_was_made_without_who_asks_stays_with_its_files(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "store", tmp_path / "checkpoint"
    with Store.create(path, SETTINGS) as store:
        session(store).register(["ann", "bob"])
        attempt = session(store).start_unit(UNIT, "key")
        attempt.register_file(checkpoint)
        checkpoint.write_bytes(b"weights")
        attempt.commit({"w": torch.zeros(2)}, {}, None)
        store.forget(["nobody"], strict=False)
        with store.building() as building:
            receipt = building.carry_out(store.due(), UNIT)
        assert (receipt.serving, receipt.erased_files) == ({"0": "0/0"}, 0)
        assert store.verify().problems == ()
        store.take_out_damaged()
        assert store.load(UNIT)["w"].tolist() == [0.0, 0.0]
    assert checkpoint.exists()
