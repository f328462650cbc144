"""Places by risk: risky subjects share slices, and nobody's place depends on anybody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Partition, RiskPartition, assess, optimal, slice_prior

RISKS = {f"user-{n}": (0.9 if n % 10 == 0 else 0.01) for n in range(400)}


def make(risks: dict[Any, float] | None = None, **arguments: Any) -> RiskPartition:
    return RiskPartition(
        **{"shards": 2, "slices": 5, "thresholds": (0.5,), "band_slices": (4, 1), "risks": risks or RISKS, **arguments}
    )


def test_the_risky_are_in_the_last_slices_and_nobody_else_is() -> None:
    partition = make()
    for subject, risk in RISKS.items():
        assert (partition.place(subject).slice == 4) == (risk > 0.5)


@given(st.sets(st.sampled_from(sorted(RISKS)), min_size=1))
def test_nobodys_place_depends_on_who_else_is_there(present: set[str]) -> None:
    alone = make({subject: RISKS[subject] for subject in present})
    assert {s: alone.place(s) for s in present} == {s: make().place(s) for s in present}


def test_who_is_not_known_is_in_the_lowest_band() -> None:
    assert all(make().place(f"stranger-{n}").slice < 4 for n in range(100))


def test_a_risk_at_a_threshold_is_in_the_higher_band() -> None:
    assert make({"ann": 0.5}).place("ann").slice == 4


def test_integers_and_text_are_the_same_subject() -> None:
    assert make({17: 0.9}).place("17").slice == 4


def test_places_within_a_band_are_spread() -> None:
    places = [make().place(subject) for subject in RISKS]
    assert {(place.shard, place.slice) for place in places} == {(m, s) for m in range(2) for s in range(5)}


def test_risky_slices_make_orders_that_last() -> None:
    grouped, plain = slice_prior(RISKS, make()), slice_prior(RISKS, Partition(2, 5))
    value = {
        name: assess(optimal(5, 2, prior=p), p, horizon=1).value for name, p in (("grouped", grouped), ("plain", plain))
    }
    assert value["grouped"] > value["plain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"band_slices": (5,)}, "bands"),
        ({"band_slices": (5, 1)}, "bands"),
        ({"band_slices": (5, 0)}, "bands"),
        ({"thresholds": (0.5, 0.5), "band_slices": (3, 1, 1)}, "ascend"),
        ({"thresholds": (float("nan"),)}, "ascend"),
        ({"risks": {"ann": float("inf")}}, "risk of subject 'ann'"),
        ({"shards": 0}, "shards"),
    ],
)
def test_what_is_no_partition_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**arguments)
