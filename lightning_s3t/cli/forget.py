"""The command `forget`: removes subjects now, later, or when the requests for later are due."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_s3t.cli.receipts import as_json, check_private_key
from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_s3t.store import Receipt


def forget(
    store: Path,
    /,
    *subjects: str,
    at: str | None = None,
    due: bool = False,
    allow_unknown: bool = False,
    sign: Path | None = None,
    json: bool = False,
) -> None:
    """Remove subjects from the model: revoke every unit that they reached, for good, and erase it.

    Args:
        store: The store's folder.
        subjects: The subjects' ids; a dash to read them from standard input, one a line.
        at: Not now but at this time (2027-01-31T12:00Z): with --due, or when the store is next opened.
        due: In place of subjects: carry out the scheduled requests that are due, as one request; for cron.
        allow_unknown: Take ids that the store has never seen too: they never enter a later fit.
        sign: Sign the receipt with this key (Ed25519, PEM); implies --json.
        json: Print the receipt as a JSON document.
    """
    if due == bool(subjects):
        raise ConfigurationError(
            "Expected the ids of subjects, or --due for the requests that are due: one of the two."
        )
    if due and (at is not None or allow_unknown):
        raise ConfigurationError("Expected --due without --at and --allow-unknown: these are for new requests.")
    if sign is not None:
        check_private_key(sign)
    if due:
        _forget_due(store, sign, json)
        return
    from lightning_s3t.store import Store

    time = _time(at) if at is not None else None
    asked = [line.rstrip("\r\n") for line in sys.stdin if line.strip()] if subjects == ("-",) else list(subjects)
    with Store.open(store) as opened:
        if time is not None:
            count = opened.schedule(asked, time, strict=not allow_unknown)
            print(f"{count} subjects will be forgotten at {time.isoformat()}.")
            return
        receipt = opened.forget(asked, strict=not allow_unknown)
    _show(receipt, sign, json)


def _forget_due(store: Path, sign: Path | None, json: bool) -> None:
    from lightning_s3t.store import Store

    with Store.open(store, forget_due=False) as opened:
        receipt = opened.forget_due()
    if receipt is not None:
        _show(receipt, sign, json)
    elif not (json or sign):
        print("Nothing is due.")


def _show(receipt: Receipt, sign: Path | None, json: bool) -> None:
    if json or sign is not None:
        print(as_json(receipt, sign))
        return
    unknown = f", {receipt.unknown} never seen" if receipt.unknown is not None else ""
    print(
        f"Request {receipt.request}: {receipt.subjects} subjects, {receipt.already_forgotten} of them forgotten "
        f"before{unknown}."
    )
    print(f"Revoked {len(receipt.revoked)} units: {', '.join(receipt.revoked) or 'none'}.")
    if receipt.exports:
        print(f"Erased exported copies: {', '.join(receipt.exports)}. Remove what was copied from them elsewhere.")
    print(f"Erased {receipt.erased_files} files, {receipt.erased_bytes:,} bytes.")
    serving = ", ".join(f"shard {shard}: {unit or 'nothing'}" for shard, unit in receipt.serving.items())
    print(f"Serving now in the shards that it reached: {serving or 'as before, it reached none'}.")
    print(f"Guarantee of every unit that is left: {receipt.guarantee} (isolation: {receipt.isolation}).")


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError as error:
        raise ConfigurationError(f"The time {text!r} cannot be read. Expected ISO 8601: 2027-01-31T12:00Z.") from error
    if found.tzinfo is None:
        raise ConfigurationError(f"The time {text!r} has no time zone. Expected one: 2027-01-31T12:00Z.")
    return found
