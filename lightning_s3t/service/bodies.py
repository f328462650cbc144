"""Bodies of the control server's requests and answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictInt

RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-.0-~]+$")]
Subject = Annotated[str, Field(min_length=1, max_length=1000)] | StrictInt


class ForgetBody(BaseModel):
    """A request to be forgotten.

    Attributes:
        request_id: The caller's name for it. A retry with the same name and subjects is not a second request.
        subjects: The subjects of the request.
        at: When to carry it out; at once if it is None or in the past.
        strict: Refuse ids that the store has never seen; otherwise they never enter a later fit.
        received: The day on which the letter came, if it is carried out later: the desk's deadlines count from it.
    """

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[
        RequestId, Field(description="Your name for the request: visible ASCII without slashes, no personal data.")
    ]
    subjects: Annotated[list[Subject], Field(min_length=1, description="The ids of those to forget.")]
    at: Annotated[
        AwareDatetime | None, Field(description="When to carry it out (RFC 3339); at once if null or past.")
    ] = None
    strict: Annotated[bool, Field(description="Refuse ids that the store has never seen.")] = True
    received: Annotated[
        date | None, Field(description="When the letter came, if it is carried out later; today if null.")
    ] = None


class RequestState(BaseModel):
    """The state of a request.

    Attributes:
        request_id: The caller's name for it.
        state: "waiting" means for the next fit, which some methods need.
        due: When to carry it out.
        subjects: Number of subjects in it.
        receipt: Its receipt, where it was carried out at once.
        reason: Why it was refused.
        received: The day on which the letter came, where it was given.
    """

    request_id: str
    state: Literal["carried_out", "scheduled", "cancelled", "refused", "waiting"]
    due: str | None = None
    subjects: int
    receipt: dict[str, Any] | None = None
    reason: str | None = None
    received: str | None = None


class ErrorDetail(BaseModel):
    """The error.

    Attributes:
        code: For programs.
        message: For people. No ids are in it.
    """

    code: str
    message: str


class ErrorBody(BaseModel):
    """The answer to a call that failed.

    Attributes:
        error: Why.
    """

    error: ErrorDetail


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer to a call that failed; it is an ASGI application too.

    Args:
        status: The HTTP status.
        code: For programs.
        message: For people.
        headers: Further headers.
    """
    body = ErrorBody(error=ErrorDetail(code=code, message=message)).model_dump(mode="json")
    return JSONResponse(body, status, dict(headers) if headers is not None else None)


class Scheduled(BaseModel):
    """Requests scheduled for one time.

    Attributes:
        due: When.
        subjects: For how many subjects.
    """

    due: str
    subjects: int


class StatusBody(BaseModel):
    """The state of the store, without its units.

    Attributes:
        requests: Number of requests that were carried out.
        shards: Number of shards; 0 for a method without units.
        serving: Number of shards that serve.
        floor_rows: Number of rows of the closed-form head that answers; null without one.
        capacity: Expected number of further requests until nothing is left; null if they only subtract rows.
        full_capacity: The same for a store in which every unit is alive.
        forgotten: Number of forgotten subjects.
        restricted: Number of restricted subjects.
        scheduled: The times of scheduled requests, with the number of subjects.
        waiting: Number of subjects for the next fit to forget.
        method: The unlearning method.
        guarantee: Its guarantee.
        advice: Why fit should be called again; null if it is not needed.
    """

    requests: int
    shards: int
    serving: int
    floor_rows: int | None
    capacity: float | None
    full_capacity: float | None
    forgotten: int
    restricted: int
    scheduled: list[Scheduled]
    waiting: int
    method: str
    guarantee: str
    advice: str | None


class VerifyBody(BaseModel):
    """The result of checking the store.

    Attributes:
        passed: Whether nothing is wrong.
        problems: Number of problems; `s3t store verify` names them.
        damaged_units: Number of units that were taken out of service.
        events: Number of checked events.
        units: Number of snapshots that were read.
    """

    passed: bool
    problems: int
    damaged_units: int
    events: int
    units: int
