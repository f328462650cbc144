"""Stores for the tests. Making one takes 200 times as long as copying one, so each process makes one and copies it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.store.people_store import make


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every unit is built, for copying only."""
    path = tmp_path_factory.mktemp("filled") / "store"
    make(path).close()
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    """A store of the test's own in which every unit is built."""
    return Path(shutil.copytree(filled, tmp_path / "store"))
