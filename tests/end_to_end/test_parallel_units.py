"""Several units at the same time give the bits, the logs and the files of one after another."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_s3t import S3T
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.people import ARGUMENTS, Classifier, People, PeopleData, assert_bitwise_equal, tensors_of

PERSON = "user-3"
UNITS = 8  # two shards, two orders of two slices


class Experimenting(Classifier):
    """Also logs by the logger's own means."""

    def on_train_end(self) -> None:
        for logger in self.trainer.loggers:
            if hasattr(logger.experiment, "add_text"):
                logger.experiment.add_text("s3t", "a unit has ended")


def fit(folder: Path, people: People, parallel_units: int, **trainer: Any) -> S3T:
    """A fit with all that could differ: dropout, BatchNorm, a schedule, shuffling, workers, callbacks with a state."""
    s3t = S3T(folder / "store", **ARGUMENTS, parallel_units=parallel_units)
    checkpoints = ModelCheckpoint(folder / "checkpoints", monitor="val_loss", save_last=True)
    callbacks = [s3t, EarlyStopping("val_loss", patience=1), checkpoints, LearningRateMonitor()]
    loggers = [CSVLogger(folder, "csv"), TensorBoardLogger(str(folder), "tensorboard")]
    defaults: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=folder,
        **{**defaults, **trainer},
    ).fit(Experimenting(), datamodule=PeopleData(people, workers=1))
    return s3t


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serial")
    fit(folder, People.make(), parallel_units=1)
    return folder


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    s3t = fit(folder, People.make(), parallel_units=2)
    assert s3t.summary is not None
    assert sum(row.trained for row in s3t.summary.rows) == UNITS
    return folder


def provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """What the units were made from, but for when and where."""
    found = {}
    with Store.open(folder / "store") as store:
        keys = {str(unit): record.key for unit, record in store.alive().items()}
        for record in store.provenance():
            files = sorted((Path(file["path"]).suffix, file["bytes"]) for file in record.pop("files"))
            for name in ("started", "duration_s"):
                del record[name]
            # both have keys of their own for what the ids are known by
            record["subject_digests"] = {order: len(d) for order, d in record["subject_digests"].items()}
            found[record["unit"]] = {**record, "files": len(files)}
    assert found.keys() == keys.keys()
    return found


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def by_unit(rows: list[dict[str, str]]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """The rows of each unit, without their place on the axis: units end in another order."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        row = {name: value for name, value in row.items() if name != "step"}
        if row["s3t/stage"] and not row["epoch"]:
            unit = (row["s3t/shard"], row["s3t/stage"], row["s3t/slice"], str(len(found)))
            found[unit] = []
        found[unit].append(row)
    return found


def test_every_unit_has_the_same_bits(serial: Path, parallel: Path) -> None:
    assert_bitwise_equal(tensors_of(serial / "store"), tensors_of(parallel / "store"))


def test_every_unit_has_the_same_provenance(serial: Path, parallel: Path) -> None:
    assert provenance(serial) == provenance(parallel)


def test_the_csv_has_the_same_lines_on_one_step_axis(serial: Path, parallel: Path) -> None:
    rows = csv_rows(parallel)
    steps = [int(row["step"]) for row in rows if row["train_loss"]]
    assert steps == list(range(len(steps)))
    expected, found = by_unit(csv_rows(serial)), by_unit(rows)
    assert sorted(map(str, expected.values())) == sorted(map(str, found.values()))


def test_tensorboard_has_the_same_too(serial: Path, parallel: Path) -> None:
    found = []
    for folder in (serial, parallel):
        events = EventAccumulator(str(folder / "tensorboard" / "version_0"))
        events.Reload()
        losses = sorted(event.value for event in events.Scalars("train_loss"))
        texts = len(events.Tensors("s3t/text_summary"))
        found.append((events.Tags()["scalars"], losses, texts))
    assert found[0] == found[1]
    assert found[0][2] == UNITS


def test_checkpoints_of_each_unit_are_in_a_folder_of_its_own_and_registered(parallel: Path) -> None:
    with Store.open(parallel / "store") as store:
        kept = {Path(file["path"]) for record in store.provenance() for file in record["files"]}
        units = {f"unit-{str(unit).replace('/', '-')}" for unit in store.alive()}
    written = set((parallel / "checkpoints").rglob("*.ckpt"))
    assert {path.parent.name for path in written} == units
    assert kept == written


@pytest.mark.nightly
def test_after_a_request_the_same_call_rebuilds_what_scratch_gives(
    parallel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(parallel / "store") as store:
        revoked = {UnitId.parse(name) if isinstance(name, str) else name for name in store.forget([PERSON]).revoked}
        kept = {Path(file["path"]) for record in store.provenance() for file in record["files"]}
    assert revoked
    assert set((parallel / "checkpoints").rglob("*.ckpt")) == kept
    before = tensors_of(parallel / "store")
    fit(parallel, People.make(), parallel_units=2)
    after = tensors_of(parallel / "store")
    assert_bitwise_equal(before, {unit: after[unit] for unit in before})
    fit(tmp_path, People.make().without(PERSON), parallel_units=1)
    assert_bitwise_equal(after, tensors_of(tmp_path / "store"))
