"""What else of Lightning people use, beside S3T: each works, or is refused before anything is changed."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, StackDataset

from lightning_s3t import S3T, EnsembleModule
from lightning_s3t.engine.preflight import check_trainer
from lightning_s3t.errors import StoreMismatchError, UnsupportedError
from lightning_s3t.store import Store
from tests.people import (
    ARGUMENTS,
    Classifier,
    Network,
    People,
    PeopleData,
    assert_bitwise_equal,
    fit,
    make_trainer,
    tensors_of,
)
from tests.tiers import nightly_except

PERSON = "user-3"


def assert_free_of_the_person(folder: Path, make: Callable[[], pl.LightningModule], **arguments: Any) -> Path:
    """Guarantee 1: trains with and without the person's own rows, forgets the person in both, and compares."""
    people, stores = People.make(), [folder / "a", folder / "b"]
    for store, rows in zip(stores, (people, people.replaced(PERSON)), strict=True):
        fit(store, rows, module=make(), **arguments)
    before = [tensors_of(store) for store in stores]
    assert any(not torch.equal(t, before[1][u][n]) for u, own in before[0].items() for n, t in own.items())
    for store in stores:
        with Store.open(store) as opened:
            opened.forget([PERSON])
    left = tensors_of(stores[0])
    assert left
    assert_bitwise_equal(left, tensors_of(stores[1]))
    return stores[0]


def accuracy_of(served: EnsembleModule, **trainer: Any) -> float:
    tester = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, **trainer)
    return float(tester.test(served, PeopleData(People.make()), verbose=False)[0]["test_accuracy"])


# --- several optimizers ---


class TwoOptimizers(Classifier):
    """One for the lower half, one for the upper half and the head."""

    def configure_optimizers(self) -> Any:
        lower, upper = self.network.blocks[:2], nn.ModuleList([*self.network.blocks[2:], self.network.head])
        return [torch.optim.AdamW(part.parameters(), lr=0.02) for part in (lower, upper)]


class ByHand(TwoOptimizers):
    """Steps both itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.nightly
def test_several_optimizers_by_hand_train_every_group(tmp_path: Path) -> None:
    store = assert_free_of_the_person(tmp_path, ByHand)
    adapters = {u: [t for n, t in own.items() if "lora_B" in n] for u, own in tensors_of(store).items()}
    assert all(len(found) == 2 and all(t.any() for t in found) for found in adapters.values())  # they start at zero


def test_several_automatic_optimizers_are_refused_by_lightning_and_no_store_is_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"only supported with manual optimization\. Set `self\.automatic_optim"):
        fit(tmp_path / "store", People.make(), module=TwoOptimizers())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("option", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_what_manual_optimization_cannot_do_is_refused_by_lightning_and_no_store_is_made(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(MisconfigurationException, match="not supported for manual optimization"):
        fit(tmp_path / "store", People.make(), module=ByHand(), trainer=option)
    assert not (tmp_path / "store").exists()


# --- several dataloaders ---


LOADERS: dict[str, Callable[[People], Any]] = {
    "combined": lambda people: CombinedLoader([DataLoader(people, 8), DataLoader(people, 8)], "max_size"),
    "by name": lambda people: {"a": DataLoader(people, 8), "b": DataLoader(people, 8)},
}


@pytest.mark.parametrize("kind", LOADERS)
def test_several_train_dataloaders_are_refused_and_the_way_out_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnsupportedError, match=r"several train dataloaders.*ConcatDataset or StackDataset"):
        make_trainer(tmp_path / "store").fit(Classifier(), train_dataloaders=LOADERS[kind](People.make()))
    assert not (tmp_path / "store").exists()


class TwoViews(Classifier):
    """Learns from two data sets side by side."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(super(TwoViews, self).training_step(batch[view], batch_idx) for view in ("near", "far"))  # type: ignore[return-value]


def test_the_way_out_works(tmp_path: Path) -> None:
    people = People.make()
    stacked: Any = StackDataset(near=people, far=People.make(seed=4))
    stacked.owners = people.owners
    make_trainer(tmp_path / "store").fit(TwoViews(), train_dataloaders=DataLoader(stacked, 8, shuffle=True))
    assert len(tensors_of(tmp_path / "store")) == 8


