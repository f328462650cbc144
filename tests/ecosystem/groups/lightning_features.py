"""Lightning's own features, with a hand-written module."""

from __future__ import annotations

import shutil
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, WeightedRandomSampler, random_split

from lightning_s3t import S3T, EnsembleModule
from lightning_s3t.errors import EnsembleError, S3TError, StoreMismatchError, UnsupportedError
from lightning_s3t.store import Store
from tests.ecosystem.cases import SUBJECT, Script, Variant, behaves, exact, loader, refused
from tests.ecosystem.scripts import Lit, mlp, vectors
from tests.ecosystem.scripts import script as plain_script
from tests.ecosystem.story import QUIET, fit, trainer_of, units
from tests.people import Classifier, People, PeopleData

LIBRARIES = ("lightning", "torch", "torchmetrics")
TEST = DataLoader(People.make(10, seed=6), 16)


def script(variant: Variant, **arguments: Any) -> Script:
    """A classifier, its data, and a trainer with these arguments."""
    module = arguments.pop("module", None)
    if module is None:  # a compiled one has no truth
        module = Classifier()
    data = PeopleData(variant.people())
    return Script(module, data, data, s3t=arguments.pop("s3t", {}), trainer=arguments)


def plain(make: Any) -> Any:
    """A script that is known by its trainer's arguments alone."""
    return lambda variant: script(variant, **make())


for name, make in {
    "BatchNorm, LoRA": dict,
    "max_steps": lambda: {"max_steps": 5, "max_epochs": -1},
    "limit_train_batches=2": lambda: {"limit_train_batches": 2, "max_epochs": 8},
    "limit_train_batches=0.5": lambda: {"limit_train_batches": 0.5, "max_epochs": 8},
    "gradient_clip_val": lambda: {"gradient_clip_val": 0.5},
    "accumulate_grad_batches": lambda: {"accumulate_grad_batches": 2},
    "precision bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "EarlyStopping(min_delta)": lambda: {"callbacks": [EarlyStopping("val_loss", min_delta=0.5)], "max_epochs": 3},
    "WeightAveraging": lambda: {"callbacks": [WeightAveraging()]},
    "EMAWeightAveraging": lambda: {"callbacks": [EMAWeightAveraging()]},
    "ModelCheckpoint(monitor)": lambda: {
        "callbacks": [ModelCheckpoint(monitor="val_loss", save_last=True)],
        "enable_checkpointing": True,
    },
    "RichProgressBar, RichModelSummary": lambda: {
        "callbacks": [RichProgressBar(), RichModelSummary()],
        "enable_progress_bar": True,
        "enable_model_summary": True,
    },
    "sanity check, check_val_every_n_epoch": lambda: {"num_sanity_val_steps": 2, "check_val_every_n_epoch": 1},
    "BatchNorm, whole layers": lambda: {"s3t": {"adapter": None}},
    "profiler='simple'": lambda: {"profiler": "simple"},
    "use_distributed_sampler=False, barebones off, inference_mode=False": lambda: {
        "use_distributed_sampler": False,
        "inference_mode": False,
    },
    "detect_anomaly": lambda: {"detect_anomaly": True},
    "deterministic=True": lambda: {"deterministic": True},
    "disjoint slices, epoch_rule='sisa'": lambda: {"s3t": {"stage_data": "disjoint", "epoch_rule": "sisa"}},
}.items():
    exact(name)(plain(make))


@exact("hand-written module, LoRA")
def plain_module(variant: Variant) -> Script:
    return plain_script(variant, Lit(mlp()), vectors())


@exact("adapter=None (whole layers)")
def whole_layers(variant: Variant) -> Script:
    return plain_script(variant, Lit(mlp()), vectors(), adapter=None)


class Cycle(Lit):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@exact("OneCycle, estimated_stepping_batches")
def cycle(variant: Variant) -> Script:
    return plain_script(variant, Cycle(mlp()), vectors())


