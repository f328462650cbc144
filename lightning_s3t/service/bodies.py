"""Bodies of the control door's requests and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictInt

RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-.0-~]+$")]
Subject = Annotated[str, Field(min_length=1, max_length=1000)] | StrictInt


class ForgetBody(BaseModel):
    """A request to be forgotten.

    Attributes:
        request_id: The caller's name for it. A retry with the same name and subjects is no second request.
        subjects: Whom it is for.
        at: When to carry it out; at once if it is None or past.
        strict: Refuse ids that the store has never seen; else they never enter a later fit.
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


class RequestState(BaseModel):
    """What has become of a request.

    Attributes:
        request_id: The caller's name for it.
        state: "waiting" is for the next fit, which some methods need.
        due: When it is to be carried out.
        subjects: How many subjects it is for.
        receipt: Its receipt, where it was carried out at once.
        reason: Why it was refused.
    """

    request_id: str
    state: Literal["carried_out", "scheduled", "cancelled", "refused", "waiting"]
    due: str | None = None
    subjects: int
    receipt: dict[str, Any] | None = None
    reason: str | None = None


class ErrorDetail(BaseModel):
    """What went wrong.

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
    """Requests that are scheduled for one time.

    Attributes:
        due: When.
        subjects: For how many subjects.
    """

    due: str
    subjects: int


class StatusBody(BaseModel):
    """What the store holds; which units it is made of is not said.

    Attributes:
        requests: How many requests were carried out.
        shards: How many shards there are.
        serving: How many of them serve.
        capacity: How many more requests are expected until nothing is left.
        full_capacity: The same for a store in which every unit is alive.
        forgotten: How many subjects are forgotten.
        restricted: How many subjects are restricted.
        scheduled: When scheduled requests are due, and for how many subjects.
        waiting: How many subjects the next fit is to forget.
        method: The unlearning method.
        guarantee: What it promises.
        advice: Why to fit again; null if there is no need.
    """

    requests: int
    shards: int
    serving: int
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
    """What a check of the store has found.

    Attributes:
        passed: Whether nothing is wrong.
        problems: How many problems there are: `s3t store verify` names them.
        damaged_units: How many units were taken out of service.
        events: How many events of the history were walked.
        units: How many snapshots were read.
    """

    passed: bool
    problems: int
    damaged_units: int
    events: int
    units: int
