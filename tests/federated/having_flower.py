"""Whether Flower is installed, and the mark of tests that need it."""

from __future__ import annotations

import importlib.util

import pytest

HAS_FLOWER = importlib.util.find_spec("flwr") is not None
needs_flower = pytest.mark.skipif(
    not HAS_FLOWER, reason="flwr pins fastapi and typer to one minor release, so it is not in the extra dev"
)
