"""A store with people in it, and the control server before it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lightning_s3t.service import ControlSettings, make_control_app
from lightning_s3t.service.tokens import Tokens
from tests.store.people_store import make

ASK, LOOK = "ask-token-of-the-tests", "look-token-of-the-tests"
TOKENS = Tokens.of([("ask", ASK), ("look", LOOK)])


def as_role(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every unit is built, for copying only."""
    path = tmp_path_factory.mktemp("filled") / "store"
    make(path).close()
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "store"))


@pytest.fixture
def door(path: Path) -> Iterator[TestClient]:
    """The control server, with a client that may ask."""
    settings = ControlSettings(requests_per_minute=100_000, due_every=0.05)
    with TestClient(make_control_app(path, TOKENS, settings), headers=as_role(ASK)) as client:
        yield client
