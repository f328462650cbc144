"""OpenDSR: a controller's requests for erasure, with signed answers and callbacks that are not lost."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError
from starlette.testclient import TestClient

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.service import ControlSettings, make_control_app
from lightning_s3t.service.settings import OpenDSRSettings
from lightning_s3t.store import Store
from tests.service.conftest import ASK, LOOK, TOKENS, as_role
from tests.store.people_store import SETTINGS, in_place, snapshots_stay

ANN, BOB = in_place(0, 0), in_place(1, 1)
ID, OTHER = "a7551968-d5d6-44b2-9831-815ac9017798", "b7551968-d5d6-44b2-9831-815ac9017798"
REQUESTS = "/opendsr/v2/opendsr_requests"


class Controller:
    """A controller's address for callbacks."""

    def __init__(self) -> None:
        self.status = 200
        self.got: list[tuple[Any, bytes]] = []
        controller = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                controller.got.append((self.headers, body))
                self.send_response(controller.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/callbacks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def controller() -> Iterator[Controller]:
    opened = Controller()
    yield opened
    opened.server.shutdown()
    opened.server.server_close()


def certify(folder: Path, key: Any) -> tuple[Path, Path]:
    """Write a key and a certificate for it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dsr.example.com")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(1))
        .sign(key, SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def settings(tmp_path: Path, controller: Controller, rsa_key: rsa.RSAPrivateKey) -> OpenDSRSettings:
    certificate, key = certify(tmp_path, rsa_key)
    return OpenDSRSettings(
        identity="controller_customer_id",
        controller="example",
        domain="dsr.example.com",
        certificate=certificate,
        key=key,
        callbacks=[controller.url],
        outbox=tmp_path / "outbox",
    )


def open_door(path: Path, settings: OpenDSRSettings) -> TestClient:
    limits = ControlSettings(requests_per_minute=100_000, due_every=0.05, opendsr=settings)
    return TestClient(make_control_app(path, TOKENS, limits), headers=as_role(ASK))


@pytest.fixture
def door(path: Path, settings: OpenDSRSettings) -> Iterator[TestClient]:
    with open_door(path, settings) as client:
        yield client


def body_of(**changed: Any) -> dict[str, Any]:
    identity = {"identity_type": "controller_customer_id", "identity_value": ANN, "identity_format": "raw"}
    email = {"identity_type": "email", "identity_value": "0" * 64, "identity_format": "sha256"}
    return {
        "regulation": "gdpr",
        "subject_request_id": ID,
        "subject_request_type": "erasure",
        "submitted_time": "2026-10-02T15:00:00Z",
        "subject_identities": [email, identity],
        "api_version": "2.0",
        "extensions": {"other.example.com": {"x": 1}},
        **changed,
    }


def check_signed(settings: OpenDSRSettings, headers: Any, body: bytes) -> None:
    public = x509.load_pem_x509_certificate(settings.certificate.read_bytes()).public_key()
    signature = base64.b64decode(headers["X-OpenDSR-Signature"])
    assert headers["X-OpenDSR-Processor-Domain"] == "dsr.example.com"
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(signature, body, padding.PKCS1v15(), SHA256())
    else:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(signature, body, ec.ECDSA(SHA256()))


def wait_for(what: Any) -> None:
    for _ in range(500):
        if what():
            return
        threading.Event().wait(0.02)
    raise AssertionError("It did not come to be.")


def test_a_person_is_forgotten_once_and_every_answer_is_signed(
    door: TestClient, path: Path, settings: OpenDSRSettings
) -> None:
    created = door.post(REQUESTS, json=body_of())
    assert created.status_code == 201, created.text
    answer = created.json()
    assert (answer["controller_id"], answer["subject_request_id"]) == ("example", ID)
    assert json.loads(base64.b64decode(answer["encoded_request"])) == body_of()
    again = door.post(REQUESTS, json=body_of())
    assert again.status_code == 201
    status = door.get(f"{REQUESTS}/{ID}", headers=as_role(LOOK))
    assert status.json()["request_status"] == "completed"
    for found in (created, again, status, door.get("/opendsr/v2/discovery")):
        check_signed(settings, found.headers, found.content)
    with pytest.raises(InvalidSignature):
        check_signed(settings, created.headers, created.content + b" ")
    assert door.get("/status").json()["requests"] == 1
    with Store.open(path) as store:
        assert store.forgotten([ANN]) == {ANN}


def test_discovery_says_what_is_taken(door: TestClient, settings: OpenDSRSettings) -> None:
    found = door.get("/opendsr/v2/discovery", headers={"Authorization": ""}).json()
    assert found["supported_subject_request_types"] == ["erasure"]
    assert found["supported_identities"] == [{"identity_type": "controller_customer_id", "identity_format": "raw"}]
    assert found["processor_certificate"] == "https://dsr.example.com/opendsr/v2/certificate"
    certificate = door.get("/opendsr/v2/certificate", headers={"Authorization": ""})
    assert certificate.content == settings.certificate.read_bytes()


IDENTITY = {"identity_type": "controller_customer_id", "identity_value": BOB, "identity_format": "raw"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"subject_request_type": "access"}, "only_erasure"),
        ({"subject_request_type": "portability"}, "only_erasure"),
        ({"subject_request_type": "rectification"}, "only_erasure"),
        ({"regulation": "another"}, "invalid"),
        ({"subject_request_id": "r-1"}, "invalid"),
        ({"subject_request_id": ID.replace("-44b2", "-14b2")}, "invalid"),
        ({"subject_identities": []}, "invalid"),
        ({"subject_identities": [{**IDENTITY, "identity_type": "email"}]}, "no_opendsr_identity"),
        ({"subject_identities": [{**IDENTITY, "identity_format": "sha256"}]}, "no_opendsr_identity"),
        ({"subject_identities": [IDENTITY, {**IDENTITY, "identity_format": "md5"}]}, "no_opendsr_identity"),
        ({"extensions": {"dsr.example.com": {"only": "some"}}}, "no_extensions"),
        ({"status_callback_urls": ["http://169.254.169.254/"]}, "no_callback"),
    ],
)
def test_what_it_does_not_do_is_refused_and_changes_nothing(
    door: TestClient, changed: dict[str, Any], reason: str
) -> None:
    refused = door.post(REQUESTS, json=body_of(**changed))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, 400)
    assert [one["reason"] for one in refused.json()["error"]["errors"]] == [reason]
    assert BOB not in refused.text
    assert door.get("/status").json()["requests"] == 0


def test_only_tokens_may_ask_and_look(door: TestClient) -> None:
    for headers, code in (({"Authorization": ""}, 401), (as_role(LOOK), 403)):
        assert door.post(REQUESTS, json=body_of(), headers=headers).status_code == code
        assert door.delete(f"{REQUESTS}/{ID}", headers=headers).status_code == code
    assert door.get(f"{REQUESTS}/{ID}", headers={"Authorization": ""}).status_code == 401
    assert door.get(f"{REQUESTS}/{ID}").status_code == 404


def test_what_waits_may_be_cancelled_and_what_is_done_may_not(door: TestClient, settings: OpenDSRSettings) -> None:
    at = (datetime.now(timezone.utc) + timedelta(3)).isoformat()
    door.post("/forget", json={"request_id": OTHER, "subjects": [BOB], "at": at})
    assert door.get(f"{REQUESTS}/{OTHER}").json()["request_status"] == "pending"
    cancelled = door.delete(f"{REQUESTS}/{OTHER}")
    assert cancelled.status_code == 202
    check_signed(settings, cancelled.headers, cancelled.content)
    assert door.get(f"{REQUESTS}/{OTHER}").json()["request_status"] == "cancelled"
    door.post(REQUESTS, json=body_of())
    assert door.delete(f"{REQUESTS}/{ID}").status_code == 400


def test_a_callback_is_signed_and_sent_again_until_it_arrives(
    path: Path, settings: OpenDSRSettings, controller: Controller
) -> None:
    controller.status = 500
    with open_door(path, settings) as door:
        assert door.post(REQUESTS, json=body_of(status_callback_urls=[controller.url])).status_code == 201
        wait_for(lambda: controller.got)
    (note,) = settings.outbox.iterdir()
    assert ANN not in note.read_text()
    controller.status = 302  # to be sent elsewhere is a failure too
    with open_door(path, settings):
        seen = len(controller.got)
        wait_for(lambda: len(controller.got) > seen)
    assert note.exists()
    controller.status = 204
    with open_door(path, settings):  # the server was started again
        wait_for(lambda: not note.exists())
    headers, body = controller.got[-1]
    check_signed(settings, headers, body)
    told = json.loads(body)
    assert (told["status_callback_url"], told["request_status"]) == (controller.url, "completed")
    assert (told["subject_request_id"], told["controller_id"]) == (ID, "example")


def test_a_callback_tells_of_each_state_once(
    door: TestClient, controller: Controller, settings: OpenDSRSettings
) -> None:
    at = (datetime.now(timezone.utc) + timedelta(3)).isoformat()
    door.post("/forget", json={"request_id": OTHER, "subjects": [ANN], "at": at})
    wanted = body_of(subject_request_id=OTHER, status_callback_urls=[controller.url])
    assert door.post(REQUESTS, json=wanted).status_code == 400  # the desk has scheduled it
    settings.outbox.joinpath(f"{OTHER}.json").write_text(json.dumps({controller.url: ""}))
    wait_for(lambda: len(controller.got) == 1)
    door.delete(f"{REQUESTS}/{OTHER}")
    wait_for(lambda: not settings.outbox.joinpath(f"{OTHER}.json").exists())
    assert [json.loads(body)["request_status"] for _, body in controller.got] == ["pending", "cancelled"]


def test_nothing_is_completed_while_a_file_waits_to_be_erased(
    path: Path, settings: OpenDSRSettings, controller: Controller
) -> None:
    def told() -> list[str]:
        return [json.loads(body)["request_status"] for _, body in controller.got]

    with open_door(path, settings) as door:
        with snapshots_stay():
            assert door.post(REQUESTS, json=body_of(status_callback_urls=[controller.url])).status_code == 500
            wait_for(told)
            assert door.get(f"{REQUESTS}/{ID}").json()["request_status"] == "pending"
            assert told() == ["pending"]
        wait_for(lambda: len(told()) > 1)  # the server tries again
        assert told() == ["pending", "completed"]
        assert door.get(f"/forget/{ID}").json()["receipt"]["erased_files"] > 0


def test_nothing_is_completed_while_a_replica_may_answer(
    door: TestClient, path: Path, controller: Controller, settings: OpenDSRSettings
) -> None:
    def told() -> list[str]:
        return [json.loads(body)["request_status"] for _, body in controller.got]

    with Store.open(path) as other:
        lease = other.lease(30.0)
        lease.look()
        wanted = body_of(status_callback_urls=[controller.url])
        asking = threading.Thread(target=door.post, args=(REQUESTS,), kwargs={"json": wanted})
        asking.start()
        wait_for(told)
        assert door.get(f"{REQUESTS}/{ID}").json()["request_status"] == "pending"
        assert asking.is_alive()
        lease.look()  # the replica has learnt of it
        asking.join()
    wait_for(lambda: told() == ["pending", "completed"])
    assert door.get(f"{REQUESTS}/{ID}").json()["request_status"] == "completed"


def test_an_address_that_answers_with_nonsense_or_not_at_all_delays_no_request(
    path: Path, settings: OpenDSRSettings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, calls = server.getsockname()[1], list[socket.socket]()

        def answer() -> None:
            with suppress(OSError):
                while True:
                    calls.append(server.accept()[0])
                    if len(calls) < 3:
                        calls[-1].recv(1 << 16)
                        calls[-1].sendall(b"nonsense\r\n\r\n")
                        calls[-1].close()

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{port}/callbacks"
        with open_door(path, settings.model_copy(update={"callbacks": [url]})) as door:
            assert door.post(REQUESTS, json=body_of(status_callback_urls=[url])).status_code == 201
            wait_for(lambda: len(calls) >= 3)  # the last one hangs
            began = time.monotonic()
            at = (datetime.now(timezone.utc) + timedelta(seconds=0.1)).isoformat()
            door.post("/forget", json={"request_id": OTHER, "subjects": [BOB], "at": at})
            wait_for(lambda: door.get(f"/forget/{OTHER}").json()["state"] == "carried_out")
            assert time.monotonic() - began < 6  # the server waits longer for an address
            calls[-1].close()


def test_other_keys_sign_too_and_wrong_ones_are_refused_at_the_start(
    path: Path, tmp_path: Path, settings: OpenDSRSettings
) -> None:
    certificate, key = certify(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    with open_door(path, settings) as door:
        found = door.get("/opendsr/v2/discovery")
        check_signed(settings, found.headers, found.content)
    other = tmp_path / "other"
    other.mkdir()
    mixed = settings.model_copy(update={"key": certify(other, ec.generate_private_key(ec.SECP256R1()))[1]})
    with pytest.raises(ConfigurationError, match="not the one of its certificate"):
        open_door(path, mixed)
    key.write_text("no key")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_door(path, settings)
    assert certificate.exists()


def test_a_store_whose_requests_wait_for_a_fit_is_refused(tmp_path: Path, settings: OpenDSRSettings) -> None:
    method = {"name": "ssd", "guarantee": "empirical", "response": "replace"}
    Store.create(tmp_path / "waiting", {**SETTINGS, "method": method}).close()
    with pytest.raises(ConfigurationError, match="requests have no names"):
        open_door(tmp_path / "waiting", settings)


@pytest.mark.parametrize("url", ["http://controller.example.com/x", "https://user@host/x", "ftp://x/", "file:///etc"])
def test_callbacks_go_to_https_addresses_alone(settings: OpenDSRSettings, url: str) -> None:
    with pytest.raises(ValidationError):
        OpenDSRSettings.model_validate({**settings.model_dump(), "callbacks": [url]})
