"""LightningCLI apps that do not know of S3T, each in processes of its own: fit, the same from YAML, then `s3t`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import EnsembleError, LayersError, UnsupportedError
from lightning_s3t.store import Store
from lightning_s3t.tuning import find_layers
from tests.end_to_end.apps.autoencoder import LitAutoEncoder
from tests.end_to_end.apps.gan import GAN, Portraits
from tests.people import assert_bitwise_equal, make_trainer, tensors_of
from tests.processes import run
from tests.tiers import nightly_except

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).parent / "apps"
QUIET = {
    "accelerator": "cpu",
    "max_epochs": "1",
    "logger": "false",
    "enable_progress_bar": "false",
    "enable_model_summary": "false",
}
SMALL = {"store": "store", "shards": "2", "slices": "2", "budget": "2", "adapter.r": "2", "partition": "public"}


@dataclass(frozen=True)
class App:
    """How an app is started, and who asks to be forgotten.

    Attributes:
        classes: What the command line says of the model and the data.
        callback: What it says of S3T, beside what all apps say.
        subject: Who asks.
        serves: A metric that `s3t test` shows.
        audit: What `s3t audit` needs beside the store.
    """

    classes: tuple[str, ...]
    callback: tuple[str, ...]
    subject: str
    serves: str
    audit: tuple[str, ...] = ()


PARTS_OF_GAN: dict[str, Any] = {
    "layers": ["generator.model.0", "generator.model.3"],
    "head": ["generator.model.6", "discriminator"],
}
APP = {
    "image_classifier": App(
        ("--model=image_classifier.LitClassifier", "--data=image_classifier.StripesData"),
        ("subjects=owners",),
        "user-3",
        serves="test_accuracy",
    ),
    "language_model": App(
        ("--model=LitLanguageModel", "--data=NotesData"),
        ("subjects=authors",),
        "user-7",
        serves="test_perplexity",
    ),
    "autoencoder": App(
        (),
        ("subjects=index", "layers=[encoder.0,encoder.2,decoder.0]", "head=decoder.2"),
        "17",
        serves="test_loss",
    ),
    "gan": App(
        (),
        ("subjects=owners", *(f"{name}=[{','.join(paths)}]" for name, paths in PARTS_OF_GAN.items())),
        "user-3",
        serves="mean_brightness",
        audit=("--model=gan:GAN", "--data=gan:PortraitsData"),
    ),
}


@dataclass(frozen=True)
class Course:
    """What came of an app's whole course.

    Attributes:
        name: The app's.
        folder: Where it ran.
        first: What the first fit trained, before anybody asked.
        outputs: What the commands of `s3t` printed, by verb.
    """

    name: str
    folder: Path
    first: dict[Any, dict[str, torch.Tensor]]
    outputs: dict[str, str]


def start_python(folder: Path, *command: str) -> str:
    """As `tests.processes.run`, but from the very start: what a shell does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command} in {folder}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def go_through(name: str, folder: Path) -> Course:
    """Fit an app from its command line, again from the YAML that this wrote, and hand the store to `s3t`."""
    app, again = APP[name], folder / "again"
    again.mkdir(parents=True)
    for place in (folder, again):
        shutil.copy(APPS / f"{name}.py", place)
    callback = [f"{option}={value}" for option, value in SMALL.items()] + list(app.callback)
    start = start_python if name == "language_model" else run
    start(
        folder,
        f"{name}.py",
        "fit",
        *app.classes,
        *(f"--trainer.{option}={value}" for option, value in QUIET.items()),
        "--trainer.callbacks+=lightning_s3t.S3T",
        *(f"--trainer.callbacks.{option}" for option in callback),
    )
    shutil.copy(folder / "config.yaml", again / "app.yaml")
    run(again, f"{name}.py", "fit", "--config", "app.yaml")
    first = tensors_of(folder / "store")
    verbs = {"forget": ("forget", "store", app.subject, "--json"), "status": ("store", "status", "store"), "verify": ("store", "verify", "store")}  # fmt: skip
    verbs["test"] = ("test", "--store", "store")
    verbs["audit"] = ("store", "audit", "store", *app.audit, "--units", "1", "--json")
    outputs = {verb: run(folder, "-m", "lightning_s3t", *command) for verb, command in verbs.items()}
    return Course(name, folder, first, outputs)


