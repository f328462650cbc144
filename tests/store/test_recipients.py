"""Recipients: a request is complete when everyone who was handed a copy has erased it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_s3t.cli.main import main
from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.store import HandedCopy, Store
from lightning_s3t.store.keys.signing import verify_document
from tests.store.people_store import UNITS, in_place, snapshots_stay
from tests.store.test_exporting import export

UNIT = UNITS[0]  # 0/0


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        yield store


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> str:
    """The name of an exported copy of a unit, which two recipients hold."""
    (tmp_path / "out").mkdir()
    name = export(store, UNIT, tmp_path / "out" / "a.bin")
    store.hand_over(name, "mobile team")
    store.hand_over(name, "distilled model v3")
    return name


def test_a_request_is_complete_when_every_recipient_has_acknowledged(store: Store, copy: str) -> None:
    request = store.forget([in_place(0, 0)]).request
    assert not store.completion(request).complete
    store.acknowledge(copy, "mobile team")
    assert store.completion(request).acknowledged == 1
    store.acknowledge(copy, "distilled model v3")
    found = store.completion(request)
    assert (found.complete, found.exports, found.copies, found.acknowledged) == (True, 1, 2, 2)
    assert store.chain_digest(found.position) == found.chain


def test_a_request_that_reaches_no_copy_is_complete_at_once(store: Store, copy: str) -> None:
    receipt = store.forget([in_place(1, 0)])
    found = store.completion(receipt.request)
    assert (found.complete, found.copies) == (True, 0)
    assert (found.position, found.chain) == (receipt.position, receipt.chain)


def test_a_request_after_a_restriction_is_complete_only_with_the_copies_that_the_restriction_reached(
    store: Store, copy: str
) -> None:
    first = store.restrict([in_place(0, 0)]).request
    second = store.forget([in_place(0, 0)]).request
    assert not store.completion(second).complete
    for recipient in ("mobile team", "distilled model v3"):
        store.acknowledge(copy, recipient)
    for request in (first, second):
        found = store.completion(request)
        assert (found.complete, found.exports, found.copies, found.acknowledged) == (True, 1, 2, 2)
        assert store.chain_digest(found.position) == found.chain


def test_a_second_person_in_a_copy_that_is_not_acknowledged_is_not_told_that_it_is_gone(
    store: Store, copy: str
) -> None:
    store.forget([in_place(0, 0)])
    store.acknowledge(copy, "mobile team")
    second, other = store.forget([in_place(0, 0, 1)]).request, store.forget([in_place(1, 0)]).request
    found = store.completion(second)
    assert (found.complete, found.copies, found.acknowledged) == (False, 1, 0)
    assert store.completion(other).complete
    store.acknowledge(copy, "distilled model v3")
    assert store.completion(second).complete
    third = store.completion(store.forget([in_place(0, 0, 2)]).request)
    assert (third.complete, third.exports, third.copies) == (True, 0, 0)


def test_a_request_is_not_complete_while_its_files_wait_to_be_erased(store: Store) -> None:
    with snapshots_stay(), pytest.raises(StoreError, match="could not be erased"):
        store.forget([in_place(0, 0)])
    assert not store.completion(1).complete
    with Store.open(store.path) as again:
        assert again.completion(1).complete


def test_what_is_outstanding_is_named(store: Store, copy: str) -> None:
    assert {(one.request, one.acknowledged) for one in store.handed_copies()} == {(None, None)}
    request = store.forget([in_place(0, 0)]).request
    store.acknowledge(copy, "mobile team")
    first, second = store.handed_copies()
    assert (first.recipient, first.request, first.acknowledged is not None) == ("mobile team", request, True)
    assert second == HandedCopy(copy, "distilled model v3", request, None)


def test_a_second_time_changes_nothing(store: Store, copy: str) -> None:
    store.hand_over(copy, "mobile team")
    request = store.forget([in_place(0, 0)]).request
    store.acknowledge(copy, "mobile team")
    before = store.history()
    store.acknowledge(copy, "mobile team")
    assert store.history() == before
    assert store.completion(request).copies == 2


def test_a_copy_that_a_request_has_reached_goes_to_no_one_else(store: Store, copy: str) -> None:
    store.forget([in_place(0, 0)])
    with pytest.raises(ConfigurationError, match="Request 1 reached the exported copy"):
        store.hand_over(copy, "another team")


@pytest.mark.parametrize(
    ("export", "recipient", "message"),
    [
        ("0/0:none", "mobile team", "has no exported copy '0/0:none'"),
        (None, "", "Expected the name of the team or system that holds the copy"),
        (None, "a\nb", "on one line"),
        (None, "x" * 201, "up to 200"),
    ],
)
def test_what_cannot_be_handed_over_is_refused(
    store: Store, copy: str, export: str | None, recipient: str, message: str
) -> None:
    before = store.history()
    with pytest.raises(ConfigurationError, match=message):
        store.hand_over(export or copy, recipient)
    assert store.history() == before


def test_only_who_holds_a_copy_that_was_reached_can_acknowledge(store: Store, copy: str) -> None:
    with pytest.raises(ConfigurationError, match="No request has reached"):
        store.acknowledge(copy, "mobile team")
    store.forget([in_place(0, 0)])
    with pytest.raises(ConfigurationError, match="was not handed the exported copy"):
        store.acknowledge(copy, "another team")
    with pytest.raises(ConfigurationError, match=r"There is no request 9\. Expected one of 1 to 1"):
        store.completion(9)


def test_a_restored_ledger_learns_of_it_from_the_journal(store: Store, copy: str, tmp_path: Path) -> None:
    path = store.path
    store.close()
    backup = (path / "ledger.db").read_bytes()
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store.acknowledge(copy, "mobile team")
    (path / "ledger.db").write_bytes(backup)
    for ending in ("-wal", "-shm"):
        (path / f"ledger.db{ending}").unlink(missing_ok=True)
    with Store.open(path) as store:
        assert [one.acknowledged is not None for one in store.handed_copies()] == [True, False]
        assert store.verify().passed


def test_an_acknowledgement_cannot_be_made_up_without_the_key(store: Store, copy: str) -> None:
    store.forget([in_place(0, 0)])
    store.acknowledge(copy, "mobile team")
    body = json.dumps({"name": copy, "recipient": "distilled model v3"})
    store._ledger.connection.execute("UPDATE events SET body = ? WHERE kind = 'acknowledgement'", (body,))  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="does not match what was written"):
        store.handed_copies()


def test_the_commands_hand_over_list_acknowledge_and_complete(
    store: Store, copy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, person = str(store.path), in_place(0, 0)
    store.close()
    assert main(["recipients", "add", folder, copy, "web team"]) == 0
    assert main(["recipients", "list", folder, "--outstanding"]) == 0
    assert main(["forget", folder, person]) == 0
    assert main(["recipients", "list", folder, "--outstanding"]) == 1
    assert main(["receipt", "complete", folder, "1"]) == 1
    for recipient in ("mobile team", "distilled model v3", "web team"):
        assert main(["recipients", "acknowledge", folder, copy, recipient]) == 0
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    capsys.readouterr()
    assert main(["receipt", "complete", folder, "1", "--sign", str(private)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["complete"]
    assert person not in json.dumps(document)
    verify_document(document, public, "The document")
