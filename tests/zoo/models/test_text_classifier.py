"""Text classifiers and regressions on transformers models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.models import TextClassifier
from tests.zoo.models.trainers import make_trainer

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
}


def rows(count: int = 48, kind: torch.dtype = torch.long) -> DataLoader[dict[str, torch.Tensor]]:
    """The first word says the label."""
    tokens = torch.randint(4, 20, (count, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    tokens[:, 0] = labels + 1
    mask = torch.ones(6, dtype=torch.long)
    items = [
        {"input_ids": ids, "attention_mask": mask, "labels": label.to(kind)}
        for ids, label in zip(tokens, labels, strict=True)
    ]
    return DataLoader(items, batch_size=20)  # type: ignore[arg-type]


def make(**arguments: Any) -> TextClassifier:
    torch.manual_seed(0)
    return TextClassifier(config=BERT, learning_rate=5e-3, **arguments)


def test_it_learns() -> None:
    trainer = make_trainer(epochs=15)
    trainer.fit(make(), rows(), rows())
    assert trainer.callback_metrics["val/accuracy"] == 1
    assert trainer.callback_metrics["val/loss"] < 0.3


def test_one_class_is_a_regression() -> None:
    trainer = make_trainer(epochs=15)
    trainer.fit(make(num_classes=1, metrics=["pearson", "spearman"]), rows(kind=torch.float), rows(kind=torch.float))
    assert trainer.callback_metrics["val/pearson"] > 0.9
    assert trainer.callback_metrics["val/spearman"] > 0.8


def test_the_metrics_are_those_of_all_answers_together() -> None:
    module = make(metrics=["accuracy", "f1", "matthews"])
    every = next(iter(DataLoader(rows().dataset, batch_size=48)))
    with torch.no_grad():
        answers = module.eval()(every).argmax(-1)
    found = make_trainer().test(module, rows(), verbose=False)[0]
    expected = {
        "test/accuracy": torchmetrics.functional.accuracy(answers, every["labels"], "binary"),
        "test/f1": torchmetrics.functional.f1_score(answers, every["labels"], "binary"),
        "test/matthews": torchmetrics.functional.matthews_corrcoef(answers, every["labels"], "binary"),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})


def test_dropout_acts_in_training_although_the_weights_were_loaded(tmp_path: Path) -> None:
    make().network.save_pretrained(tmp_path)
    loaded = TextClassifier(str(tmp_path))
    assert loaded.network.training
    for name, tensor in make().network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of the arguments `name` and `config` but got neither"),
        ({"name": "bert", "config": BERT}, "but got both"),
        ({"config": {"hidden_size": 8}}, "`config` to name its `model_type`"),
        ({"config": {"model_type": "bart-simpson"}}, "cannot make a model of type 'bart-simpson'"),
        ({"name": "./nowhere"}, r"The model './nowhere' was not found"),
        ({"config": BERT, "metrics": ["pearson"]}, "'pearson' does not fit num_classes=2"),
        ({"config": BERT, "metrics": ["accuracy"], "num_classes": 1}, "'accuracy' does not fit num_classes=1"),
        ({"config": BERT, "metrics": ["bleu"]}, "got 'bleu'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextClassifier(**arguments)