class TwoValidations(Classifier):
    """Is validated on two data sets."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


@pytest.mark.nightly
def test_several_validation_dataloaders_are_all_used(tmp_path: Path) -> None:
    people = People.make()
    validation = [DataLoader(People.make(10, seed=seed), 16) for seed in (5, 6)]
    make_trainer(tmp_path / "store").fit(TwoValidations(), DataLoader(people, 8), validation)
    with Store.open(tmp_path / "store") as store:
        for record in store.provenance():
            assert {"val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"} <= set(record["metrics"])


# --- metrics, hyperparameters, configure_model, configure_callbacks ---


class LearnsFromItsMetrics(Classifier):
    """Weighs its loss by metrics that are never reset: whatever they keep reaches the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torchmetrics.MeanMetric()
        self.scores = torchmetrics.MetricCollection([torchmetrics.Accuracy("multiclass", num_classes=3)])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        answers = self.network(x)
        loss = nn.functional.cross_entropy(answers, y)
        self.mean.update(loss.detach())
        self.scores.update(answers.detach(), y)
        return loss * self.mean.compute() * (1 + self.scores.compute()["MulticlassAccuracy"])


@pytest.mark.nightly
def test_metrics_of_the_module_carry_nothing_from_unit_to_unit(tmp_path: Path) -> None:
    module = LearnsFromItsMetrics()
    fit(tmp_path / "store", People.make(), module=module)
    assert not module.mean.update_called
    assert not module.scores["MulticlassAccuracy"].update_called
    assert_free_of_the_person(tmp_path, LearnsFromItsMetrics)


