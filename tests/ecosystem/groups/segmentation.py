"""segmentation_models_pytorch and torchgeo."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torchgeo.trainers import ClassificationTask, PixelwiseRegressionTask, RegressionTask, SemanticSegmentationTask

from tests.ecosystem.cases import Samples, Script, Variant, exact, loader, refused

LIBRARIES = ("lightning", "torch", "segmentation-models-pytorch", "torchgeo", "timm")
SIZE = 32


class Segmenter(pl.LightningModule):
    """A hand-written module around a segmentation network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["image"]), batch["mask"])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self(batch["image"]).argmax(1) == batch["mask"]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def scenes(rows: int = 16) -> list[dict[str, Tensor]]:
    images = torch.randn(rows, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return [{"image": image, "mask": (image[0] > 0).long(), "label": (image.mean() > 0).long()} for image in images]


def script(variant: Variant, module: pl.LightningModule, samples: list[Any], **s3t: Any) -> Script:
    test = loader(Samples(samples, [""] * len(samples)), 4, shuffle=False)
    return Script(module, loader(variant.samples(samples), 4), test, s3t=s3t)


for title, name in {
    "Unet, hand-written module": "Unet",
    "FPN": "FPN",
    "DeepLabV3+": "DeepLabV3Plus",
    "SegFormer": "Segformer",
    "Unet++": "UnetPlusPlus",
    "MAnet": "MAnet",
    "Linknet": "Linknet",
    "DeepLabV3": "DeepLabV3",
    "UPerNet": "UPerNet",
}.items():
    exact(f"segmentation_models_pytorch {title}")(
        lambda variant, name=name: script(
            variant, Segmenter(getattr(smp, name)("resnet18", encoder_weights=None, classes=2)), scenes()
        )
    )
refused(
    "segmentation_models_pytorch PSPNet",
    "LayersError",
    r"layers=\[.*head=",
    "its decoder takes an inner stage; what to paste is proposed",
)(lambda v: script(v, Segmenter(smp.PSPNet("resnet18", encoder_weights=None, classes=2)), scenes()))


def task_script(variant: Variant, task: pl.LightningModule, samples: list[Any]) -> Script:
    """The tasks' schedulers look at a loss of validation."""
    held_out = Samples(samples, [""] * len(samples))
    data = pl.LightningDataModule.from_datasets(variant.samples(samples), held_out, held_out, batch_size=4)
    return Script(task, data, data)


@exact("torchgeo SemanticSegmentationTask unet")
def segmentation_task(variant: Variant) -> Script:
    task = SemanticSegmentationTask(model="unet", backbone="resnet18", task="multiclass", num_classes=2)
    return task_script(variant, task, [{"image": scene["image"], "mask": scene["mask"]} for scene in scenes()])


@exact("torchgeo ClassificationTask resnet18")
def classification(variant: Variant) -> Script:
    task = ClassificationTask(model="resnet18", task="multiclass", num_classes=2)
    return task_script(variant, task, [{"image": scene["image"], "label": scene["label"]} for scene in scenes()])


@exact("torchgeo ClassificationTask vit_tiny, freeze_backbone=True")
def frozen_backbone(variant: Variant) -> Script:
    task = ClassificationTask(model="test_vit", task="multiclass", num_classes=2, freeze_backbone=True)
    large = [nn.functional.interpolate(scene["image"][None], size=160)[0] for scene in scenes()]
    return task_script(
        variant, task, [{"image": x, "label": scene["label"]} for x, scene in zip(large, scenes(), strict=True)]
    )


@exact("torchgeo RegressionTask (resnet18)")
def regression(variant: Variant) -> Script:
    task = RegressionTask(model="resnet18", num_outputs=1)
    return task_script(variant, task, [{"image": s["image"], "label": s["image"].mean().reshape(1)} for s in scenes()])


@exact("torchgeo PixelwiseRegressionTask (fcn)")
def pixels(variant: Variant) -> Script:
    task = PixelwiseRegressionTask(model="fcn", num_filters=8)
    samples = [{"image": s["image"], "mask": s["image"][0]} for s in scenes()]
    return task_script(variant, task, samples)