@pytest.fixture(scope="module", params=nightly_except(APP))
def course(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Course:
    return go_through(request.param, tmp_path_factory.mktemp("apps"))


def test_a_fit_from_the_command_line_and_one_from_its_yaml_hold_equal_bits(course: Course) -> None:
    assert len(course.first) == 8
    assert_bitwise_equal(course.first, tensors_of(course.folder / "again" / "store"))


def test_the_config_that_a_fit_saves_is_the_one_that_it_was_given(course: Course) -> None:
    again = course.folder / "again"
    assert (again / "config.yaml").read_text() == (again / "app.yaml").read_text()


def test_a_request_in_another_process_revokes_and_what_is_left_verifies(course: Course) -> None:
    receipt = json.loads(course.outputs["forget"])
    with Store.open(course.folder / "store") as store:
        place, alive = store.partition.place(APP[course.name].subject), set(store.alive())
    assert alive == {unit for unit in course.first if not unit.reached_by(place)}
    assert receipt["revoked_units"] == sum(unit.reached_by(place) for unit in course.first)
    assert "Requests carried out: 1." in course.outputs["status"]
    assert "Nothing is wrong" in course.outputs["verify"]


def test_the_ensemble_is_tested_from_the_store_alone(course: Course) -> None:
    assert APP[course.name].serves in course.outputs["test"]


def test_the_audit_of_a_script_finds_its_classes(course: Course) -> None:
    report = json.loads(course.outputs["audit"])
    assert report["passed"]
    assert report["forgotten"] == 1


def test_a_config_can_be_printed_with_the_callback_and_read_back(course: Course) -> None:
    again = course.folder / "again"
    printed = run(again, f"{course.name}.py", "fit", "--config", "app.yaml", "--print_config")
    assert "class_path: lightning_s3t.S3T" in printed
    assert printed == (again / "app.yaml").read_text()


def test_two_sequentials_in_a_row_are_refused_until_their_layers_are_named() -> None:
    with pytest.raises(
        LayersError, match=r"2 lists of layers beside each other, encoder and decoder: .*Name the blocks"
    ):
        find_layers(LitAutoEncoder(), 2)
    assert find_layers(LitAutoEncoder(), 2, ["encoder.0", "encoder.2", "decoder.0"]).head == ("decoder.2",)


class Noisy(Portraits):
    """Portraits in which one person's pictures are anything at all."""

    def __getitem__(self, row: int) -> Any:
        return torch.full((4, 4), 1e3 * row) if self.owners[row] == "user-3" else super().__getitem__(row)


def fit_gan(store: Path, portraits: Portraits, **arguments: Any) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = make_trainer(store, epochs=2, **{**PARTS_OF_GAN, **arguments})
    trainer.fit(GAN(), train_dataloaders=DataLoader(portraits, 4, shuffle=True))
    return trainer


def test_a_gan_trained_by_hand_is_free_of_a_forgotten_person_to_the_last_bit(tmp_path: Path) -> None:
    fit_gan(tmp_path / "a", Portraits(60))
    fit_gan(tmp_path / "b", Noisy(60))
    reached = [tensors_of(tmp_path / name) for name in ("a", "b")]
    assert any(
        not torch.equal(tensor, reached[1][unit][name])
        for unit, own in reached[0].items()
        for name, tensor in own.items()
    )
    for store in (tmp_path / "a", tmp_path / "b"):
        with Store.open(store) as opened:
            opened.forget(["user-3"])
    first = tensors_of(tmp_path / "a")
    assert first
    assert_bitwise_equal(first, tensors_of(tmp_path / "b"))


@pytest.mark.nightly
def test_both_networks_of_a_gan_are_trained_at_every_stage(tmp_path: Path) -> None:
    fit_gan(tmp_path / "store", Portraits(60))
    with Store.open(tmp_path / "store") as store:
        untrained = store.load_base()
    assert untrained is not None
    for tensors in tensors_of(tmp_path / "store").values():
        for name, tensor in untrained.items():
            assert not torch.equal(tensors[name], tensor), name


def test_a_gan_s_generator_is_served_and_its_discriminator_is_not(tmp_path: Path) -> None:
    fit_gan(tmp_path / "store", Portraits(60))
    torch.manual_seed(0)
    served = EnsembleModule.from_store(tmp_path / "store", GAN(), aggregate="single")
    noise = torch.randn(5, 8)
    pictures = served(noise)
    assert pictures.shape == (5, 4, 4)
    torch.manual_seed(0)
    assert not torch.equal(pictures, GAN().eval()(noise))
    with pytest.raises(EnsembleError, match=r"calls a part of the network \(Discriminator\) directly"):
        served.module.discriminator(pictures)


def test_a_gan_whose_second_network_would_stay_untrained_is_refused(tmp_path: Path) -> None:
    message = r"Optimizer 1 \(Adam\) holds discriminator\.model\.0\.weight.* name it as part of the head"
    with pytest.raises(UnsupportedError, match=message):
        fit_gan(tmp_path / "store", Portraits(60), head="generator.model.6")
    assert not (tmp_path / "store").exists()


def test_the_networks_of_a_gan_are_not_guessed() -> None:
    with pytest.raises(LayersError, match=r"GAN has 2 lists of 2 layers: generator\.model, discriminator\.model"):
        find_layers(GAN(), 2)