class WithSettings(Classifier):
    """Hyperparameters within hyperparameters, and one that is no data."""

    def __init__(self, schedule: dict[str, float], activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.nightly
def test_hyperparameters_are_logged_and_a_store_with_others_is_refused(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    fit(tmp_path / "store", People.make(), module=WithSettings({"warmup": 0.1}), trainer={"logger": logger})
    assert "warmup: 0.1" in (Path(logger.log_dir) / "hparams.yaml").read_text()
    with pytest.raises(StoreMismatchError, match=r"model\.hparams\.schedule\.warmup: store 0\.1, now 0\.2"):
        fit(tmp_path / "store", People.make(), module=WithSettings({"warmup": 0.2}))


class MadeLate(Classifier):
    """Makes its network where Lightning asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = None

    def configure_model(self) -> None:
        if self.network is None:
            torch.manual_seed(11)
            self.network = Network()


@pytest.mark.nightly
def test_a_network_made_in_configure_model_is_trained_and_served(tmp_path: Path) -> None:
    fit(tmp_path / "late", People.make(), module=MadeLate())
    fit(tmp_path / "early", People.make())
    assert_bitwise_equal(tensors_of(tmp_path / "late"), tensors_of(tmp_path / "early"))
    served = EnsembleModule.from_store(tmp_path / "late", MadeLate())
    features = People.make(seed=6).features
    assert torch.equal(served(features), EnsembleModule.from_store(tmp_path / "early", Classifier())(features))


class BringsCallbacks(Classifier):
    """Has callbacks of its own."""

    def __init__(self, *callbacks: Callback) -> None:
        super().__init__()
        self.callbacks = callbacks

    def configure_callbacks(self) -> Any:
        return list(self.callbacks)


@pytest.mark.nightly
def test_callbacks_of_the_module_start_fresh_in_every_unit_and_their_files_are_erased(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    module = BringsCallbacks(
        EarlyStopping("val_loss", patience=0, min_delta=1e9), ModelCheckpoint(folder, monitor="val_loss")
    )
    fit(tmp_path / "store", People.make(), module=module, epochs=50, trainer={"enable_checkpointing": True})
    with Store.open(tmp_path / "store") as store:
        assert [record["epochs"] for record in store.provenance()] == [2] * 8
        files = {Path(file["path"]) for record in store.provenance() for file in record["files"]}
        assert set(folder.rglob("*.ckpt")) == files
        revoked = store.forget([PERSON]).revoked
        left = {Path(file["path"]) for record in store.provenance() for file in record["files"]}
    assert revoked
    assert set(folder.rglob("*.ckpt")) == left < files


@pytest.mark.nightly
def test_checkpoints_of_earlier_units_are_no_surprise(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints")
    trainer = {"enable_checkpointing": True, "max_epochs": 1}
    plain = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[checkpoints], max_epochs=1
    )
    for _ in range(2):
        fit(tmp_path / "store", People.make(), checkpoints, shards=1, slices=1, budget=1, trainer=trainer)
    assert any((tmp_path / "checkpoints").iterdir())
    assert not [warning for warning in recwarn if "is not empty" in str(warning.message)]
    plain.fit(Classifier(), datamodule=PeopleData(People.make()))
    assert [warning for warning in recwarn if "is not empty" in str(warning.message)]


@pytest.mark.nightly
def test_the_module_may_bring_s3t_itself(tmp_path: Path) -> None:
    plain = pl.Trainer(max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    module = BringsCallbacks(S3T(store=tmp_path / "brought", **ARGUMENTS))
    plain.fit(module, datamodule=PeopleData(People.make()))
    fit(tmp_path / "store", People.make())
    assert_bitwise_equal(tensors_of(tmp_path / "brought"), tensors_of(tmp_path / "store"))


# --- schedules and callbacks ---


class Scheduled(Classifier):
    """With a schedule of its own."""

    def __init__(self, make: Callable[[Any, int], Any]) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02)
        return [optimizer], [self.make(optimizer, int(self.trainer.estimated_stepping_batches))]


rates = torch.optim.lr_scheduler


def warm_up(step: int, steps: int) -> float:
    return min(1.0, step / steps)


SCHEDULES: dict[str, tuple[Callable[[Any, int], Any], Callable[[Any, int], Any], str]] = {
    "value": (
        lambda optimizer, steps: rates.StepLR(optimizer, 1, 0.1),
        lambda optimizer, steps: rates.StepLR(optimizer, 1, 0.5),
        r"training\.schedulers\[0\]\.gamma: store 0\.1, now 0\.5",
    ),
    "function": (
        lambda optimizer, steps: rates.LambdaLR(optimizer, functools.partial(warm_up, steps=10)),
        lambda optimizer, steps: rates.LambdaLR(optimizer, functools.partial(warm_up, steps=20)),
        r"training\.schedulers\[0\]\.lr_lambdas\[0\]\.keywords\.steps: store 10, now 20",
    ),
    "part": (
        lambda optimizer, steps: rates.SequentialLR(
            optimizer, [rates.ConstantLR(optimizer), rates.StepLR(optimizer, 1)], [2]
        ),
        lambda optimizer, steps: rates.SequentialLR(
            optimizer, [rates.ConstantLR(optimizer), rates.StepLR(optimizer, 2)], [2]
        ),
        r"training\.schedulers\[0\]\.schedulers\[1\]\.step_size: store 1, now 2",
    ),
    "none": (
        lambda optimizer, steps: rates.StepLR(optimizer, 1, 0.1),
        lambda optimizer, steps: rates.ConstantLR(optimizer, 1.0),
        r"training\.schedulers\[0\]\.class: store StepLR, now ConstantLR",
    ),
}


@pytest.mark.parametrize("kind", nightly_except(SCHEDULES, "value"))
def test_a_store_that_was_made_with_another_schedule_is_refused(tmp_path: Path, kind: str) -> None:
    first, second, message = SCHEDULES[kind]
    fit(tmp_path / "store", People.make(), module=Scheduled(first), epochs=1)
    with pytest.raises(StoreMismatchError, match=message):
        fit(tmp_path / "store", People.make(), module=Scheduled(second), epochs=1)


@pytest.mark.nightly
@pytest.mark.parametrize("isolation", ["forkserver", "none"])
def test_a_schedule_over_the_fit_is_the_same_one_when_rows_come_or_go(tmp_path: Path, isolation: str) -> None:
    def make(optimizer: Any, steps: int) -> Any:
        return rates.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)

    people = People.make()
    fit(tmp_path / "store", people, module=Scheduled(make), epochs=1, isolation=isolation)
    with pytest.warns(UserWarning, match="because the subjects of their slices have changed"):
        fit(tmp_path / "store", people.without("user-1"), module=Scheduled(make), epochs=1, isolation=isolation)


STOPS: dict[str, tuple[Callable[[], list[Callback]], str]] = {
    "none": (list, r"callbacks: store \[EarlyStopping\], now \[\]"),
    "another": (lambda: [EarlyStopping("val_loss", patience=9)], r"callbacks\[0\]\.patience: store 1, now 9"),
    "more": (
        lambda: [EarlyStopping("val_loss", patience=1), EMAWeightAveraging()],
        r"callbacks: store \[EarlyStopping\], now \[EarlyStopping, EMAWeightAveraging\]",
    ),
}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", STOPS)
def test_a_store_that_was_made_with_other_callbacks_that_bear_on_training_is_refused(
    stopping: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(stopping, tmp_path / "store")
    make, message = STOPS[kind]
    with pytest.raises(StoreMismatchError, match=rf"training\.{message}"):
        fit(tmp_path / "store", People.make(), *make(), epochs=1)


@pytest.mark.nightly
def test_a_store_that_was_made_with_another_average_of_weights_is_refused(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), EMAWeightAveraging(decay=0.9), epochs=1)
    with pytest.raises(StoreMismatchError, match=r"training\.callbacks\[0\]\.avg_fn\.decay: store 0\.9, now 0\.99"):
        fit(tmp_path / "store", People.make(), EMAWeightAveraging(decay=0.99), epochs=1)


def test_a_callback_that_says_more_is_no_other_training(stopping: Path, tmp_path: Path) -> None:
    shutil.copytree(stopping, tmp_path / "store")
    stop = EarlyStopping("val_loss", patience=1, verbose=True)
    fit(
        tmp_path / "store",
        People.make(),
        stop,
        LearningRateMonitor(),
        epochs=1,
        trainer={"logger": CSVLogger(tmp_path)},
    )


@pytest.fixture(scope="module")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("stopping") / "store"
    fit(store, People.make(), EarlyStopping("val_loss", patience=1), epochs=1)
    return store


# --- precision, accumulation, strategies ---


def test_mixed_precision_on_the_cpu_is_free_of_a_forgotten_person_to_the_last_bit(tmp_path: Path) -> None:
    store = assert_free_of_the_person(tmp_path, Classifier, trainer={"precision": "bf16-mixed"})
    assert accuracy_of(EnsembleModule.from_store(store, Classifier()), precision="bf16-mixed") > 0.8


class SeesAccumulation(Callback):
    """Notes over how many batches each epoch accumulates."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            with self.path.open("a") as file:
                file.write(f"{trainer.accumulate_grad_batches}\n")


@pytest.mark.nightly
def test_a_schedule_of_accumulation_starts_fresh_in_every_unit(tmp_path: Path) -> None:
    seen = tmp_path / "seen.txt"
    fit(tmp_path / "store", People.make(), GradientAccumulationScheduler({0: 1, 1: 3}), SeesAccumulation(seen))
    assert seen.read_text().split() == ["1", "3"] * 8


@pytest.mark.nightly
def test_gradients_are_clipped_and_accumulated_in_every_unit(tmp_path: Path) -> None:
    fit(tmp_path / "plain", People.make())
    fit(tmp_path / "store", People.make(), trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 1e-12})
    with Store.open(tmp_path / "plain") as plain, Store.open(tmp_path / "store") as store:
        steps = {str(unit): record.provenance["steps"] for unit, record in plain.alive().items()}
        for unit, record in store.alive().items():
            batches = steps[str(unit)] // 2  # of one of two epochs
            assert record.provenance["steps"] == 2 * -(-batches // 2)
            assert record.provenance["settings"]["gradient_clip_val"] == 1e-12


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_a_strategy_that_shards_the_module_is_refused(tmp_path: Path, strategy: Any) -> None:
    trainer = make_trainer(tmp_path / "store")
    # Lightning takes these on a GPU alone, so the strategy is put in the place of the trainer's own
    trainer._accelerator_connector.strategy = strategy()
    with pytest.raises(UnsupportedError, match=rf"Strategy {strategy.__name__}.*Supported are a single device and DDP"):
        check_trainer(trainer, S3T)
