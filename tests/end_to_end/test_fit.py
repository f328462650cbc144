"""A fit builds what is missing, leaves the script as it was, and refuses what it cannot keep exact."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from lightning_s3t import S3T, EnsembleModule
from lightning_s3t.engine.preflight import check_trainer
from lightning_s3t.errors import (
    AdapterError,
    ConfigurationError,
    DataError,
    LayersError,
    S3TError,
    StoreMismatchError,
    UnsupportedError,
)
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.people import (
    ARGUMENTS,
    Classifier,
    Network,
    People,
    PeopleData,
    UnitLog,
    assert_bitwise_equal,
    fit,
    make_trainer,
    tensors_of,
)
from tests.tiers import nightly_except


@pytest.fixture
def log(tmp_path: Path) -> UnitLog:
    return UnitLog(tmp_path / "units.txt")


def test_units_that_share_a_prefix_are_trained_once(tmp_path: Path, log: UnitLog) -> None:
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2)]
    fit(tmp_path / "store", People.make(), log, slices=3, budget=3, sequences=orders, shards=1)
    assert log.units == ["0/0", "0/0-1", "0/0-1-2", "0/1", "0/0-2", "0/0-2-1", "0/1-0", "0/1-0-2"]


def test_a_second_fit_trains_nothing(trained: Path, tmp_path: Path, log: UnitLog) -> None:
    shutil.copytree(trained, tmp_path / "store")
    before = tensors_of(tmp_path / "store")
    fit(tmp_path / "store", People.make(), log)
    assert log.units == []
    assert_bitwise_equal(before, tensors_of(tmp_path / "store"))


def test_after_a_forget_exactly_the_revoked_units_are_trained(trained: Path, tmp_path: Path, log: UnitLog) -> None:
    shutil.copytree(trained, tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        receipt = store.forget(["user-3"])
    fit(tmp_path / "store", People.make(), log)
    assert sorted(log.units) == sorted(receipt.revoked)


@pytest.mark.parametrize("planner", nightly_except(["optimal", "cyclic", "random", "bms"], "optimal"))
def test_a_larger_budget_trains_only_the_orders_that_are_new(tmp_path: Path, log: UnitLog, planner: str) -> None:
    fit(tmp_path / "store", People.make(), shards=1, slices=3, budget=1, sequences=planner)
    with Store.open(tmp_path / "store") as store:
        (first,) = store.options["sequences"]
    fit(tmp_path / "store", People.make(), log, shards=1, slices=3, budget=2, sequences=planner)
    with Store.open(tmp_path / "store") as store:
        kept, added = store.options["sequences"]
    assert kept == first
    assert sorted(log.units) == sorted(
        str(unit) for unit in UnitId(0, tuple(added)).lineage if unit not in UnitId(0, tuple(first)).lineage
    )


def test_a_budget_may_be_a_cost(tmp_path: Path, log: UnitLog) -> None:
    fit(tmp_path / "store", People.make(), log, shards=1, slices=3, budget={"units": 5})
    assert len(log.units) == 5


def test_new_people_change_only_the_units_of_their_slice(trained: Path, tmp_path: Path, log: UnitLog) -> None:
    shutil.copytree(trained, tmp_path / "store")
    newcomer = People(torch.zeros(2, 8), torch.tensor([0, 1]), ["user-new", "user-new"])
    old = People.make(40)
    grown = People(
        torch.cat([old.features, newcomer.features]),
        torch.cat([old.labels, newcomer.labels]),
        old.owners + newcomer.owners,
    )
    fit(tmp_path / "store", grown, log)
    with Store.open(tmp_path / "store") as store:
        place = store.partition.place("user-new")
    assert log.units
    assert all(UnitId.parse(unit).reached_by(place) for unit in log.units)
    fit(tmp_path / "scratch", grown)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


class Interrupt(Callback):
    """Ctrl-C (or an error) in the middle of a unit."""

    def __init__(self, unit: str, error: type[BaseException]) -> None:
        self.unit, self.error = unit, error

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        s3t = next(c for c in trainer.callbacks if isinstance(c, S3T))  # type: ignore[attr-defined]
        if str(s3t.current_unit) == self.unit:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt, SystemExit), pytest.param(RuntimeError, RuntimeError, marks=pytest.mark.nightly)],
)
def test_an_interrupted_fit_goes_on_at_the_unit_that_was_cut(
    tmp_path: Path, log: UnitLog, error: type[BaseException], raised: type[BaseException]
) -> None:
    module = Classifier()
    weights = copy.deepcopy(module.state_dict())
    with pytest.raises(raised):
        fit(tmp_path / "store", People.make(), Interrupt("0/0-1", error), module=module)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    with Store.open(tmp_path / "store") as store:
        assert [str(unit) for unit in store.alive()] == ["0/0", "1/0"]
    fit(tmp_path / "store", People.make(), log)
    assert log.units[0] == "0/0-1"
    fit(tmp_path / "whole", People.make())
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "whole"))


def test_the_script_is_untouched(tmp_path: Path) -> None:
    module = Classifier()
    module.network.stem.requires_grad_(False)
    module.network.blocks[0].eval()
    before = copy.deepcopy(module.state_dict())
    trainable = [parameter.requires_grad for parameter in module.parameters()]
    modes = [part.training for part in module.modules()]
    parts = [id(part) for part in module.modules()]
    fit(tmp_path / "store", People.make(), module=module)
    assert [id(part) for part in module.modules()] == parts
    assert [parameter.requires_grad for parameter in module.parameters()] == trainable
    assert [part.training for part in module.modules()] == modes
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_without_the_callback_the_module_then_trains_as_it_would_have(tmp_path: Path) -> None:
    def train(module: pl.LightningModule) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        trainer = pl.Trainer(
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accelerator="cpu",
        )
        trainer.fit(module, datamodule=PeopleData(People.make()))
        return module.state_dict()

    used = fit(tmp_path / "store", People.make())
    fresh = Classifier()
    first, second = train(used), train(fresh)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_global_random_numbers_go_on_as_if_no_unit_had_been_trained(tmp_path: Path) -> None:
    drawn = []
    for name, epochs in (("a", 1), ("b", 2)):
        torch.manual_seed(3)
        fit(tmp_path / name, People.make(), epochs=epochs)
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)


def test_early_stopping_ends_a_unit_and_not_the_fit(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=0, min_delta=1e9)
    fit(tmp_path / "store", People.make(), stopping, epochs=50)
    with Store.open(tmp_path / "store") as store:
        assert [record["epochs"] for record in store.provenance()] == [2] * 8


def test_sisas_rule_trains_a_stage_for_two_nths_of_the_epochs(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), epochs=3, slices=2, epoch_rule="sisa")
    with Store.open(tmp_path / "store") as store:
        assert [record["epochs"] for record in store.provenance()] == [2] * 8


def test_loggers_see_one_step_axis_with_the_units_beside_it(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(tmp_path / "store", People.make(), trainer={"logger": logger, "log_every_n_steps": 1})
    lines = [line.split(",") for line in Path(logger.log_dir, "metrics.csv").read_text().splitlines()]
    header, rows = lines[0], lines[1:]
    steps = [int(row[header.index("step")]) for row in rows]
    assert steps == sorted(steps)
    assert steps[-1] > 20
    stages = [row[header.index("s3t/stage")] for row in rows if row[header.index("s3t/stage")]]
    assert {"1.0", "2.0"} == set(stages)


def test_provenance_says_what_each_unit_was_made_from(tmp_path: Path) -> None:
    people = People.make()
    fit(tmp_path / "store", people)
    with Store.open(tmp_path / "store") as store:
        place_of = {owner: store.partition.place(owner) for owner in people.owners}
        for unit, record in store.alive().items():
            reached = [owner for owner in people.owners if unit.reached_by(place_of[owner])]
            found = record.provenance
            assert (found["rows"], found["subjects"]) == (len(reached), len(set(reached)))
            assert (found["shard"], tuple(found["prefix"])) == (unit.shard, unit.prefix)
            assert found["parent"] == (str(unit.parent) if unit.parent else None)
            assert found["layers"] == [f"network.blocks.{i}" for i in ((2, 3) if unit.stage == 1 else (0, 1))]
            assert found["trainable"] == found["parameters"]
            assert found["versions"]["torch"] == torch.__version__.split("+")[0]
            assert found["settings"]["optimizers"][0]["class"] == "AdamW"
            assert found["metrics"]["train_loss"] > 0
            assert found["duration_s"] > 0
            assert found["steps"] > 0


def test_fast_dev_run_leaves_nothing_behind(tmp_path: Path, log: UnitLog) -> None:
    fit(tmp_path / "store", People.make(), log, trainer={"fast_dev_run": True})
    assert log.units == ["0/0", "0/0-1"]
    assert not (tmp_path / "store").exists()


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "slices": ({"slices": 4}, r"partition\.slices: store 2, now 4"),
    "shards": ({"shards": 1}, r"partition\.shards: store 2, now 1"),
    "seed": ({"seed": 7}, r"partition\.seed: store 0, now 7"),
    "adapter": ({"adapter": {"peft_type": "LORA", "r": 4}}, r"adapter\.r: store 2, now 4"),
    "data": ({"stage_data": "disjoint"}, r"training\.data: store cumulative, now disjoint"),
    "epochs": ({"epochs": 3}, r"training\.max_epochs: store 2, now 3"),
    "head": (
        {"head": ["network.head"], "layers": ["network.blocks.0", "network.blocks.1"]},
        r"layers\.groups",
    ),
    "model": (
        {"module": Classifier(learning_rate=0.5)},
        r"model\.hparams\.learning_rate: store 0\.02, now 0\.5",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_store_opened_with_something_else_is_refused_and_named(trained: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(trained, tmp_path / "store")
    before = tensors_of(tmp_path / "store")
    arguments, message = DIFFERENT[what]
    with pytest.raises(StoreMismatchError, match=message):
        fit(tmp_path / "store", People.make(), **arguments)
    assert_bitwise_equal(before, tensors_of(tmp_path / "store"))


def test_a_store_opened_with_other_pretrained_weights_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "store")
    other = Classifier()
    other.network.stem.weight.data[0, 0] += 1
    with pytest.raises(StoreMismatchError, match=r"1 of \d+ pretrained tensors differ.*: network\.stem\.weight\.\n"):
        fit(tmp_path / "store", People.make(), module=other)


def test_weights_that_are_drawn_at_every_start_are_guessed(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "store")
    other = Classifier()
    other.network = Network()  # the weights of its BatchNorms are ones and zeros, as they were
    with pytest.raises(StoreMismatchError, match=r"and \d+ more\. Are the weights drawn at random at every start\?"):
        fit(tmp_path / "store", People.make(), module=other)


class Contrastive(torch.nn.Module):
    """A loss with room for what a step writes, as lightly's has: whatever was in memory."""

    def __init__(self, what_was_there: float) -> None:
        super().__init__()
        self.register_buffer("pointer", torch.full((1,), what_was_there), persistent=False)


