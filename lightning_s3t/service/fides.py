"""A webhook for Fides: its privacy requests reach the store (https://github.com/ethyca/fides, policy webhooks)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from lightning_s3t.service.bodies import RequestId, Subject
from lightning_s3t.service.guard import Guard
from lightning_s3t.service.requests import Requests


class _Labelled(BaseModel):
    value: Subject | Annotated[list[Subject], Field(min_length=1)]


class FidesBody(BaseModel):
    """The body of a call by Fides; it has more fields, which do not matter here.

    Attributes:
        privacy_request_id: Fides' id of the privacy request.
        callback_type: The time of the call: before the request is approved, before it is executed, or after.
        policy_action: The kind of request: "erasure", "access", ...
        identity: The person's identity, by kind: email, phone_number, external_id, or a custom kind.
    """

    privacy_request_id: RequestId
    callback_type: Literal["pre_approval", "pre", "post"]
    policy_action: str | None = None
    identity: Annotated[dict[str, Any], Field(max_length=100)]


class FidesAnswer(BaseModel):
    """The answer to Fides, which reads it if the webhook is a `two_way` one.

    Attributes:
        halt: Whether the privacy request stops here, because the model still serves the person's data.
    """

    halt: bool


def add_fides(app: FastAPI, requests: Requests, guard: Guard, identity: str, responses: dict[int | str, Any]) -> None:
    """Add the webhook to the control server.

    Args:
        app: The control server.
        requests: The requests of the store.
        guard: The guard of the control server.
        identity: The kind of identity that has a person's id in the training data.
        responses: The errors of the control server, for its OpenAPI document.
    """

    @app.post("/fides", dependencies=[guard.allows("ask")], responses=responses, summary="A webhook for Fides")
    def fides(body: FidesBody) -> FidesAnswer:
        """Forget the person of an approved request for erasure. Other requests change nothing."""
        if body.policy_action != "erasure":
            return FidesAnswer(halt=False)
        if body.callback_type == "pre_approval":
            raise HTTPException(422, "not_approved")
        # a person who is not in the training data may have asked too, and must not enter a later fit
        state = requests.ask(body.privacy_request_id, _subjects(body, identity), strict=False)
        return FidesAnswer(halt=state.state != "carried_out")


def _subjects(body: FidesBody, identity: str) -> list[str | int]:
    """Return the ids of the person; no request may pass without one, since nothing would be forgotten."""
    given = body.identity.get(identity)
    try:
        found = _Labelled.model_validate(given if isinstance(given, dict) else {"value": given}).value
    except ValueError:
        raise HTTPException(422, "no_identity") from None
    return found if isinstance(found, list) else [found]
