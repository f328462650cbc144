"""The control door: an ASGI application for those who ask to be forgotten, and for those who look after the store."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from lightning_s3t.core.tickets import Ticket
from lightning_s3t.errors import (
    ConfigurationError,
    DataError,
    LedgerUnreachableError,
    S3TError,
    StoreError,
    UnknownSubjectError,
)
from lightning_s3t.service.limits import RateLimit, SizeLimit
from lightning_s3t.service.metrics import render
from lightning_s3t.service.settings import ControlSettings
from lightning_s3t.service.tokens import Role, Tokens
from lightning_s3t.store import RequestRecord, Store

_log = logging.getLogger("lightning_s3t.service")
_RETRY_AFTER = 2  # seconds
_PAGE = 1000  # receipts
_SCHEME = HTTPBearer(auto_error=False, description="A token of this door.")

RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-.0-~]+$")]
_Subject = Annotated[str, Field(min_length=1, max_length=1000)] | int


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
    subjects: Annotated[list[_Subject], Field(min_length=1, description="The ids of those to forget.")]
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
    """

    request_id: str
    state: Literal["carried_out", "scheduled", "cancelled", "waiting"]
    due: str | None = None
    subjects: int
    receipt: dict[str, Any] | None = None


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


_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": what}
    for code, what in {
        400: "The body cannot be read.",
        401: "There is no token, or not one of this door.",
        403: "The token may only look.",
        404: "There is no such request, or the store has never seen one of the subjects.",
        409: "The name was given to another request, or the request cannot be changed any more.",
        413: "The body is too large.",
        422: "The body is none of a request.",
        429: "Too many calls: Retry-After says when to come again.",
        500: "The store is damaged, or a file could not be erased.",
        503: "The ledger is out of reach: Retry-After says when to ask again.",
    }.items()
}


def make_control_app(
    store: str | Path,
    tokens: Tokens,
    settings: ControlSettings | None = None,
    multiprocess: str | None = None,
) -> FastAPI:
    """Make the control door of a store.

    Args:
        store: The store's folder.
        tokens: Who may ask, and who may look.
        settings: Its limits.
        multiprocess: The folder in which the processes of the predict door keep their metrics; None without one.

    Raises:
        StoreError: There is no store, or it is damaged.

    Returns:
        An ASGI application; the store is closed when it is shut down.
    """
    limits = settings if settings is not None else ControlSettings()
    opened = Store.open(store)
    app = FastAPI(
        title="lightning-s3t: control door",
        description="Ask to be forgotten, and look after the store. Calls carry a bearer token.",
        version="1",
        lifespan=_lifespan(opened, limits.due_every),
        docs_url=None,
        redoc_url=None,
    )
    _add_error_handlers(app)
    guard = _Guard(tokens, limits.requests_per_minute)
    _add_requests(app, opened, guard, limits.max_subjects)
    _add_looks(app, opened, guard, multiprocess)
    app.add_middleware(SizeLimit, max_bytes=limits.max_bytes)
    return app


