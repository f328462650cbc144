"""Every shipped config trains, tests and forgets, on a tiny random model and a few local rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from peft import LoraConfig

from lightning_s3t.cli.main import main
from lightning_s3t.store import Store
from lightning_s3t.tuning.adapters import find_targets
from lightning_s3t.tuning.layers import find_layers
from tests.people import assert_bitwise_equal, tensors_of
from tests.tiers import nightly_except
from tests.zoo.datamodules.local import (
    VOCABULARY,
    write_cifar,
    write_image_folder,
    write_lines,
    write_tiny_imagenet,
    write_tokenizer,
)

CONFIGS = Path(__file__).parents[2] / "configs"
Arguments = list[str]
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.precision=32",
    "--trainer.max_epochs=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.workers=0",
    "--s3t.shards=2",
    "--s3t.slices=2",
    "--s3t.budget=1",
    "--s3t.partition=public",  # stores are compared
]
TINY_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 4}
TINY_BLOCKS = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": VOCABULARY}


def digits(folder: Path) -> Arguments:
    return ["--data.people=20"]


def cifar(classes: int) -> Callable[[Path], Arguments]:
    def prepare(folder: Path) -> Arguments:
        write_cifar(folder, classes, rows=20)
        return [f"--data.folder={folder}", "--data.download=false", "--data.validation_rows=4", *vit()]

    return prepare


def tiny_imagenet(folder: Path) -> Arguments:
    return [f"--data.folder={write_tiny_imagenet(folder)}", *vit()]


def vit() -> Arguments:
    return ["--model.pretrained=false", f"--model.model_arguments={json.dumps(TINY_VIT)}", "--data.image_size=16"]


def roberta(folder: Path) -> Arguments:
    rows = [{"text": f"text {row}", "pair": "more", "label": row % 2, "who": f"user-{row}"} for row in range(20)]
    file = write_lines(folder / "rows.jsonl", rows)
    # as many blocks as the large one, for the config names them
    config = {"model_type": "roberta", "num_hidden_layers": 24, "pad_token_id": 0, **TINY_BLOCKS}
    return [
        *texts(folder, config),
        "--data.task=null",
        *(f"--data.{part}={file}" for part in ("train", "validation", "test")),
        "--data.text_pair=pair",
        "--data.subject=who",
    ]


def llama(folder: Path) -> Arguments:
    rows = [{"instruction": f"Say {row}.", "output": str(row), "who": f"user-{row}"} for row in range(20)]
    config = {"model_type": "llama", "num_hidden_layers": 4, **TINY_BLOCKS}
    return [
        *texts(folder, config),
        f"--data.train={write_lines(folder / 'rows.jsonl', rows)}",
        "--data.validation_rows=4",
        "--data.subject=who",
        "--data.max_length=48",
    ]


def texts(folder: Path, config: dict[str, object]) -> Arguments:
    tokenizer = write_tokenizer(folder / "tokenizer")
    return ["--model.name=null", f"--model.config={json.dumps(config)}", f"--data.tokenizer={tokenizer}"]


WORKLOADS: dict[str, tuple[Callable[[Path], Arguments], str, str]] = {
    "digits_vit": (digits, "person-7", "test/accuracy"),
    "cifar10_vit_base": (cifar(10), "7", "test/accuracy"),
    "cifar100_vit_base": (cifar(100), "7", "test/accuracy"),
    "tiny_imagenet_vit_large": (tiny_imagenet, "n01443537/images/n01443537_3.JPEG", "test/accuracy"),
    "glue_roberta_large": (roberta, "user-7", "test/accuracy"),
    "superglue_roberta_large": (roberta, "user-7", "test/accuracy"),
    "alpaca_llama": (llama, "user-7", "test/perplexity"),
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["s3t"])


OTHER = {"text": "something else altogether", "label": 0, "instruction": "Sing a long song.", "output": "la la la la"}


def fit(config: str, arguments: Arguments) -> int:
    return main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *SMALL, "--s3t.store=store", *arguments])


def test_every_config_is_a_workload() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - {"s3t"} == WORKLOADS.keys()


@pytest.mark.parametrize("config", nightly_except(WORKLOADS, "digits_vit", "alpaca_llama"))
def test_it_fits_serves_and_forgets(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, subject, metric = WORKLOADS[config]
    assert fit(config, prepare(tmp_path)) == 0
    with Store.open(tmp_path / "store") as store:
        assert len(store.alive()) == 4
        assert all(record.score is not None for record in store.alive().values())
    capsys.readouterr()
    assert main(["test", "--store", "store"]) == 0
    assert metric in capsys.readouterr().out
    assert main(["forget", "store", subject, "--json"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["subjects"], receipt["unknown"]) == (1, 0)
    assert 0 < receipt["revoked_units"] < 4
    assert main(["test", "--store", "store"]) == 0
    assert metric in capsys.readouterr().out
    assert main(["store", "audit", "store", "--units", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert len(report["units"]) == 1


def test_after_a_request_the_next_fit_trains_what_was_revoked(tmp_path: Path) -> None:
    arguments = llama(tmp_path)
    assert fit("alpaca_llama", arguments) == 0
    with Store.open(tmp_path / "store") as store:
        first = {unit: record.snapshot for unit, record in store.alive().items()}
        revoked = set(store.forget(["user-7"]).revoked)
    assert fit("alpaca_llama", arguments) == 0
    with Store.open(tmp_path / "store") as store:
        second = {unit: record.snapshot for unit, record in store.alive().items()}
    assert {str(unit) for unit in first if second[unit] != first[unit]} == revoked


@pytest.mark.parametrize(
    ("prepare", "config"),
    [(llama, "alpaca_llama"), pytest.param(roberta, "glue_roberta_large", marks=pytest.mark.nightly)],
)
def test_nothing_that_serves_on_depends_on_the_forgotten(
    prepare: Callable[[Path], Arguments], config: str, tmp_path: Path
) -> None:
    for store in ("with", "with-other-rows"):
        arguments = prepare(tmp_path)
        rows = tmp_path / "rows.jsonl"
        if store == "with-other-rows":  # longer too, so that batches with them are padded differently
            lines = [json.loads(line) for line in rows.read_text().splitlines()]
            write_lines(rows, [{**line, **OTHER} if line["who"] == "user-7" else line for line in lines])
        assert fit(config, [*arguments, f"--s3t.store={store}"]) == 0
    before = [tensors_of(tmp_path / store) for store in ("with", "with-other-rows")]
    with pytest.raises(AssertionError):
        assert_bitwise_equal(*before)
    for store in ("with", "with-other-rows"):
        assert main(["forget", store, "user-7"]) == 0
    kept = [tensors_of(tmp_path / store) for store in ("with", "with-other-rows")]
    assert len(kept[0]) >= 2
    assert_bitwise_equal(*kept)


def test_owners_may_be_folders_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_image_folder(tmp_path / "images", rows=40)
    arguments = [f"--data.folder={folder}", "--data.owner=folder", "--data.test=test", *vit()]
    assert fit("tiny_imagenet_vit_large", arguments) == 0
    assert main(["forget", "store", "owner-3", "--json"]) == 0
    assert '"unknown": 0' in capsys.readouterr().out


LARGE_ROBERTA = {
    "model_type": "roberta",
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
FULL_SIZE: dict[str, tuple[dict[str, object], int, int]] = {
    "cifar10_vit_base": ({"pretrained": False}, 2, 2),
    "cifar100_vit_base": ({"pretrained": False}, 2, 2),
    "tiny_imagenet_vit_large": ({"pretrained": False}, 4, 4),
    "glue_roberta_large": ({"name": None, "config": LARGE_ROBERTA}, 2, 4),
    "superglue_roberta_large": ({"name": None, "config": LARGE_ROBERTA}, 2, 4),
    "alpaca_llama": ({"name": None, "config": {"model_type": "llama"}}, 8, 56),
}


@pytest.mark.parametrize("config", FULL_SIZE)
def test_at_full_size_each_slice_trains_as_many_blocks_as_the_config_says(config: str) -> None:
    drawn, blocks, adapters = FULL_SIZE[config]
    content = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    s3t, model = content["s3t"], content["model"]
    with torch.device("meta"):  # shapes without weights
        module = import_module_class(model["class_path"])(**{**model["init_args"], **drawn})
    layers = find_layers(module, s3t["slices"], s3t.get("layers"), s3t.get("head"))
    targets = find_targets(module, layers, LoraConfig(target_modules=s3t["adapter"]["target_modules"]))
    assert [len(group.modules) for group in layers.groups] == [blocks] * s3t["slices"]
    assert [len(targets[group.index]) for group in layers.groups] == [adapters] * s3t["slices"]


def import_module_class(path: str) -> type[L.LightningModule]:
    module, _, name = path.rpartition(".")
    found: type[L.LightningModule] = getattr(import_module(module), name)
    return found
