"""A store that a stranger hands over: to open it, to look at it and to ask it must not touch anything else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_s3t.errors import StoreError
from lightning_s3t.store import Store
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.registered_files import Evidence, RegisteredFiles
from tests.store.people_store import SETTINGS, UNITS, build, in_place, session
from tests.tiers import in_tier

RAISED_BY_NONSENSE = (TypeError, ValueError, OverflowError, LookupError, AttributeError)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the one who opens the store."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.safetensors").write_text("ten years of work")
    return tmp_path / "home" / "thesis.safetensors"


def change(store: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(store / "ledger.db") as connection:
        connection.execute(statement, values)
    connection.close()


def seal(store: Path) -> None:
    """What a stranger can do too, who hands a store over with its key: authenticate what was changed."""
    backend = Backend.of(store)
    with backend.ledger.transaction():
        backend.authenticator.renew()
    backend.ledger.close()


def note_for_erasure(store: Path, path: str, evidence: str = "") -> None:
    change(store, "INSERT INTO erasures VALUES (?, NULL, 17, ?, 0)", os.fsencode(path), evidence)


def evidence(folder: Path, file: Path, **made_up: object) -> str:
    """What a stranger can write, who has the store's key and knows what a file holds and where the store will lie."""
    registered = RegisteredFiles(folder)
    text = registered.after(str(file), hashlib.sha256(b"ten years of work").hexdigest())
    fields = {**json.loads(text)[0], "inode": 1, "modified": 0, **made_up}
    return registered._seal(str(file), Evidence(**fields))


def open_and_ask(store: Path) -> None:
    with Store.open(store) as opened:
        opened.verify()
        opened.forget([in_place(0, 0)])
    Store.open(store).close()


def test_a_path_that_is_noted_for_erasure_is_not_erased(path: Path, victim: Path) -> None:
    note_for_erasure(path, str(victim))
    open_and_ask(path)
    assert victim.exists()


@pytest.mark.parametrize("name", ["../home/thesis.safetensors", "snapshots/../../home/thesis.safetensors", "ledger.db"])
def test_a_relative_path_that_is_noted_for_erasure_is_refused(path: Path, victim: Path, name: str) -> None:
    note_for_erasure(path, name)
    with pytest.raises(StoreError, match=r"lists .* for erasure, which is neither a snapshot nor a registered file"):
        Store.open(path)
    assert victim.exists()
    assert (path / "ledger.db").exists()


@pytest.mark.parametrize("made_for", ["here", "elsewhere"])
def test_a_file_whose_contents_everybody_knows_is_not_erased(path: Path, victim: Path, made_for: str) -> None:
    if made_for == "here":
        note_for_erasure(path, str(victim), evidence(path, victim))
    else:  # so that it would be beside the store if both had been moved together
        file = Path("/somewhere/else/home") / victim.name
        note_for_erasure(path, str(file), evidence(path, file, store="/somewhere/else/store", size=17))
    open_and_ask(path)
    assert victim.exists()


def test_a_file_of_an_attempt_that_was_never_made_here_is_not_erased(path: Path, victim: Path) -> None:
    with Store.open(path) as store, store._ledger.transaction():
        store._ledger.begin("0/0")
        store._ledger.own(str(victim), "0/0", evidence(path, victim, sha256=None))
    open_and_ask(path)
    assert victim.exists()


@pytest.mark.parametrize("spelling", ["{}//{}", "{}/./{}", "{}/a link/{}"])
def test_who_guesses_the_number_of_the_folder_often_enough_erases_nothing(
    path: Path, victim: Path, spelling: str
) -> None:
    """One path a guess: a stranger knows where a store will be unpacked, and about which inode it will have."""
    for guess in range(5):
        (victim.parent / ("a link" + "k" * guess)).symlink_to(victim.parent)
        text = spelling.format(victim.parent, victim.name).replace("//", "/" * (guess + 1))
        text = text.replace("/./", "/." * guess + "/").replace("a link", "a link" + "k" * guess)
        right = path.stat().st_ino if guess == 3 else guess
        note_for_erasure(path, text, evidence(path, Path("x"), inode=1).replace("x", "x"))
        sealed = RegisteredFiles(path)._seal(text, Evidence(os.path.realpath(path), right))
        change(path, "UPDATE erasures SET evidence = ? WHERE path = ?", sealed, os.fsencode(text))
    open_and_ask(path)
    assert victim.exists()