class _Guard:
    """Lets calls in by their token."""

    def __init__(self, tokens: Tokens, per_minute: int) -> None:
        self._tokens = tokens
        self._limit = RateLimit(per_minute)
        self._wrong = RateLimit(max(per_minute // 4, 10))

    def allows(self, role: Role) -> Any:
        """Return a dependency that only lets those in who have a role."""

        def check(
            request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]
        ) -> None:
            found = self._tokens.role_of(credentials.credentials) if credentials is not None else None
            caller = request.client.host if request.client is not None else ""
            if found is None:
                _check_rate(self._wrong, caller)
                raise HTTPException(401, "unauthorized", {"WWW-Authenticate": "Bearer"})
            _check_rate(self._limit, f"{found} {caller}")
            if role == "ask" and found != "ask":
                raise HTTPException(403, "forbidden")

        return Depends(check)


def _check_rate(limit: RateLimit, caller: str) -> None:
    seconds = limit.wait_for(caller)
    if seconds:
        raise HTTPException(429, "too_many", {"Retry-After": str(math.ceil(seconds))})


def _add_requests(app: FastAPI, store: Store, guard: _Guard, max_subjects: int) -> None:
    waits = store.manifest.method.response == "replace"
    may_ask, may_look = guard.allows("ask"), guard.allows("look")

    @app.post(
        "/forget",
        dependencies=[may_ask],
        responses={**_ERRORS, 202: {"model": RequestState, "description": "Noted, and carried out later."}},
        summary="Ask to forget subjects, now or later",
    )
    def forget(body: ForgetBody, response: Response) -> RequestState:
        """Ask to forget subjects. When it is carried out at once, no replica answers from their data any more."""
        if len(body.subjects) > max_subjects:
            raise HTTPException(413, "too_large")
        is_scheduled = store.scheduled_request(body.request_id) is not None
        if body.at is not None and not waits and (is_scheduled or body.at > datetime.now(timezone.utc)):
            store.schedule(body.subjects, body.at, body.strict, body.request_id)
            state = _state_of(store, body.request_id)
            response.status_code = 202 if state.state == "scheduled" else 200
            return state
        done = store.forget(body.subjects, body.strict, None if waits else body.request_id)
        if isinstance(done, Ticket):
            response.status_code = 202
            return RequestState(request_id=body.request_id, state="waiting", subjects=done.subjects)
        return _carried_out(body.request_id, done)

    @app.get("/forget/{request_id}", dependencies=[may_look], responses=_ERRORS, summary="What became of a request")
    def look_up(request_id: RequestId) -> RequestState:
        """Return what has become of a request, with its receipt where it was carried out at once."""
        return _state_of(store, request_id)

    @app.delete("/forget/{request_id}", dependencies=[may_ask], responses=_ERRORS, summary="Cancel a request")
    def cancel(request_id: RequestId) -> RequestState:
        """Cancel a scheduled request. What is carried out cannot be undone."""
        if _state_of(store, request_id).state == "carried_out":
            raise HTTPException(409, "carried_out")
        store.cancel_request(request_id)
        return _state_of(store, request_id)


def _add_looks(app: FastAPI, store: Store, guard: _Guard, multiprocess: str | None) -> None:
    may_ask, may_look = guard.allows("ask"), guard.allows("look")

    @app.get("/status", dependencies=[may_look], responses=_ERRORS, summary="What the store holds")
    def status() -> StatusBody:
        """Return what the store holds, how long it will last, and whether to fit again."""
        found = store.status()
        return StatusBody(
            requests=found.requests,
            shards=found.shards,
            serving=len(found.serving),
            capacity=found.capacity if math.isfinite(found.capacity) else None,
            full_capacity=found.full_capacity if math.isfinite(found.full_capacity) else None,
            forgotten=store.count_forgotten(),
            restricted=found.restricted,
            scheduled=[Scheduled(due=due, subjects=count) for due, count in store.pending()],
            waiting=found.waiting,
            method=found.method,
            guarantee=found.guarantee,
            advice=found.advice,
        )

    @app.get("/receipts", dependencies=[may_look], responses=_ERRORS, summary="The receipts of requests")
    def receipts(after: Annotated[int, Field(ge=0, le=2**53)] = 0) -> list[dict[str, Any]]:
        """Return the receipts of up to 1000 requests, in order; ask again with the number of the last one."""
        return [_document(record) for record in store.receipts(after)[:_PAGE]]

    @app.post("/verify", dependencies=[may_ask], responses=_ERRORS, summary="Check the store")
    def verify() -> VerifyBody:
        """Read every snapshot and walk the history. Damaged units are taken out of service."""
        found = store.verify()
        return VerifyBody(
            passed=found.passed,
            problems=len(found.problems),
            damaged_units=len(found.damaged),
            events=found.events,
            units=found.units,
        )

    @app.get("/metrics", dependencies=[may_look], responses=_ERRORS, summary="Metrics for Prometheus")
    def metrics() -> Response:
        """Return metrics of the store, and of all processes of the predict door, in Prometheus' text format."""
        body, kind = render(store, multiprocess)
        return Response(body, media_type=kind)

    @app.get("/healthz", summary="Whether the process lives")
    def healthz() -> dict[str, str]:
        """Return that the process lives: restart it if this fails, and for nothing else."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: _ERRORS[503]}, summary="Whether the ledger can be reached")
    def readyz() -> dict[str, str]:
        """Return whether requests can be carried out."""
        return {"status": "ready", "request": str(store.request_number)}


def _state_of(store: Store, request_id: str) -> RequestState:
    record = store.receipt_of(request_id)
    if record is not None:
        return _carried_out(request_id, record)
    found = store.scheduled_request(request_id)
    if found is None:
        raise HTTPException(404, "unknown_request")
    states: Mapping[str, Any] = {"carried out": "carried_out"}
    state = states.get(found.state, found.state)
    return RequestState(request_id=request_id, state=state, due=found.due or None, subjects=found.subjects)


def _carried_out(request_id: str, record: RequestRecord) -> RequestState:
    return RequestState(
        request_id=request_id, state="carried_out", subjects=record.subjects, receipt=_document(record.receipt)
    )


def _document(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.receipt.to_json())
    return found


def _lifespan(store: Store, due_every: float) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        task = asyncio.create_task(_carry_out_what_is_due(store, due_every, stopping))
        try:
            yield
        finally:
            stopping.set()
            await task  # a thread that works on the ledger must not have it closed under its hands
            store.close()

    return run


async def _carry_out_what_is_due(store: Store, every: float, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stopping.wait(), every)
            return
        try:
            done = await asyncio.to_thread(store.forget_due)
        except S3TError as error:  # tried again
            _log.error("What is due could not be carried out: %s", type(error).__name__)
        else:
            if done is not None:
                _log.info("Request %d, of what was due, is carried out.", done.request)


_MESSAGES = {
    "unauthorized": "Expected a token of this door: Authorization: Bearer ...",
    "forbidden": "This token may only look.",
    "too_many": "Too many calls. Come again after the seconds that Retry-After says.",
    "too_large": "The request names too many subjects.",
    "unknown_request": "There is no request of that name.",
    "carried_out": "The request was carried out, which cannot be undone.",
    "unknown_subject": "The store has never seen one of the subjects. Nothing was changed.",
    "conflict": "The name was given to another request, or was cancelled. Nothing was changed.",
    "invalid": "One of the ids cannot be one. Nothing was changed.",
    "unreachable": "The ledger is out of reach. Ask again with the same request_id.",
    "store": "The store could not do it: see the server's log. A retry with the same request_id is no second request.",
}


def _add_error_handlers(app: FastAPI) -> None:
    """Say what went wrong in our own words: messages of errors may hold ids."""

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        code = error.detail if error.detail in _MESSAGES else "http"
        message = _MESSAGES.get(code) or {404: "There is nothing here.", 405: "Not that method."}.get(
            error.status_code, "The request cannot be read."
        )
        return _error(error.status_code, code, message, error.headers)

    async def of_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        known = {*ForgetBody.model_fields, "body", "path", "query", "after"}
        where = sorted({".".join(str(part) for part in one["loc"] if part in known) for one in error.errors()})
        return _error(422, "invalid", f"Not what is expected: {', '.join(where)}. See /openapi.json.")

    async def of_store(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, UnknownSubjectError):
            return _error(404, "unknown_subject", _MESSAGES["unknown_subject"])
        if isinstance(error, DataError):
            return _error(422, "invalid", _MESSAGES["invalid"])
        if isinstance(error, ConfigurationError):
            return _error(409, "conflict", _MESSAGES["conflict"])
        if isinstance(error, StoreError):
            _log.error("%s: %s", type(error).__name__, error)
        if isinstance(error, LedgerUnreachableError):
            return _error(503, "unreachable", _MESSAGES["unreachable"], {"Retry-After": str(_RETRY_AFTER)})
        return _error(500, "store", _MESSAGES["store"])

    app.add_exception_handler(StarletteHTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(S3TError, of_store)


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = ErrorBody(error=ErrorDetail(code=code, message=message)).model_dump(mode="json")
    return JSONResponse(body, status, dict(headers) if headers is not None else None)