@exact("CSVLogger, LearningRateMonitor, DeviceStatsMonitor")
def csv_logger(variant: Variant) -> Script:
    callbacks = [LearningRateMonitor(), DeviceStatsMonitor(cpu_stats=False)]
    return script(variant, logger=CSVLogger("/tmp/s3t-ecosystem-logs"), callbacks=callbacks)


@exact("max_time")
def max_time(variant: Variant) -> Script:
    return script(variant, max_time="00:01:00:00")


@exact("TensorBoardLogger (log_graph too)")
def tensorboard(variant: Variant) -> Script:
    return script(variant, logger=TensorBoardLogger("/tmp/s3t-ecosystem-logs", log_graph=True))


for name, arguments, message, reason in (
    ("overfit_batches", {"overfit_batches": 2}, "overfit_batches", "every unit would see the same batches"),
    (
        "StochasticWeightAveraging",
        {"callbacks": [StochasticWeightAveraging(1e-2)]},
        "WeightAveraging instead",
        "it averages over stages; the message names WeightAveraging",
    ),
    (
        "reload_dataloaders_every_n_epochs",
        {"reload_dataloaders_every_n_epochs": 1},
        "reload_dataloaders",
        "units have dataloaders of their own",
    ),
):
    refused(name, "UnsupportedError", message, reason)(plain(lambda arguments=arguments: dict(arguments)))


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()


class Configured(Classifier):
    def configure_model(self) -> None:
        if not hasattr(self, "late"):
            self.late = nn.Identity()


class InModule(Classifier):
    """The train dataloader is in the module."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.rows = variant.people()

    def train_dataloader(self) -> Any:
        return loader(self.rows)

    def test_dataloader(self) -> Any:
        return TEST


class ByLoader(Classifier):
    """OneCycle from the length of the loader over all rows."""

    def __init__(self, people: People) -> None:
        super().__init__()
        self.rows = people

    def train_dataloader(self) -> Any:
        return loader(self.rows)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = len(self.train_dataloader()) + 1
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Groups(Classifier):
    def configure_optimizers(self) -> Any:
        groups = [{"params": self.network.head.parameters(), "lr": 0.1}, {"params": self.network.blocks.parameters()}]
        return torch.optim.SGD(groups, lr=0.01)


class Mixup(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        share, order = torch.rand(()), torch.randperm(len(x))
        out = self.network(share * x + (1 - share) * x[order])
        loss = nn.functional.cross_entropy
        return share * loss(out, y) + (1 - share) * loss(out, y[order])


class Notes:
    """An object that holds another."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=3)


