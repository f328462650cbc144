"""The commands of `s3t receipt`: list and verify."""

from __future__ import annotations

import csv
import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_s3t.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from lightning_s3t.store import Receipt


def list_receipts(
    store: Path,
    /,
    *,
    format: Literal["json", "csv"] = "json",
    internal: bool = False,
    sign: Path | None = None,
) -> None:
    """Print the receipts of all requests.

    Args:
        store: The store's folder.
        format: As a JSON list, or as a table in CSV.
        internal: Add what is not for those who asked: which units were revoked, and which served then.
        sign: Sign each receipt with this key (Ed25519, PEM); for JSON.
    """
    from lightning_s3t.store import Store

    if internal and sign is not None:
        raise ConfigurationError("Expected --sign without --internal: what is signed is for those who asked.")
    if sign is not None:
        check_private_key(sign)
    with Store.open(store) as opened:
        found = opened.receipts()
    if format == "json":
        documents = [json_format.loads(as_json(record, sign)) for record in found]
        if internal:
            documents = [{**one, **asdict(record)} for one, record in zip(documents, found, strict=True)]
        print(json_format.dumps(documents, indent=2))
        return
    of_places = ("revoked", "exports", "set_aside", "returned")
    rows = [asdict(record) | {name: " ".join(getattr(record, name)) for name in of_places} for record in found]
    hidden = {"serving", "versions"} | (set() if internal else set(of_places))
    names = [name for name in (rows[0] if rows else {}) if name not in hidden]
    table = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)


def verify_receipt(
    receipt: Path, /, *, key: Path | None = None, store: Path | None = None, journal: Path | None = None
) -> int:
    """Check a receipt: its signature against a public key, its place in the history against the store.

    Args:
        receipt: The receipt, a JSON document.
        key: The public key (Ed25519, PEM) that it has to be signed with.
        store: The store that has given it.
        journal: In place of the store, its journal.jsonl: for whoever does not have the store's key. A signed receipt
            shows that the journal up to its event is what it was when the receipt was signed.
    """
    from lightning_s3t.store import Receipt
    from lightning_s3t.store.signing import verify_receipt as verify

    if store is not None and journal is not None:
        raise ConfigurationError("Expected --store or --journal, not both.")
    if key is None and store is None and journal is None:
        raise ConfigurationError("Expected --key, --store or --journal: what the receipt is to be checked against.")
    try:
        text = receipt.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The receipt {receipt} cannot be read: {error}.") from error
    if key is not None:
        _check_public_key(key)
    try:
        found = verify(text, key) if key is not None else Receipt.from_json(text)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    if key is not None:
        print(f"The signature of request {found.request} is right.")
    history = store if store is not None else journal
    if history is not None:
        if not _has_given(store, journal, found):
            print(
                f"The history of {history} has no request {found.request} of which this is the receipt: the history "
                "was changed or rolled back since, or the receipt was, or it is another store's.",
                file=sys.stderr,
            )
            return 1
        print(f"Request {found.request} is in the store's history, at event {found.position}.")
    return 0


def _has_given(store: Path | None, journal: Path | None, receipt: Receipt) -> bool:
    from lightning_s3t.store import Store
    from lightning_s3t.store.history import has_given
    from lightning_s3t.store.journal import read_journal

    if store is not None:
        with Store.open(store) as opened:
            return opened.has_given(receipt)
    assert journal is not None
    if not journal.is_file():
        raise ConfigurationError(f"There is no journal {journal}. Expected the journal.jsonl of a store.")
    return has_given(read_journal(journal), receipt)


def as_json(receipt: Receipt, sign: Path | None) -> str:
    """Return a receipt as a JSON document, signed if there is a key.

    Args:
        receipt: The receipt.
        sign: A private key (Ed25519, PEM).
    """
    from lightning_s3t.store.signing import sign_receipt

    return sign_receipt(receipt, sign) if sign is not None else receipt.to_json()


def check_private_key(key: Path) -> None:
    """Refuse a key that cannot sign, before anything is changed.

    Args:
        key: The file of a private key (Ed25519, PEM).
    """
    from lightning_s3t.store.signing import read_private_key

    read_private_key(key)


def _check_public_key(key: Path) -> None:
    from lightning_s3t.store.signing import read_public_key

    read_public_key(key)
