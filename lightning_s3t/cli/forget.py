"""The command `forget`: removes subjects now, later, or when the requests for later are due."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_s3t.cli.receipts import as_json, check_private_key
from lightning_s3t.columns import counted, printable
from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_s3t.core.tickets import Ticket
    from lightning_s3t.store import RequestRecord, Store


def forget(
    store: Path,
    /,
    *subjects: str,
    at: str | None = None,
    due: bool = False,
    cancel: bool = False,
    allow_unknown: bool = False,
    request_id: str | None = None,
    sign: Path | None = None,
    json: bool = False,
) -> None:
    """Remove subjects from the model: permanently revoke and erase every unit that their data reached.

    Args:
        store: The store's folder.
        subjects: The subjects' ids; a dash to read them from standard input, one per line, in UTF-8.
        at: Carry the request out at this time (2027-01-31T12:00Z): with --due, or when the store is next opened.
        due: Instead of subjects: carry out the scheduled requests that are due, as one request; for cron.
        cancel: Cancel the subjects' scheduled requests; requests that are already due are carried out.
        allow_unknown: Accept ids that the store has never seen: they never enter a later fit.
        request_id: Your name for the request: repeated with the same subjects, the command prints the receipt again and
            changes nothing, so that a script can retry.
        sign: Sign the receipt with this key (Ed25519, PEM); implies --json.
        json: Print the receipt for the person who asked as a JSON document; or the ticket, if the request waits for the
            next fit.
    """
    if due == bool(subjects):
        raise ConfigurationError(
            "Expected either the ids of subjects or --due, which carries out the requests that are due."
        )
    if due and (at is not None or allow_unknown):
        raise ConfigurationError("Expected --due without --at and --allow-unknown: these are for new requests.")
    if cancel and (due or at is not None or allow_unknown or request_id is not None or sign is not None or json):
        raise ConfigurationError("Expected --cancel with the ids of subjects alone.")
    if request_id is not None and due:
        raise ConfigurationError("Expected --request-id with the ids of subjects, not with --due.")
    if at is not None and (sign is not None or json):
        raise ConfigurationError(
            "Expected --at without --sign and --json: there is no receipt before the request is carried out. Give them "
            "to the command that carries it out: s3t forget STORE --due."
        )
    if sign is not None:
        check_private_key(sign)
    if due:
        _forget_due(store, sign, json)
        return
    from lightning_s3t.core.tickets import Ticket
    from lightning_s3t.store import Store

    time = _time(at) if at is not None else None
    if "-" in subjects and subjects != ("-",):
        raise ConfigurationError(
            "Expected either a dash, for standard input, or ids, but got both. Nothing was forgotten. (To forget a "
            "subject whose id is a dash, give the id on standard input.)"
        )
    asked = read_ids() if subjects == ("-",) else list(subjects)
    with Store.open(store) as opened:
        if cancel:
            print(f"{counted(opened.cancel(asked), 'subject')} will not be forgotten: what was scheduled is cancelled.")
            return
        if time is not None:
            count = opened.schedule(asked, time, strict=not allow_unknown, request_id=request_id)
            print(f"{counted(count, 'subject')} will be forgotten at {time.isoformat()}.")
            return
        answer = opened.forget(asked, strict=not allow_unknown, request_id=request_id)
    if isinstance(answer, Ticket):
        show_ticket(answer, json or sign is not None)
    else:
        show_record(answer, opened, sign, json)


def _forget_due(store: Path, sign: Path | None, json: bool) -> None:
    from lightning_s3t.store import Store

    with Store.open(store, forget_due=False) as opened:
        receipt = opened.forget_due()
    if receipt is not None:
        show_record(receipt, opened, sign, json)
    elif not (json or sign):
        print("No request is due, or those that are due wait for the next fit.")


def show_ticket(ticket: Ticket, json: bool) -> None:
    """Print the answer to a request that waits for a fit.

    Args:
        ticket: The answer.
        json: As a JSON document.
    """
    if json:
        print(dumps(asdict(ticket), indent=2))
        return
    left = "their data" if ticket.kind == "forget" else "their old data"
    print(
        f"{ticket.waiting} of {ticket.subjects} subjects wait for the next fit, which carries the request out with "
        f"{ticket.method!r}; {ticket.already_forgotten} were forgotten before. The serving model still has {left} in "
        "it."
    )


def show_record(receipt: RequestRecord, store: Store, sign: Path | None, json: bool) -> None:
    """Print the answer to a request that was carried out.

    Args:
        receipt: The answer.
        store: The store, whose method says what a request does.
        sign: Sign it with this key, as a JSON document.
        json: As a JSON document.
    """
    if json or sign is not None:
        print(as_json(receipt, sign))
        if receipt.exports:
            # for the store's keeper only: the document is for the person who asked, and an export's name reveals a
            # place
            print(printable(_exports(receipt)), file=sys.stderr)
        return
    print(printable("\n".join(_lines(receipt, has_units=store.manifest.method.has_units))))


def _lines(receipt: RequestRecord, has_units: bool) -> Iterator[str]:
    unknown = f", {receipt.unknown} never seen" if receipt.unknown is not None else ""
    restricted = f", {receipt.already_restricted} restricted before" if receipt.already_restricted else ""
    yield (
        f"Request {receipt.request}, to {receipt.kind}: {counted(receipt.subjects, 'subject')}, "
        f"{receipt.already_forgotten} of them forgotten before{restricted}{unknown}."
    )
    if has_units:
        yield from _about_units(receipt)
    if not has_units and receipt.kind == "release":
        yield "The next fit adds the rows to the closed-form head again."
    elif receipt.subtracted_rows or not has_units:
        yield f"Subtracted {counted(receipt.subtracted_rows, 'row')} from the closed-form head."
    yield f"Erased {receipt.erased_files} files, {receipt.erased_bytes:,} bytes."
    if receipt.missing_files:
        yield f"{receipt.missing_files} registered files were missing: something else had moved or removed them."
    if receipt.left_files:
        yield f"{receipt.left_files} registered files were left alone: see `s3t store verify`."
    if has_units:
        serving = ", ".join(f"shard {shard}: {unit or 'nothing'}" for shard, unit in receipt.serving.items())
        yield f"Now serving in the affected shards: {serving or 'as before, it reached none'}."
    what = "every remaining unit" if has_units else "the closed-form head"
    yield f"Guarantee of {what}: {receipt.promise} ({receipt.method}, isolation: {receipt.isolation})."


def _about_units(receipt: RequestRecord) -> Iterator[str]:
    if receipt.kind == "restrict":
        yield f"Set aside {counted(receipt.set_aside_units, 'unit')}: {', '.join(receipt.set_aside) or 'none'}."
    elif receipt.kind == "release":
        yield f"Put back {counted(receipt.returned_units, 'unit')}: {', '.join(receipt.returned) or 'none'}."
    if receipt.kind in ("forget", "rectify") or receipt.revoked:
        yield f"Revoked {counted(receipt.revoked_units, 'unit')}: {', '.join(receipt.revoked) or 'none'}."
    if receipt.exports:
        yield _exports(receipt)


def _exports(receipt: RequestRecord) -> str:
    return f"Erased exported copies: {', '.join(receipt.exports)}. Remove any copies of them elsewhere."


def read_ids() -> list[str]:
    """Return the ids on standard input, one per line, in UTF-8.

    Raises:
        ConfigurationError: The input has another encoding.
    """
    # regardless of the locale: an id with misread characters belongs to another person, or to none
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"The ids on standard input are not in UTF-8 (byte {error.start}: {error.reason}). Nothing was changed. "
            "Convert them: iconv -f WINDOWS-1252 -t UTF-8, or from the encoding that they have."
        ) from error
    if "\0" in text:
        raise ConfigurationError(
            "The ids on standard input have null characters, as text in UTF-16 has. Nothing was changed. Convert "
            "them: iconv -f UTF-16 -t UTF-8."
        )
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError as error:
        raise ConfigurationError(f"The time {text!r} cannot be read. Expected ISO 8601: 2027-01-31T12:00Z.") from error
    if found.tzinfo is None:
        raise ConfigurationError(f"The time {text!r} has no time zone. Expected a time like 2027-01-31T12:00Z.")
    try:
        in_utc = found.astimezone(timezone.utc)
    except OverflowError:
        raise ConfigurationError(
            f"The time {text!r} has no date in UTC. Expected a time before the year 9999."
        ) from None
    if in_utc < datetime.now(timezone.utc):
        raise ConfigurationError(
            f"The time {text!r} is in the past. Leave --at out to forget at once. Nothing was scheduled."
        )
    return found
