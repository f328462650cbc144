"""Places by risk: risky subjects share slices, and a place depends on no other subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Partition, Place, RiskBands, assess, optimal, slice_prior

RISKS: dict[object, float] = {f"user-{n}": (0.9 if n % 10 == 0 else 0.01) for n in range(400)}
PARTITION = Partition(shards=2, slices=5, bands=(4, 1))


def make(risks: dict[Any, float] | None = None, **arguments: Any) -> RiskBands:
    return RiskBands(
        **{"thresholds": (0.5,), "slices": (4, 1), "risks": RISKS if risks is None else risks, **arguments}
    )


def place(subject: str, bands: RiskBands) -> Place:
    return PARTITION.place(subject, bands.band(subject))


def test_only_the_risky_are_in_the_last_slices() -> None:
    for subject, risk in RISKS.items():
        assert (place(str(subject), make()).slice == 4) == (risk > 0.5)


@given(st.sets(st.sampled_from(sorted(map(str, RISKS))), min_size=1))
def test_a_place_does_not_depend_on_who_else_is_there(present: set[str]) -> None:
    alone = make({subject: RISKS[subject] for subject in present})
    assert {s: place(s, alone) for s in present} == {s: place(s, make()) for s in present}


def test_who_is_not_known_is_in_the_lowest_band() -> None:
    assert all(place(f"stranger-{n}", make()).slice < 4 for n in range(100))


def test_a_risk_at_a_threshold_is_in_the_higher_band() -> None:
    assert make({"ann": 0.5}).band("ann") == 1


def test_integers_and_text_are_the_same_subject() -> None:
    assert make({17: 0.9}).band("17") == 1


def test_places_within_a_band_are_spread() -> None:
    places = {place(str(subject), make()) for subject in RISKS}
    assert places == {Place(m, s) for m in range(2) for s in range(5)}


def test_risky_slices_make_orders_that_last() -> None:
    grouped, plain = slice_prior(RISKS, PARTITION, make()), slice_prior(RISKS, Partition(2, 5))
    value = {
        name: assess(optimal(5, 2, prior=p), p, horizon=1).value for name, p in (("grouped", grouped), ("plain", plain))
    }
    assert value["grouped"] > value["plain"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("risks.csv", "subject,risk\nann,0.9\n17,0.1\n"), ("risks.json", '{"ann": 0.9, "17": 0.1}')],
)
def test_risks_may_lie_in_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    bands = RiskBands.of({"thresholds": [0.5], "slices": [4, 1], "risks": str(tmp_path / name)})
    assert bands is not None
    assert (bands.band("ann"), bands.band("17")) == (1, 0)


def test_an_id_may_have_a_character_that_other_programs_end_lines_at(tmp_path: Path) -> None:
    path = tmp_path / "risks.csv"
    path.write_text('subject,risk\nann\u2028smith,0.9\n"bob\nmiller",0.9\n', encoding="utf-8")
    bands = RiskBands.of({"thresholds": [0.5], "slices": [4, 1], "risks": path})
    assert bands is not None
    assert (bands.band("ann\u2028smith"), bands.band("bob\nmiller")) == (1, 1)


@pytest.mark.parametrize("text", ["", "ann,0.9", "subject,risk\nann", "subject,risk\nann,high"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "risks.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=r"risks\.csv cannot be read"):
        RiskBands.of({"thresholds": [0.5], "slices": [4, 1], "risks": tmp_path / "risks.csv"})


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ConfigurationError, match="Expected risks, slices, thresholds"):
        RiskBands.of({"thresholds": [0.5]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slices": (5,)}, "bands"),
        ({"thresholds": (0.5, 0.5), "slices": (3, 1, 1)}, "ascend"),
        ({"thresholds": (float("nan"),)}, "ascend"),
        ({"risks": {"ann": float("inf")}}, "risk of subject 'ann'"),
    ],
)
def test_what_are_no_bands_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**arguments)


@pytest.mark.parametrize("bands", [(5, 1), (5, 0), (4,)])
def test_bands_must_fill_the_slices(bands: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="5 in all"):
        Partition(shards=2, slices=5, bands=bands)
