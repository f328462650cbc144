"""The callers' names for requests, so that a retry does not count twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_s3t.core.events import Request, RequestKind
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Ledger, ledger_errors


@dataclass(frozen=True)
class Name:
    """The caller's name for a request, with its kind and a digest of its subjects."""

    kind: RequestKind
    request_id: str
    asked: str

    def __post_init__(self) -> None:
        check_name(self.request_id)

    @classmethod
    def of(cls, kind: RequestKind, subjects: Sequence[str], request_id: str | None, keyring: Keyring) -> Name | None:
        """Return the name of a request; None without one.

        Args:
            kind: The kind of request.
            subjects: Canonical ids.
            request_id: The name.
            keyring: The store's keys.

        Raises:
            ConfigurationError: It cannot be one.
        """
        return cls(kind, request_id, keyring.digest_of(subjects)) if request_id is not None else None


def check_name(request_id: str) -> None:
    """Check the name of a request.

    Args:
        request_id: The name.

    Raises:
        ConfigurationError: It is invalid.
    """
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 200:
        raise ConfigurationError(
            f"The name of the request is {request_id!r:.60}. Expected a text of 1 to 200 characters."
        )
    if not request_id.isprintable():
        raise ConfigurationError(f"The name of the request is {request_id!r}. Expected printable characters.")


def find_carried_out(ledger: Ledger, name: Name) -> int | None:
    """Return the number of the request with a name; None if none was carried out; within a transaction.

    Args:
        ledger: The ledger.
        name: The name.

    Raises:
        ConfigurationError: It was given to another request.
    """
    found = ledger.request_named(name.request_id)
    if found is None:
        return None
    with ledger_errors(f"Request {found}"):
        earlier = next(ledger.events(request=found)).read(Request)
    if (earlier.request_id, earlier.asked, earlier.kind) != (name.request_id, name.asked, name.kind):
        what = "for other subjects" if earlier.kind == name.kind else f"one to {earlier.kind}"
        raise ConfigurationError(
            f"The name {name.request_id!r} was given to request {found}, which was {what}. Expected a new name for "
            "each request. Nothing was changed."
        )
    return found
