"""A leak of each kind, planted on purpose: the guard or a check raises, or a guarantee no longer holds.

The last kind shows that the guarantees' tests can fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lightning_s3t.engine.state_keeper import StateKeeper
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import AdapterError, LeakageError, UnsupportedError
from lightning_s3t.store import Store
from lightning_s3t.tuning import stages
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of

PERSON = "user-3"


class WritesBuffer(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_seen", torch.zeros(()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.mean_seen = 0.9 * self.mean_seen + 0.1 * batch[0].mean()
        return super().training_step(batch, batch_idx)


class TrainsStatistics(Classifier):
    def on_train_epoch_start(self) -> None:
        self.train()


class UnfreezesAll(Classifier):
    def on_train_start(self) -> None:
        for parameter in self.parameters():
            parameter.requires_grad_(True)


class WritesFrozenWeight(Classifier):
    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            self.network.stem.weight.mul_(1.001)


class KeepsOptimizer(Classifier):
    kept: Any = None

    def configure_optimizers(self) -> Any:
        if self.kept is None:
            self.kept = torch.optim.AdamW(self.parameters(), lr=0.01)
        return self.kept


class KeepsParameters(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.chosen = list(self.network.head.parameters())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.chosen, lr=0.01)


class SkipsLayers(Classifier):
    """Reads the top block's weights instead of calling it, so an adapter there has no effect."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x = self.network.blocks[0](self.network.stem(batch[0]))
        return torch.nn.functional.cross_entropy(self.network.head(x), batch[1])


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (WritesBuffer, LeakageError, "mean_seen"),
        (TrainsStatistics, LeakageError, r"network\.blocks\.0\.norm\.running_mean"),
        (WritesFrozenWeight, LeakageError, r"network\.stem\.weight"),
        (KeepsOptimizer, UnsupportedError, "returns the same optimizer at every call"),
        (KeepsParameters, UnsupportedError, "The optimizers do not have 6 of 6 parameters"),
        (SkipsLayers, AdapterError, r"network\.blocks\.2\.linear, .* received no gradient"),
    ],
)
def test_a_leaking_module_is_caught_and_nothing_of_it_is_kept(
    tmp_path: Path, module: type[Classifier], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(tmp_path / "store", People.make(), module=module())
    if (tmp_path / "store").exists():
        with Store.open(tmp_path / "store") as store:
            assert store.alive() == {}


def test_a_module_that_unfreezes_all_trains_only_what_its_optimizer_was_given_or_is_caught(
    tmp_path: Path,
) -> None:
    # its optimizer holds the frozen parameters too, so they would be trained: the guard sees it
    with pytest.raises(LeakageError, match=r"network\.stem\.weight"):
        fit(tmp_path / "store", People.make(), module=UnfreezesAll())


def non_interference_holds(folder: Path, *callbacks: Any) -> bool:
    people = People.make()
    for name, rows in (("a", people), ("b", people.replaced(PERSON))):
        # other shards' and units' results must not depend on the person, whatever order units are trained in
        fit(folder / name, rows, *(callback() for callback in callbacks), isolation="none")
        with Store.open(folder / name) as store:
            store.forget([PERSON])
    try:
        assert_bitwise_equal(tensors_of(folder / "a"), tensors_of(folder / "b"))
    except AssertionError:
        return False
    return True


@pytest.mark.nightly
def test_without_a_planted_leak_non_interference_holds(tmp_path: Path) -> None:
    assert non_interference_holds(tmp_path, WeightAveraging)


@pytest.mark.nightly
def test_a_head_that_is_not_set_back_breaks_non_interference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, heads = stages.StageBuilder.build, {}

    def build_with_one_head(self: Any, *args: Any, **kwargs: Any) -> Any:
        built = build(self, *args, **kwargs)
        built["network.head"] = heads.setdefault(id(self), built["network.head"])
        return built

    monkeypatch.setattr(stages.StageBuilder, "build", build_with_one_head)
    assert not non_interference_holds(tmp_path)


@pytest.mark.nightly
def test_callbacks_that_are_not_set_back_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore = StateKeeper.restore

    def restore_without_averages(self: Any) -> None:
        averages = {k: v for k, v in self._objects.items() if isinstance(v, WeightAveraging)}
        kept = {name: dict(vars(callback)) for name, callback in averages.items()}
        restore(self)
        for name, callback in averages.items():
            vars(callback).update(kept[name])

    monkeypatch.setattr(StateKeeper, "restore", restore_without_averages)
    monkeypatch.setattr(WeightAveraging, "setup", _setup_once(WeightAveraging.setup))
    with pytest.raises(LeakageError, match="WeightAveraging"):
        non_interference_holds(tmp_path, WeightAveraging)


def _setup_once(setup: Any) -> Any:
    """Keep the averages of the unit before, as a set-up that was not repeated would."""

    def wrapped(self: Any, trainer: Any, module: Any, stage: str) -> None:
        averages = getattr(self, "_average_model", None)
        setup(self, trainer, module, stage)
        if averages is not None:
            old, new = dict(averages.named_parameters()), dict(self._average_model.named_parameters())
            for name in old.keys() & new.keys():
                new[name].data.copy_(old[name].data)
            self._average_model.n_averaged.copy_(averages.n_averaged)

    return wrapped


def test_random_numbers_that_depend_on_what_ran_before_break_a_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_s3t.engine import unit_training

    monkeypatch.setattr(unit_training, "seed_all", lambda seed: None)
    assert not rebuild_is_scratch(tmp_path)


@pytest.mark.nightly
def test_an_order_that_depends_on_the_whole_data_set_breaks_a_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit_loader = TrainingData.unit_loader

    def with_size(self: Any, rows: Any, seed: int, *args: Any) -> Any:
        return unit_loader(self, rows, seed + len(self.dataset), *args)

    monkeypatch.setattr(TrainingData, "unit_loader", with_size)
    assert not rebuild_is_scratch(tmp_path)


def test_without_a_planted_leak_a_rebuild_is_scratch(tmp_path: Path) -> None:
    assert rebuild_is_scratch(tmp_path)


def rebuild_is_scratch(folder: Path) -> bool:
    people = People.make()
    fit(folder / "a", people, isolation="none")
    with Store.open(folder / "a") as store:
        store.forget([PERSON])
    fit(folder / "a", people, isolation="none")
    fit(folder / "b", people.without(PERSON), isolation="none")
    try:
        assert_bitwise_equal(tensors_of(folder / "a"), tensors_of(folder / "b"))
    except AssertionError:
        return False
    return True
