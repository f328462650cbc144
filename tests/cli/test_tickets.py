"""Requests that wait for a fit, at the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_s3t.cli import main
from tests.store.test_replacing import make

Output = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make(tmp_path / "store")
    return tmp_path / "store"


def test_forget_gives_a_ticket_and_says_what_serves(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "bob"]) == 0
    output = capsys.readouterr().out
    assert "1 of 1 subjects wait for the next fit" in output
    assert "The serving model still has their data in it" in output


def test_a_ticket_is_json_too(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "bob", "--json"]) == 0
    ticket = json.loads(capsys.readouterr().out)
    assert (ticket["subjects"], ticket["method"]) == (1, "ssd")


def test_what_waits_is_not_carried_out_as_due(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "--due"]) == 0
    assert "waits for the next fit" in capsys.readouterr().out


def test_status_says_who_waits_and_what_is_promised(store: Path, capsys: Output) -> None:
    assert main(["store", "status", str(store)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "1 subjects wait for the next fit to be forgotten" in output
    assert "Guarantee of 'ssd': empirical" in output
    assert "Further requests that the store withstands" not in output
