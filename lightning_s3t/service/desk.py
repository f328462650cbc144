"""The desk: a web page of the control server for the person responsible for deletions.

The page keeps the token in memory and sends it with each call, as any client of the server does. There is no cookie: no
other site can act for a user who has the desk open, and there is no session to end. Every call is a POST that returns
the HTML of the sections that have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lightning_s3t.errors import UnknownSubjectError
from lightning_s3t.reporting.charts import outlook_of, survival_chart
from lightning_s3t.reporting.pages import page_templates
from lightning_s3t.service.bodies import RequestId
from lightning_s3t.service.guard import Guard
from lightning_s3t.service.requests import ask, end, waits_for_fit
from lightning_s3t.service.tokens import Role
from lightning_s3t.store import ScheduledRequest, Store

_RECEIPTS = 50  # the newest, on the page
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# a page cannot send control characters back unchanged: use the API for such ids
_Subject = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Nothing(_Body):
    pass


class _Person(_Body):
    subject: _Subject


class _Ask(_Body):
    subject: _Subject
    request_id: RequestId | None = None  # None for a request that waits for a fit
    when: Literal["now", "later"]
    on: date | Literal[""] = ""
    unknown: bool = False
    sure: Literal["on"]

    def at(self, today: date) -> datetime | None:
        """Return when to carry it out; None for now."""
        if self.when == "now":
            if self.on:  # they chose a day but not "later"
                raise HTTPException(422, "now_or_later")
            return None
        if not self.on or self.on <= today:  # a slip in the year must not be "at once"
            raise HTTPException(422, "not_later")
        return datetime.combine(self.on, time(), timezone.utc)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    if not line.isprintable():
        raise ValueError("characters that cannot be printed")
    return line


class _End(_Body):
    request_id: RequestId
    reason: Annotated[str, Field(max_length=500), AfterValidator(_one_line)] = ""


DESK_FIELDS = {*_Ask.model_fields, *_End.model_fields}


@dataclass(frozen=True)
class OpenRequest:
    """A waiting request and its deadline.

    Attributes:
        request: The request.
        answer_by: The last day on which to answer it.
        is_late: Whether that day has passed, or will have when the request is carried out.
    """

    request: ScheduledRequest
    answer_by: date
    is_late: bool

    @classmethod
    def of(cls, requests: Iterable[ScheduledRequest], days: int, today: date) -> Iterator[OpenRequest]:
        """Return the waiting requests, the most urgent first.

        Args:
            requests: All requests that were ever scheduled.
            days: Number of days within which to answer a request.
            today: The current day.
        """
        waiting = [one for one in requests if one.state == "scheduled"]
        for one in sorted(waiting, key=lambda one: (one.noted, one.due)):
            answer_by = _day(one.noted) + timedelta(days)
            yield cls(one, answer_by, max(_day(one.due), today) > answer_by)


def add_desk(app: FastAPI, store: Store, guard: Guard, days: int) -> None:
    """Add the desk to the control server.

    Args:
        app: The control server.
        store: The opened store.
        guard: The guard of the control server.
        days: Number of days within which to answer a request.
    """
    templates = page_templates("lightning_s3t.service")
    may_ask, may_look = guard.allows("ask"), guard.allows("look")
    waits, has_units = waits_for_fit(store), store.manifest.method.has_units
    desk = APIRouter(prefix="/desk", include_in_schema=False)

    def page(template: str, **values: Any) -> Response:
        text = templates.get_template(template).render(values, waits=waits, has_units=has_units, days=days)
        return Response(text, headers=_HEADERS, media_type="text/html")

    def sections(template: str, role: Role, **values: Any) -> Response:
        requests, overview = store.scheduled_requests(), store.status()
        return page(
            template,
            role=role,
            found=overview,
            forgotten=store.count_forgotten(),
            survival=survival_chart(outlook_of(store, overview)),
            open_requests=list(OpenRequest.of(requests, days, _today())),
            ended=[one for one in reversed(requests) if one.is_ended and one.request_id is not None],
            receipts=store.receipts(after=max(0, overview.requests - _RECEIPTS))[::-1],
            **values,
        )

    @desk.get("")
    def shell() -> Response:
        return page("desk.html")

    @desk.get("/desk.css")
    def style() -> Response:
        return Response(_file("reporting", "style.css") + _file("service", "desk.css"), 200, _HEADERS, "text/css")

    @desk.get("/desk.js")
    def script() -> Response:
        return Response(_file("service", "desk.js"), 200, _HEADERS, "text/javascript")

    @desk.post("/start")
    def start(body: _Nothing, role: Role = may_look) -> Response:
        return sections("start.html", role)

    @desk.post("/person", dependencies=[may_ask])
    def look_up(body: _Person) -> Response:
        try:
            found = store.preview([body.subject])
        except UnknownSubjectError:
            raise HTTPException(404, "other_form") from None
        return page("person.html", subject=body.subject, found=found, tomorrow=_today() + timedelta(1))

    @desk.post("/forget")
    def forget(body: _Ask, role: Role = may_ask) -> Response:
        if body.request_id is None and not waits:
            raise HTTPException(422, "nameless")
        done = ask(store, body.request_id or "", [body.subject], body.at(_today()), strict=not body.unknown)
        return sections("done.html", role, done=done)

    @desk.post("/end")
    def end_request(body: _End, role: Role = may_ask) -> Response:
        done = end(store, body.request_id, body.reason)
        return sections("done.html", role, done=done)

    app.include_router(desk)


def _file(package: str, name: str) -> bytes:
    return (files(f"lightning_s3t.{package}") / "templates" / name).read_bytes()


def _today() -> date:
    return datetime.now(timezone.utc).date()


def _day(time: str) -> date:
    return datetime.fromisoformat(time).date()
