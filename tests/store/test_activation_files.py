"""Activations of people's rows in the store's folder: gone with any request, and with the next opening after a crash."""

from __future__ import annotations

from pathlib import Path

from lightning_s3t.store import Store

SETTINGS = {"partition": {"shards": 2, "slices": 1, "seed": 0}}


def leave(store: Path) -> Path:
    folder = store / "cache" / "of-a-fit"
    folder.mkdir(parents=True)
    (folder / "1.activations").write_bytes(b"x" * 1000)
    return store / "cache"


def test_a_request_erases_them_and_the_receipt_counts_them(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        store.register(["user-0"])
        left = leave(store.path)
        receipt = store.forget(["user-0"])
        assert not left.exists()
        assert (receipt.erased_files, receipt.erased_bytes) == (1, 1000)


def test_an_opening_while_a_fit_runs_leaves_them(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store, store.fit_lock():
        left = leave(store.path)
        Store.open(store.path).close()
        assert left.exists()


def test_an_opening_while_none_runs_removes_them(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", SETTINGS).close()
    left = leave(tmp_path / "store")
    Store.open(tmp_path / "store").close()
    assert not left.exists()


def test_the_next_fit_removes_them(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        left = leave(store.path)
        with store.fit_lock():
            assert not left.exists()


def test_a_store_whose_ledger_was_never_made_may_hold_some(tmp_path: Path) -> None:
    leave(tmp_path / "store")
    with Store.create(tmp_path / "store", SETTINGS) as store:
        assert not (store.path / "cache").exists()
