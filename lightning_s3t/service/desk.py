"""The desk: a web page of the control server for the person responsible for deletions.

The page keeps the token in memory and sends it with each call, as any client of the server does. There is no cookie: no
other site can act for a user who has the desk open, and there is no session to end. Every call is a POST that returns
the HTML of the sections that have changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lightning_s3t.errors import UnknownSubjectError
from lightning_s3t.reporting.charts import outlook_of, survival_chart
from lightning_s3t.reporting.pages import page_templates
from lightning_s3t.service.bodies import RequestId
from lightning_s3t.service.guard import Guard
from lightning_s3t.service.requests import Requests
from lightning_s3t.service.settings import ControlSettings
from lightning_s3t.service.tokens import Role
from lightning_s3t.store import ScheduledRequest

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


def _in_lines(text: Any) -> Any:
    """Return the ids in a text with an id on each line, each once; blanks at its ends may belong to an id."""
    if not isinstance(text, str):
        return None
    return list(dict.fromkeys(line for line in re.split(r"\r\n|\r|\n", text) if line.strip()))


_Subjects = Annotated[list[_Subject], Field(min_length=1), BeforeValidator(_in_lines)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Nothing(_Body):
    pass


class _People(_Body):
    subjects: _Subjects


class _Ask(_Body):
    subjects: _Subjects
    request_id: RequestId | None = None  # None for a request that waits for a fit
    when: Literal["now", "later"]
    on: date | Literal[""] = ""
    received: date | Literal[""] = ""
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
        received: The day on which the letter came, or the request was noted.
        answer_by: The last day on which to answer it.
        is_late: Whether that day has passed, or will have when the request is carried out.
    """

    request: ScheduledRequest
    received: date
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
        for one in sorted(waiting, key=lambda one: (_received(one), one.noted, one.due)):
            received = _received(one)
            answer_by = received + timedelta(days)
            yield cls(one, received, answer_by, max(_day(one.due), today) > answer_by)


def add_desk(app: FastAPI, requests: Requests, guard: Guard, limits: ControlSettings) -> None:
    """Add the desk to the control server.

    Args:
        app: The control server.
        requests: The requests of the store.
        guard: The guard of the control server.
        limits: The settings of the control server.
    """
    store, days = requests.store, limits.answer_within
    templates = page_templates("lightning_s3t.service")
    may_ask, may_look = guard.allows("ask"), guard.allows("look")
    waits, has_units = requests.waits_for_fit, store.manifest.method.has_units
    desk = APIRouter(prefix="/desk", include_in_schema=False)

    def check_number(subjects: list[str]) -> None:
        if len(subjects) > limits.max_subjects:
            raise HTTPException(413, "too_large")

    def page(template: str, **values: Any) -> Response:
        shared = {"waits": waits, "has_units": has_units, "days": days, "signs": requests.signs}
        text = templates.get_template(template).render(values, **shared)
        return Response(text, headers=_HEADERS, media_type="text/html")

    def sections(template: str, role: Role, **values: Any) -> Response:
        listed, overview = store.scheduled_requests(), store.status()
        return page(
            template,
            role=role,
            found=overview,
            forgotten=store.count_forgotten(),
            survival=survival_chart(outlook_of(store, overview)),
            open_requests=list(OpenRequest.of(listed, days, _today())),
            ended=[one for one in reversed(listed) if one.is_ended and one.request_id is not None],
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
    def look_up(body: _People) -> Response:
        check_number(body.subjects)
        try:
            found = store.preview(body.subjects)
        except UnknownSubjectError:
            raise HTTPException(404, "other_form") from None
        today = _today()
        return page("person.html", subjects=body.subjects, found=found, today=today, tomorrow=today + timedelta(1))

    @desk.post("/forget")
    def forget(body: _Ask, role: Role = may_ask) -> Response:
        if body.request_id is None and not waits:
            raise HTTPException(422, "nameless")
        check_number(body.subjects)
        today = _today()
        received = body.received or None
        done = requests.ask(body.request_id or "", body.subjects, body.at(today), not body.unknown, received)
        return sections("done.html", role, done=done, answer_by=(received or today) + timedelta(days))

    @desk.post("/end")
    def end_request(body: _End, role: Role = may_ask) -> Response:
        done = requests.end(body.request_id, body.reason)
        return sections("done.html", role, done=done)

    app.include_router(desk)


def _file(package: str, name: str) -> bytes:
    return (files(f"lightning_s3t.{package}") / "templates" / name).read_bytes()


def _today() -> date:
    return datetime.now(timezone.utc).date()


def _received(request: ScheduledRequest) -> date:
    return _day(request.received or request.noted)


def _day(time: str) -> date:
    return datetime.fromisoformat(time).date()
