"""Provenance recording, used on its own."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl

from lightning_s3t import ProvenanceRecorder
from tests.people import Classifier, People, PeopleData


def test_a_plain_fit_is_recorded_in_a_json_file(tmp_path: Path) -> None:
    recorder = ProvenanceRecorder(tmp_path / "made" / "from.json")
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[recorder],
        default_root_dir=tmp_path,
    )
    trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    record = json.loads((tmp_path / "made" / "from.json").read_text())
    assert record == recorder.record
    assert record["model"].endswith("Classifier")
    assert (record["epochs"], record["steps"]) == (2, 30)
    assert "network.stem.weight" in record["trainable"]
    assert record["settings"]["max_epochs"] == 2
    assert {"train_loss", "val_loss"} <= record["metrics"].keys()
