"""Commands of `s3t recipients`: the holders of exported copies, and which copies are erased."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path

from lightning_s3t.columns import align, printable
from lightning_s3t.errors import ConfigurationError


def list_recipients(store: Path, /, *, outstanding: bool = False, json: bool = False) -> int:
    """List the copies that were handed to recipients. With --outstanding, exits with 1 if there are any.

    Args:
        store: The store's folder.
        outstanding: Only copies that a request has reached and that the recipient has not acknowledged as erased.
        json: Print them as a JSON document.
    """
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        found = opened.handed_copies()
    if outstanding:
        found = [copy for copy in found if copy.request is not None and copy.acknowledged is None]
    if json:
        print(json_format.dumps([asdict(copy) for copy in found], indent=2))
    elif found:
        rows = [
            (copy.export, copy.recipient, str(copy.request or ""), _state(copy.request, copy.acknowledged))
            for copy in found
        ]
        print(printable(align([("export", "recipient", "request", "state"), *rows], numbers_from=9)))
    else:
        print(
            "Every exported copy that a request affected is acknowledged as erased."
            if outstanding
            else "No copy was handed over."
        )
    return 1 if outstanding and found else 0


def add_recipient(store: Path, export: str, recipient: str, /) -> None:
    """Record the recipient of an exported copy: a request that reaches it waits for the recipient's acknowledgement.

    Args:
        store: The store's folder.
        export: The copy's name, as s3t export printed it.
        recipient: The holder: a team, a company, a model that was distilled from it. Not a person's name.
    """
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        opened.hand_over(export, recipient)
    print(printable(f"{recipient} holds the exported copy {export}."))


def acknowledge(store: Path, export: str, recipient: str, /) -> None:
    """Record that a recipient has erased a copy that a request reached.

    Args:
        store: The store's folder.
        export: The copy's name.
        recipient: The recipient, as recorded when the copy was handed over.
    """
    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        opened.acknowledge(export, recipient)
    print(printable(f"{recipient} has erased the exported copy {export}."))


def complete(store: Path, request: int, /, *, sign: Path | None = None) -> int:
    """Print whether everything that a request reached is erased, including copies elsewhere. Exits with 1 if it is not.

    Args:
        store: The store's folder.
        request: The request's number.
        sign: Sign the document with this private key (Ed25519, PEM).
    """
    from lightning_s3t.store import Store
    from lightning_s3t.store.keys.signing import read_private_key, sign_document

    if sign is not None:
        read_private_key(sign)
    if request < 1:
        raise ConfigurationError(f"Expected the number of a request, 1 or more, but got {request}.")
    with Store.open(store) as opened:
        found = opened.completion(request)
    document = found.document() if sign is None else sign_document(found.document(), sign)
    print(json_format.dumps(document, indent=2, sort_keys=True))
    return 0 if found.complete else 1


def _state(request: int | None, acknowledged: str | None) -> str:
    if request is None:
        return "in use"
    return f"erased {acknowledged[:10]}" if acknowledged is not None else "to be erased"
