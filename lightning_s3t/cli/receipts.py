"""The commands of `s3t receipt`: list and verify."""

from __future__ import annotations

import csv
import json as json_format
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_s3t.columns import printable
from lightning_s3t.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from lightning_s3t.store import Receipt

_INTERNAL = ("revoked", "exports", "set_aside", "returned")
_FORMULAS = ("=", "+", "-", "@", "\t")


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
        internal: Add details that are not for the person who asked: the revoked units, and the units that served then.
        sign: Sign each receipt with this key (Ed25519, PEM); only for JSON.
    """
    from lightning_s3t.core.receipts import Receipt
    from lightning_s3t.store import Store

    if internal and sign is not None:
        raise ConfigurationError(
            "Expected --sign without --internal: signed receipts are for the people who made the request."
        )
    if format == "csv" and sign is not None:
        raise ConfigurationError("Expected --sign with the format json: a table holds no signatures.")
    if sign is not None:
        check_private_key(sign)
    with Store.open(store) as opened:
        found = opened.receipts()
    if format == "json":
        documents = [json_format.loads(as_json(record, sign)) for record in found]
        if internal:
            documents = [
                {**one, **{name: getattr(record, name) for name in (*_INTERNAL, "serving")}}
                for one, record in zip(documents, found, strict=True)
            ]
        print(json_format.dumps(documents, indent=2))
        return
    # an allow list of columns for the person who asked: a new column must not reveal a place
    names = [field.name for field in fields(Receipt) if field.name not in ("versions", "certificate")]
    table = csv.DictWriter(sys.stdout, [*names, *(_INTERNAL if internal else ())], lineterminator="\n")
    table.writeheader()
    for record in found:
        row = {name: getattr(record, name) for name in table.fieldnames} | {"guarantee": record.promise}
        table.writerow(
            {name: _cell(" ".join(value) if isinstance(value, tuple) else value) for name, value in row.items()}
        )


def verify_receipt(
    receipt: Path, /, *, key: Path | None = None, store: Path | None = None, journal: Path | None = None
) -> int:
    """Check a receipt: its signature against a public key, its place in the history against the store.

    Args:
        receipt: The receipt, a JSON document.
        key: The public key of the expected signature (Ed25519, PEM).
        store: The store that issued it.
        journal: The store's journal.jsonl, instead of the store: for people without the store's key. A signed receipt
            shows that the journal up to its event is unchanged since the receipt was signed.
    """
    from lightning_s3t.store import Receipt
    from lightning_s3t.store.keys.signing import verify_receipt as verify

    if store is not None and journal is not None:
        raise ConfigurationError("Expected --store or --journal, not both.")
    if key is None and store is None and journal is None:
        raise ConfigurationError("Expected --key, --store or --journal, to check the receipt against.")
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
        print(f"The signature of request {found.request} is valid.")
    history = store if store is not None else journal
    if history is not None:
        given = _store_has_given(history, found) if store is not None else _journal_has_given(history, found)
        if not given:
            print(
                f"The history of {history} has no request {found.request} that matches this receipt: the history or "
                "the receipt was changed, the history was rolled back, or the receipt is from another store.",
                file=sys.stderr,
            )
            return 1
        print(f"Request {found.request} is in the store's history, at event {found.position}.")
        if journal is not None and key is None:
            print(
                "No signature was checked: receipt and journal agree, but whoever wrote both could have invented them."
            )
    return 0


def _store_has_given(store: Path, receipt: Receipt) -> bool:
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        return opened.has_given(receipt)


def _journal_has_given(journal: Path, receipt: Receipt) -> bool:
    from lightning_s3t.store.history import has_given
    from lightning_s3t.store.requests.journal import read_journal

    if not journal.is_file():
        raise ConfigurationError(f"There is no journal {journal}. Expected the journal.jsonl of a store.")
    return has_given(read_journal(journal), receipt)


def _cell(value: Any) -> Any:
    """Return a text that a spreadsheet shows unchanged: it would evaluate a text that starts like a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULAS) else text


def as_json(receipt: Receipt, sign: Path | None) -> str:
    """Return a receipt as a JSON document, signed if a key is given.

    Args:
        receipt: The receipt.
        sign: A private key (Ed25519, PEM).
    """
    from lightning_s3t.store.keys.signing import sign_receipt

    return sign_receipt(receipt, sign) if sign is not None else receipt.to_json()


def check_private_key(key: Path) -> None:
    """Refuse a key that cannot sign, before anything is changed.

    Args:
        key: The file of a private key (Ed25519, PEM).
    """
    from lightning_s3t.store.keys.signing import read_private_key

    read_private_key(key)


def _check_public_key(key: Path) -> None:
    from lightning_s3t.store.keys.signing import read_public_key

    read_public_key(key)
