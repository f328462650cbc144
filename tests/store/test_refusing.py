"""Requests that are refused: noted with the reason, never carried out, for good."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store import Store
from tests.store.backups import back_up, restore
from tests.store.people_store import in_place

ANN, BOB = in_place(0, 0), in_place(1, 1)
LATER = datetime.now(timezone.utc) + timedelta(days=10)
WHY = "Article 17(3)(b): kept for the tax office."


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def states(store: Store) -> list[tuple[str | None, str, str]]:
    return [(one.request_id, one.state, one.reason) for one in store.scheduled_requests()]


def test_what_is_scheduled_is_not_carried_out_when_it_is_refused(store: Store) -> None:
    store.schedule([ANN], LATER, request_id="r-1")
    assert [store.refuse_request("r-1", WHY) for _ in range(2)] == [1, 0]
    assert store.forget_due(LATER + timedelta(days=1)) is None
    assert states(store) == [("r-1", "refused", WHY)]
    with pytest.raises(ConfigurationError, match="is refused"):
        store.forget([ANN], request_id="r-1")
    with pytest.raises(ConfigurationError, match="was refused"):
        store.schedule([ANN], LATER, request_id="r-1")
    assert store.cancel_request("r-1") == 0
    with pytest.raises(ConfigurationError, match="is refused"):
        store.refuse_request("r-1", "another reason")
    assert (store.forgotten([ANN]), states(store)) == (set(), [("r-1", "refused", WHY)])


def test_a_request_may_be_refused_that_was_never_scheduled(store: Store) -> None:
    assert store.refuse_request("r-1", WHY) == 0
    assert states(store) == [("r-1", "refused", WHY)]
    for ask in (lambda: store.forget([ANN], request_id="r-1"), lambda: store.schedule([ANN], LATER, request_id="r-1")):
        with pytest.raises(ConfigurationError, match="refused"):
            ask()
    assert store.forget([ANN], request_id="r-2").request == 1


def test_what_is_carried_out_or_cancelled_can_not_be_refused_any_more(store: Store) -> None:
    store.forget([ANN], request_id="r-1")
    store.schedule([BOB], LATER, request_id="r-2")
    store.cancel_request("r-2")
    for name, state in [("r-1", "carried out"), ("r-2", "cancelled")]:
        with pytest.raises(ConfigurationError, match=f"is {state}"):
            store.refuse_request(name, WHY)
    assert states(store) == [("r-2", "cancelled", "")]


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501, "a\nb"])
def test_what_cannot_be_a_reason_is_refused(store: Store, reason: str) -> None:
    with pytest.raises(ConfigurationError, match="The reason"):
        store.refuse_request("r-1", reason)
    with pytest.raises(ConfigurationError, match="The name of the request"):
        store.refuse_request("a\nb", WHY)
    assert store.scheduled_requests() == []


def test_it_outlives_a_restored_ledger_and_a_rotation_of_the_key(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        store.schedule([ANN], LATER, request_id="r-1")
    back_up(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        store.refuse_request("r-1", WHY)
        store.refuse_request("r-2", WHY)
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        store.rotate_key()
        assert states(store) == [("r-1", "refused", WHY), ("r-2", "refused", WHY)]
        assert (store.pending(), store.verify().problems) == ([], ())


def test_all_that_was_scheduled_is_listed_with_what_became_of_it(store: Store) -> None:
    store.schedule([ANN, BOB], LATER, request_id="r-1")
    store.schedule([ANN], LATER)
    store.schedule([in_place(0, 1)], LATER, request_id="r-2")
    store.forget([in_place(0, 1)])
    store.cancel_request("r-1")  # Ann waits for the other one
    assert states(store) == [("r-1", "cancelled", ""), (None, "scheduled", ""), ("r-2", "carried out", "")]
    store.cancel([ANN])
    assert states(store)[1] == (None, "cancelled", "")
    first = store.scheduled_requests()[0]
    assert (first.subjects, first.due) == (2, LATER.isoformat(timespec="milliseconds"))
    assert first.noted <= first.ended