class Keeping(Classifier):
    """Keeps state in a list, a dict and a deque of another object, and lets the loss read it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.counts = {"steps": 0, "notes": Notes()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.counts["steps"] += 1
        self.seen.append(float(loss.detach()))
        self.counts["notes"].recent.append(self.seen[-1])
        return loss * (1 + 0.01 * len(self.seen) * self.counts["steps"] + 0.01 * sum(self.counts["notes"].recent))


class Frozen(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.network.stem.requires_grad_(False)
        self.network.blocks[0].requires_grad_(False)


class WeightNorm(Classifier):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.network.head)
        for block in self.network.blocks:
            nn.utils.parametrizations.weight_norm(block.linear)


for name, kind in {
    "automatic_optimization=False, with scheduler": Manual,
    "configure_model": Configured,
    "parameter groups by attribute": Groups,
    "mixup in the step": Mixup,
    "state in lists, deques, nested objects that the loss reads": Keeping,
    "user froze layers before fit": Frozen,
}.items():
    exact(name)(lambda variant, kind=kind: script(variant, module=kind()))


@exact("weight_norm, LoRA and whole")
def weight_norm(variant: Variant) -> Script:
    return script(variant, module=WeightNorm())


@exact("weight_norm, whole layers")
def weight_norm_whole(variant: Variant) -> Script:
    return script(variant, module=WeightNorm(), s3t={"adapter": None})


@exact("train dataloader in the module")
def in_module(variant: Variant) -> Script:
    return Script(InModule(variant), None, TEST)


@exact("OneCycle from len(loader)")
def cycle_of_all(variant: Variant) -> Script:
    return Script(ByLoader(variant.people()), None, TEST)  # the person's three rows do not change the number of batches


class Augmented(pl.LightningDataModule):
    """Draws from torch's and Python's global generators."""

    def __init__(self, variant: Variant, workers: int) -> None:
        super().__init__()
        self.rows = variant.people()
        self.workers = workers

    def collate(self, samples: list[Any]) -> tuple[Tensor, Tensor]:
        features = torch.stack([features for features, _ in samples])
        return features + torch.randn_like(features), torch.stack([label for _, label in samples])

    def train_dataloader(self) -> Any:
        return loader(self.rows, num_workers=self.workers, collate_fn=self.collate)


for workers in (0, 2):
    exact("global random augmentation, 0 and 2 workers" if workers else "global random augmentation, 0 workers")(
        lambda variant, workers=workers: Script(Classifier(), Augmented(variant, workers), TEST)
    )


class Split(pl.LightningDataModule):
    """Splits in setup."""

    def __init__(self, variant: Variant, seeded: bool) -> None:
        super().__init__()
        self.rows = variant.people()
        self.seeded = seeded

    def setup(self, stage: str) -> None:
        if self.seeded:
            self.train = torch.utils.data.Subset(self.rows, range(len(self.rows) - 9))
        else:
            self.train = self.rows
            random_split(range(100), [50, 50])  # type: ignore[arg-type]

    def train_dataloader(self) -> Any:
        return loader(self.train)

    def val_dataloader(self) -> Any:
        return loader(random_split(self.rows, [0.5, 0.5])[0], shuffle=False)


class Unvalidated(Classifier):
    """Looks at its validation without stopping by it: what it is validated on are the script's own rows."""


exact("data module that splits in setup(), fixed indices")(lambda v: Script(Classifier(), Split(v, True), TEST))
exact("val_dataloader() that does random_split, rows dropped after forget")(
    lambda v: Script(Unvalidated(), Split(v, False), TEST)
)


@exact("WeightedRandomSampler")
def weighted(variant: Variant) -> Script:
    people = variant.people()
    weights = [(1.0, 2.0, 4.0)[int(label)] for label in people.labels]
    return Script(Classifier(), DataLoader(people, 8, sampler=WeightedRandomSampler(weights, len(people))), TEST)


@exact("SubsetRandomSampler")
def subset(variant: Variant) -> Script:
    people = variant.people()
    chosen = [row for row in range(len(people)) if people.features[row, 0] > -2]
    return Script(Classifier(), DataLoader(people, 8, sampler=SubsetRandomSampler(chosen)), TEST)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(People.make())


class Bank(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.bank += batch[0].mean(0)
        return super().training_step(batch, batch_idx)


class Collected(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.collected = list(self.parameters())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.collected, lr=0.1)


class HeadOnly(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.network.head.parameters(), lr=0.1)


class Lazy(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.network.head = nn.LazyLinear(3)


refused("IterableDataset", "DataError", "IterableDataset", "its rows cannot be selected by index")(
    lambda v: Script(Classifier(), DataLoader(Stream(), 8))
)
refused("dict of loaders", "UnsupportedError", "several train dataloaders", "one over a ConcatDataset")(
    lambda v: Script(Classifier(), {"a": TEST, "b": TEST})
)
refused("optimizer parameters collected in __init__", "UnsupportedError", "do not hold", "collect them later")(
    lambda v: script(v, module=Collected())
)
refused("optimizer of the head alone", "UnsupportedError", "do not hold", "the groups would not be trained")(
    lambda v: script(v, module=HeadOnly())
)
refused("LazyLinear", "LayersError", "[Uu]ninitiali|batch", "a batch has to go through it before")(
    lambda v: script(v, module=Lazy())
)


@behaves("buffer that the step writes (memory bank)", reason="a leak that is found: the unit is not kept")
def memory_bank(folder: Path) -> None:
    from lightning_s3t.errors import LeakageError

    with pytest.raises(LeakageError, match="bank"):
        fit(folder / "store", lambda v: script(v, module=Bank()))
    with Store.open(folder / "store") as opened:
        assert not opened.alive()


@behaves("fast_dev_run")
def fast_dev_run(folder: Path) -> None:
    fit(folder / "store", lambda v: script(v, fast_dev_run=True))
    assert not (folder / "store").exists()


@behaves("trainer.fit(ckpt_path=)", reason="a checkpoint's state spans units; the store resumes by itself")
def resume(folder: Path) -> None:
    made = script(Variant("D"), max_epochs=1, enable_checkpointing=True)
    pl.Trainer(**{**QUIET, "max_epochs": 1}).fit(made.module, made.data)
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1})
    trainer.fit(made.module, made.data)
    trainer.save_checkpoint(folder / "x.ckpt")
    with pytest.raises(UnsupportedError, match="ckpt_path"):
        trainer_of(folder / "store", made).fit(made.module, datamodule=made.data, ckpt_path=str(folder / "x.ckpt"))


