"""neuralforecast, which imports `pytorch_lightning`."""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any

import lightning_s3t

lightning_s3t.alias_pytorch_lightning()

import numpy
import pandas
from neuralforecast.models import MLP, NHITS
from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

from tests.ecosystem.cases import SUBJECT, Script, Variant, exact

LIBRARIES = ("lightning", "torch", "neuralforecast", "pytorch-lightning")
NAMES = [f"user-{number}" for number in range(40)]


def series(variant: Variant) -> TimeSeriesDataset:
    values = numpy.random.default_rng(0).normal(size=(40, 24)).cumsum(1).astype("float32")
    frame = pandas.DataFrame(
        {"unique_id": numpy.repeat(NAMES, 24), "ds": numpy.tile(numpy.arange(24), 40), "y": values.reshape(-1)}
    )
    if variant.kind == "without":
        frame = frame[frame.unique_id != SUBJECT]
    return TimeSeriesDataset.from_df(frame)[0]


def owners(data: TimeSeriesDataset) -> list[str]:
    """The series are sorted by name."""
    names = sorted(NAMES)
    return names if len(data) == 40 else [name for name in names if name != SUBJECT]


def script(variant: Variant, kind: Any, s3t: dict[str, Any], **arguments: Any) -> Script:
    module = kind(h=4, input_size=8, max_steps=6, batch_size=4, **arguments)
    module.val_size, module.test_size = 0, 0
    data = TimeSeriesDataModule(dataset=series(variant), batch_size=4, valid_batch_size=4, shuffle_train=True)
    return Script(
        module, data.train_dataloader(), s3t={"subjects": owners, **s3t}, trainer={"max_steps": 6, "max_epochs": -1}
    )


exact("neuralforecast NHITS", "alias_pytorch_lightning(), layers, head")(
    lambda v: script(
        v,
        NHITS,
        {"layers": ["blocks.0", "blocks.1"], "head": "blocks.2"},
        mlp_units=[[16, 16]] * 3,
        dropout_prob_theta=0.1,
    )
)
exact("neuralforecast MLP", "alias_pytorch_lightning()")(lambda v: script(v, MLP, {}, hidden_size=16, num_layers=3))
