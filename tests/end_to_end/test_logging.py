"""What a fit tells: to its loggers and at its end."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_s3t import S3T, EnsembleModule
from tests.people import ARGUMENTS, Classifier, People, PeopleData, make_trainer

UNITS = 8  # two shards, two orders of two slices
COORDINATES = {"s3t/shard", "s3t/stage", "s3t/slice"}


def fit(store: Path, logger: Any, people: People | None = None) -> tuple[S3T, pl.Trainer]:
    s3t = S3T(store=store, **ARGUMENTS)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[s3t, ModelCheckpoint(monitor="val_loss", save_top_k=0)],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=store.parent,
    )
    trainer.fit(Classifier(), datamodule=PeopleData(people or People.make()))
    return s3t, trainer


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[S3T, Path]:
    folder = tmp_path_factory.mktemp("logs")
    loggers = [CSVLogger(folder, "csv"), TensorBoardLogger(str(folder), "tensorboard")]
    return fit(folder / "store", loggers)[0], folder


def test_csv_has_one_step_axis_with_the_units_coordinates_on_it(logged: tuple[S3T, Path]) -> None:
    with (logged[1] / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= {*COORDINATES, "train_loss", "val_loss"}
    steps = [int(row["step"]) for row in rows if row["train_loss"]]
    assert steps == list(range(len(steps)))
    stages = [(row["s3t/shard"], row["s3t/stage"]) for row in rows if row["s3t/stage"] and not row["epoch"]]
    assert len(stages) == UNITS


def test_tensorboard_has_the_same(logged: tuple[S3T, Path]) -> None:
    events = EventAccumulator(str(logged[1] / "tensorboard" / "version_0"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {*COORDINATES, "train_loss", "val_loss"}
    steps = [event.step for event in events.Scalars("train_loss")]
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_s3ts_arguments_are_among_the_loggers_hyperparameters(logged: tuple[S3T, Path], name: str) -> None:
    found = yaml.safe_load((logged[1] / name / "version_0" / "hparams.yaml").read_text())
    assert found["s3t/shards"] == 2
    assert found["s3t/sequences"] == "optimal"
    assert found["s3t/adapter/r"] == 2
    assert found["learning_rate"] == Classifier().hparams["learning_rate"]


def test_the_summary_says_what_was_trained_and_what_serves(logged: tuple[S3T, Path]) -> None:
    s3t, folder = logged
    assert s3t.summary is not None
    served = EnsembleModule.from_store(folder / "store", Classifier())
    assert {row.shard: row.serves for row in s3t.summary.rows} == served.survivors
    assert sum(row.trained for row in s3t.summary.rows) == UNITS
    assert all(row.alive == row.units for row in s3t.summary.rows)
    assert all(row.score is not None for row in s3t.summary.rows)
    assert f"{UNITS} units trained in" in str(s3t.summary)


@pytest.mark.nightly
def test_the_summary_counts_this_fits_units_alone(tmp_path: Path) -> None:
    fit(tmp_path / "store", False)
    served = EnsembleModule.from_store(tmp_path / "store", Classifier())
    revoked = served.forget(["user-3"]).revoked
    s3t, _ = fit(tmp_path / "store", False)
    assert s3t.summary is not None
    assert sum(row.trained for row in s3t.summary.rows) == len(revoked)
    served(torch.randn(2, 8))


@pytest.mark.nightly
def test_a_test_after_the_fit_and_the_next_fit_go_on_along_the_step_axis(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "csv", flush_logs_every_n_steps=1)
    _, trainer = fit(tmp_path / "store", logger)
    served = EnsembleModule.from_store(tmp_path / "store", Classifier())
    trainer.test(served, PeopleData(People.make()), verbose=False)
    served.forget(["user-3"])
    trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [int(row["step"]) for row in rows if row["train_loss"]]
    (tested,) = (int(row["step"]) for row in rows if row.get("test_accuracy"))
    assert trained == list(range(len(trained)))
    assert 0 < tested < trained[-1]


def test_what_lightning_says_of_a_unit_names_the_unit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stop = EarlyStopping("val_loss", patience=9, verbose=True)
    make_trainer(tmp_path / "store", stop, epochs=1, budget=1).fit(Classifier(), datamodule=PeopleData(People.make()))
    said = [line for line in capfd.readouterr().err.splitlines() if "Metric val_loss improved" in line]
    assert len(said) == len(set(said)) == 4
    assert all(line.startswith("Unit ") for line in said)


def test_the_table_of_layers_is_shown_at_the_first_fit_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = []
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            caplog.clear()
            make_trainer(tmp_path / "store", epochs=1).fit(Classifier(), datamodule=PeopleData(People.make()))
            shown.append("network: network; found by" in caplog.text)
            EnsembleModule.from_store(tmp_path / "store", Classifier()).forget(["user-3"])
    assert shown == [True, False]