@pytest.mark.parametrize("name", ["ledger.db", "journal.jsonl"])
def test_a_second_name_of_another_file_is_refused_before_anything_is_written(
    path: Path, victim: Path, name: str
) -> None:
    (path / name).unlink()
    os.link(victim, path / name)
    with pytest.raises(StoreError, match=rf"{name} is a hard link"):
        Store.open(path)
    assert victim.read_text() == "ten years of work"


def test_what_a_stranger_has_named_does_not_steer_the_terminal(path: Path) -> None:
    change(path, "CREATE TABLE '\x1b[2J' (x)")
    with pytest.raises(StoreError) as error:
        Store.open(path)
    assert "\x1b" not in str(error.value)


def test_evidence_of_this_very_folder_has_to_be_under_its_key(path: Path, victim: Path) -> None:
    """Somebody who can write the folder, and lacks the key that lies elsewhere."""
    text = evidence(path, victim, inode=path.stat().st_ino, sha256=None)
    note_for_erasure(path, str(victim), text.replace(text[-66:-2], "0" * 64))
    note_for_erasure(path, f"{victim}.bak", text)  # that of another file
    victim.with_name(f"{victim.name}.bak").touch()
    ours = victim.with_name("ours.ckpt")
    ours.touch()
    note_for_erasure(path, str(ours), evidence(path, ours, inode=path.stat().st_ino, sha256=None))
    open_and_ask(path)
    assert not ours.exists()  # or the test would prove nothing
    assert victim.exists()
    assert victim.with_name(f"{victim.name}.bak").exists()


@pytest.mark.parametrize("what", ["nonsense", "[]", "{}", '[{"store": 1, "inode": 1}, "00"]', "[{}, 1]", "[" * 10_000])
def test_evidence_that_cannot_be_read_proves_nothing(path: Path, victim: Path, what: str) -> None:
    note_for_erasure(path, str(victim), what)
    open_and_ask(path)
    assert victim.exists()


def test_a_unit_whose_snapshot_is_a_path_is_neither_read_nor_erased(path: Path, victim: Path) -> None:
    with Store.open(path) as store:
        unit, digest = UNITS[0], store.candidates()[UNITS[0]].snapshot
    name = os.fsencode(f"../../home/{victim.stem}")
    change(
        path,
        "UPDATE vault SET head = CAST(? || substr(head, 65) AS BLOB) WHERE substr(head, 1, 64) = ?",
        name,
        digest.encode(),
    )
    seal(path)
    with Store.open(path) as store:
        assert store.candidates()[unit].snapshot == name.decode()
        assert unit in store.verify().damaged
        assert unit not in store.alive()
    assert victim.exists()


@pytest.mark.parametrize("name", ["snapshots", "ledger.db", "journal.jsonl", "subject.key", "fit.lock", "ledger.lock"])
def test_a_link_in_the_store_is_refused_before_anything_is_written(path: Path, tmp_path: Path, name: str) -> None:
    shutil.move(path / name, tmp_path / "of somebody else")
    if name == "snapshots":
        (tmp_path / "of somebody else" / "photos.jpg").touch()
    (path / name).symlink_to(tmp_path / "of somebody else")
    before = contents(tmp_path / "of somebody else")
    with pytest.raises(StoreError, match=rf"{name} is a symbolic link, and links are not followed"):
        Store.open(path)
    assert contents(tmp_path / "of somebody else") == before


def test_a_pipe_in_the_place_of_a_file_is_refused_and_nobody_waits_for_it(path: Path) -> None:
    (path / "journal.jsonl").unlink()
    os.mkfifo(path / "journal.jsonl")
    with pytest.raises(StoreError, match=r"journal\.jsonl is something else\. Expected a file"):
        Store.open(path)


