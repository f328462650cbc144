"""The replica of each worker of the prediction server, and the errors that it returns instead of answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from fastapi.responses import JSONResponse

from lightning_s3t.errors import NoSurvivorError, StoreError
from lightning_s3t.service.bodies import error_response
from lightning_s3t.service.settings import ServiceSettings, import_named
from lightning_s3t.serving import Replica

RETRY_AFTER = 1  # seconds
_log = logging.getLogger("lightning_s3t.service")


@dataclass(frozen=True)
class Refused:
    """An error instead of an answer.

    Attributes:
        status: The HTTP status.
        code: For programs.
        message: For people.
    """

    status: int
    code: str
    message: str

    def response(self) -> JSONResponse:
        """Return it as an answer: LitServe loses the headers of errors that a worker raises."""
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status == 503 else None
        return error_response(self.status, self.code, self.message, headers)


TIMED_OUT = Refused(503, "timed_out", "No answer in time. Ask again.")


def refusal_of(error: StoreError | NoSurvivorError) -> Refused:
    """Return what a request is answered that the replica may not answer now.

    Args:
        error: The replica's error.
    """
    if isinstance(error, NoSurvivorError):
        return Refused(503, "no_survivor", "No unit is left that may answer until the next fit.")
    _log.error("%s: %s", type(error).__name__, error)
    return Refused(503, "unreachable", "The ledger is unreachable, so the service does not answer.")


def open_replica(store: Path, settings: ServiceSettings, device: str) -> Replica:
    """Open the replica of a worker.

    Args:
        store: The store's folder.
        settings: Of the service, with a model.
        device: The device.
    """
    assert settings.model is not None
    replica = Replica.from_store(
        store,
        import_named(settings.model)(),
        settings.max_staleness,
        renew_every=settings.renew_every,
        aggregate=settings.aggregate,
        passes=settings.passes,
        preload=settings.preload,
    )
    replica.served.to(device)
    return replica
