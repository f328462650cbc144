"""Setting callbacks, loops and modules back whole."""

from __future__ import annotations

import threading

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary

from lightning_s3t.engine.state_keeper import StateKeeper, keep_module
from lightning_s3t.errors import UnsupportedError
from tests.people import Classifier


def test_attributes_outside_the_state_dict_are_set_back() -> None:
    # with equal step counts, a kept `_last_global_step_saved` silently wrote no checkpoint for the second unit
    checkpoint = ModelCheckpoint(monitor="loss")
    keeper = StateKeeper({"checkpoint": checkpoint}, [])
    checkpoint._last_global_step_saved = 7
    checkpoint.best_k_models["a"] = torch.tensor(1.0)
    checkpoint.new = "attribute"  # type: ignore[attr-defined]
    keeper.restore()
    assert checkpoint._last_global_step_saved == 0
    assert checkpoint.best_k_models == {}
    assert not hasattr(checkpoint, "new")


def test_a_state_can_be_set_back_many_times() -> None:
    stopping = EarlyStopping("loss")
    keeper = StateKeeper({"stopping": stopping}, [])
    for _ in range(3):
        stopping.best_score.fill_(0.5)
        keeper.restore()
        assert stopping.best_score == float("inf")


def test_shared_objects_stay_the_same_objects() -> None:
    class Holder:
        def __init__(self, other: object) -> None:
            self.other = other
            self.own = [1]

    other = ModelSummary()
    holder = Holder(other)
    own = holder.own
    StateKeeper({"holder": holder}, [other]).restore()
    assert holder.other is other
    assert holder.own is not own


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    stopping = EarlyStopping("loss")
    stopping.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match=r"stopping\.lock \(lock\) cannot be copied"):
        StateKeeper({"stopping": stopping}, [])


def test_a_modules_metrics_and_lists_are_set_back_and_its_tensors_left_alone() -> None:
    module = Classifier()
    keeper = keep_module(module, [])
    module.accuracy(torch.tensor([1, 2]), torch.tensor([1, 2]))
    module.forgotten.append("something")
    module.network.seen = 3  # type: ignore[assignment]
    module.network.register_forward_hook(lambda *args: None)
    module.network.head.weight.data.zero_()
    keeper.restore()
    assert not module.network._forward_hooks
    assert isinstance(module.accuracy, torchmetrics.Metric)
    assert module.accuracy._update_count == 0
    assert module.forgotten == []
    assert not hasattr(module.network, "seen")
    assert not module.network.head.weight.any()
