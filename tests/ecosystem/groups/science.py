"""chemprop and gluonts, whose modules are of lightning.pytorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from chemprop.data import MoleculeDatapoint, MoleculeDataset, build_dataloader
from chemprop.models import MPNN
from chemprop.nn import BondMessagePassing, MeanAggregation, RegressionFFN
from gluonts.dataset.pandas import PandasDataset
from gluonts.torch import SimpleFeedForwardEstimator

from lightning_s3t import S3T
from lightning_s3t.errors import DataError
from tests.ecosystem.cases import Script, Variant, behaves, exact
from tests.ecosystem.scripts import generator
from tests.ecosystem.scripts import script as plain_script
from tests.ecosystem.story import QUIET

LIBRARIES = ("lightning", "torch", "chemprop", "rdkit", "gluonts")


def molecules(variant: Variant) -> MoleculeDataset:
    """Chains of carbon with an oxygen somewhere, of which each belongs to a user of its own."""
    smiles = ["C" * (1 + row % 7) + "O" + "C" * (row // 7) for row in range(42)]
    rows = [row for row in range(42) if variant.kind == "D" or row != 3]
    data = MoleculeDataset([MoleculeDatapoint.from_smi(smiles[row], numpy.array([float(row % 7)])) for row in rows])
    data.owners = [f"user-{row}" for row in rows]
    return data


@exact("chemprop MPNN, its own dataloader", "layers, head")
def mpnn(variant: Variant) -> Script:
    module = MPNN(BondMessagePassing(d_h=16, depth=2), MeanAggregation(), RegressionFFN(input_dim=16, hidden_dim=16))
    layers = ["message_passing.W_i", "message_passing.W_h", "message_passing.W_o"]
    test = build_dataloader(molecules(Variant("D")), batch_size=8, shuffle=False)
    train = build_dataloader(molecules(variant), batch_size=8)
    return Script(module, train, test, s3t={"layers": layers, "head": "predictor"})


def estimator(**trainer: Any) -> SimpleFeedForwardEstimator:
    return SimpleFeedForwardEstimator(
        2, 8, [16, 16, 16, 16], batch_size=8, num_batches_per_epoch=4, trainer_kwargs=trainer
    )


@exact("gluonts SimpleFeedForward module, windows in a data set")
def windows(variant: Variant) -> Script:
    series = torch.randn(60, 10, generator=generator()).cumsum(1)
    samples = [
        {"past_target": row[:8], "future_target": row[8:], "future_observed_values": torch.ones(2)} for row in series
    ]
    made = plain_script(variant, estimator().create_lightning_module(), samples)
    made.test = None
    made.answer = lambda served: served(series[:4, :8])
    return made


@behaves("gluonts SimpleFeedForwardEstimator.train", reason="its training data is a stream of random windows")
def streamed(folder: Path) -> None:
    frames = {
        f"user-{row}": pandas.DataFrame({"target": numpy.arange(20.0) + row}, index=pandas.period_range("2020", periods=20, freq="D"))
        for row in range(10)
    }  # fmt: skip
    s3t = S3T(folder / "store", 2, 2, 1, subjects="owners")
    with pytest.raises(DataError, match="IterableDataset"):
        estimator(**QUIET, max_epochs=1, callbacks=[s3t]).train(PandasDataset(frames, target="target"))