def test_a_link_that_is_put_there_while_the_store_is_open_is_not_followed(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        shutil.move(path / "snapshots", tmp_path / "disk")
        (path / "snapshots").symlink_to(tmp_path / "disk")
        before = contents(tmp_path / "disk")
        with pytest.raises(StoreError, match="snapshots is a symbolic link"):
            store.forget([in_place(0, 0)])
        assert contents(tmp_path / "disk") == before


@pytest.mark.parametrize("put", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("name", ["journal.jsonl", "ledger.lock"])
def test_what_is_put_in_the_place_of_a_file_while_the_store_is_open_is_not_written_to(
    path: Path, victim: Path, put: str, name: str
) -> None:
    with Store.open(path) as store:
        (path / name).unlink()
        getattr(path / name, put)(victim)
        with pytest.raises((StoreError, OSError)):
            store.forget([in_place(0, 0)])
        assert victim.read_text() == "ten years of work"
        (path / name).unlink()
        (path / name).touch()
    with Store.open(path) as store:
        assert store.request_number == 1


def test_a_link_in_the_place_of_the_ledger_is_not_followed_by_a_new_thread(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store, ThreadPoolExecutor(1) as pool:
        (path / "ledger.db").rename(tmp_path / "another.db")
        (path / "ledger.db").symlink_to(tmp_path / "another.db")
        with pytest.raises(StoreError, match="is a symbolic link"):
            pool.submit(store.alive).result()


def test_a_key_of_terabytes_does_not_fill_the_memory(path: Path) -> None:
    with (path / "subject.key").open("r+b") as file:
        file.truncate(1 << 42)
    with pytest.raises(StoreError, match="has 4398046511104 bytes"):
        Store.open(path)


def test_a_snapshot_that_is_a_link_is_not_served(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        digest = store.candidates()[UNITS[0]].snapshot
    file = path / "snapshots" / f"{digest}.safetensors"
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with Store.open(path) as store:
        assert UNITS[0] in store.verify().damaged
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("folder", [".", "snapshots"])
def test_files_of_others_in_the_folder_are_left_alone_and_named(path: Path, folder: str) -> None:
    for name in ("photos.jpg", ".notes.tmp", ".cache.17.tmp"):
        (path / folder / name).touch()
    with Store.open(path) as store:
        with store.building():
            pass
        problems = "\n".join(store.verify().problems)
    for name in ("photos.jpg", ".notes.tmp", ".cache.17.tmp"):
        assert (path / folder / name).exists()
        assert f"an unregistered file in {'snapshots' if folder == 'snapshots' else 'the store'}: " in problems
        assert name in problems


def test_a_trigger_that_brings_back_what_a_request_removes_is_refused(path: Path) -> None:
    change(path, "CREATE TRIGGER undo AFTER INSERT ON tombstones BEGIN DELETE FROM tombstones; END")
    with pytest.raises(StoreError, match="has the trigger 'undo', which a store does not have"):
        Store.open(path)


def rollback_journal_that_names(victim: Path, pages: int) -> bytes:
    """What SQLite writes when one transaction changes several databases, with the name of the journal of all."""
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(victim)
    header = magic + struct.pack(">IIIII", 0, 0, pages, 512, 4096)
    return header.ljust(512, b"\0") + struct.pack(f">I{len(name)}sII", 2**18 + 1, name, len(name), sum(name)) + magic


def test_a_rollback_journal_that_has_sqlite_remove_another_file_is_refused(path: Path, victim: Path) -> None:
    pages = (path / "ledger.db").stat().st_size // 4096
    (path / "ledger.db-journal").write_bytes(rollback_journal_that_names(victim, pages))
    shutil.copytree(path, path.with_name("copy"))
    sqlite3.connect(path.with_name("copy") / "ledger.db").execute("SELECT count(*) FROM notes").close()
    assert not victim.exists()  # or the test would prove nothing
    victim.touch()
    with pytest.raises(StoreError, match="names a file that SQLite would remove"):
        Store.open(path)
    with pytest.raises(StoreError, match="names a file that SQLite would remove"):
        Store.create(path, SETTINGS)
    assert victim.exists()


def test_a_path_does_not_steer_the_terminal(path: Path, tmp_path: Path) -> None:
    (tmp_path / "\x1b[2Jgone.ckpt").touch()
    note_for_erasure(path, str(tmp_path / "\x1b[2Jgone.ckpt"))
    with Store.open(path) as store:
        problems = "".join(store.verify().problems)
    assert "gone.ckpt should have been erased" in problems.replace("'", "")
    assert "\x1b" not in problems


def test_a_file_that_was_there_before_an_attempt_and_was_not_written_over_stays(path: Path, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_text("of another run")
    with Store.open(path) as store:
        session(store).start_unit(UNITS[0], "key").register_file(tmp_path / "last.ckpt")
    Store.open(path).close()  # the fit was killed before it wrote
    assert (tmp_path / "last.ckpt").read_text() == "of another run"


def test_what_an_earlier_unit_wrote_goes_with_the_attempt_that_was_to_write_over_it(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        build(store, UNITS[0], 0, tmp_path / "last.ckpt")
        session(store).start_unit(UNITS[1], "key").register_file(tmp_path / "last.ckpt")
    Store.open(path).close()
    assert not (tmp_path / "last.ckpt").exists()


def mutate(store: Path, home: Path, draw: random.Random) -> None:
    """Write paths to another's files wherever a store has room for something, or put links to them into the folder."""
    victim = draw.choice([*home.rglob("*"), home])
    relative = os.path.relpath(victim, draw.choice([store, store / "snapshots"]))
    values: list[object] = [
        *(str(victim), os.fsencode(victim), relative, os.fsencode(relative), f"snapshots/{relative}"),
        *(os.fsencode(f"{relative}\n1.0"), evidence(store, victim, inode=draw.choice([1, store.stat().st_ino + 1]))),
        *(0, -1, 2**62, None, b"", "[]", "{}", b"\xff\xfe", "0/0", "../.."),
    ]
    with sqlite3.connect(store / "ledger.db", isolation_level=None) as connection:
        for _ in range(draw.randint(1, 4)):
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = draw.choice([*tables, *["erasures"] * len(tables)])
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            with contextlib.suppress(sqlite3.Error):
                if draw.random() < 0.5:
                    chosen = draw.sample(columns, draw.randint(1, len(columns)))
                    set_to = ", ".join(f"{column} = ?" for column in chosen)
                    connection.execute(f"UPDATE OR REPLACE {table} SET {set_to}", [draw.choice(values) for _ in chosen])
                else:
                    marks = ", ".join("?" * len(columns))
                    row = [draw.choice(values) for _ in columns]
                    connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)
    connection.close()
    if draw.random() < 0.3:
        place = draw.choice([*store.rglob("*"), store / "scratch", store / "scratch" / "x", store / "ledger.db-wal"])
        with contextlib.suppress(OSError):
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(victim)


@pytest.mark.parametrize("seed", range(in_tier(20, 300)))
def test_whatever_a_stranger_writes_into_a_store_nothing_else_is_touched(path: Path, tmp_path: Path, seed: int) -> None:
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    for name in ("thesis.tex", ".profile", "photos/1.jpg", f"photos/{'ab' * 32}.safetensors", "ledger.db"):
        (home / name).write_text("ten years of work")
    before, draw = contents(home), random.Random(seed)
    with Store.open(path) as store:
        build(store, UNITS[0], 0, tmp_path / "a.ckpt")
    mutate(path, home, draw)
    with contextlib.suppress(StoreError, *(RAISED_BY_NONSENSE)):
        open_and_ask(path)
    with contextlib.suppress(StoreError, *(RAISED_BY_NONSENSE)), Store.open(path) as store, store.building():
        pass
    assert contents(home) == before


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file): file.read_bytes() if file.is_file() else b""
        for file in (path.rglob("*") if path.is_dir() else [path])
    }
