"""The commands `rectify`, `restrict` and `release`, for subjects who stay in the training data."""

from __future__ import annotations

from pathlib import Path

from lightning_s3t.cli.forget import read_ids, show_record, show_ticket
from lightning_s3t.cli.receipts import check_private_key
from lightning_s3t.errors import ConfigurationError


def rectify(
    store: Path,
    /,
    *subjects: str,
    allow_unknown: bool = False,
    request_id: str | None = None,
    sign: Path | None = None,
    json: bool = False,
) -> None:
    """Remove everything that the subjects' old data reached; the next fit trains on the corrected data.

    Correct the rows first: a running fit has loaded the old rows, and does not train units with them.

    Args:
        store: The store's folder.
        subjects: The subjects' ids; a dash to read them from standard input, one per line, in UTF-8.
        allow_unknown: Skip ids that the store has never seen: nothing holds their data.
        request_id: Your name for the request: repeated with the same subjects, the command prints the receipt again and
            changes nothing, so that a script can retry.
        sign: Sign the receipt with this key (Ed25519, PEM); implies --json.
        json: Print the receipt for the person who asked as a JSON document; or the ticket, if the request waits for the
            next fit.
    """
    from lightning_s3t.core.tickets import Ticket
    from lightning_s3t.store import Store

    asked = _ids(subjects, sign)
    with Store.open(store) as opened:
        answer = opened.rectify(asked, strict=not allow_unknown, request_id=request_id)
    if isinstance(answer, Ticket):
        show_ticket(answer, json or sign is not None)
    else:
        show_record(answer, opened, sign, json)


def restrict(
    store: Path,
    /,
    *subjects: str,
    allow_unknown: bool = False,
    request_id: str | None = None,
    sign: Path | None = None,
    json: bool = False,
) -> None:
    """Set aside the units that the subjects' data reached: they do not serve, and no fit trains on the data.

    It lasts until `s3t release` puts the units back, or `s3t forget` erases them.

    Args:
        store: The store's folder.
        subjects: The subjects' ids; a dash to read them from standard input, one per line, in UTF-8.
        allow_unknown: Accept ids that the store has never seen: they never enter a fit until they are released.
        request_id: Your name for the request: repeated with the same subjects, the command prints the receipt again and
            changes nothing, so that a script can retry.
        sign: Sign the receipt with this key (Ed25519, PEM); implies --json.
        json: Print the receipt for the person who asked as a JSON document.
    """
    from lightning_s3t.store import Store

    asked = _ids(subjects, sign)
    with Store.open(store) as opened:
        receipt = opened.restrict(asked, strict=not allow_unknown, request_id=request_id)
    show_record(receipt, opened, sign, json)


def release(
    store: Path,
    /,
    *subjects: str,
    request_id: str | None = None,
    sign: Path | None = None,
    json: bool = False,
) -> None:
    """End a restriction: units that were set aside serve again, bit for bit, and fits train on the data.

    Units with the data of other restricted subjects stay set aside.

    Args:
        store: The store's folder.
        subjects: The subjects' ids; a dash to read them from standard input, one per line, in UTF-8.
        request_id: Your name for the request: repeated with the same subjects, the command prints the receipt again and
            changes nothing, so that a script can retry.
        sign: Sign the receipt with this key (Ed25519, PEM); implies --json.
        json: Print the receipt for the person who asked as a JSON document.
    """
    from lightning_s3t.store import Store

    asked = _ids(subjects, sign)
    with Store.open(store) as opened:
        receipt = opened.release(asked, request_id=request_id)
    show_record(receipt, opened, sign, json)


def _ids(subjects: tuple[str, ...], sign: Path | None) -> list[str]:
    if not subjects:
        raise ConfigurationError("Expected the ids of subjects.")
    if sign is not None:
        check_private_key(sign)
    return read_ids() if subjects == ("-",) else list(subjects)
