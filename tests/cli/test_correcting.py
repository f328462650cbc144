"""The commands `s3t rectify`, `s3t restrict` and `s3t release`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_s3t.cli import main
from lightning_s3t.store import Store
from tests.store.people_store import in_place, make

ANN = in_place(0, 0)
REACHED = ["0/0", "0/0-1", "0/0-1-2", "0/1-2-0"]
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "store"
    make(path).close()
    return path


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "store"))


def told(capsys: Output, *arguments: str | Path, status: int = 0) -> str:
    assert main([*map(str, arguments)]) == status
    return capsys.readouterr().out


def test_a_restriction_and_its_end_say_what_they_did(store: Path, capsys: Output) -> None:
    out = told(capsys, "restrict", store, ANN)
    assert "Request 1, to restrict: 1 subject, 0 of them forgotten before" in out
    assert f"Set aside 4 units: {', '.join(REACHED)}." in out
    assert "1 subject restricted" in told(capsys, "store", "status", store)
    found = json.loads(told(capsys, "store", "status", store, "--json"))
    assert (found["restricted"], found["set_aside"]) == (1, REACHED)
    out = told(capsys, "release", store, ANN)
    assert f"Put back 4 units: {', '.join(REACHED)}." in out
    assert "restricted" not in told(capsys, "store", "status", store)


def test_a_correction_says_what_it_revoked(store: Path, capsys: Output) -> None:
    out = told(capsys, "rectify", store, ANN)
    assert "Request 1, to rectify: 1 subject" in out
    assert f"Revoked 4 units: {', '.join(REACHED)}." in out
    with Store.open(store) as opened:
        assert opened.forgotten([ANN]) == set()


@pytest.mark.parametrize("command", ["rectify", "restrict"])
def test_a_request_with_a_name_prints_its_receipt_again(store: Path, capsys: Output, command: str) -> None:
    arguments = (command, store, ANN, "--request-id", "ticket-7", "--json")
    first = told(capsys, *arguments)
    assert json.loads(first)["kind"] == command
    assert told(capsys, *arguments) == first
    with Store.open(store) as opened:
        assert opened.request_number == 1


def test_ids_come_from_standard_input(store: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(f"{ANN}\n{in_place(1, 0)}\n".encode())))
    assert "2 subjects" in told(capsys, "restrict", store, "-")


def test_unknown_subjects_are_errors_unless_they_are_allowed(store: Path, capsys: Output) -> None:
    for command in ("rectify", "restrict"):
        told(capsys, command, store, "nobody", status=2)
        assert "1 never seen" in told(capsys, command, store, "nobody", "--allow-unknown")
    told(capsys, "release", store, ANN, status=2)
    assert "restricted" in told(capsys, "store", "status", store)


def test_a_request_for_nobody_is_an_error(store: Path, capsys: Output) -> None:
    for command in ("rectify", "restrict", "release"):
        told(capsys, command, store, status=2)


def test_a_signed_receipt_of_a_restriction_is_verified(store: Path, capsys: Output, tmp_path: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as s

    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "public.pem").write_bytes(public)
    text = told(capsys, "restrict", store, ANN, "--sign", tmp_path / "key.pem")
    (tmp_path / "receipt.json").write_text(text)
    verify = ("receipt", "verify", tmp_path / "receipt.json", "--key", tmp_path / "public.pem", "--store", store)
    told(capsys, *verify)
    changed = text.replace('"kind": "restrict"', '"kind": "release"')
    (tmp_path / "receipt.json").write_text(changed)
    told(capsys, *verify, status=1)


def test_a_table_of_receipts_tells_no_places(store: Path, capsys: Output) -> None:
    told(capsys, "restrict", store, ANN)
    told(capsys, "release", store, ANN)
    text = told(capsys, "receipt", "list", store, "--format", "csv")
    assert [row["kind"] for row in csv.DictReader(io.StringIO(text))] == ["restrict", "release"]
    assert "0/0" not in text
    internal = told(capsys, "receipt", "list", store, "--format", "csv", "--internal")
    rows = list(csv.DictReader(io.StringIO(internal)))
    assert rows[0]["set_aside"].split() == rows[1]["returned"].split() == REACHED
