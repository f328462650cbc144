"""OpenDSR: requests for erasure from a controller's system, with signed answers and callbacks.

The specification is https://github.com/opengdpr/OpenDSR (formerly OpenGDPR). Of its kinds of requests there is only
"erasure" here: everything else is refused.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import threading
import time
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, Field

from lightning_s3t.core.clock import own_clock
from lightning_s3t.errors import ConfigurationError, S3TError
from lightning_s3t.service.bodies import RequestState
from lightning_s3t.service.guard import Guard
from lightning_s3t.service.requests import Requests
from lightning_s3t.service.settings import OpenDSRSettings
from lightning_s3t.store.disk.files import write_atomically
from lightning_s3t.store.requests.leases import ReplicaWait

PREFIX = "/opendsr/v2"
_VERSION = "2.0"
_TIMEOUT = 10.0  # seconds, for a callback
_SLOWEST = 3600.0  # seconds between two attempts at a callback, at most
_UNKNOWN_FOR = 86_400.0  # seconds until the callbacks of a request that never came are dropped
_log = logging.getLogger("lightning_s3t.service")

_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")]
_Status = Literal["pending", "completed", "cancelled"]
_STATUSES: dict[str, _Status] = {
    "carried_out": "completed",
    "scheduled": "pending",
    "cancelled": "cancelled",
    "refused": "cancelled",
}


class Identity(BaseModel):
    """An identity of the person.

    Attributes:
        identity_type: Its kind: controller_customer_id, email, ...
        identity_value: The identity.
        identity_format: How it is encoded: raw, or as a digest.
    """

    identity_type: str
    identity_value: Annotated[str, Field(min_length=1, max_length=1000)]
    identity_format: str


class OpenDSRBody(BaseModel):
    """A request by OpenDSR; it may have more fields, which do not matter here.

    Attributes:
        regulation: The law that it is made under.
        subject_request_id: The controller's name for it: a UUID of version 4.
        subject_request_type: "erasure".
        submitted_time: When the person made it.
        subject_identities: The person's identities.
        status_callback_urls: Where to tell of its state.
        extensions: Further fields, by the processor's domain.
    """

    regulation: Literal["gdpr", "ccpa"]
    subject_request_id: _Id
    subject_request_type: Annotated[str, Field(max_length=100)]
    submitted_time: AwareDatetime
    subject_identities: Annotated[list[Identity], Field(min_length=1)]
    status_callback_urls: Annotated[list[str], Field(max_length=10)] = []
    extensions: dict[str, Any] | None = None


OPENDSR_FIELDS = {*OpenDSRBody.model_fields, *Identity.model_fields}


class Signer:
    """Signs answers and callbacks with the key of a certificate.

    Args:
        settings: With the files of the key and the certificate.

    Raises:
        ConfigurationError: They cannot be read, or do not belong together.
    """

    def __init__(self, settings: OpenDSRSettings) -> None:
        self.domain = settings.domain
        try:
            self.certificate = settings.certificate.read_bytes()
            certificate = x509.load_pem_x509_certificate(self.certificate)
            key = load_pem_private_key(settings.key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"The certificate or the key of `control.opendsr` cannot be read ({error}). Expected PEM files, "
                "the key without a password."
            ) from error
        if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
            raise ConfigurationError("The key of `control.opendsr` is of another kind. Expected an RSA or an EC key.")
        if key.public_key() != certificate.public_key():
            raise ConfigurationError("The key of `control.opendsr` is not the one of its certificate.")
        self._key = key

    def headers(self, body: bytes) -> dict[str, str]:
        """Return the headers that sign a body, by SHA-256 and RSA (PKCS 1 v1.5) or ECDSA.

        Args:
            body: The body.
        """
        if isinstance(self._key, rsa.RSAPrivateKey):
            signature = self._key.sign(body, padding.PKCS1v15(), SHA256())
        else:
            signature = self._key.sign(body, ec.ECDSA(SHA256()))
        return {
            "X-OpenDSR-Processor-Domain": self.domain,
            "X-OpenDSR-Signature": base64.b64encode(signature).decode(),
        }


class Callbacks:
    """Callbacks that are still to be sent: a file for each request, so that none is lost when the server stops.

    No file holds an id of a person.

    Args:
        folder: For the files.
        requests: The requests of the store.
        signer: Signs the callbacks.
        describe: Returns the state of a request as the specification has it.
    """

    def __init__(self, folder: Path, requests: Requests, signer: Signer, describe: Any) -> None:
        self._folder = folder
        self._requests = requests
        self._signer = signer
        self._describe = describe
        self._files = threading.Lock()  # held while they are changed
        self._sending = threading.Lock()
        self._wanted = threading.Event()  # by a call that came while another was sending
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"The folder {folder} for OpenDSR's callbacks cannot be made: {error}.") from error

    def add(self, request_id: str, urls: list[str]) -> None:
        """Note callbacks, on disk before the request is carried out.

        Args:
            request_id: The request.
            urls: Where to tell of its state.
        """
        if urls:
            with self._files:
                path = self._folder / f"{request_id}.json"
                _write(path, {**dict.fromkeys(urls, ""), **_read(path)})

    def send(self) -> None:
        """Send what is due: each new state of a request, to each of its addresses, until it is answered with 2xx."""
        self._wanted.set()
        while self._wanted.is_set() and self._sending.acquire(blocking=False):  # no thread waits for a slow address
            try:
                self._wanted.clear()
                for path in sorted(self._folder.glob("*.json")):
                    try:
                        self._send(path)
                    except (S3TError, OSError, ValueError) as error:  # tried again
                        _log.error("A callback of OpenDSR could not be sent: %s", type(error).__name__)
            finally:
                self._sending.release()

    def _send(self, path: Path) -> None:
        state = self._state(path)
        if state is None:
            return
        document = self._describe(path.stem, state)
        status = document["request_status"]
        sent = [url for url, last in _read(path).items() if last != status and self._is_sent(path.stem, url, document)]
        with self._files:
            told = {**_read(path), **dict.fromkeys(sent, status)}
            if status != "pending" and set(told.values()) == {status}:
                path.unlink()
            elif sent:
                _write(path, told)

    def _state(self, path: Path) -> RequestState | None:
        try:
            return self._requests.state_of(path.stem)
        except HTTPException:  # it never came: the server stopped between the two
            if time.time() - path.stat().st_mtime > _UNKNOWN_FOR:
                path.unlink()
            return None

    def _is_sent(self, request_id: str, url: str, document: Mapping[str, Any]) -> bool:
        count, not_before = self._failures.get((request_id, url), (0, 0.0))
        if own_clock() < not_before:
            return False
        body = json.dumps({**document, "status_callback_url": url}).encode()
        headers = {"Content-Type": "application/json", **self._signer.headers(body)}
        try:
            with _OPENER.open(urllib.request.Request(url, body, headers, method="POST"), timeout=_TIMEOUT):
                self._failures.pop((request_id, url), None)
                return True
        except (OSError, ValueError, http.client.HTTPException) as error:  # also for statuses that are not 2xx
            self._failures[request_id, url] = count + 1, own_clock() + min(2.0**count, _SLOWEST)
            _log.warning("A callback of OpenDSR failed for the %d. time: %s.", count + 1, type(error).__name__)
            return False


def _read(path: Path) -> dict[str, str]:
    """Return the last state that each address was told of; "" for none."""
    try:
        found: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def _write(path: Path, told: Mapping[str, str]) -> None:
    write_atomically(path, json.dumps(told).encode())


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A callback goes to an address of the settings, and nowhere else."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Called for a redirect: it is an error."""


