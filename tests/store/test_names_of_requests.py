"""Requests that their callers name, and ids that look like others."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import ConfigurationError, DataError, UnknownSubjectError
from lightning_s3t.store import Store
from tests.store.backups import back_up, restore
from tests.store.people_store import in_place, session


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def test_a_retry_under_one_name_is_no_second_request(store: Store) -> None:
    first = store.forget([in_place(0, 0), in_place(1, 1)], request_id="ticket-7")
    assert store.forget([in_place(1, 1), in_place(0, 0)], request_id="ticket-7") == first
    assert (store.request_number, first.request_id) == (1, "ticket-7")
    store.rotate_key()
    assert store.forget([in_place(0, 0), in_place(1, 1)], request_id="ticket-7") == first
    assert store.forget([in_place(0, 1)], request_id="ticket-8").request == 2


def test_a_name_is_for_one_request(store: Store) -> None:
    store.forget([in_place(0, 0)], request_id="ticket-7")
    with pytest.raises(ConfigurationError, match="was given to request 1"):
        store.forget([in_place(1, 1)], request_id="ticket-7")
    assert store.forgotten([in_place(1, 1)]) == set()


def test_a_retry_is_known_when_the_ledger_was_restored(path: Path, tmp_path: Path) -> None:
    back_up(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        first = store.forget([in_place(0, 0)], request_id="ticket-7")
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert store.forget([in_place(0, 0)], request_id="ticket-7") == first


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", 7])
def test_what_cannot_be_a_name_is_refused(store: Store, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="The name of the request"):
        store.forget([in_place(0, 0)], request_id=name)
    assert store.request_number == 0


@pytest.mark.parametrize("known", ["NFC", "NFD"])
@pytest.mark.parametrize("strict", [True, False])
def test_another_unicode_form_of_somebody_is_refused_and_named(store: Store, known: Any, strict: bool) -> None:
    person, other = (unicodedata.normalize(form, "Jos\xe9") for form in (known, {"NFC": "NFD", "NFD": "NFC"}[known]))
    session(store).register([person])
    with pytest.raises(UnknownSubjectError) as error:
        store.forget([other], strict=strict)
    assert ascii(person) in str(error.value)
    assert ascii(other) in str(error.value)
    assert store.request_number == 0
    assert store.forget([person]).unknown == 0


def test_an_id_that_begins_with_a_byte_order_mark_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="byte order mark"):
        store.forget(["\ufeffuser-1"], strict=False)


def test_a_request_that_waits_for_a_fit_takes_no_name(tmp_path: Path) -> None:
    method = {"name": "retrain", "guarantee": "exact", "response": "replace"}
    settings = {"partition": {"shards": 1, "slices": 1, "seed": 0}, "method": method}
    with Store.create(tmp_path / "store", settings, register=False) as store:
        with pytest.raises(ConfigurationError, match="they have no names"):
            store.forget(["ann"], request_id="ticket-7")
        assert store.pending() == []
