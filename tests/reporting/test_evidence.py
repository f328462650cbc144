"""Evidence: what a third party sees in an archive, and what it notices."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.cli.main import main
from lightning_s3t.core.events import Event
from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.reporting import Evidence, write_evidence
from lightning_s3t.store import Store
from lightning_s3t.store.keys.identities import read_keys
from tests.store.people_store import PEOPLE, in_place, make

AUDIT = {"passed": True, "units": [{"unit": "0/1", "outcome": "equal"}]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = make(tmp_path / "store")
    made.forget([in_place(0, 0)])
    made.restrict([in_place(1, 2)])
    made.rotate_key()
    made.release([in_place(1, 2)])
    made.forget([in_place(1, 1)])
    return made


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def wrong(path: Path, key: Path | None = None) -> dict[str, tuple[str, ...]]:
    """What a check finds wrong."""
    return {finding.what: finding.problems for finding in Evidence.read(path).check(key) if not finding.passed}


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], renew: bool = True) -> None:
    """Change the files of an archive, and the statement's digests of them."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if renew:
        statement = json.loads(files["statement.json"])
        others = {name: data for name, data in files.items() if name != "statement.json"}
        statement["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in others.items()}
        files["statement.json"] = json.dumps(statement).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("read", ["status", "alive", "receipts", "ages"])
def test_a_request_that_comes_in_meanwhile_leaves_nothing_wrong(
    read: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = iter([in_place(0, 0, 1), in_place(0, 2), in_place(1, 2)])
    look = getattr(Store, read)

    def overtaken(self: Store, *arguments: Any) -> Any:
        found = look(self, *arguments)
        person = next(people, None) if self is store else None
        if person is not None:
            with Store.open(store.path) as other:
                other.forget([person])
        return found

    monkeypatch.setattr(Store, read, overtaken)
    assert wrong(write_evidence(store, tmp_path / "evidence.zip")) == {}


def test_an_auditor_finds_nothing_wrong(store: Store, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip", keys[0], json.dumps(AUDIT))
    store.close()
    assert wrong(path, keys[1]) == {}
    notes = {finding.what: finding.note for finding in Evidence.read(path).check(keys[1])}
    assert notes["receipts"].startswith("4 requests")
    assert notes["audit"] == "1 of 1 units and heads were bitwise equal."


def test_it_has_no_id_of_a_person_and_no_key(store: Store, tmp_path: Path) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")
    with zipfile.ZipFile(path) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist())
    assert not any(f'"{person}"'.encode() in text for person in PEOPLE)
    for key in read_keys(tmp_path / "store"):
        assert key not in text
        assert key.hex().encode() not in text


def test_the_same_store_gives_the_same_archive(store: Store, tmp_path: Path) -> None:
    one, other = (write_evidence(store, tmp_path / str(number) / "evidence.zip") for number in made(tmp_path))
    assert one.read_bytes() == other.read_bytes()


def made(folder: Path) -> list[int]:
    for number in (1, 2):
        (folder / str(number)).mkdir()
    return [1, 2]


def test_a_change_after_the_signature_is_noticed(store: Store, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip", keys[0])

    def change(files: dict[str, bytes]) -> None:
        files["plan.json"] += b" "

    rewrite(path, change, renew=False)
    assert wrong(path, keys[1]) == {"files": ("plan.json does not match the statement.",)}
    rewrite(path, change)
    assert list(wrong(path, keys[1])) == ["signature"]


def test_without_a_signature_a_key_is_not_satisfied(store: Store, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")
    assert "has no Ed25519 signature" in wrong(path, keys[1])["signature"][0]


def test_an_event_that_was_taken_out_or_changed_is_noticed(store: Store, tmp_path: Path) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")

    def take_out(files: dict[str, bytes]) -> None:
        lines = files["history.jsonl"].splitlines(keepends=True)
        files["history.jsonl"] = b"".join(lines[1:])

    rewrite(path, take_out)
    assert "broken at position 1" in wrong(path)["history"][0]


def test_an_older_history_is_noticed(store: Store, tmp_path: Path) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")

    def cut(files: dict[str, bytes]) -> None:
        files["history.jsonl"] = b"".join(files["history.jsonl"].splitlines(keepends=True)[:-2])

    rewrite(path, cut)
    found = wrong(path)
    assert "but the statement is about event" in found["history"][0]
    assert "there are receipts for 4" in found["receipts"][0]


def changed(name: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(files: dict[str, bytes]) -> None:
        data = json.loads(files[name])
        change(data)
        files[name] = json.dumps(data).encode()

    return apply


def test_a_unit_from_before_a_request_that_reaches_it_is_noticed(store: Store, tmp_path: Path) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")
    revoked = {"unit": "0/0-1-2", "as_of": 0, "serves": True, "provenance": {}}
    rewrite(path, changed("units.json", lambda units: units.append(revoked)))
    assert wrong(path)["reach"] == ("Unit 0/0-1-2 was trained as of request 0, but request 1 reaches its data.",)


@pytest.mark.parametrize(
    ("unit", "problem"),
    [
        ("7/0", "Unit 7/0 is not in the plan of 2 shards and 3 slices."),
        ("0/5", "Unit 0/5 is not in the plan of 2 shards and 3 slices."),
        ("0/2-1", "Unit 0/2, which unit 0/2-1 was trained on top of, is missing."),
    ],
)
def test_a_unit_that_does_not_fit_the_plan_is_noticed(store: Store, tmp_path: Path, unit: str, problem: str) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")
    strange = {"unit": unit, "as_of": 9, "serves": False, "provenance": {}}
    rewrite(path, changed("units.json", lambda units: units.append(strange)))
    assert wrong(path) == {"plan": (problem,)}


def test_a_receipt_that_says_otherwise_is_noticed(store: Store, tmp_path: Path) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")
    rewrite(path, changed("receipts.json", lambda receipts: receipts[0].update(erased_files=99)))
    assert wrong(path) == {"receipts": ("The receipt of request 1 does not match the history.",)}


def test_an_audit_that_failed_is_told(store: Store, tmp_path: Path) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip", audit=json.dumps({**AUDIT, "passed": False}))
    assert list(wrong(path)) == ["audit"]


def test_a_report_of_something_else_is_no_audit(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="The audit file is not a report"):
        write_evidence(store, tmp_path / "evidence.zip", audit="[]")
    assert not (tmp_path / "evidence.zip").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"nonsense" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evidence.zip"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot be read|is not evidence"):
        Evidence.read(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/tmp/x", "weights.safetensors"])
def test_an_archive_with_other_files_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(StoreError, match="which is not part of such an archive"):
        Evidence.read(path)


@pytest.mark.parametrize("name", ["units.json", "receipts.json", "history.jsonl", "plan.json", "checks.json"])
@pytest.mark.parametrize("content", [b"", b"3", b'[{"unit": 3}]', b"\xff", b"[" * 5000])
def test_a_file_that_is_something_else_is_told(store: Store, tmp_path: Path, name: str, content: bytes) -> None:
    path = write_evidence(store, tmp_path / "evidence.zip")
    rewrite(path, lambda files: files.update({name: content}))
    assert wrong(path)


def test_the_commands_make_and_check_it(
    store: Store, tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store.close()
    path, audit = tmp_path / "evidence.zip", tmp_path / "audit.json"
    audit.write_text(json.dumps(AUDIT))
    options = ["--output", str(path), "--sign", str(keys[0]), "--audit", str(audit)]
    assert main(["evidence", "make", str(tmp_path / "store"), *options]) == 0
    assert main(["evidence", "verify", str(path), "--key", str(keys[1])]) == 0
    assert "Nothing is wrong." in capsys.readouterr().out
    rewrite(
        path, changed("checks.json", lambda checks: checks.update(problems=["The key is readable by other users."]))
    )
    assert main(["evidence", "verify", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_the_history_binds_a_receipt_that_was_given_before(store: Store, tmp_path: Path) -> None:
    receipt = store.receipts()[0].receipt
    path = write_evidence(store, tmp_path / "evidence.zip")
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "history.jsonl").write_bytes(archive.read("history.jsonl"))
    (tmp_path / "receipt.json").write_text(receipt.to_json())
    command = ["receipt", "verify", str(tmp_path / "receipt.json"), "--journal", str(tmp_path / "history.jsonl")]
    assert main(command) == 0
    assert [Event.from_json(line).position for line in (tmp_path / "history.jsonl").read_text().splitlines()]
