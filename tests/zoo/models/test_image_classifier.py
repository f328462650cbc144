"""Image classifiers on timm models."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_s3t import describe_layers
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.models import ImageClassifier
from tests.zoo.models.trainers import make_trainer


def bright_and_dark(rows: int = 64) -> DataLoader[tuple[torch.Tensor, ...]]:
    labels = torch.arange(rows) % 2
    images = torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + labels[:, None, None, None]
    return DataLoader(TensorDataset(images, labels), batch_size=24)


def make(name: str = "test_vit", classes: int = 2) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(name, classes, pretrained=False, model_arguments={"img_size": 16}, learning_rate=1e-3)


def test_it_learns() -> None:
    module, data = make(), bright_and_dark()
    trainer = make_trainer(epochs=15)
    trainer.fit(module, data, data)
    assert trainer.callback_metrics["val/accuracy"] == 1
    assert trainer.callback_metrics["val/loss"] < 0.3


def test_the_accuracy_is_the_share_of_right_answers_over_uneven_batches() -> None:
    module, data = make(), bright_and_dark(rows=50)
    images, labels = data.dataset[:]  # type: ignore[index]
    right = (module.eval()(images).argmax(-1) == labels).float().mean()
    assert make_trainer().test(module, data, verbose=False)[0]["test/accuracy"] == pytest.approx(float(right))
    assert make_trainer().validate(module, data, verbose=False)[0]["val/accuracy"] == pytest.approx(float(right))


def test_predictions_are_logits() -> None:
    batches = make_trainer().predict(make(classes=7), bright_and_dark(rows=30))
    assert batches is not None
    assert [tuple(batch.shape) for batch in batches] == [(24, 7), (6, 7)]


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_the_layers_are_timms_blocks(name: str) -> None:
    table = describe_layers(make(name), slices=2)
    assert table.network == "network"
    assert "network.head" in str(table)


def test_hyperparameters_are_saved_so_that_a_checkpoint_can_make_the_module_again() -> None:
    assert make().hparams["learning_rate"] == 1e-3
    assert make().hparams["model_arguments"] == {"img_size": 16}


def test_an_unknown_model_is_refused_with_some_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match=r"no model 'vit_base_patch99_224'.*vit_base_patch16_224"):
        ImageClassifier("vit_base_patch99_224", 2, pretrained=False)


def test_an_argument_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"test_vit does not take model_arguments=.*colour"):
        ImageClassifier("test_vit", 2, pretrained=False, model_arguments={"colour": 1})