@behaves(
    "trainer.test(model) after fit", warned="it tests the untrained module; a warning says where the trained one is"
)
def untrained(folder: Path) -> None:
    made = script(Variant("D"))
    trainer = trainer_of(folder / "store", made)
    trainer.fit(made.module, datamodule=made.data)
    assert "val_loss" in trainer.callback_metrics
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.test(made.module, datamodule=made.data, verbose=False)
    assert any("EnsembleModule.from_store" in str(found.message) for found in caught)


@behaves("trainer.test(model), then trainer.test(served), one trainer")
def before_and_after(folder: Path) -> None:
    made = fit(folder / "store", script)
    trainer = pl.Trainer(**QUIET)
    trainer.test(made.module, datamodule=made.data, verbose=False)
    with EnsembleModule.from_store(folder / "store", made.module) as served:
        assert trainer.test(served, datamodule=made.data, verbose=False)[0]["test_accuracy"] > 0.4


@behaves(
    "trainer.save_checkpoint of module or served module; served.state_dict()",
    reason="a checkpoint would outlive a request: the message names served.export",
)
def checkpoint(folder: Path) -> None:
    made = fit(folder / "store", script)
    trainer = pl.Trainer(**QUIET)
    with EnsembleModule.from_store(folder / "store", made.module) as served:
        trainer.test(served, datamodule=made.data, verbose=False)
        with pytest.raises(UnsupportedError, match="export"):
            trainer.save_checkpoint(folder / "served.ckpt")
        with pytest.raises(UnsupportedError, match="export"):
            served.state_dict()


@behaves("other scheduler, EarlyStopping added, before the second fit", reason="the store names what differs")
def scheduler(folder: Path) -> None:
    class Stepped(Classifier):
        gamma = 0.5

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=self.gamma)]

    fit(folder / "store", lambda v: script(v, module=Stepped()))
    stopping = {"callbacks": [EarlyStopping("val_loss")]}
    with pytest.raises(StoreMismatchError, match="EarlyStopping"):
        fit(folder / "store", lambda v: script(v, module=Stepped(), **stopping))
    Stepped.gamma = 0.9
    with pytest.raises(StoreMismatchError, match="gamma"):
        fit(folder / "store", lambda v: script(v, module=Stepped()))


for name, run in {
    "Tuner.lr_find": lambda tuner, made: tuner.lr_find(made.module, datamodule=made.data, num_training=3),
    "Tuner.scale_batch_size": lambda tuner, made: tuner.scale_batch_size(made.module, datamodule=made.data),
}.items():

    def tuned(folder: Path, run: Any = run) -> None:
        made = script(Variant("D"))
        with pytest.raises(UnsupportedError):
            run(Tuner(trainer_of(folder / "store", made)), made)

    behaves(name, reason="what it finds depends on all the data")(tuned)


class Writer(BasePredictionWriter):
    def __init__(self, folder: Path) -> None:
        super().__init__("batch_and_epoch")
        self.folder = folder

    def write_on_batch_end(self, *arguments: Any) -> None:
        (self.folder / f"batch-{arguments[-2]}").touch()

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        torch.save(predictions, self.folder / "predictions.pt")


