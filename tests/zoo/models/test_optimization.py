"""The course of the learning rate, and optimizers that hold nothing of an earlier fit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.models import ImageClassifier
from lightning_s3t.zoo.models.optimization import Optimization


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1, 1)]
)
def test_after_the_warmup_the_rate_follows_the_schedule(schedule: Any, middle: float, last: float) -> None:
    optimization = Optimization(0.1, schedule=schedule, warmup=0.2)
    rates = [optimization.factor(step, steps=100) for step in range(101)]
    assert rates[:20] == pytest.approx([step / 20 for step in range(1, 21)])
    assert rates[20] == 1
    assert rates[60] == pytest.approx(middle)
    assert rates[100] == pytest.approx(last)
    assert all(later <= earlier for earlier, later in pairwise(rates[20:]))


def test_without_a_warmup_the_first_step_has_the_whole_rate() -> None:
    assert Optimization(0.1).factor(0, steps=7) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` to be positive but got 0.0"),
        ({"learning_rate": 0.1, "weight_decay": -1.0}, "`weight_decay` to be 0 or more but got -1.0"),
        ({"learning_rate": 0.1, "warmup": 1.0}, "`warmup` to be from 0 to below 1 but got 1.0"),
        ({"learning_rate": 0.1, "schedule": "square"}, "`schedule` to be one of .* but got 'square'"),
        ({"learning_rate": 0.1, "optimizer": "lion"}, "`optimizer` to be one of .* but got 'lion'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Optimization(**arguments)


@pytest.mark.parametrize(("optimizer", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_rate_reaches_zero_at_the_end_of_the_trainers_own_steps(optimizer: Any, kind: type) -> None:
    seen: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
            assert isinstance(trainer.optimizers[0], kind)
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = ImageClassifier(
        "test_vit",
        2,
        pretrained=False,
        model_arguments={"img_size": 16},
        learning_rate=1.0,
        weight_decay=0.1,
        optimizer=optimizer,
        warmup=0.25,
    )
    rows = [(torch.zeros(3, 16, 16), 0)] * 4
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[Rates()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(rows, 2))
    assert seen == pytest.approx([1 / 2, 1, *(1 - step / 6 for step in range(6))])
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.1


def test_each_call_makes_an_optimizer_over_what_is_trained_then() -> None:
    module = ImageClassifier("test_vit", 2, pretrained=False, model_arguments={"img_size": 16})
    module.trainer = pl.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    module.requires_grad_(False)
    module.network.head.requires_grad_(True)
    first, second = (module.configure_optimizers()["optimizer"] for _ in range(2))
    assert first is not second
    held = {id(parameter) for group in second.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in module.network.head.parameters()}
