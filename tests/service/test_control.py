"""The control server: requests by HTTP, who may make them, and what it says."""

from __future__ import annotations

import json
import logging
import shutil
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from lightning_s3t.core.receipts import Receipt
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.service import ControlSettings, make_control_app, read_settings
from lightning_s3t.service.tokens import Tokens
from lightning_s3t.store import Store
from lightning_s3t.store.keys.signing import verify_receipt
from tests.service.conftest import ASK, LOOK, TOKENS, as_role
from tests.store.people_store import in_place

ANN, BOB = in_place(0, 0), in_place(1, 1)


def later(**delta: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(**delta)).isoformat()


def ask(door: TestClient, request_id: str, *subjects: object, **more: Any) -> Any:
    return door.post("/forget", json={"request_id": request_id, "subjects": subjects, **more})


def test_a_request_is_carried_out_and_a_retry_is_no_second_one(door: TestClient, path: Path) -> None:
    first = ask(door, "r-1", ANN)
    assert (first.status_code, first.json()["state"]) == (200, "carried_out")
    again = ask(door, "r-1", ANN)
    assert again.json()["receipt"]["request"] == first.json()["receipt"]["request"] == 1
    assert door.get("/forget/r-1").json() == again.json()
    assert [one["request_id"] for one in door.get("/receipts").json()] == ["r-1"]
    assert door.get("/receipts?after=1").json() == []
    with Store.open(path) as store:
        assert store.forgotten([ANN]) == {ANN}
        receipt = Receipt.from_json(json.dumps(again.json()["receipt"]))
        assert store.has_given(receipt)


def test_a_retry_after_a_restart_is_no_second_one_either(path: Path) -> None:
    for _ in range(2):
        with TestClient(make_control_app(path, TOKENS), headers=as_role(ASK)) as door:
            assert ask(door, "r-1", ANN).json()["receipt"]["request"] == 1
            assert ask(door, "r-2", BOB, at=later(days=1)).json()["state"] == "scheduled"
    with Store.open(path) as store:
        assert store.pending()[0][1] == 1


def test_a_name_is_for_one_request(door: TestClient) -> None:
    ask(door, "r-1", ANN)
    ask(door, "r-2", BOB, at=later(days=1))
    for name, subjects, more in [
        ("r-1", [BOB], {}),
        ("r-2", [ANN], {"at": later(days=1)}),
        ("r-2", [BOB], {}),
        ("r-1", [ANN], {"at": later(days=1)}),
    ]:
        refused = ask(door, name, *subjects, **more)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")


def test_a_scheduled_request_waits_and_can_be_cancelled(door: TestClient) -> None:
    assert ask(door, "r-1", ANN, at=later(days=1)).status_code == 202
    assert ask(door, "r-1", ANN, at=later(days=2)).json()["state"] == "scheduled"
    assert door.get("/status").json()["scheduled"][0]["subjects"] == 1
    for _ in range(2):
        cancelled = door.delete("/forget/r-1")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert door.get("/status").json()["scheduled"] == []
    assert ask(door, "r-1", ANN, at=later(days=1)).status_code == 409  # a retry that comes late undoes no cancellation
    assert ask(door, "r-2", ANN).json()["state"] == "carried_out"
    assert door.delete("/forget/r-2").status_code == 409
    assert door.delete("/forget/r-3").status_code == 404


def test_who_is_named_by_another_scheduled_request_waits_for_that(door: TestClient) -> None:
    ask(door, "r-1", ANN, BOB, at=later(days=1))
    ask(door, "r-2", ANN, at=later(days=2))
    door.delete("/forget/r-1")
    assert door.get("/forget/r-2").json()["state"] == "scheduled"
    assert [one["subjects"] for one in door.get("/status").json()["scheduled"]] == [1]
    door.delete("/forget/r-2")
    assert door.get("/status").json()["scheduled"] == []


def test_names_of_scheduled_requests_outlive_a_rotation_of_the_key(door: TestClient, path: Path) -> None:
    ask(door, "r-1", ANN, at=later(days=1))
    with Store.open(path) as store:
        store.rotate_key()
    assert door.get("/forget/r-1").json()["state"] == "scheduled"
    assert door.delete("/forget/r-1").json()["state"] == "cancelled"
    with Store.open(path) as store:
        assert (store.pending(), store.verify().passed) == ([], True)


