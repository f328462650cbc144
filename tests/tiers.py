"""The two tiers of the tests, quick and whole: see README.md beside this file."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

T = TypeVar("T")

QUICK = "not nightly"  # the marker expression of the quick tier, as in pyproject.toml
quick = False  # set by conftest.py before any test module is imported


def in_tier(quick_value: T, whole_value: T) -> T:
    """A number of examples, kills, ... that is smaller in the quick tier."""
    return quick_value if quick else whole_value


def nightly_except(values: Any, *kept: Any) -> list[Any]:
    """Parameters of `pytest.mark.parametrize` or of a fixture, all of them nightly but for those kept.

    Args:
        values: The parameters.
        kept: What runs in the quick tier too.
    """
    values = list(values)
    assert all(value in values for value in kept), f"{kept} are not all among {values}"
    return [value if value in kept else pytest.param(value, marks=pytest.mark.nightly) for value in values]
