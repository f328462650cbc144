"""The control server: an ASGI application for requests to be forgotten, and for operating the store."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from lightning_s3t.errors import (
    ConfigurationError,
    DataError,
    LedgerUnreachableError,
    S3TError,
    StoreError,
    UnknownSubjectError,
)
from lightning_s3t.service.bodies import (
    ErrorBody,
    ForgetBody,
    RequestId,
    RequestState,
    Scheduled,
    StatusBody,
    VerifyBody,
    error_response,
)
from lightning_s3t.service.desk import DESK_FIELDS, add_desk
from lightning_s3t.service.fides import FidesBody, add_fides
from lightning_s3t.service.guard import Guard
from lightning_s3t.service.limits import SizeLimit
from lightning_s3t.service.metrics import render
from lightning_s3t.service.opendsr import OPENDSR_FIELDS, Callbacks, add_opendsr, opendsr_error
from lightning_s3t.service.requests import Requests
from lightning_s3t.service.settings import ControlSettings
from lightning_s3t.service.tokens import Tokens
from lightning_s3t.store import Store
from lightning_s3t.store.keys.signing import read_private_key

_log = logging.getLogger("lightning_s3t.service")
_RETRY_AFTER = 2  # seconds
_PAGE = 1000  # receipts

_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": what}
    for code, what in {
        400: "The body cannot be read.",
        401: "There is no token, or not one of this server.",
        403: "The token may only read.",
        404: "The request does not exist, or the store has never seen one of the subjects.",
        409: "The name was given to another request, or the request cannot be changed any more.",
        413: "The body is too large.",
        422: "The body is not a valid request.",
        429: "Too many calls: Retry-After says when to try again.",
        500: "The store is damaged, or a file could not be erased.",
        503: "The ledger is unreachable: Retry-After says when to try again.",
    }.items()
}


def make_control_app(
    store: str | Path,
    tokens: Tokens,
    settings: ControlSettings | None = None,
    multiprocess: str | None = None,
) -> FastAPI:
    """Create the control server of a store.

    Args:
        store: The store's folder.
        tokens: The tokens of the roles.
        settings: Its limits.
        multiprocess: The folder with the metrics of the prediction server's processes; None without one.

    Raises:
        StoreError: The store is missing or damaged.

    Returns:
        An ASGI application; the store is closed when it is shut down.
    """
    limits = settings if settings is not None else ControlSettings()
    if limits.signing_key is not None:
        read_private_key(limits.signing_key)  # before the store is opened
    opened = Store.open(store)
    requests = Requests(opened, limits.signing_key)
    watch = _Watch(opened, limits.due_every)
    app = FastAPI(
        title="lightning-s3t: control server",
        description="Make requests to be forgotten, and operate the store. Calls need a bearer token.",
        version="1",
        lifespan=watch.run,
        docs_url=None,
        redoc_url=None,
    )
    _add_error_handlers(app)
    guard = Guard(tokens, limits.requests_per_minute)
    _add_requests(app, requests, guard, limits.max_subjects)
    _add_looks(app, requests, guard, multiprocess)
    add_desk(app, requests, guard, limits)
    if limits.fides is not None:
        add_fides(app, requests, guard, limits.fides.identity, _ERRORS)
    if limits.opendsr is not None:
        try:
            watch.callbacks = add_opendsr(app, requests, guard, limits.opendsr, limits.answer_within, _ERRORS)
        except BaseException:
            opened.close()
            raise
    app.add_middleware(SizeLimit, max_bytes=limits.max_bytes)
    return app


def _add_requests(app: FastAPI, requests: Requests, guard: Guard, max_subjects: int) -> None:
    may_ask, may_look = guard.allows("ask"), guard.allows("look")

    @app.post(
        "/forget",
        dependencies=[may_ask],
        responses={**_ERRORS, 202: {"model": RequestState, "description": "Noted, and carried out later."}},
        summary="Ask to forget subjects, now or later",
    )
    def forget(body: ForgetBody, response: Response) -> RequestState:
        """Ask to forget subjects. If it is carried out at once, no replica answers from their data afterwards."""
        if len(body.subjects) > max_subjects:
            raise HTTPException(413, "too_large")
        state = requests.ask(body.request_id, body.subjects, body.at, body.strict, body.received)
        response.status_code = 202 if state.state in ("scheduled", "waiting") else 200
        return state

    @app.get("/forget/{request_id}", dependencies=[may_look], responses=_ERRORS, summary="What became of a request")
    def look_up(request_id: RequestId) -> RequestState:
        """Return the state of a request, with its receipt if it was carried out at once."""
        return requests.state_of(request_id)

    @app.delete("/forget/{request_id}", dependencies=[may_ask], responses=_ERRORS, summary="Cancel a request")
    def cancel(request_id: RequestId) -> RequestState:
        """Cancel a scheduled request. Requests that were carried out cannot be undone."""
        return requests.end(request_id)


def _add_looks(app: FastAPI, requests: Requests, guard: Guard, multiprocess: str | None) -> None:
    store = requests.store
    may_ask, may_look = guard.allows("ask"), guard.allows("look")

    @app.get("/status", dependencies=[may_look], responses=_ERRORS, summary="What the store holds")
    def status() -> StatusBody:
        """Return the state of the store, how long it will last, and whether to fit again."""
        found = store.status()
        return StatusBody(
            requests=found.requests,
            shards=found.shards,
            serving=len(found.serving),
            floor_rows=found.floor_rows,
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
        return [requests.document_of(record) for record in store.receipts(after)[:_PAGE]]

    @app.get(
        "/receipts/{request}",
        dependencies=[may_look],
        responses=_ERRORS,
        response_model=dict[str, Any],
        summary="The receipt of a request",
    )
    def receipt(request: Annotated[int, Field(ge=1, le=2**53)]) -> Response:
        """Return the receipt of a request by its number, for the person who asked: signed, if the server has a key."""
        if request > store.request_number:
            raise HTTPException(404, "unknown_request")
        document = requests.document_of(store.receipts(request - 1)[0])
        return Response(json.dumps(document, indent=2, sort_keys=True), media_type="application/json")

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

    @app.get(
        "/metrics",
        dependencies=[may_look],
        responses={**_ERRORS, 200: {"content": {"text/plain": {}}, "description": "The metrics."}},
        response_class=Response,  # of no media type of its own: errors are JSON
        summary="Metrics for Prometheus",
    )
    def metrics() -> Response:
        """Return metrics of the store, and of all processes of the prediction server, in Prometheus' text format."""
        body, kind = render(store, multiprocess)
        return Response(body, media_type=kind)

    @app.get("/healthz", summary="Whether the process lives")
    def healthz() -> dict[str, str]:
        """Return that the process is alive: restart it only if this fails."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: _ERRORS[503]}, summary="Whether the ledger can be reached")
    def readyz() -> dict[str, str]:
        """Return whether requests can be carried out."""
        return {"status": "ready", "request": str(store.request_number)}


class _Watch:
    """What the control server does by itself, now and then: due requests, erasures that failed, and callbacks.

    Args:
        store: The opened store, which is closed at the end.
        every: Seconds between two times.
    """

    def __init__(self, store: Store, every: float) -> None:
        self._store = store
        self._every = every
        self.callbacks: Callbacks | None = None

    @asynccontextmanager
    async def run(self, app: FastAPI) -> AsyncIterator[None]:
        """The lifespan of the application."""
        stopping = asyncio.Event()
        jobs: dict[str, Callable[[], None]] = {
            "The due requests could not be carried out": self._forget_due,
            "Files of requests could not be erased": self._store.erase,
        }
        if self.callbacks is not None:
            jobs["The callbacks of OpenDSR could not be sent"] = self.callbacks.send
        # each by itself: callbacks that are slow, or fail, must not delay a request that is due
        tasks = [asyncio.create_task(self._repeat(stopping, job, failed)) for failed, job in jobs.items()]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)  # a thread that works on the ledger must not have it closed under its hands
            self._store.close()

    async def _repeat(self, stopping: asyncio.Event, job: Callable[[], None], failed: str) -> None:
        while not stopping.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stopping.wait(), self._every)
                return
            try:
                await asyncio.to_thread(job)
            except Exception as error:  # whatever it is: tried again
                _log.error("%s: %s", failed, type(error).__name__)

    def _forget_due(self) -> None:
        done = self._store.forget_due()
        if done is not None:
            _log.info("Request %d was due and is carried out.", done.request)


_MESSAGES = {
    "unauthorized": "Expected a token of this server: Authorization: Bearer ...",
    "forbidden": "This token may only read.",
    "too_many": "Too many calls. Try again after the number of seconds in Retry-After.",
    "too_large": "The request names too many subjects.",
    "unknown_request": "There is no request of that name.",
    "carried_out": "The request was carried out, which cannot be undone.",
    "unknown_subject": "The store has never seen one of the subjects. Nothing was changed.",
    "conflict": "The name was given to another request or to one for later, or was cancelled or refused. Nothing was "
    "changed.",
    "nameless": "Expected a name for the request. Nothing was changed.",
    "now_or_later": "Expected either now or a day, but got both. Nothing was changed.",
    "not_later": "Expected a later day than today (UTC). Nothing was changed.",
    "other_form": "The store knows this id in another Unicode form: copy it from the training data.",
    "invalid": "One of the ids is invalid. Nothing was changed.",
    "not_received": "The day of the letter is in the future. Nothing was changed.",
    "not_approved": "The privacy request is not approved yet: call before or after execution. Nothing was changed.",
    "only_erasure": "Only requests for erasure are taken. Nothing was changed.",
    "no_extensions": "There are no extensions for this domain. Nothing was changed.",
    "no_callback": "A callback is to an address that the server does not have (control.opendsr). Nothing was changed.",
    "no_opendsr_identity": "There is no identity of the type that the server expects in the format raw. Nothing was "
    "changed.",
    "no_identity": "The identity has no id of the kind that the server expects (control.fides). Nothing was changed.",
    "unreachable": "The ledger is unreachable. Try again with the same request_id.",
    "store": (
        "The store could not do it: see the server's log. A retry with the same request_id is not a second request."
    ),
}


def _add_error_handlers(app: FastAPI) -> None:
    """Describe errors with fixed messages: the messages of exceptions may contain ids."""

    def answer(
        request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        in_form = opendsr_error if request.url.path.startswith("/opendsr/") else error_response
        return in_form(status, code, message, headers)

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        code = error.detail if error.detail in _MESSAGES else "http"
        message = _MESSAGES.get(code) or {404: "There is nothing here.", 405: "Not that method."}.get(
            error.status_code, "The request cannot be read."
        )
        return answer(request, error.status_code, code, message, error.headers)

    async def of_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        known = {
            *ForgetBody.model_fields,
            *FidesBody.model_fields,
            *OPENDSR_FIELDS,
            *DESK_FIELDS,
            "body",
            "path",
            "query",
            "after",
            "request",
        }
        where = sorted({".".join(str(part) for part in one["loc"] if part in known) for one in error.errors()})
        return answer(request, 422, "invalid", f"Not what is expected: {', '.join(where)}. See /openapi.json.")

    async def of_store(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, UnknownSubjectError):
            return answer(request, 404, "unknown_subject", _MESSAGES["unknown_subject"])
        if isinstance(error, DataError):
            return answer(request, 422, "invalid", _MESSAGES["invalid"])
        if isinstance(error, ConfigurationError):
            return answer(request, 409, "conflict", _MESSAGES["conflict"])
        if isinstance(error, StoreError):
            _log.error("%s: %s", type(error).__name__, error)
        if isinstance(error, LedgerUnreachableError):
            return answer(request, 503, "unreachable", _MESSAGES["unreachable"], {"Retry-After": str(_RETRY_AFTER)})
        return answer(request, 500, "store", _MESSAGES["store"])

    app.add_exception_handler(StarletteHTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(S3TError, of_store)