def test_room_without_contents_beside_the_network_does_not_tell_stores_apart(tmp_path: Path) -> None:
    for found in (0.0, 94110298269568.0):
        module = Classifier()
        module.criterion = Contrastive(found)
        fit(tmp_path / "store", People.make(), module=module, epochs=1, budget=1)
        EnsembleModule.from_store(tmp_path / "store", module)


def test_parameters_of_a_loss_that_stay_as_they_are_are_warned_of(tmp_path: Path) -> None:
    module = Classifier()
    module.criterion = torch.nn.Bilinear(2, 2, 1)
    module.temperature = torch.nn.Parameter(torch.ones(()))
    with pytest.warns(UserWarning, match=r"stay unchanged: temperature, criterion\.weight, criterion\.bias.*head="):
        fit(tmp_path / "store", People.make(), module=module, epochs=1, budget=1)


class WithClasses(Network):
    """Answers with the classes too, which differ from shard to shard."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits, logits.argmax(-1)


class CountsClasses(Classifier):
    """Its network answers with whole numbers beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = WithClasses()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_answers_that_cannot_be_put_together_are_warned_of_before_anything_is_trained(tmp_path: Path) -> None:
    found = r"outputs cannot be combined\. The models returned different tensors of torch\.int64.*aggregate='single'"
    with pytest.warns(UserWarning, match=found):
        fit(tmp_path / "store", People.make(), module=CountsClasses(), epochs=1, budget=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*outputs cannot be combined.*")
        fit(tmp_path / "other", People.make(), epochs=1, budget=1)


def test_a_head_that_the_script_draws_again_is_taken_from_the_store(tmp_path: Path) -> None:
    other = Classifier()
    torch.nn.init.normal_(other.network.head.weight)
    fit(tmp_path / "store", People.make(), budget=1)
    fit(tmp_path / "store", People.make(), budget=2, module=other)
    fit(tmp_path / "whole", People.make(), budget=2)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "whole"))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ()


