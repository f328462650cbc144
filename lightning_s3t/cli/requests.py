"""Verbs that ask a store to forget, and show what became of it: forget, forget-due, pending, receipts."""

from __future__ import annotations

import csv
import json as json_format
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_s3t.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from lightning_s3t.store import Receipt


def forget(
    store: Path,
    subjects: list[str],
    at: str | None = None,
    allow_unknown: bool = False,
    sign: Path | None = None,
    json: bool = False,
) -> None:
    """Remove subjects from the model: revoke every unit that they reached, for good, and erase it.

    Args:
        store: The store's folder.
        subjects: The subjects' ids; a dash to read them from standard input, one a line.
        at: Not now but at this time (2027-01-31T12:00Z): by forget-due, or when the store is next opened.
        allow_unknown: Take ids that the store has never seen too: they never enter a later fit.
        sign: Sign the receipt with this key (Ed25519, PEM); implies --json.
        json: Print the receipt as a JSON document.
    """
    from lightning_s3t.store import Store

    if sign is not None:
        _check_key(sign)
    due = _time(at) if at is not None else None
    asked = [line.rstrip("\r\n") for line in sys.stdin if line.strip()] if subjects == ["-"] else subjects
    with Store.open(store) as opened:
        if due is not None:
            count = opened.schedule(asked, due, strict=not allow_unknown)
            print(f"{count} subjects will be forgotten at {due.isoformat()}.")
            return
        receipt = opened.forget(asked, strict=not allow_unknown)
    _show(receipt, sign, json)


def forget_due(store: Path, sign: Path | None = None, json: bool = False) -> None:
    """Carry out the scheduled requests that are due, as one request: for a scheduler such as cron.

    Args:
        store: The store's folder.
        sign: Sign the receipt with this key (Ed25519, PEM); implies --json.
        json: Print the receipt as a JSON document.
    """
    from lightning_s3t.store import Store

    if sign is not None:
        _check_key(sign)
    with Store.open(store, forget_due=False) as opened:
        receipt = opened.forget_due()
    if receipt is not None:
        _show(receipt, sign, json)
    elif not (json or sign):
        print("Nothing is due.")


def pending(store: Path) -> None:
    """List the scheduled requests: when they are due, and for how many subjects.

    Args:
        store: The store's folder.
    """
    from lightning_s3t.store import Store

    with Store.open(store, forget_due=False) as opened:
        found = opened.pending()
    for due, count in found:
        print(f"{due}  {count} subjects")
    if not found:
        print("Nothing is scheduled.")


def receipts(store: Path, format: Literal["json", "csv"] = "json", sign: Path | None = None) -> None:
    """Print the receipts of all requests.

    Args:
        store: The store's folder.
        format: As a JSON list, or as a table in CSV.
        sign: Sign each receipt with this key (Ed25519, PEM); for JSON.
    """
    from lightning_s3t.store import Store

    if sign is not None:
        _check_key(sign)
    with Store.open(store) as opened:
        found = opened.receipts()
    if format == "json":
        print(json_format.dumps([json_format.loads(_document(receipt, sign)) for receipt in found], indent=2))
        return
    rows = [asdict(receipt) | {"revoked": " ".join(receipt.revoked)} for receipt in found]
    names = [name for name in (rows[0] if rows else {}) if name not in ("serving", "versions")]
    table = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)


def verify_receipt(receipt: Path, key: Path | None = None, store: Path | None = None) -> int:
    """Check a receipt: its signature against a public key, its place in the history against the store.

    Args:
        receipt: The receipt, a JSON document.
        key: The public key (Ed25519, PEM) that it has to be signed with.
        store: The store that has given it.
    """
    from lightning_s3t.store import Receipt, Store
    from lightning_s3t.store.signing import verify_receipt as verify

    if key is None and store is None:
        raise ConfigurationError("Expected --key or --store, or both: what the receipt is to be checked against.")
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
    if store is not None:
        with Store.open(store) as opened:
            same = opened.has_given(found)
        if not same:
            print(
                f"The history of {store} has no request {found.request} of which this is the receipt: the history was "
                "changed or rolled back since, or the receipt was, or it is another store's.",
                file=sys.stderr,
            )
            return 1
        print(f"Request {found.request} is in the store's history, at event {found.position}.")
    return 0


def _show(receipt: Receipt, sign: Path | None, json: bool) -> None:
    if json or sign is not None:
        print(_document(receipt, sign))
        return
    unknown = f", {receipt.unknown} never seen" if receipt.unknown is not None else ""
    print(
        f"Request {receipt.request}: {receipt.subjects} subjects, {receipt.already_forgotten} of them forgotten "
        f"before{unknown}."
    )
    print(f"Revoked {len(receipt.revoked)} units: {', '.join(receipt.revoked) or 'none'}.")
    print(f"Erased {receipt.erased_files} files, {receipt.erased_bytes:,} bytes.")
    serving = ", ".join(f"shard {shard}: {unit or 'nothing'}" for shard, unit in receipt.serving.items())
    print(f"Serving now in the shards that it reached: {serving or 'as before, it reached none'}.")
    print(f"Guarantee of every unit that is left: {receipt.guarantee} (isolation: {receipt.isolation}).")


def _document(receipt: Receipt, sign: Path | None) -> str:
    from lightning_s3t.store.signing import sign_receipt

    return sign_receipt(receipt, sign) if sign is not None else receipt.to_json()


def _check_key(key: Path) -> None:
    from lightning_s3t.store.signing import read_private_key

    read_private_key(key)


def _check_public_key(key: Path) -> None:
    from lightning_s3t.store.signing import read_public_key

    read_public_key(key)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError as error:
        raise ConfigurationError(f"The time {text!r} cannot be read. Expected ISO 8601: 2027-01-31T12:00Z.") from error
    if found.tzinfo is None:
        raise ConfigurationError(f"The time {text!r} has no time zone. Expected one: 2027-01-31T12:00Z.")
    return found