_OPENER = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def add_opendsr(
    app: FastAPI,
    requests: Requests,
    guard: Guard,
    settings: OpenDSRSettings,
    days: int,
    responses: dict[int | str, Any],
) -> Callbacks:
    """Add the interface to the control server.

    Args:
        app: The control server.
        requests: The requests of the store.
        guard: The guard of the control server.
        settings: Its settings.
        days: Number of days within which to answer a request.
        responses: The errors of the control server, for its OpenAPI document.

    Raises:
        ConfigurationError: The store's requests wait for a fit; or the key or the certificate cannot be used.

    Returns:
        The callbacks, to be sent now and then.
    """
    if requests.waits_for_fit:
        raise ConfigurationError(
            "OpenDSR asks for the state of each request by its name, and with the method of this store requests have "
            "no names: they wait for the next fit. Remove `control.opendsr`, or use a method that answers at once."
        )
    signer = Signer(settings)
    may_ask, may_look = guard.allows("ask"), guard.allows("look")

    waits: dict[str, ReplicaWait] = {}

    def is_completed(request_id: str, state: RequestState) -> bool:
        """Return whether no replica can answer from the person's data, and its files are erased.

        It may be asked before `forget` has returned, or after it has failed.
        """
        store = requests.store
        number = state.receipt["request"] if state.receipt is not None else store.request_number
        if not waits.setdefault(request_id, store.replica_wait(number)).is_over() or not store.is_erased(number):
            return False
        waits.pop(request_id, None)
        return True

    def describe(request_id: str, state: RequestState) -> dict[str, Any]:
        status = _STATUSES[state.state]
        if status == "completed" and not is_completed(request_id, state):
            status = "pending"
        done = state.receipt["time"] if state.receipt is not None else state.due
        return {
            "controller_id": settings.controller,
            "expected_completion_time": done or _text(datetime.now(timezone.utc)),
            "subject_request_id": request_id,
            "request_status": status,
            "api_version": _VERSION,
            "results_url": None,
        }

    def signed(status: int, document: Mapping[str, Any]) -> Response:
        body = json.dumps(document).encode()
        headers = {**signer.headers(body), "Cache-Control": "no-store"}
        return Response(body, status, headers, "application/json")

    callbacks = Callbacks(settings.outbox, requests, signer, describe)

    @app.get(f"{PREFIX}/discovery", summary="What OpenDSR can ask for here")
    def discovery() -> Response:
        """Return the kinds of requests and identities that are taken."""
        identity = {"identity_type": settings.identity, "identity_format": "raw"}
        found = {
            "api_version": _VERSION,
            "supported_identities": [identity],
            "supported_subject_request_types": ["erasure"],
            "processor_certificate": f"https://{settings.domain}{PREFIX}/certificate",
        }
        return signed(200, found)

    @app.get(f"{PREFIX}/certificate", summary="The certificate that answers are signed with")
    def certificate() -> Response:
        """Return the certificate, in PEM."""
        return Response(signer.certificate, media_type="application/x-pem-file")

    @app.post(
        f"{PREFIX}/opendsr_requests",
        dependencies=[may_ask],
        responses=responses,
        status_code=201,
        summary="A request by OpenDSR",
    )
    def create(body: OpenDSRBody, later: BackgroundTasks, raw: Annotated[bytes, Depends(_raw)]) -> Response:
        """Forget a person. Requests of other kinds than erasure are refused."""
        if body.subject_request_type != "erasure":
            raise HTTPException(422, "only_erasure")
        if settings.domain in (body.extensions or {}):
            raise HTTPException(422, "no_extensions")
        if not set(body.status_callback_urls) <= set(settings.callbacks):
            raise HTTPException(422, "no_callback")
        subjects = _subjects(body, settings.identity)
        now = datetime.now(timezone.utc)
        callbacks.add(body.subject_request_id, body.status_callback_urls)
        # a person who is not in the training data may have asked too, and must not enter a later fit
        state = requests.ask(body.subject_request_id, subjects, strict=False)
        later.add_task(callbacks.send)
        document = describe(body.subject_request_id, state)
        expected = document["expected_completion_time"]
        if state.state != "carried_out":
            expected = _text(body.submitted_time + timedelta(days))
        answer = {
            "controller_id": settings.controller,
            "expected_completion_time": expected,
            "received_time": _text(now),
            "encoded_request": base64.b64encode(raw).decode(),
            "subject_request_id": body.subject_request_id,
        }
        response = signed(201, answer)
        response.background = later
        return response

    @app.get(
        f"{PREFIX}/opendsr_requests/{{request_id}}",
        dependencies=[may_look],
        responses=responses,
        summary="The state of a request by OpenDSR",
    )
    def status(request_id: _Id) -> Response:
        """Return the state of a request."""
        return signed(200, describe(request_id, requests.state_of(request_id)))

    @app.delete(
        f"{PREFIX}/opendsr_requests/{{request_id}}",
        dependencies=[may_ask],
        responses=responses,
        status_code=202,
        summary="Cancel a request by OpenDSR",
    )
    def cancel(request_id: _Id) -> Response:
        """Cancel a request that is not carried out. What was carried out cannot be undone."""
        requests.end(request_id)
        now = _text(datetime.now(timezone.utc))
        answer = {"controller_id": settings.controller, "subject_request_id": request_id, "received_time": now}
        return signed(202, {**answer, "api_version": _VERSION})

    return callbacks


def opendsr_error(status: int, code: str, message: str, headers: Mapping[str, str] | None) -> JSONResponse:
    """Return an error as the specification has it: 400 for requests that it cannot take.

    Args:
        status: The status elsewhere.
        code: For programs.
        message: For people.
        headers: Further headers.
    """
    status = 400 if status in (409, 422) else status
    detail = {"domain": "opendsr", "reason": code, "message": message}
    body = {"error": {"code": status, "message": message, "errors": [detail]}}
    return JSONResponse(body, status, {**(headers or {}), "Cache-Control": "no-store"})


def _subjects(body: OpenDSRBody, identity: str) -> list[str | int]:
    """Return the ids of the person; a request without one would forget nothing, and a digest cannot be looked up."""
    own = [one for one in body.subject_identities if one.identity_type == identity]
    if not own or any(one.identity_format != "raw" for one in own):
        raise HTTPException(422, "no_opendsr_identity")
    return [one.identity_value for one in own]


async def _raw(request: Request) -> bytes:
    return await request.body()


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