class Shuffled(PeopleData):
    """Gives the same rows in another order at every load."""

    def __init__(self) -> None:
        super().__init__(People.make())
        self.loads = 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.loads += 1
        rows = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.loads))
        owners = [self.train.owners[row] for row in rows]
        return DataLoader(People(self.train.features[rows], self.train.labels[rows], owners), 8)


class Curriculum(RandomSampler):
    """Draws in an unknown way."""

    num_samples = 7


def curriculum(people: People) -> DataLoader[Any]:
    return DataLoader(people, 8, sampler=Curriculum(people))


BAD_LOADERS: dict[str, tuple[Any, type[S3TError], str]] = {
    "iterable": (lambda: DataLoader(Stream(), 8), DataError, "is an IterableDataset"),
    "several": (
        lambda: [curriculum(People.make()), curriculum(People.make())],
        UnsupportedError,
        "several train dataloaders",
    ),
    "sampler": (lambda: curriculum(People.make()), UnsupportedError, "draws rows by Curriculum"),
    "no loader": (lambda: [[1, 2]], UnsupportedError, "several"),
    "empty slice": (lambda: DataLoader(People.make(2), 2), DataError, "slices are empty: shard"),
    "no attribute": (lambda: DataLoader(range(20), 2), DataError, "has no attribute 'owners'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", BAD_LOADERS)
def test_data_that_cannot_be_cut_is_refused_before_anything_changes(tmp_path: Path, what: str) -> None:
    loader, error, message = BAD_LOADERS[what]
    trainer = make_trainer(tmp_path / "store")
    module = Classifier()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    with pytest.raises(error, match=message):
        trainer.fit(module, train_dataloaders=loader())
    assert not (tmp_path / "store").exists()


def test_rows_that_change_their_order_between_loads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the same ids in another order"):
        make_trainer(tmp_path / "store").fit(Classifier(), datamodule=Shuffled())


def test_rows_that_changed_their_order_since_the_first_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    people = People.make()
    shutil.copytree(trained, tmp_path / "store")
    flipped = People(people.features.flip(0), people.labels.flip(0), people.owners[::-1])
    with pytest.raises(DataError, match=r"the same ids as when unit .* was trained, in another order"):
        fit(tmp_path / "store", flipped)


def test_without_a_train_dataloader_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no train dataloader"):
        make_trainer(tmp_path / "store").fit(Classifier())


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[S3TError], str]] = {
    "slices": ({"slices": 5, "budget": 1}, LayersError, "The network has 4 blocks .* for 5 slices"),
    "budget": (
        {"budget": 3},
        ConfigurationError,
        "The budget is 3, and the planner 'optimal' has 2 sequences of 2 slices",
    ),
    "planner": ({"sequences": "best"}, ConfigurationError, "There is no planner 'best'"),
    "shards": (
        {"shards": 0},
        ConfigurationError,
        "Expected argument `shards` to be a positive integer but got 0",
    ),
    "data": ({"stage_data": "both"}, ConfigurationError, "Expected argument `stage_data` to be one of"),
    "adapter": ({"adapter": {"peft_type": "LOWRA"}}, AdapterError, "PEFT knows no adapter of type 'LOWRA'"),
    "targets": (
        {"adapter": {"peft_type": "LORA", "target_modules": ["query"]}},
        AdapterError,
        r"No module of layer group 1 .* fits the adapter's target_modules",
    ),
    "layers": ({"layers": "network.block"}, LayersError, "Did you mean 'network.blocks'"),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_anything_changes(tmp_path: Path, what: str) -> None:
    arguments, error, message = BAD_ARGUMENTS[what]
    with pytest.raises(error, match=message):
        fit(tmp_path / "store", People.make(), **arguments)
    assert not (tmp_path / "store").exists()


BAD_TRAINERS: dict[str, tuple[list[Any], dict[str, Any], type[S3TError], str]] = {
    "two": ([lambda d: S3T(store=d / "other", **ARGUMENTS)], {}, ConfigurationError, "has 2 S3T callbacks"),
    "rate finder": ([lambda d: LearningRateFinder()], {}, UnsupportedError, "LearningRateFinder: the rate"),
    "averaging": (
        [lambda d: StochasticWeightAveraging(0.1)],
        {},
        UnsupportedError,
        "Use WeightAveraging instead",
    ),
    "finetuning": (
        [lambda d: BackboneFinetuning()],
        {},
        UnsupportedError,
        "freezes and unfreezes layers too",
    ),
    "overfit": ([], {"overfit_batches": 1}, UnsupportedError, "overfit_batches"),
    "reload": (
        [],
        {"reload_dataloaders_every_n_epochs": 1},
        UnsupportedError,
        "reload_dataloaders_every_n_epochs",
    ),
}


@pytest.mark.parametrize("what", BAD_TRAINERS)
def test_a_trainer_that_cannot_be_exact_is_refused(tmp_path: Path, what: str) -> None:
    callbacks, trainer, error, message = BAD_TRAINERS[what]
    with pytest.raises(error, match=message):
        fit(tmp_path / "store", People.make(), *(make(tmp_path) for make in callbacks), trainer=trainer)
    assert not (tmp_path / "store").exists()


def test_a_strategy_that_is_not_supported_is_refused_and_those_that_are_are_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "store")
    # FSDP itself asks for an accelerator when it is set up; what counts for the check is the strategy's type
    trainer.strategy.__class__ = type("FSDPStrategy", (ParallelStrategy,), {})  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match=r"Strategy FSDPStrategy.*Supported are a single device and DDP"):
        check_trainer(trainer, S3T)


