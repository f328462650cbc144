"""pytorch-tabular, which imports `pytorch_lightning`."""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any

import lightning_s3t

lightning_s3t.alias_pytorch_lightning()

import numpy
import pandas
import pytorch_lightning
import torch
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig

from tests.ecosystem.cases import SUBJECT, Script, Variant, exact
from tests.ecosystem.scripts import mlp, vectors
from tests.ecosystem.scripts import script as plain_script

LIBRARIES = ("lightning", "torch", "pytorch-tabular", "pytorch-lightning")
COLUMNS = list("abcd")


def frame(variant: Variant) -> pandas.DataFrame:
    generator = numpy.random.default_rng(0)
    found = pandas.DataFrame(generator.normal(size=(120, 4)), columns=COLUMNS)
    found["y"] = (found.a + found.b > 0).astype(int)
    found["who"] = [f"user-{row % 40}" for row in range(120)]
    return found[found.who != SUBJECT] if variant.kind == "without" else found


def script(variant: Variant, config: Any) -> Script:
    rows = frame(variant)
    model = TabularModel(
        # the column of the owners is not among the features, and nothing is fitted on all the data
        data_config=DataConfig(target=["y"], continuous_cols=COLUMNS, normalize_continuous_features=False),
        model_config=config,
        optimizer_config=OptimizerConfig(),
        # three rows a subject: no unit has a last batch of one row, which the library's metric cannot take
        trainer_config=TrainerConfig(batch_size=6, accelerator="cpu"),
        verbose=False,
    )
    data = model.prepare_dataloader(train=rows, validation=frame(Variant("without")), seed=0)
    owners = list(rows.who)
    return Script(
        model.prepare_model(data),
        data.train_dataloader(),
        data.val_dataloader(),
        s3t={"subjects": lambda dataset: owners},
    )


exact("pytorch-tabular FTTransformer", "alias_pytorch_lightning()")(
    lambda v: script(v, FTTransformerConfig(task="classification", num_attn_blocks=4, num_heads=2, input_embed_dim=8))
)
exact("pytorch-tabular CategoryEmbeddingModel", "alias_pytorch_lightning()")(
    lambda v: script(v, CategoryEmbeddingModelConfig(task="classification", layers="16-16-16"))
)


class Library(pytorch_lightning.LightningModule):
    """A module of a library that imports the other package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


@exact("pytorch_lightning.Trainer and module", "alias_pytorch_lightning()")
def library(variant: Variant) -> Script:
    return plain_script(variant, Library(), vectors())
