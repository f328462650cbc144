"""lightly, pytorch-forecasting, torch_geometric, hydra, finetuning-scheduler, loggers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas
import torch
import torchvision
from finetuning_scheduler import FinetuningScheduler
from hydra.utils import instantiate
from lightly.loss import BarlowTwinsLoss, NTXentLoss
from lightly.models.modules import BarlowTwinsProjectionHead, SimCLRProjectionHead
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from omegaconf import OmegaConf
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.models import DeepAR, NBeats, TemporalFusionTransformer
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader as GraphLoader
from torch_geometric.nn import GCNConv, global_mean_pool

from lightning_s3t import EnsembleModule
from tests.ecosystem.cases import SUBJECT, Samples, Script, Variant, behaves, exact, loader, refused
from tests.ecosystem.story import fit, units
from tests.people import Classifier, PeopleData

LIBRARIES = (
    "lightning", "torch", "lightly", "pytorch-forecasting", "torch-geometric", "hydra-core", "finetuning-scheduler", "wandb",
    "mlflow-skinny",
)  # fmt: skip
LOGS = Path(tempfile.gettempdir()) / "s3t-ecosystem-logs"


class Contrastive(pl.LightningModule):
    """lightly's example."""

    def __init__(self, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.projection_head = head
        self.criterion = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.criterion(self(batch[0]), self(batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.criterion(self(batch[0]), self(batch[1])))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def views(rows: int = 24) -> list[tuple[Tensor, Tensor]]:
    drawn = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [(picture, picture.flip(-1)) for picture in drawn]


def contrastive(variant: Variant, head: nn.Module, loss: nn.Module) -> Script:
    test = loader(Samples(views(), [""] * 24), 4, shuffle=False)
    return Script(Contrastive(head, loss), loader(variant.samples(views()), 4, drop_last=True), test)


exact("lightly SimCLR: fit, test, forget")(lambda v: contrastive(v, SimCLRProjectionHead(512, 32, 16), NTXentLoss()))


@behaves("lightly SimCLR: load / fit again")
def loaded_again(folder: Path) -> None:
    def make(variant: Variant, unset: int = 0) -> Script:
        loss = NTXentLoss()
        loss.memory_bank.bank_ptr.fill_(unset)  # what is in a torch.empty buffer is left to chance
        return contrastive(variant, SimCLRProjectionHead(512, 32, 16), loss)

    first = fit(folder / "store", make)
    assert units(folder / "store")
    other = make(Variant("D"), unset=94110298269568).module
    other.load_state_dict(first.module.state_dict())
    with EnsembleModule.from_store(folder / "store", other) as served:
        served(views(4)[0][0][None])
    fit(folder / "store", lambda v: make(v, unset=94110298269568))


exact("lightly BarlowTwins")(lambda v: contrastive(v, BarlowTwinsProjectionHead(512, 32, 16), BarlowTwinsLoss()))


def series(variant: Variant) -> tuple[TimeSeriesDataSet, TimeSeriesDataSet]:
    generator = torch.Generator().manual_seed(0)
    frames = []
    for number in range(40):
        values = torch.randn(16, generator=generator).cumsum(0)
        frames.append(pandas.DataFrame({"who": f"user-{number}", "time": range(16), "value": values.numpy()}))
    if variant.kind == "without":
        frames = [frame for frame in frames if frame["who"].iloc[0] != SUBJECT]
    names = [f"user-{number}" for number in range(40)]
    from pytorch_forecasting.data import NaNLabelEncoder, TorchNormalizer

    data = TimeSeriesDataSet(
        pandas.concat(frames, ignore_index=True),
        time_idx="time", target="value", group_ids=["who"], max_encoder_length=8, max_prediction_length=2,
        time_varying_unknown_reals=["value"], target_normalizer=TorchNormalizer("identity"),
        categorical_encoders={"__group_id__who": NaNLabelEncoder().fit(pandas.Series(names)), "who": NaNLabelEncoder().fit(pandas.Series(names))},
    )  # fmt: skip
    return data, data


def who(data: TimeSeriesDataSet) -> list[str]:
    """The owner of each window."""
    return [str(name) for name in data.decoded_index["who"]]


@exact("pytorch-forecasting TemporalFusionTransformer", "layers, head, aggregate='single'")
def tft(variant: Variant) -> Script:
    data, _ = series(variant)
    model = TemporalFusionTransformer.from_dataset(
        data, hidden_size=8, lstm_layers=1, attention_head_size=1, dropout=0.1
    )
    s3t = {
        "subjects": who,
        "layers": [["static_enrichment"], ["pos_wise_ff"]],
        "head": "output_layer",
    }
    test = data.to_dataloader(train=False, batch_size=16)
    train = data.to_dataloader(train=True, batch_size=16)
    return Script(model, train, test, s3t=s3t, serving={"aggregate": "single"})


@exact("pytorch-forecasting NBeats", "layers, head, adapter=None, aggregate='single'")
def nbeats(variant: Variant) -> Script:
    data, _ = series(variant)
    model = NBeats.from_dataset(
        data, widths=[8, 8], num_blocks=[1, 1], num_block_layers=[1, 1], expansion_coefficient_lengths=[2, 2]
    )
    s3t = {
        "subjects": who,
        "layers": ["net_blocks.0"],
        "head": "net_blocks.1",
        "adapter": None,
        "slices": 1,
        "shards": 3,
    }
    test = data.to_dataloader(train=False, batch_size=16)
    return Script(model, data.to_dataloader(train=True, batch_size=16), test, s3t=s3t, serving={"aggregate": "single"})


@exact("pytorch-forecasting DeepAR", "adapter=None, slices=1, aggregate='single'")
def deep_ar(variant: Variant) -> Script:
    data, _ = series(variant)
    model = DeepAR.from_dataset(data, hidden_size=8, rnn_layers=1, dropout=0.0)
    s3t = {
        "subjects": who,
        "layers": ["rnn"],
        "head": "distribution_projector",
        "adapter": None,
        "slices": 1,
        "shards": 3,
    }
    test = data.to_dataloader(train=False, batch_size=16)
    return Script(model, data.to_dataloader(train=True, batch_size=16), test, s3t=s3t, serving={"aggregate": "single"})


class Graphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = GCNConv(4, 8)
        self.conv2 = GCNConv(8, 8)
        self.conv3 = GCNConv(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, data: Any) -> Tensor:
        x = data.x
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(conv(x, data.edge_index))
        return self.head(global_mean_pool(x, data.batch))


class LitGraphs(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Graphs()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch), batch.y)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self.net(batch).argmax(1) == batch.y).float().mean(), batch_size=8)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def graphs(rows: int = 60) -> list[Data]:
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    drawn = torch.randn(rows, 4, 4, generator=generator)
    return [Data(x=x, edge_index=edges, y=(x.sum() > 0).long().reshape(1)) for x in drawn]


