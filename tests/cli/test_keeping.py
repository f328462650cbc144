"""What a store's keeper does at the terminal: schedule, verify, sign, rotate, look."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.cli import main
from lightning_s3t.core.events import Schedule
from lightning_s3t.plots import plot_store
from lightning_s3t.store import Store
from lightning_s3t.store.history import record as write_event
from tests.store.people_store import in_place, make, session
from tests.store.test_receipts import RECEIPT

ANN, BOB = in_place(0, 0), in_place(1, 1)
Output = pytest.CaptureFixture[str]
LAST_FIT = {
    **{"rows": 1, "subjects": 1, "forgotten": 0, "other_subjects": 0, "other_rows": 0, "other_state": ""},
    "digest_rows": False,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keeping") / "store"
    with make(path) as store:
        session(store).note_options({"sequences": [[0, 1, 2], [1, 2, 0]]})
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "store"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    private, public = tmp_path_factory.mktemp("keys") / "key.pem", tmp_path_factory.mktemp("keys") / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private)], check=True)
    subprocess.run(["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)], check=True)
    return private, public


def test_a_request_for_later_is_listed_and_carried_out_when_it_is_due(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), ANN, "--at", "2999-01-31T12:00Z"]) == 0
    assert main(["forget", str(store), "--due"]) == 0
    assert main(["store", "pending", str(store)]) == 0
    output = capsys.readouterr().out
    assert "No request is due" in output
    assert "2999-01-31T12:00:00.000+00:00  1 subject" in output
    with Store.open(store) as opened:
        opened.schedule([BOB], datetime.now(timezone.utc) - timedelta(seconds=1))
    assert main(["forget", str(store), "--due", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subjects"] == 1
    with Store.open(store) as opened:
        assert opened.forgotten([ANN, BOB]) == {BOB}


def test_a_request_for_later_has_a_name_and_a_retry_schedules_it_once(store: Path, capsys: Output) -> None:
    command = ["forget", str(store), ANN, "--at", "2999-01-31T12:00Z", "--request-id", "ticket-7"]
    assert main(command) == main(command) == 0
    with Store.open(store) as opened:
        assert opened.pending() == [("2999-01-31T12:00:00.000+00:00", 1)]
        assert [request.request_id for request in opened.scheduled_requests()] == ["ticket-7"]
    capsys.readouterr()
    assert main(["store", "pending", str(store)]) == 0
    assert capsys.readouterr().out == "2999-01-31T12:00:00.000+00:00  1 subject  ticket-7\n"
    assert main(["forget", str(store), BOB, *command[3:]]) == 2
    assert "ticket-7" in capsys.readouterr().err


def test_a_request_for_later_is_cancelled(store: Path, capsys: Output) -> None:
    main(["forget", str(store), ANN, BOB, "--at", "2999-01-31T12:00Z"])
    assert main(["forget", str(store), ANN, "--cancel"]) == 0
    assert "1 subject will not be forgotten" in capsys.readouterr().out
    main(["store", "pending", str(store)])
    assert "  1 subject" in capsys.readouterr().out
    assert main(["forget", str(store), ANN, "--cancel"]) == 2
    assert "Nothing is scheduled for" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--due"], ["--at", "2999-01-31T12:00Z"], ["--allow-unknown"], ["--json"]])
def test_cancelling_takes_no_other_flag(store: Path, flags: list[str]) -> None:
    assert main(["forget", str(store), *([] if flags == ["--due"] else [ANN]), "--cancel", *flags]) == 2


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("2000-01-31T12:00+02:00", "is in the past"),
        ("9999-12-31T23:59:59-12:00", "has no date in UTC"),
        ("0001-01-01T00:00+12:00", "has no date in UTC"),
    ],
)
def test_a_time_that_cannot_come_is_refused(store: Path, capsys: Output, time: str, message: str) -> None:
    assert main(["forget", str(store), ANN, "--at", time]) == 2
    assert message in capsys.readouterr().err
    with Store.open(store) as opened:
        assert (opened.pending(), opened.request_number) == ([], 0)


def test_a_retry_under_one_name_prints_the_same_receipt(store: Path, capsys: Output) -> None:
    command = ["forget", str(store), ANN, "--request-id", "ticket-7", "--json"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert json.loads(first)["request_id"] == "ticket-7"
    assert main(["forget", str(store), BOB, "--request-id", "ticket-7"]) == 2
    assert "was given to request 1" in capsys.readouterr().err


@pytest.mark.parametrize("time", ["tomorrow", "2027-01-31", "2027-01-31T12:00"])
def test_a_time_that_is_none_is_refused(store: Path, capsys: Output, time: str) -> None:
    assert main(["forget", str(store), ANN, "--at", time]) == 2
    assert "2027-01-31T12:00Z" in capsys.readouterr().err


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes, encoding: str = "utf-8") -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_ids_may_come_from_standard_input(store: Path, monkeypatch: pytest.MonkeyPatch, mark: bytes) -> None:
    type_in(monkeypatch, mark + f"{ANN}\n\n{BOB}\r\n".encode())
    assert main(["forget", str(store), "-"]) == 0
    with Store.open(store) as opened:
        assert opened.forgotten([ANN, BOB]) == {ANN, BOB}
        assert opened.request_number == 1


def test_ids_are_utf_8_whatever_the_locale_says(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(store) as opened:
        session(opened).register(["Jos\xe9"])
    type_in(monkeypatch, "Jos\xe9\n".encode(), encoding="latin-1")
    assert main(["forget", str(store), "-"]) == 0
    with Store.open(store) as opened:
        assert opened.forgotten(["Jos\xe9"]) == {"Jos\xe9"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Jos\xe9".encode("latin-1"), "not in UTF-8"),
        (ANN.encode("utf-16"), "not in UTF-8"),
        (ANN.encode("utf-16-le"), "null characters"),
        (b"", "has no ids"),
        (b"\n \n", "has no ids"),
    ],
)
def test_standard_input_that_holds_no_ids_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output, data: bytes, message: str
) -> None:
    type_in(monkeypatch, data)
    assert main(["forget", str(store), "-", "--allow-unknown"]) == 2
    assert message in capsys.readouterr().err
    with Store.open(store) as opened:
        assert opened.request_number == 0


def test_receipts_are_exported_as_a_table(store: Path, capsys: Output) -> None:
    main(["forget", str(store), ANN])
    main(["forget", str(store), BOB])
    capsys.readouterr()
    assert main(["receipt", "list", str(store), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["request"] for row in rows] == ["1", "2"]
    assert "revoked" not in rows[0]
    main(["receipt", "list", str(store), "--format", "csv", "--internal"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert "0/0" in rows[0]["revoked"].split()


def test_what_a_requester_is_given_does_not_tell_the_place(store: Path, capsys: Output) -> None:
    main(["forget", str(store), ANN, "--json"])
    given = json.loads(capsys.readouterr().out)
    main(["receipt", "list", str(store)])
    assert json.loads(capsys.readouterr().out) == [given]
    main(["receipt", "list", str(store), "--internal"])
    (internal,) = json.loads(capsys.readouterr().out)
    assert internal.keys() - given.keys() == {"revoked", "serving", "exports", "set_aside", "returned"}
    assert internal["revoked"][0].startswith("0/")
    assert not [value for value in given.values() if isinstance(value, (list, dict)) and "0/0" in str(value)]


def test_no_column_of_the_table_tells_the_place(store: Path, tmp_path: Path, capsys: Output) -> None:
    with Store.open(store) as opened:
        unit = next(iter(opened.alive()))
        opened.export("0/0:1f0c", unit, [opened.candidates()[unit].snapshot], {tmp_path / "copy.bin": b"x"})
        assert opened.forget([ANN]).exports == ("0/0:1f0c",)
    main(["receipt", "list", str(store), "--format", "csv"])
    text = capsys.readouterr().out
    assert "0/" not in text
    assert set(csv.DictReader(io.StringIO(text)).fieldnames or ()) <= set(json.loads(RECEIPT.to_json()))
    main(["receipt", "list", str(store), "--format", "csv", "--internal"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["exports"] == "0/0:1f0c"


def test_a_table_without_requests_has_its_columns(store: Path, capsys: Output) -> None:
    main(["receipt", "list", str(store), "--format", "csv"])
    assert capsys.readouterr().out.startswith("kind,request,request_id,time,")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_name_is_no_formula_in_a_spreadsheet(store: Path, capsys: Output, name: str) -> None:
    with Store.open(store) as opened:
        opened.forget([ANN], request_id=name)
    main(["receipt", "list", str(store), "--format", "csv"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["request_id"] == f"'{name}"


def test_a_table_is_not_signed(store: Path, keys: tuple[Path, Path], capsys: Output) -> None:
    assert main(["receipt", "list", str(store), "--format", "csv", "--sign", str(keys[0])]) == 2
    assert "Expected --sign with the format json" in capsys.readouterr().err


def test_standard_input_is_not_mixed_with_ids(store: Path, capsys: Output) -> None:
    """Or a dash would be an id, and who is on standard input would not be forgotten."""
    assert main(["forget", str(store), ANN, "-", "--allow-unknown"]) == 2
    assert "Expected either a dash, for standard input, or ids" in capsys.readouterr().err
    with Store.open(store) as opened:
        assert opened.request_number == 0


def test_what_a_store_holds_does_not_steer_the_terminal(tmp_path: Path, capsys: Output) -> None:
    """A store is handed over with its key: its maker can write anything into it."""
    settings = {
        "partition": {"shards": 1, "slices": 1, "seed": 0},
        "method": {"name": "\x1b[2Js3t\x9b", "guarantee": "empirical", "response": "revoke"},
    }
    with Store.create(tmp_path / "store", settings) as opened:
        session(opened).register([ANN, BOB])
        session(opened).note_options({"sequences": [[0]], "last_fit": {**LAST_FIT, "at": "\x1b]52;c;x\x07"}})
        opened._ledger.connection.execute("BEGIN")  # type: ignore[attr-defined]
        record = Schedule(1, (("00" * 16, "9999\x1b[2J", "0/0"),))
        write_event(opened._backend, "schedule", None, asdict(record))
        opened._ledger.schedule([(bytes(16), "9999\x1b[2J", "0/0")])
        opened._ledger.connection.execute("COMMIT")  # type: ignore[attr-defined]
    for command in (
        ["store", "pending"],
        ["store", "status"],
        ["store", "verify"],
        ["forget"],
        ["receipt", "list", "--format", "csv", "--internal"],
    ):
        main([*command, str(tmp_path / "store"), *([ANN] if command == ["forget"] else [])])
        shown = capsys.readouterr()
        assert not set("\x1b\x07\x9b") & set(shown.out + shown.err), command


@pytest.mark.parametrize("unknown", ["x" * 10_000, "\x1b[2J" * 100])
def test_a_message_shows_the_start_of_an_id(store: Path, capsys: Output, unknown: str) -> None:
    assert main(["forget", str(store), unknown]) == 2
    shown = capsys.readouterr().err
    assert len(shown) < 1000
    assert "\x1b" not in shown


def test_a_signed_receipt_is_checked_against_the_key_and_the_store(
    store: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: Output
) -> None:
    private, public = keys
    assert main(["forget", str(store), ANN, "--sign", str(private)]) == 0
    text = capsys.readouterr().out
    receipt = tmp_path / "receipt.json"
    receipt.write_text(text)
    check = ["receipt", "verify", str(receipt)]
    assert main([*check, "--key", str(public), "--store", str(store)]) == 0
    receipt.write_text(text.replace('"subjects": 1', '"subjects": 2'))
    assert main([*check, "--key", str(public)]) == 1
    assert "was changed afterwards" in capsys.readouterr().err
    receipt.write_text("nothing")
    assert main([*check, "--key", str(public)]) == 1
    assert main(check) == 2


def test_whoever_has_no_key_checks_a_signed_receipt_against_the_journal(
    store: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: Output
) -> None:
    private, public = keys
    main(["forget", str(store), ANN])
    capsys.readouterr()
    main(["forget", str(store), BOB, "--sign", str(private)])
    receipt, journal = tmp_path / "receipt.json", tmp_path / "journal.jsonl"
    receipt.write_text(capsys.readouterr().out)
    shutil.copy(store / "journal.jsonl", journal)
    check = ["receipt", "verify", str(receipt), "--key", str(public), "--journal"]
    assert main([*check, str(journal)]) == 0
    assert "is in the store's history" in capsys.readouterr().out
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"request":1' not in line))
    assert main([*check, str(journal)]) == 1
    assert main([*check, str(tmp_path / "nowhere")]) == 2


def test_a_receipt_and_a_journal_without_a_signature_prove_little_and_it_is_said(
    store: Path, tmp_path: Path, capsys: Output
) -> None:
    main(["forget", str(store), ANN, "--json"])
    (tmp_path / "receipt.json").write_text(capsys.readouterr().out)
    check = ["receipt", "verify", str(tmp_path / "receipt.json")]
    assert main([*check, "--journal", str(store / "journal.jsonl")]) == 0
    assert "No signature was checked" in capsys.readouterr().out
    assert main([*check, "--store", str(store)]) == 0
    assert "No signature was checked" not in capsys.readouterr().out


def test_a_receipt_of_another_store_is_told(store: Path, template: Path, tmp_path: Path, capsys: Output) -> None:
    other = Path(shutil.copytree(template, tmp_path / "other"))
    main(["forget", str(other), BOB, "--json"])
    (tmp_path / "receipt.json").write_text(capsys.readouterr().out)
    assert main(["receipt", "verify", str(tmp_path / "receipt.json"), "--store", str(store)]) == 1
    assert "the history was rolled back" in capsys.readouterr().err


def test_a_key_that_cannot_sign_is_refused_before_anything_is_forgotten(store: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no key")
    assert main(["forget", str(store), ANN, "--sign", str(tmp_path / "no.pem")]) == 2
    with Store.open(store) as opened:
        assert opened.request_number == 0


def test_verify_exits_with_1_if_anything_is_wrong(store: Path, capsys: Output) -> None:
    assert main(["store", "verify", str(store)]) == 0
    assert "Nothing is wrong: 0 events and 12 snapshots" in capsys.readouterr().out
    (store / "stranger").write_text("hello")
    assert main(["store", "verify", str(store), "--json"]) == 1
    assert "stranger" in json.loads(capsys.readouterr().out)["problems"][0]


def test_verify_takes_damaged_units_out(store: Path, capsys: Output) -> None:
    with Store.open(store) as opened:
        unit, record = next(iter(opened.alive().items()))
    (store / "snapshots" / f"{record.snapshot}.safetensors").unlink()
    assert main(["store", "verify", str(store)]) == 1
    assert f"The snapshot of unit {unit} is missing" in capsys.readouterr().out
    assert main(["store", "verify", str(store)]) == 0


def test_the_key_is_rotated(store: Path) -> None:
    main(["forget", str(store), ANN])
    assert main(["store", "rotate-key", str(store)]) == 0
    assert (store / "subject.key").stat().st_size == 64
    with Store.open(store) as opened:
        assert opened.forgotten([ANN, BOB]) == {ANN}


def test_status_tells_what_serves_from_what_is_revoked_and_what_is_missing(store: Path, capsys: Output) -> None:
    with Store.open(store) as opened:
        session(opened).note_options({"sequences": [[0, 1, 2], [1, 2, 0], [2, 0, 1]]})
        opened.forget([ANN])
    assert main(["store", "status", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["states"][0] == [["revoked"] * 3, ["serves", "serves", "revoked"], ["missing"] * 3]
    assert found["states"][1] == [["serves"] * 3, ["alive"] * 3, ["missing"] * 3]
    assert found["serving"] == {"0": "0/1-2", "1": "1/0-1-2"}
    assert found["requests"] == 1
    assert found["advice"] is None
    assert main(["store", "status", str(store)]) == 0
    assert "✕✕✕" in capsys.readouterr().out


def test_status_advises_to_train_again_when_a_shard_is_dark(store: Path, capsys: Output) -> None:
    with Store.open(store) as opened:
        opened.forget([ANN, in_place(0, 1)])
    main(["store", "status", str(store)])
    assert "1 of 2 shards serve nothing" in " ".join(capsys.readouterr().out.split())


def test_status_draws_a_picture(store: Path, tmp_path: Path) -> None:
    assert main(["store", "status", str(store), "--plot", str(tmp_path / "store.png")]) == 0
    assert (tmp_path / "store.png").read_bytes().startswith(b"\x89PNG")
    assert main(["store", "status", str(store), "--plot", str(tmp_path / "store.txt")]) == 2


def test_the_picture_has_a_cell_for_each_unit(store: Path) -> None:
    with Store.open(store) as opened:
        figure = plot_store(opened.status())
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().size == 2 * (2 * 3 + 1)


def test_an_edited_receipt_is_told_by_the_store_alone(store: Path, tmp_path: Path, capsys: Output) -> None:
    main(["forget", str(store), ANN, "--json"])
    text = capsys.readouterr().out
    receipt = tmp_path / "receipt.json"
    receipt.write_text(text)
    assert main(["receipt", "verify", str(receipt), "--store", str(store)]) == 0
    receipt.write_text(text.replace('"subjects": 1', '"subjects": 2'))
    assert main(["receipt", "verify", str(receipt), "--store", str(store)]) == 1
    receipt.write_text(text.replace('"request": 1', '"request": 7'))
    assert main(["receipt", "verify", str(receipt), "--store", str(store)]) == 1


def test_a_copy_answers_in_the_place_of_the_store(store: Path, tmp_path: Path, capsys: Output) -> None:
    target = tmp_path / "copy"
    assert main(["copy", str(store), str(target)]) == 0
    assert f"{target} has replaced" in capsys.readouterr().out
    assert main(["forget", str(store), ANN]) == 2
    assert f"it was copied to {target}" in capsys.readouterr().err
    assert main(["forget", str(target), ANN]) == 0
    assert main(["store", "verify", str(target)]) == 0
    assert main(["copy", str(target), str(target)]) == 2


def test_a_restore_is_rehearsed(store: Path, tmp_path: Path, capsys: Output) -> None:
    backup = shutil.copytree(store, tmp_path / "backup")
    main(["forget", str(store), ANN])
    main(["restrict", str(store), BOB])
    capsys.readouterr()
    assert main(["drill", str(store), str(backup)]) == 0
    assert (
        "2 requests would be carried out again before the store serves (1 subject to forget)" in capsys.readouterr().out
    )
    assert main(["drill", str(store), str(backup), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replayed_requests"] == 2
    (backup / "ledger.db").write_bytes(b"damaged")
    assert main(["drill", str(store), str(backup)]) == 1
    assert "Do not count on this backup" in capsys.readouterr().out
