"""Any LightningCLI app, unchanged, from its command line and from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_s3t.store import Store
from tests.people import Classifier, People, PeopleData

CONFIGS = Path(__file__).parents[2] / "configs"


class Data(PeopleData):
    def __init__(self, people: int = 40) -> None:
        super().__init__(People.make(people))


def app(*arguments: str, run: bool = True) -> Any:
    quiet = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    return LightningCLI(
        Classifier,
        Data,
        args=["fit", *quiet, *arguments],
        run=run,
        save_config_callback=None,
        seed_everything_default=0,
    )


BASE = """
trainer:
  logger: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelSummary
      init_args: {max_depth: 1}
"""
SMALL = [
    f"--trainer.callbacks.{option}" for option in ("shards=2", "slices=2", "budget=1", "subjects=owners", "adapter.r=2")
]


def test_the_callback_is_added_on_the_command_line(tmp_path: Path) -> None:
    app(
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.callbacks+=lightning_s3t.S3T",
        f"--trainer.callbacks.store={tmp_path / 'store'}",
        *SMALL,
    )
    with Store.open(tmp_path / "store") as store:
        assert len(store.alive()) == 4
        assert store.settings["adapter"]["r"] == 2


def test_the_callback_is_appended_by_a_second_config(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    config = (CONFIGS / "s3t.yaml").read_text().replace("runs/s3t", str(tmp_path / "store"))
    (tmp_path / "s3t.yaml").write_text(config)
    app("--config", str(base), "--config", str(tmp_path / "s3t.yaml"), f"--trainer.default_root_dir={tmp_path}", *SMALL)
    with Store.open(tmp_path / "store") as store:
        assert len(store.alive()) == 4


def test_the_help_explains_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app("--trainer.callbacks.help=lightning_s3t.S3T")
    told = " ".join(capsys.readouterr().out.split())
    for text in (
        "The folder for the trained units.",
        "Number of shards, m.",
        "{cumulative,disjoint}",
        "Who owns each row",
    ):
        assert text in told