@exact("torch_geometric GCN, its own DataLoader", "adapter=None")
def gcn(variant: Variant) -> Script:
    test = GraphLoader(Samples(graphs(), [""] * 60), 8)
    return Script(LitGraphs(), GraphLoader(variant.samples(graphs()), 8, shuffle=True), test, s3t={"adapter": None})


HYDRA = """
_target_: lightning.pytorch.Trainer
callbacks:
  - _target_: lightning.pytorch.callbacks.EarlyStopping
    monitor: val_loss
"""


@exact("hydra: trainer's callbacks from YAML")
def hydra_yaml(variant: Variant) -> Script:
    data = PeopleData(variant.people())
    callbacks = list(instantiate(OmegaConf.create(HYDRA)["callbacks"]))
    return Script(Classifier(), data, data, trainer={"callbacks": callbacks})


@exact("WandbLogger offline")
def wandb(variant: Variant) -> Script:
    data = PeopleData(variant.people())
    LOGS.mkdir(exist_ok=True)
    logger = WandbLogger(offline=True, save_dir=LOGS, project="s3t")
    return Script(Classifier(), data, data, trainer={"logger": logger})


@exact("MLFlowLogger")
def mlflow(variant: Variant) -> Script:
    data = PeopleData(variant.people())
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # else it asks for a database
    return Script(Classifier(), data, data, trainer={"logger": MLFlowLogger(save_dir=f"{LOGS}/mlruns")})


refused(
    "finetuning-scheduler beside S3T", "UnsupportedError", "FinetuningScheduler", "it freezes and unfreezes layers too"
)(lambda v: Script(Classifier(), PeopleData(v.people()), trainer={"callbacks": [FinetuningScheduler()]}))
