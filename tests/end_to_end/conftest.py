"""A store that many tests begin with, trained once in each process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.people import People, fit


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `fit(store, People.make())`, for copying only."""
    store = tmp_path_factory.mktemp("trained") / "store"
    fit(store, People.make())
    return store
