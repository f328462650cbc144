"""A store on PostgreSQL when processes are killed, connections are cut, and servers stop or are replaced."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_s3t.errors import RolledBackError, StoreError
from lightning_s3t.store import RequestRecord, Store
from lightning_s3t.store.requests import execution
from tests.postgres_server import PostgresServer, shared_server
from tests.store.cut_connections import Proxy
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, in_place, session
from tests.store.people_store import build as build_unit
from tests.tiers import in_tier

ANN, BOB = in_place(0, 0), in_place(1, 0)
EVERY = in_tier(17, 1)
NAME = "ticket-7"


@dataclass(frozen=True)
class Kept:
    """A store in which everything is built, and how it is set back to that: its folder stays the same."""

    path: Path
    copy: Path
    database: str

    @classmethod
    def make(cls, folder: Path, host: Path) -> Kept:
        database = folder.name.replace("-", "_")
        with shared_server().connect() as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())
        address = f"postgresql://s3t@/{database}?host={host}"
        with Store.create(folder / "store", SETTINGS, ledger=address) as store:
            session(store).register(PEOPLE)
            for number, unit in enumerate(UNITS):
                build_unit(store, unit, number)
        shared_server().copy_database(database, f"{database}_kept")
        shutil.copytree(folder / "store", folder / "kept")
        return cls(folder / "store", folder / "kept", database)

    def go_back(self) -> None:
        shared_server().copy_database(f"{self.database}_kept", self.database)
        for entry in [entry for entry in self.path.iterdir() if entry.name != "ledger.json"]:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for entry in [entry for entry in self.copy.iterdir() if entry.name != "ledger.json"]:
            target = self.path / entry.name
            shutil.copytree(entry, target) if entry.is_dir() else shutil.copy2(entry, target)


def forget(store: Store) -> RequestRecord:
    receipt = store.forget([ANN], request_id=NAME)
    assert isinstance(receipt, RequestRecord)
    return receipt


def is_commit(message: bytes, before: int) -> bool:
    return b"COMMIT\0" in message


def assert_whole_and_once(path: Path) -> None:
    """What was asked for is there once, and the next opening has cleared up after what was cut."""
    with Store.open(path) as store:
        receipt = forget(store)  # as its caller does who has seen no answer
        assert (store.request_number, receipt.request, receipt.subjects) == (1, 1, 1)
        assert store.forgotten(PEOPLE) == {ANN}
        assert {unit for unit in UNITS if unit not in store.alive()} == {unit for unit in UNITS if "0/0" in unit.cells}
        assert store.verify().passed
        kept = {record.snapshot for record in store.alive().values()}
        assert {file.stem for file in (path / "snapshots").iterdir()} == kept


@pytest.fixture
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept.make(tmp_path_factory.mktemp("killed"), shared_server().folder)


def test_a_request_that_is_killed_before_any_statement_is_whole_or_has_not_been(kept: Kept) -> None:
    def work() -> Iterator[str]:
        with Store.open(kept.path) as store:
            forget(store)
            yield "done"

    for fatal in itertools.count(1, EVERY):
        kept.go_back()
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        if acknowledged:
            with Store.open(kept.path) as store:
                assert store.request_number == 1
        assert_whole_and_once(kept.path)
        if survived:
            break
    assert fatal > 30, "the kills went past what they should hit"


def test_a_unit_that_is_killed_before_any_statement_of_its_commit_is_whole_or_has_not_been(kept: Kept) -> None:
    checkpoint = kept.path.parent / "last.ckpt"

    def work() -> Iterator[str]:
        with Store.open(kept.path) as store, store.building():
            build_unit(store, UNITS[0], 99.0, checkpoint)
            yield "done"

    for fatal in itertools.count(1, EVERY):
        kept.go_back()
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(kept.path) as store:
            number = float(store.load(UNITS[0])["w"][0])
            assert number == 99 or (number == 0 and not acknowledged)
            assert checkpoint.exists() == (number == 99)
            assert store.verify().passed
        if survived:
            break
    assert fatal > 30, "the kills went past what they should hit"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    opened = Proxy(shared_server().folder)
    yield opened
    opened.close()


def test_a_commit_whose_answer_is_lost_is_not_repeated(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy) -> None:
    kept = Kept.make(tmp_path_factory.mktemp("answer"), proxy.folder)
    with Store.open(kept.path) as store:
        proxy.cut_at(is_commit, answered=True)
        assert forget(store).request == 1
        assert proxy.has_cut
        assert [receipt.request for receipt in store.receipts()] == [1]
        assert store.verify().passed


def test_a_commit_that_never_came_has_changed_nothing(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy) -> None:
    kept = Kept.make(tmp_path_factory.mktemp("message"), proxy.folder)
    with Store.open(kept.path) as store:
        proxy.cut_at(is_commit, answered=False)
        with pytest.raises(StoreError, match="Nothing was changed"):
            forget(store)
        assert proxy.has_cut
        assert (store.request_number, len(store.alive())) == (0, len(UNITS))
        assert forget(store).request == 1
        assert store.verify().passed


@pytest.mark.parametrize("answered", [False, True])
def test_a_connection_that_is_cut_at_any_message_leaves_a_request_whole_or_not_made(
    answered: bool, tmp_path_factory: pytest.TempPathFactory, proxy: Proxy
) -> None:
    kept = Kept.make(tmp_path_factory.mktemp(f"cut-{str(answered).lower()}"), proxy.folder)
    for number in itertools.count(0, in_tier(25, 1)):
        kept.go_back()
        with Store.open(kept.path) as store:
            proxy.cut_at(lambda message, before, number=number: before >= number, answered)  # type: ignore[misc]
            try:
                assert forget(store).request == 1
            except StoreError:
                assert proxy.has_cut
            was_cut, proxy.has_cut = proxy.has_cut, True
            assert forget(store).request == store.request_number == 1  # the connection is made again
        assert_whole_and_once(kept.path)
        if not was_cut:
            break
    assert number > 20, "the cuts went past what they should hit"


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_stops_at_once_between_commit_and_journal(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    write_journal, server = execution.write_journal, shared_server()
    stops = iter([True])

    def stop_first(*args: object) -> None:
        if next(stops, False):
            server.stop("immediate")
            if comes_back:
                server.start()
        write_journal(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "write_journal", stop_first)
    with Store.open(kept.path) as store:
        if comes_back:
            assert forget(store).request == 1
        else:
            try:
                with pytest.raises(StoreError, match="Request 1 is carried out"):
                    forget(store)
            finally:
                server.start()
    assert_whole_and_once(kept.path)


@dataclass(frozen=True)
class Pair:
    """A store whose ledger is on a primary or, when that is gone, on its standby."""

    path: Path
    primary: PostgresServer
    standby: PostgresServer

    def fail_over(self) -> None:
        self.primary.stop("immediate")
        self.standby.promote()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    primary = PostgresServer()
    standby = PostgresServer(copied_from=primary)
    address = f"postgresql://s3t@/postgres?host={primary.folder},{standby.folder}"
    with Store.create(tmp_path / "store", SETTINGS, ledger=address) as store:
        session(store).register(PEOPLE)
        for number, unit in enumerate(UNITS):
            build_unit(store, unit, number)
    standby.wait_for(primary)
    yield Pair(tmp_path / "store", primary, standby)
    for server in (primary, standby):
        server.remove()


@pytest.mark.nightly
def test_a_standby_is_not_looked_at(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a standby"):
        Store.create(tmp_path / "second", SETTINGS, ledger=pair.standby.address("lightning_s3t"))


@pytest.mark.nightly
def test_a_standby_that_takes_over_and_lacks_nothing_is_used_at_once(pair: Pair) -> None:
    with Store.open(pair.path) as serving:
        forget(serving)
        pair.standby.wait_for(pair.primary)
        pair.fail_over()
        assert serving.request_number == 1
        assert serving.verify().passed


def test_a_request_that_a_standby_lacks_is_noticed_and_made_good_before_anything_is_loaded(pair: Pair) -> None:
    revoked, other = UNITS[0], UNITS[-1]
    with Store.open(pair.path) as serving, Store.open(pair.path) as asking:
        serving.load(revoked)
        pair.standby.stop_following()
        forget(asking)
        pair.fail_over()
        for use in (lambda: serving.request_number, lambda: serving.load(revoked), lambda: serving.forget([BOB])):
            with pytest.raises(RolledBackError, match="Open the store"):
                use()
        with Store.open(pair.path) as again:
            assert again.forgotten(PEOPLE) == {ANN}
            assert revoked not in again.alive()
            assert again.verify().passed
        assert (serving.request_number, asking.request_number) == (1, 1)
        assert revoked not in serving.alive()
        serving.load(other)
        assert_whole_and_once(pair.path)


def test_a_request_that_was_lost_before_its_journal_was_written_is_not_acknowledged(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_journal = execution.write_journal

    def fail_over_first(*args: object) -> None:
        pair.fail_over()
        monkeypatch.undo()
        write_journal(*args)  # type: ignore[arg-type]

    pair.standby.stop_following()
    monkeypatch.setattr(execution, "write_journal", fail_over_first)
    with Store.open(pair.path) as store, pytest.raises(RolledBackError, match="Repeat requests that got no answer"):
        forget(store)
    with Store.open(pair.path) as store:
        assert (store.request_number, len(store.alive())) == (0, len(UNITS))
        assert store.verify().passed
    assert_whole_and_once(pair.path)
