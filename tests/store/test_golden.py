"""Stores and receipts of each format: today's are read, older ones are refused and left as they are."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import torch

from lightning_s3t.core import receipts
from lightning_s3t.errors import StoreError
from lightning_s3t.store import Receipt, Store
from lightning_s3t.store.ledgers import sqlite as sqlite_ledger
from tests.store.golden_store import GOLDEN, PEOPLE, expected, ledger_archive, receipt_file, tensor_of

CHANGED = (
    "The format of a store has changed. Raise its number, run `python -m tests.store.golden_store`, and tell users in "
    "CHANGELOG.md what to do: docs/compatibility.md."
)
LEDGERS = sorted(GOLDEN.glob("ledger-*.tar.gz"))
RECEIPTS = sorted(GOLDEN.glob("receipt-*.json"))


def number_of(file: Path) -> int:
    return int(re.sub(r"\D", "", file.name.partition(".")[0]))


def others(today: int, files: list[Path]) -> list[int]:
    """The numbers of all older golden files, and both neighbours of today's."""
    return sorted({today - 1, today + 1, *map(number_of, files)} - {today})


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "store"


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def test_there_is_a_golden_file_of_each_of_todays_formats() -> None:
    assert ledger_archive(sqlite_ledger.FORMAT) in LEDGERS, CHANGED
    assert receipt_file(receipts.FORMAT) in RECEIPTS, CHANGED


def test_todays_store_is_read_and_goes_on(tmp_path: Path) -> None:
    path = unpack(ledger_archive(sqlite_ledger.FORMAT), tmp_path)
    try:
        store = Store.open(path)
    except StoreError as error:
        raise AssertionError(CHANGED) from error
    with store:
        assert expected(store) == json.loads((tmp_path / "expected.json").read_text()), CHANGED
        assert len(store.alive()) > 2
        for unit in store.alive():
            assert torch.equal(store.load(unit)["w"], tensor_of(unit))
        assert store.verify().problems == ()
        assert store.forget(PEOPLE).already_forgotten == 1
        assert store.alive() == {}


@pytest.mark.parametrize("number", others(sqlite_ledger.FORMAT, LEDGERS))
def test_a_store_of_another_format_is_refused_and_left_as_it_is(number: int, tmp_path: Path) -> None:
    archive = ledger_archive(number)
    path = unpack(archive if archive in LEDGERS else ledger_archive(sqlite_ledger.FORMAT), tmp_path)
    if archive not in LEDGERS:
        with closing(sqlite3.connect(path / "ledger.db")) as ledger:
            ledger.execute(f"PRAGMA user_version = {number}")
    before = digests(path)
    with pytest.raises(StoreError, match=f"has format {number}, this version of lightning_s3t reads") as refusal:
        Store.open(path)
    assert "train again into a new folder, without the forgotten subjects" in str(refusal.value)
    assert digests(path) == before


def test_todays_receipt_is_read() -> None:
    receipt = Receipt.from_json(receipt_file(receipts.FORMAT).read_text())
    assert (receipt.kind, receipt.request_id, receipt.guarantee) == ("forget", "ticket-1", "exact"), CHANGED


@pytest.mark.parametrize("number", others(receipts.FORMAT, RECEIPTS))
def test_a_receipt_of_another_format_is_refused(number: int) -> None:
    file = receipt_file(number)
    text = file.read_text() if file in RECEIPTS else receipt_file(receipts.FORMAT).read_text()
    document = {**json.loads(text), "format": number}
    with pytest.raises(StoreError, match=f"has format {number}. Expected a receipt of format"):
        Receipt.from_json(json.dumps(document))
