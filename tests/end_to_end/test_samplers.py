"""The guarantees with samplers that draw by weight, or only some rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, RandomSampler, Sampler, SubsetRandomSampler, WeightedRandomSampler

from lightning_s3t.errors import StoreMismatchError
from tests.end_to_end.everything import PERSON, forget
from tests.people import ARGUMENTS, Classifier, People, assert_bitwise_equal, make_trainer, tensors_of
from tests.tiers import nightly_except


def by_weight(people: People, **arguments: Any) -> Sampler[int]:
    weights = [(1.0, 3.0, 0.5)[int(label)] for label in people.labels]  # of the row's own, not of how many there are
    return WeightedRandomSampler(weights, len(people), **arguments)


SAMPLERS: dict[str, Callable[[People], Sampler[int]]] = {
    "by weight": by_weight,
    "by weight, without replacement": lambda people: by_weight(people, replacement=False),
    "some rows": lambda people: SubsetRandomSampler((people.features[:, 0] > -2).nonzero().flatten().tolist()),
    "with replacement": lambda people: RandomSampler(people, replacement=True, num_samples=2 * len(people)),
}


def fit(store: Path, people: People, sampler: Callable[[People], Sampler[int]]) -> None:
    loader = DataLoader(people, 8, sampler=sampler(people))
    make_trainer(store, epochs=1).fit(Classifier(), train_dataloaders=loader)


@pytest.mark.parametrize("kind", nightly_except(SAMPLERS, "by weight"))
def test_the_guarantees_hold(tmp_path: Path, kind: str) -> None:
    people, sampler = People.make(), SAMPLERS[kind]
    fit(tmp_path / "store", people, sampler)
    fit(tmp_path / "other", people.replaced(PERSON), sampler)
    assert len(tensors_of(tmp_path / "store")) == ARGUMENTS["shards"] * 4
    for store in ("store", "other"):
        assert forget(tmp_path / store, PERSON).revoked
    served = tensors_of(tmp_path / "store")
    assert served
    assert_bitwise_equal(served, tensors_of(tmp_path / "other"))
    fit(tmp_path / "store", people, sampler)
    fit(tmp_path / "scratch", people.without(PERSON), sampler)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


def test_another_way_to_draw_is_named(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), by_weight)
    with pytest.raises(StoreMismatchError, match=r"training\.rows: .*drawn by weight, 1 a row.*shuffled"):
        fit(tmp_path / "store", People.make(), RandomSampler)
