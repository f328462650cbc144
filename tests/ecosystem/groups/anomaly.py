"""anomalib's modules, in a plain trainer."""

from __future__ import annotations

import functools
from typing import Any

import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.models import Fastflow, Ganomaly, Padim
from torch import Tensor

from tests.ecosystem.cases import Script, Variant, exact, loader, refused

LIBRARIES = ("lightning", "torch", "anomalib", "timm")


def items(rows: int = 20, size: int = 64) -> list[Any]:
    drawn = torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(0))
    return [ImageItem(image=image) for image in drawn]


def script(variant: Variant, module: Any, **s3t: Any) -> Script:
    batches = functools.partial(loader, batch_size=4, collate_fn=ImageBatch.collate)
    return Script(module, batches(variant.samples(items())), s3t=s3t, answer=ask, serving={"aggregate": "single"})


def ask(served: Any) -> None:
    assert torch.isfinite(served.module.model(torch.rand(2, 3, 64, 64)).pred_score).all()


def fastflow() -> Fastflow:
    small = Fastflow.configure_pre_processor(image_size=(64, 64))
    return Fastflow(backbone="resnet18", pre_trained=False, flow_steps=2, pre_processor=small)


FLOWS = {"layers": ["model.fast_flow_blocks.0", "model.fast_flow_blocks.1"], "head": "model.fast_flow_blocks.2"}


@exact("anomalib Fastflow (pre_trained=False)", "layers, head (as the message proposes), aggregate='single'")
def flows(variant: Variant) -> Script:
    return script(variant, fastflow(), **FLOWS)


refused(
    "anomalib Fastflow, as it is", "LayersError",
    r"layers=\['model.fast_flow_blocks.0', 'model.fast_flow_blocks.1'\], head='model.fast_flow_blocks.2'",
    "its flows stand beside each other, and nothing comes after them; what to paste is proposed",
)(lambda v: script(v, fastflow()))  # fmt: skip


class Generated(Ganomaly):
    """Answers by the generator, as its own steps do."""

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


refused(
    "anomalib Ganomaly", "LayersError", r"layers='model.generator.encoder1.pyramid_features', head=",
    "four lists of layers in two networks are not guessed; what to paste is proposed",
)(lambda v: script(v, Ganomaly(batch_size=4)))  # fmt: skip


@exact("anomalib Ganomaly, layers named", "layers, head, adapter=None, aggregate='single'")
def ganomaly(variant: Variant) -> Script:
    return script(
        variant,
        Generated(batch_size=4),
        layers=["model.generator.encoder1", "model.generator.decoder"],
        head=["model.generator.encoder2", "model.discriminator"],
        adapter=None,
    )


refused(
    "anomalib Padim (no gradient training)", "UnsupportedError", "Padim.configure_optimizers returns no optimizer",
    "it is fitted without gradients",
)(lambda v: script(v, Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=50)))  # fmt: skip
