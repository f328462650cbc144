"""Edits by way of the trainer and the store: what the sessions of other tests cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler

from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods import PGU, BadTeacher, EditingMethod, GradientAscent
from lightning_s3t.plan import Partition
from lightning_s3t.store import Store
from tests.people import People, assert_bitwise_equal, fit, tensors_of
from tests.tiers import nightly_except

WITH_LORA = [BadTeacher(learning_rate=0.01), PGU(epochs=2, share=0.5)]


@pytest.mark.parametrize("method", nightly_except(WITH_LORA, WITH_LORA[0]), ids=lambda method: method.name)
def test_adapters_are_edited_and_the_untrained_model_has_new_ones(method: EditingMethod, tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit(store, People.make(), method=method)
    ((unit, before),) = tensors_of(store).items()
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    fit(store, People.make(), method=method)
    after = tensors_of(store)[unit]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("lora_B" in name for name in changed)
    with Store.open(store) as opened:
        assert opened.receipts()[0].guarantee == "empirical"


def test_an_edit_that_ends_in_numbers_that_are_not_finite_is_not_kept_and_the_request_waits_on(tmp_path: Path) -> None:
    store, method = tmp_path / "store", GradientAscent(epochs=4, learning_rate=1e30)
    fit(store, People.make(), method=method, adapter=None)
    before = tensors_of(store)
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    with pytest.raises(ConfigurationError, match=r"GradientAscent\(.*not finite"):
        fit(store, People.make(), method=method, adapter=None)
    assert_bitwise_equal(before, tensors_of(store))
    with Store.open(store) as opened:
        assert opened.status().waiting == 1


def test_rows_that_are_never_drawn_are_not_among_those_to_be_forgotten() -> None:
    people = People.make(4, rows=2)  # rows 1 and 5 are user-1's
    loader = DataLoader(people, batch_size=2, sampler=SubsetRandomSampler([0, 1, 2, 3, 6]))
    data = TrainingData(loader, "owners", Partition(shards=1, slices=1))
    assert data.rows_of({"user-1", "user-2"}) == [1, 2, 6]