def test_a_checkpoint_to_resume_from_is_refused(tmp_path: Path) -> None:
    plain = pl.Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path, accelerator="cpu"
    )
    plain.fit(Classifier(), datamodule=PeopleData(People.make()))
    plain.save_checkpoint(tmp_path / "some.ckpt")
    module = Classifier()
    with pytest.raises(UnsupportedError, match="S3T resumes by itself"):
        make_trainer(tmp_path / "store").fit(
            module,
            datamodule=PeopleData(People.make()),
            ckpt_path=tmp_path / "some.ckpt",
            weights_only=False,
        )
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), Classifier().parameters(), strict=True))


def test_forget_on_the_callback_tells_the_trainers_module(tmp_path: Path) -> None:
    trainer, module = make_trainer(tmp_path / "store"), Classifier()
    trainer.fit(module, datamodule=PeopleData(People.make()))
    receipt = trainer.callbacks[0].forget(["user-3"])  # type: ignore[attr-defined]
    assert receipt.revoked
    assert module.forgotten == [receipt]


# --- after a fit ---


def test_the_trainer_has_the_mean_metrics_of_what_serves(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "store")
    trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    with Store.open(tmp_path / "store") as store:
        losses = [
            record["metrics"]["val_loss"] for record in store.provenance() if record["unit"] in {"0/0-1", "1/0-1"}
        ]
    assert len(losses) == 2
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(sum(losses) / 2)


def test_testing_the_module_that_was_given_to_a_fit_is_warned_of(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "store")
    module, data = Classifier(), PeopleData(People.make())
    trainer.fit(module, datamodule=data)
    served = EnsembleModule.from_store(tmp_path / "store", module)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*as it was before the fit.*")
        trainer.validate(served, datamodule=data, verbose=False)
    with pytest.warns(
        UserWarning, match=r"trainer\.test was given .* as it was before the fit.*EnsembleModule.from_store"
    ):
        trainer.test(module, datamodule=data, verbose=False)


@pytest.mark.parametrize("checkpoint", nightly_except(["best", "last", None], "best"))
def test_a_test_of_the_best_checkpoint_says_where_the_trained_model_is(tmp_path: Path, checkpoint: Any) -> None:
    trainer = make_trainer(tmp_path / "store", epochs=1, budget=1, trainer={"enable_checkpointing": True})
    module, data = Classifier(), PeopleData(People.make())
    trainer.fit(module, datamodule=data)
    with pytest.raises(UnsupportedError, match=r"trainer\.test was asked for .* use EnsembleModule\.from_store"):
        trainer.test(module if checkpoint else None, data, ckpt_path=checkpoint)
    trainer.fit(module, datamodule=data)  # a fit goes on as ever