def test_a_time_that_is_past_is_now(door: TestClient) -> None:
    for _ in range(2):
        assert ask(door, "r-1", ANN, at=later(days=-1)).json()["receipt"]["request"] == 1


def test_what_is_due_is_carried_out_by_the_door(door: TestClient) -> None:
    ask(door, "r-1", ANN, at=later(seconds=0.3))
    deadline = time.monotonic() + 20
    while door.get("/forget/r-1").json()["state"] != "carried_out":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert door.get("/status").json()["forgotten"] == 1


def test_only_tokens_open_the_door_and_only_some_may_ask(door: TestClient) -> None:
    calls = [("POST", "/forget"), ("GET", "/forget/r"), ("DELETE", "/forget/r"), ("GET", "/status")]
    calls += [("GET", "/receipts"), ("POST", "/verify"), ("GET", "/metrics")]
    body = {"request_id": "r", "subjects": [ANN]}
    for method, url in calls:
        for headers in ({"Authorization": ""}, as_role("another-token-altogether"), {"Authorization": f"Basic {ASK}"}):
            refused = door.request(method, url, json=body, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        found = door.request(method, url, json=body, headers=as_role(LOOK)).status_code
        assert (found == 403) == (method != "GET")
    assert door.get("/status").json()["requests"] == 0
    for url in ("/healthz", "/readyz", "/openapi.json"):
        assert door.get(url, headers={"Authorization": ""}).status_code == 200


def test_no_id_is_in_an_error_or_a_log(door: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "somebody@example.org"
    answers = [
        ask(door, "r", secret),
        ask(door, "r", secret, at=later(days=1)),
        ask(door, "r", {"id": secret}),
        ask(door, "r", ANN, **{secret: 1}),
        ask(door, f"no good {secret}", ANN),
        ask(door, "r", ANN, at=secret),
        door.post("/forget", content=f'{{"subjects": ["{secret}"'),
        door.get(f"/forget/{secret}"),
    ]
    assert {answer.status_code for answer in answers} == {404, 422}
    for answer in answers:
        assert secret not in answer.text
        assert set(answer.json()["error"]) == {"code", "message"}
    assert secret not in "".join(record.getMessage() for record in caplog.records if "httpx" not in record.name)


def test_what_is_too_large_or_too_often_is_refused(path: Path) -> None:
    limits = ControlSettings(requests_per_minute=4, max_bytes=2000, max_subjects=3)
    with TestClient(make_control_app(path, TOKENS, limits), headers=as_role(ASK)) as door:
        assert ask(door, "r", "x" * 3000).status_code == 413
        assert ask(door, "r", *"abcd").status_code == 413
        assert door.post("/forget", content=iter([b"x" * 1500] * 2)).status_code == 413
        for _ in range(10):
            last = door.get("/status")
        assert (last.status_code, int(last.headers["retry-after"]) > 0) == (429, True)
        assert door.get("/status", headers=as_role(LOOK)).status_code == 200  # of another
        assert door.get("/healthz").status_code == 200


def test_status_and_check_say_no_place_and_metrics_are_those_of_the_store(door: TestClient) -> None:
    ask(door, "r-1", ANN)
    assert door.get("/status").json()["requests"] == 1
    checked = door.post("/verify").json()
    assert (checked["passed"], checked["problems"]) == (True, 0)
    text = door.get("/metrics").text
    found = {one.name: one.samples[0].value for one in text_string_to_metric_families(text)}
    assert (found["s3t_store_requests"], found["s3t_store_forgotten_subjects"]) == (1, 1)


def test_a_damaged_store_is_an_error_that_says_nothing_of_it(door: TestClient, path: Path) -> None:
    (path / "subject.key").rename(path / "elsewhere")
    answer = ask(door, "r-1", ANN)
    (path / "elsewhere").rename(path / "subject.key")
    assert answer.status_code in (200, 500)
    assert str(path) not in answer.text


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.fixed_dictionaries(
        {}, optional={"request_id": WILD, "subjects": WILD, "at": WILD, "strict": WILD, "other": WILD}
    )
    | st.fixed_dictionaries({"request_id": st.text(max_size=210), "subjects": st.lists(st.text(max_size=30) | WILD)})
    | WILD,
    token=st.text(st.characters(max_codepoint=255), max_size=30),
)
def test_whatever_comes_gets_an_answer_that_is_no_fault_of_ours(door: TestClient, body: Any, token: str) -> None:
    answer = door.post("/forget", content=json.dumps(body).encode(errors="surrogatepass"))
    assert answer.status_code in (200, 202, 404, 409, 413, 422)
    refused = door.get("/status", headers={b"Authorization": b"Bearer " + token.encode("latin-1")})
    assert refused.status_code in (400, 401)


def test_tokens_are_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("S3T_ASK_TOKEN", "S3T_LOOK_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="no token with the role"):
        Tokens.read(None)
    file = tmp_path / "tokens"
    file.write_text(f"# who\nask {ASK}\n\nlook {LOOK}\n")
    file.chmod(0o600)
    assert [Tokens.read(file).role_of(token) for token in (ASK, LOOK, "")] == ["ask", "look", None]
    file.chmod(0o666)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Tokens.read(file)
    file.chmod(0o600)
    for text in ("ask short", "rule " + ASK, ASK, f"look {LOOK}", f"ask {ASK}\nlook {ASK}"):
        file.write_text(text)
        with pytest.raises(ConfigurationError) as raised:
            Tokens.read(file)
        assert ASK not in str(raised.value)
    monkeypatch.setenv("S3T_ASK_TOKEN", ASK)
    assert Tokens.read(None).role_of(ASK) == "ask"
    assert ASK not in repr(Tokens.read(None))


def test_settings_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "app.yaml"
    file.write_text("model: my_app:make\ncontrol:\n  port: 9000\n")
    assert read_settings(file).control.port == 9000
    for text, named in [("ports: 1", "ports"), ("workers: 0", "workers"), ("- 1", "the whole"), ("a: [", "YAML")]:
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=named):
            read_settings(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")


@pytest.mark.nightly
def test_the_document_is_kept_to(filled: Path, tmp_path: Path) -> None:
    """Every call that the OpenAPI document allows, and many that it does not, is answered as it says."""
    path = Path(shutil.copytree(filled, tmp_path / "store"))
    app = make_control_app(path, TOKENS, ControlSettings(requests_per_minute=1_000_000))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for operation in schema.get_all_operations():

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def keep(case: Any) -> None:
            # a text that no id can be is one for the schema
            case.call_and_validate(headers=as_role(ASK), excluded_checks=[positive_data_acceptance])

        keep()


def test_receipts_are_signed_with_the_servers_key(path: Path, tmp_path: Path) -> None:
    pem, public = tmp_path / "key.pem", tmp_path / "key.pub"
    key = Ed25519PrivateKey.generate()
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    limits = ControlSettings(signing_key=pem)
    with TestClient(make_control_app(path, TOKENS, limits), headers=as_role(ASK)) as door:
        given = [
            json.dumps(ask(door, "r-1", ANN).json()["receipt"]),
            json.dumps(door.get("/forget/r-1").json()["receipt"]),
            json.dumps(door.get("/receipts").json()[0]),
            door.get("/receipts/1").text,
        ]
        assert {verify_receipt(text, public).request_id for text in given} == {"r-1"}
        assert "Receipts are signed." in door.post("/desk/start", json={}).text
    pem.write_text("no key")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        make_control_app(path, TOKENS, limits)


def test_the_day_of_a_letter_stays_with_a_request(door: TestClient) -> None:
    received = (datetime.now(timezone.utc) - timedelta(9)).date().isoformat()
    assert ask(door, "r-1", ANN, at=later(days=3), received=received).json()["received"] == received
    assert door.get("/forget/r-1").json()["received"] == received
    ahead = (datetime.now(timezone.utc) + timedelta(2)).date().isoformat()
    assert ask(door, "r-2", ANN, received=ahead).json()["error"]["code"] == "not_received"
