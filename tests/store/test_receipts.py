"""Receipts as documents: their schema, their signatures, and anything else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.core.receipts import receipt_schema
from lightning_s3t.errors import ConfigurationError, S3TError, StoreError
from lightning_s3t.store import Receipt, Store
from lightning_s3t.store.keys.signing import sign_receipt, verify_receipt
from tests.store.people_store import in_place, make

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "receipt.schema.json").read_text())
TIME = "2026-01-01T00:00:00+00:00"
RECEIPT = Receipt(
    "forget",
    1,
    "ticket-7",
    TIME,
    1,
    0,
    0,
    0,
    1,
    0,
    0,
    2,
    1,
    100,
    0,
    0,
    "s3t",
    "exact",
    "fork",
    {"torch": "2"},
    2,
    "ab" * 32,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of two people, made as the docs say."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        private, public = str(folder / f"{name}.pem"), str(folder / f"{name}.pub")
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return folder


def test_the_schema_in_the_docs_is_that_of_the_class() -> None:
    assert receipt_schema() == SCHEMA


@pytest.mark.parametrize("register", [True, False])
def test_receipts_keep_to_their_schema(tmp_path: Path, register: bool) -> None:
    with make(tmp_path / "store", register) as store:
        receipts = [store.forget([in_place(0, 0)]), store.forget([in_place(0, 0)])]
    for receipt in receipts:
        jsonschema.validate(json.loads(receipt.to_json()), SCHEMA)
        assert Receipt.from_json(receipt.to_json()) == receipt.receipt


def test_a_signed_receipt_keeps_to_its_schema_and_is_the_receipt(keys: Path) -> None:
    text = sign_receipt(RECEIPT, keys / "ours.pem")
    jsonschema.validate(json.loads(text), SCHEMA)
    assert verify_receipt(text, keys / "ours.pub") == RECEIPT
    assert Receipt.from_json(text) == RECEIPT


def test_formatting_does_not_matter_to_a_signature(keys: Path) -> None:
    text = json.dumps(json.loads(sign_receipt(RECEIPT, keys / "ours.pem")))
    assert verify_receipt(text, keys / "ours.pub") == RECEIPT


@pytest.mark.parametrize("name", ["subjects", "time", "revoked", "revoked_units", "chain", "extra"])
def test_a_changed_receipt_is_told(keys: Path, name: str) -> None:
    document = json.loads(sign_receipt(RECEIPT, keys / "ours.pem"))
    document[name] = {
        "subjects": 2,
        "time": "later",
        "revoked": [],
        "revoked_units": 0,
        "chain": "cd" * 32,
        "extra": 1,
    }[name]
    with pytest.raises(StoreError, match=r"was changed afterwards|not a valid receipt"):
        verify_receipt(json.dumps(document), keys / "ours.pub")


def test_somebody_elses_signature_is_told(keys: Path) -> None:
    with pytest.raises(StoreError, match="not signed with the key of"):
        verify_receipt(sign_receipt(RECEIPT, keys / "theirs.pem"), keys / "ours.pub")


@pytest.mark.parametrize("signature", [None, 7, {}, {"algorithm": "none", "value": ""}])
def test_a_receipt_without_a_signature_is_told(keys: Path, signature: object) -> None:
    document = {**json.loads(RECEIPT.to_json()), "signature": signature}
    with pytest.raises(StoreError, match="has no Ed25519 signature"):
        verify_receipt(json.dumps(document), keys / "ours.pub")


@pytest.mark.parametrize("value", ["", "zz", 5, None])
def test_a_signature_of_another_form_is_told(keys: Path, value: object) -> None:
    document = {**json.loads(RECEIPT.to_json()), "signature": {"algorithm": "Ed25519", "value": value}}
    with pytest.raises(StoreError):
        verify_receipt(json.dumps(document), keys / "ours.pub")


@pytest.mark.parametrize("change", [{"public_key": "00" * 32}, {"note": "all your data is gone"}, {"public_key": None}])
def test_what_is_beside_the_signature_is_not_taken_for_signed(keys: Path, change: dict[str, Any]) -> None:
    document = json.loads(sign_receipt(RECEIPT, keys / "ours.pem"))
    document["signature"].update(change)
    with pytest.raises(StoreError, match="signature"):
        verify_receipt(json.dumps(document), keys / "ours.pub")


@pytest.mark.parametrize("depth", [100, 500, 900, *range(940, 1000, 3), 5000, 100_000])
def test_a_document_of_many_depths_is_an_error_of_ours(keys: Path, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    for name in ("versions", "signature", "more"):
        text = sign_receipt(RECEIPT, keys / "ours.pem")
        document = json.loads(text)
        document[name] = "here"
        changed = json.dumps(document).replace('"here"', deep)
        for read in (Receipt.from_json, lambda found: verify_receipt(found, keys / "ours.pub")):
            if name != "signature" or read != Receipt.from_json:
                with pytest.raises(StoreError):
                    read(changed)


def test_keys_of_another_kind_are_refused(keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", str(other)], check=True, capture_output=True)
    (tmp_path / "text.pem").write_text("no key")
    for path, message in (
        (other, "of another kind"),
        (tmp_path / "text.pem", "cannot be read"),
        (tmp_path / "none.pem", "cannot be read"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            sign_receipt(RECEIPT, path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        verify_receipt(sign_receipt(RECEIPT, keys / "ours.pem"), keys / "ours.pem")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.text() | st.dictionaries(st.sampled_from(sorted(SCHEMA["properties"])), json_values).map(json.dumps))
def test_any_document_is_a_receipt_or_an_error_of_ours(text: str) -> None:
    with suppress(S3TError):
        Receipt.from_json(text)


def test_a_receipt_that_says_something_twice_is_refused(path: Path) -> None:
    with Store.open(path) as store:
        text = store.forget([in_place(0, 0)]).to_json()
    with pytest.raises(StoreError, match="twice"):
        Receipt.from_json(text.replace('"subjects": 1', '"subjects": 9, "subjects": 1'))


def test_receipts_since_a_request(path: Path) -> None:
    with Store.open(path) as store:
        for number in range(3):
            store.forget([in_place(0, number)])
        assert store.receipts(after=1) == store.receipts()[1:]
        assert store.receipts(after=3) == []


@pytest.fixture
def asked(path: Path) -> Iterator[Store]:
    """A store with two requests that each erased something."""
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store.forget([in_place(1, 0)])
        yield store


@pytest.mark.parametrize(
    "change", [{"erased_bytes": 10**12}, {"erased_files": 0}, {"erased_files": 1}, {"subjects": 2}, {"time": "later"}]
)
def test_a_receipt_with_a_changed_number_is_not_the_historys(asked: Store, change: dict[str, Any]) -> None:
    receipt = asked.receipts()[0]
    assert asked.has_given(receipt)
    assert not asked.has_given(replace(receipt, **change))


def test_a_receipt_with_the_place_of_another_is_not_the_historys(asked: Store) -> None:
    first, second = asked.receipts()
    assert not asked.has_given(replace(first, position=second.position, chain=second.chain))


def test_a_receipt_from_before_the_erasure_is_the_historys(asked: Store) -> None:
    first = asked.receipts()[0]
    digest = asked.chain_digest(1)
    assert digest is not None
    assert asked.has_given(replace(first, position=1, chain=digest, erased_files=0, erased_bytes=0))
    assert not asked.has_given(replace(first, position=1, chain=digest))


def test_a_receipt_with_a_place_before_its_request_is_not_the_historys(asked: Store) -> None:
    second, digest = asked.receipts()[1], asked.chain_digest(1)
    assert digest is not None
    assert not asked.has_given(replace(second, position=1, chain=digest))
