"""What a hostile reviewer found in the store: careless callers, restored ledgers, damaged values, races."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import DataError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.people_store import build, in_place, make

SOON = datetime.now(timezone.utc) + timedelta(hours=1)
BANDS: dict[str, Any] = {"partition": {"shards": 1, "slices": 3, "seed": 0, "bands": [2, 1]}}


@pytest.mark.parametrize("subjects", ["user-17", b"17", bytearray(b"17"), 17, None, 3.5, [10**5000], [["a"]]])
def test_what_is_no_collection_of_ids_is_refused_and_nobody_else_is_forgotten(tmp_path: Path, subjects: Any) -> None:
    with make(tmp_path / "store", register=False) as store:
        with pytest.raises(DataError):
            store.forget(subjects, strict=False)
        with pytest.raises(DataError):
            store.schedule(subjects, SOON, strict=False)
        assert store.request_number == 0
        assert store.pending() == []


def test_who_asked_before_the_first_fit_is_forgotten_where_their_band_puts_them(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", BANDS) as store:
        store.schedule(["ann"], SOON, strict=False)
        store.register({"ann": 1, "bob": 0})
        build(store, UnitId(0, (2,)))  # the slice of the second band: trained on Ann
        receipt = store.forget_due(SOON)
        assert receipt is not None
        assert receipt.revoked == ("0/2",)
        assert not store.alive()


def test_a_receipt_of_what_was_due_says_who_was_unknown(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store:
        store.schedule(["stranger", in_place(0, 0)], SOON, strict=False)
        receipt = store.forget_due(SOON)
        assert receipt is not None
        assert (receipt.subjects, receipt.unknown) == (2, 1)


@pytest.mark.parametrize("position", [0, -1, 3, 10**30])
def test_there_is_no_digest_where_there_is_no_event(tmp_path: Path, position: int) -> None:
    with make(tmp_path / "store") as store:
        store.forget([in_place(0, 0)])
        assert store.chain_digest(position) is None


@pytest.mark.parametrize("statement", ["UPDATE events SET body = '{}'", "DELETE FROM events"])
def test_a_receipt_does_not_hold_against_a_history_that_was_changed_before_it(tmp_path: Path, statement: str) -> None:
    with make(tmp_path / "store") as store:
        receipt = store.forget([in_place(0, 0)])
        assert store.chain_digest(receipt.position) == receipt.chain
        store._ledger.connection.execute(f"{statement} WHERE position = 1")
        assert store.chain_digest(receipt.position) is None
