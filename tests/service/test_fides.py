"""The webhook for Fides: approved requests for erasure are carried out, once; nothing else changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.service import ControlSettings, make_control_app, read_settings
from lightning_s3t.service.settings import FidesSettings
from lightning_s3t.store import Store
from tests.service.conftest import ASK, LOOK, TOKENS, as_role
from tests.store.people_store import SETTINGS, in_place, session

ANN, BOB = in_place(0, 0), in_place(1, 1)


@pytest.fixture
def fides(path: Path) -> Iterator[TestClient]:
    settings = ControlSettings(requests_per_minute=100_000, fides=FidesSettings(identity="external_id"))
    with TestClient(make_control_app(path, TOKENS, settings), headers=as_role(ASK)) as client:
        yield client


def call(fides: TestClient, external_id: Any = ANN, **more: Any) -> Any:
    """A call with the body that Fides sends to a policy's webhook."""
    body = {
        "privacy_request_id": "pri_8a6f1f66-2a5a-4a37-bb0e-5e5a8ed8b5b2",
        "privacy_request_status": "in_processing",
        "direction": "two_way",
        "callback_type": "pre",
        "identity": {"email": "ann@example.com", "phone_number": None, "external_id": external_id},
        "policy_action": "erasure",
        "privacy_request": {},
        "timestamp": "2026-11-30T04:00:00Z",
    }
    return fides.post("/fides", json={**body, **more})


def forgotten(path: Path) -> set[str]:
    with Store.open(path) as store:
        return store.forgotten([ANN, BOB])


def test_an_erasure_is_carried_out_and_a_retry_is_not_a_second_request(fides: TestClient, path: Path) -> None:
    for _ in range(2):
        answer = call(fides)
        assert (answer.status_code, answer.json()) == (200, {"halt": False})
    assert call(fides, callback_type="post").json() == {"halt": False}
    assert forgotten(path) == {ANN}
    assert [one["request_id"] for one in fides.get("/receipts").json()] == ["pri_8a6f1f66-2a5a-4a37-bb0e-5e5a8ed8b5b2"]


@pytest.mark.parametrize("given", [{"label": "Customer number", "value": ANN}, [ANN, BOB], {"value": [ANN]}], ids=str)
def test_an_identity_may_have_a_label_or_several_values(fides: TestClient, path: Path, given: Any) -> None:
    assert call(fides, given).json() == {"halt": False}
    assert forgotten(path) >= {ANN}


@pytest.mark.parametrize("action", ["access", "consent", "update", None])
def test_what_is_not_an_erasure_changes_nothing(fides: TestClient, path: Path, action: str | None) -> None:
    assert call(fides, policy_action=action).json() == {"halt": False}
    assert forgotten(path) == set()


def test_a_request_that_is_not_approved_is_refused(fides: TestClient, path: Path) -> None:
    answer = call(fides, callback_type="pre_approval")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_approved")
    assert forgotten(path) == set()


@pytest.mark.parametrize("given", [None, "", [], {}, {"value": None}, True, 1.5, {"label": "x"}], ids=str)
def test_a_person_without_an_id_is_not_passed_over(fides: TestClient, path: Path, given: Any) -> None:
    answer = call(fides, given)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_identity")
    assert forgotten(path) == set()


def test_a_person_who_is_not_in_the_data_never_enters_a_later_fit(fides: TestClient, path: Path) -> None:
    assert call(fides, "stranger").json() == {"halt": False}
    with Store.open(path) as store:
        assert store.forgotten(["stranger"]) == {"stranger"}


def test_a_request_halts_while_the_model_still_serves_the_data(tmp_path: Path) -> None:
    method = {"name": "ssd", "guarantee": "empirical", "response": "replace"}
    with Store.create(tmp_path / "store", {**SETTINGS, "method": method}) as store:
        session(store).register([ANN])
    settings = ControlSettings(fides=FidesSettings(identity="external_id"))
    with TestClient(make_control_app(tmp_path / "store", TOKENS, settings), headers=as_role(ASK)) as fides:
        for _ in range(2):
            assert call(fides).json() == {"halt": True}


def test_it_needs_the_role_to_ask_and_to_be_set_up(fides: TestClient, door: TestClient) -> None:
    fides.headers.update(as_role(LOOK))
    assert call(fides).status_code == 403
    assert call(door).status_code == 404
    assert "/fides" not in door.get("/openapi.json").json()["paths"]


def test_it_is_set_up_by_the_kind_of_identity(tmp_path: Path) -> None:
    file = tmp_path / "app.yaml"
    file.write_text("control: {fides: {identity: email}}")
    assert read_settings(file).control.fides == FidesSettings(identity="email")
    file.write_text("control: {fides: {}}")
    with pytest.raises(ConfigurationError, match=r"control\.fides\.identity"):
        read_settings(file)
