"""Subjects who are likely to ask share slices, from the fit to the request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_s3t import Store
from lightning_s3t.errors import DataError, StoreMismatchError
from tests.end_to_end.test_correcting import Asks
from tests.people import People, assert_bitwise_equal, fit, tensors_of

RISKY = [f"user-{number}" for number in range(0, 40, 5)]
RISK = {"thresholds": [0.5], "slices": [2, 1], "risks": dict.fromkeys(RISKY, 0.9)}
PEOPLE = People.make(40)
ARGUMENTS = {"slices": 3, "budget": 2, "shards": 1, "epochs": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("risk") / "store"
    fit(path, PEOPLE, risk_bands=RISK, **ARGUMENTS)
    return path


def test_forgetting_a_risky_subject_reaches_the_last_slice_alone(store: Path) -> None:
    with Store.open(store) as opened:
        before = set(opened.alive())
        receipt = opened.forget([RISKY[0]])
        assert set(receipt.revoked) == {str(unit) for unit in before if 2 in unit.prefix}
        assert set(opened.alive()) == {unit for unit in before if 2 not in unit.prefix}


def test_a_subject_who_has_changed_bands_is_refused(store: Path) -> None:
    with Store.open(store) as opened:
        alive = set(opened.alive())
    with pytest.raises(DataError, match="1 of the subjects are in another risk band"):
        fit(store, PEOPLE, risk_bands={**RISK, "risks": dict.fromkeys([*RISKY, "user-1"], 0.9)}, **ARGUMENTS)
    with Store.open(store) as opened:
        assert set(opened.alive()) == alive


def test_bands_are_a_setting_of_the_store(store: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"partition\.bands"):
        fit(store, PEOPLE, **ARGUMENTS)


def test_rows_that_were_corrected_since_a_fit_loaded_them_stay_out_where_their_band_puts_them(tmp_path: Path) -> None:
    """Who is restricted before a fit registers them is noted at the place of the lowest band."""
    risk = {"thresholds": [0.5], "slices": [1, 1], "risks": dict.fromkeys(RISKY, 0.9)}
    arguments: Any = {**ARGUMENTS, "slices": 2, "risk_bands": risk}
    store = tmp_path / "store"
    fit(store, PEOPLE.without(RISKY[0]), **arguments)
    with Store.open(store) as opened:
        opened.restrict([RISKY[0]], strict=False)

    def correct() -> None:
        with Store.open(store) as opened:
            opened.rectify([RISKY[0]])
            opened.release([RISKY[0]])

    asks = Asks(tmp_path / "steps", "0/0", correct, waits=False)
    with pytest.warns(UserWarning, match="rows were corrected after this fit had loaded its data"):
        fit(store, PEOPLE, asks, **arguments)
    assert "0/0" in asks.units
    assert "0/1" not in asks.units, "the slice of the risky was trained on the old rows"


@pytest.mark.nightly
def test_a_refit_without_a_risky_subject_is_what_forgetting_leaves(store: Path, tmp_path: Path) -> None:
    with Store.open(store) as opened:
        opened.forget(RISKY[:2])
    fit(store, PEOPLE, risk_bands=RISK, **ARGUMENTS)
    fit(tmp_path / "anew", PEOPLE.without(*RISKY[:2]), risk_bands=RISK, **ARGUMENTS)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "anew"))