@behaves("BasePredictionWriter(batch_and_epoch)")
def predictions(folder: Path) -> None:
    made = fit(folder / "store", script)
    with EnsembleModule.from_store(folder / "store", made.module) as served, torch.no_grad():
        pl.Trainer(**QUIET, callbacks=[Writer(folder)]).predict(served, TEST)
        written = torch.cat(torch.load(folder / "predictions.pt"))
        assert torch.equal(written, torch.cat([served(batch[0]) for batch in TEST]))
        assert len(list(folder.glob("batch-*"))) == len(TEST)


class Inner(Classifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network.head(self.network.blocks[0](self.network.stem(batch[0])))


class HeadAlone(Classifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network.head(self.network.stem(batch[0]))


for name, alone in {
    "step that calls an inner block, or reads a weight": Inner,
    "step that calls the last block of a group, or the head": HeadAlone,
}.items():

    def past_the_network(folder: Path, kind: Any = alone) -> None:
        made = fit(folder / "store", lambda v: script(v, module=kind()))
        with (
            EnsembleModule.from_store(folder / "store", made.module) as served,
            pytest.raises(EnsembleError, match="by itself"),
        ):
            pl.Trainer(**QUIET).predict(served, TEST)

    behaves(name, reason="only one model would answer, and it is not a survivor")(past_the_network)


@behaves("torch.export of the served module")
def exported_program(folder: Path) -> None:
    made = fit(folder / "store", script)
    rows = torch.randn(4, 8)
    with EnsembleModule.from_store(folder / "store", made.module) as served, torch.no_grad():
        expected = served(rows)
        program = torch.export.export(served, (rows,))
        assert torch.allclose(program.module()(rows), expected)


@behaves("two S3T callbacks", reason="each would train all units")
def twice(folder: Path) -> None:
    made = script(Variant("D"), callbacks=[S3T(folder / "b", 2, 2, 1, subjects="owners", partition="public")])
    with pytest.raises(S3TError, match="2 S3T callbacks"):
        trainer_of(folder / "a", made).fit(made.module, datamodule=made.data)


class Compiled(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.network = torch.compile(self.network, backend="eager")


class CompiledLate(Classifier):
    def setup(self, stage: str) -> None:
        if not hasattr(self.network, "_orig_mod"):
            self.network = torch.compile(self.network, backend="eager")


exact("torch.compile of the network (eager backend)")(lambda v: script(v, module=Compiled()))
exact("torch.compile of the whole module")(lambda v: script(v, module=torch.compile(Classifier(), backend="eager")))


@behaves("torch.compile in setup()")
def compiled_in_setup(folder: Path) -> None:
    pl.seed_everything(0, verbose=False)
    made = script(Variant("D"), module=CompiledLate())
    trainer_of(folder / "store", made).fit(made.module, datamodule=made.data)
    with Store.open(folder / "store") as opened:
        opened.forget([SUBJECT])
    trainer_of(folder / "store", made).fit(made.module, datamodule=made.data)
    other = script(Variant("without"), module=CompiledLate())
    trainer_of(folder / "scratch", other).fit(other.module, datamodule=other.data)
    assert units(folder / "store") == units(folder / "scratch")
    with EnsembleModule.from_store(folder / "store", made.module) as served:
        assert pl.Trainer(**QUIET).test(served, made.data, verbose=False)[0]["test_accuracy"] > 0.3


class SplitAtRandom(PeopleData):
    """What most data modules do: a split at random in setup, without a generator."""

    def setup(self, stage: str) -> None:
        self.part, self.rest = random_split(self.train, [100, 20])

    def train_dataloader(self) -> Any:
        return loader(self.part)

    def val_dataloader(self) -> Any:
        return loader(self.rest, shuffle=False)


@behaves("data module, random_split in setup() without generator, subjects=None")
def split_at_random(folder: Path) -> None:
    def fit_into(store: Path, people: People, seed: int) -> SplitAtRandom:
        pl.seed_everything(seed, verbose=False)
        data = SplitAtRandom(people)
        made = Script(Classifier(), data, s3t={"subjects": "index"})
        trainer_of(store, made).fit(made.module, datamodule=data)
        return data

    indices = fit_into(folder / "store", People.make(), seed=0).part.indices
    with Store.open(folder / "store") as opened:
        # of one shard, so that units of the other stay, which saw other subjects than the new split has
        rows = [row for row in indices if opened.partition.place(str(row)).shard == 0][:5]
        opened.forget([str(row) for row in rows])
    shutil.copytree(folder / "store", folder / "replaced")
    with pytest.warns(UserWarning, match="other subjects"):
        data = fit_into(folder / "store", People.make(), seed=1)
    assert set(rows) & set(data.part.indices), "the new split has none of the rows that were forgotten"
    replaced = People.make()
    replaced.features[rows] = 50.0
    fit_into(folder / "replaced", replaced, seed=1)
    assert units(folder / "store") == units(folder / "replaced"), "a row that was forgotten is trained on again"


class Scaled(DataLoader[Any]):
    """A DataLoader with an argument of its own."""

    def __init__(self, dataset: Any, scale: float = 1.0, **arguments: Any) -> None:
        self.scale = scale
        super().__init__(dataset, **arguments)

    def __iter__(self) -> Any:
        for features, labels in super().__iter__():
            yield features * self.scale, labels


class Watching(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch[0].abs().max() > 1000, "the loader's argument was dropped"
        return super().training_step(batch, batch_idx)


@exact("DataLoader subclass with an argument of its own")
def own_loader(variant: Variant) -> Script:
    return Script(Watching(), Scaled(variant.people(), scale=1e4, batch_size=8, shuffle=True), TEST)


class Sorted(torch.utils.data.SequentialSampler):
    """A curriculum: an order that looks at all rows."""

    def __iter__(self) -> Any:
        return iter(sorted(range(len(self.data_source)), key=lambda row: float(self.data_source[row][0].norm())))


@refused(
    "a sampler class of one's own (a curriculum)", "DataError|UnsupportedError", "Sorted", "it may look at all rows"
)
def curriculum(variant: Variant) -> Script:
    people = variant.people()
    return Script(Classifier(), DataLoader(people, 8, sampler=Sorted(people)))


def best(trainer: pl.Trainer, made: Script) -> None:
    with pytest.raises(UnsupportedError, match=r"EnsembleModule\.from_store"):
        trainer.test(made.module, datamodule=made.data, ckpt_path="best", verbose=False)
    with pytest.raises(UnsupportedError, match=r"EnsembleModule\.from_store"):
        trainer.test(datamodule=made.data, verbose=False)


@behaves(
    "trainer.test(ckpt_path='best'), trainer.test() after fit",
    reason="no checkpoint is the trained model: the message names EnsembleModule.from_store",
)
def best_checkpoint(folder: Path) -> None:
    made = script(Variant("D"), callbacks=[ModelCheckpoint(monitor="val_loss")], enable_checkpointing=True)
    trainer = trainer_of(folder / "store", made)
    trainer.fit(made.module, datamodule=made.data)
    best(trainer, made)


@behaves("a second fit with other rows under the same ids", needed="digest_rows=True")
def changed_rows(folder: Path) -> None:
    def fit_rows(people: People) -> dict[str, str]:
        pl.seed_everything(0, verbose=False)
        made = Script(Classifier(), PeopleData(people), s3t={"digest_rows": True})
        trainer_of(folder / "store", made).fit(made.module, datamodule=made.data)
        return units(folder / "store")

    first = fit_rows(People.make())
    with pytest.warns(UserWarning, match="changed under the same ids"):
        second = fit_rows(People.make().replaced(SUBJECT))
    with Store.open(folder / "store") as opened:
        place = opened.partition.place(SUBJECT)
        reached = {str(unit) for unit in opened.candidates() if unit.reached_by(place)}
    assert {unit for unit in first if first[unit] != second[unit]} == reached
