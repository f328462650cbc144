"""State that scripts keep, wherever they keep it, carries nothing from one unit to the next."""

from __future__ import annotations

import collections
import functools
import itertools
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate, random_split

from lightning_s3t.errors import LeakageError
from lightning_s3t.store import Store
from tests.end_to_end.tiny_models import LORA, Rows
from tests.people import Classifier, People, PeopleData, assert_bitwise_equal, make_trainer, tensors_of
from tests.tiers import nightly_except

PERSON = "user-3"


class Numbers:
    """Something that gives another number each time: a generator, a list that grows, or a counter."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.kept: Any = {"generator": np.random.default_rng(5), "list": [0.0], "counter": itertools.count()}[kind]

    def __call__(self) -> float:
        if self.kind == "generator":
            return float(self.kept.random())
        if self.kind == "list":
            self.kept.append(1.0)
            return len(self.kept) % 7 / 7
        return next(self.kept) % 7 / 7


class Slotted:
    """A transform with slots, which `vars` does not show."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.numbers()


class Transformed(Dataset[Any]):
    def __init__(self, people: People, transform: Callable[[Tensor], Tensor]) -> None:
        self.people, self.transform, self.owners = people, transform, people.owners

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.people.features[row]), self.people.labels[row]


class Owned(Subset[Any]):
    owners: list[str]


def identity(x: Tensor) -> Tensor:
    return x


def noisy_collate(rows: list[Any], rng: Numbers) -> Any:
    x, y = default_collate(rows)
    return x + rng(), y


class Collator:
    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def collate(self, rows: list[Any]) -> Any:
        return noisy_collate(rows, self.numbers)


class Data(pl.LightningDataModule):
    """A data module with every place for state that there is."""

    def __init__(self, people: People, workers: int, **places: Any) -> None:
        super().__init__()
        self.people, self.workers, self.places = people, workers, places
        self.seen: list[float] = []

    def train_dataloader(self) -> Any:
        data: Any = Transformed(self.people, self.places.get("transform", identity))
        if self.places.get("wrap") == "subset":
            owners = data.owners
            data = Owned(data, range(len(data)))
            data.owners = owners
        elif self.places.get("wrap") == "concat":
            owners = data.owners
            data = ConcatDataset([data])
            data.owners = owners
        collate = self.places.get("collate")
        return DataLoader(data, 6, shuffle=True, num_workers=self.workers, collate_fn=collate)

    def val_dataloader(self) -> Any:
        data: Any = Transformed(People.make(12, seed=9), identity)
        if self.places.get("split"):  # draws from torch's global generator
            data, _ = random_split(data, [24, 12])
        generator = self.places.get("generator")
        return DataLoader(data, 4, shuffle=generator is not None, generator=generator)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if "transfer" in self.places:
            return batch[0] + self.places["transfer"](), batch[1]
        if self.places.get("list"):
            self.seen.append(float(batch[0].sum()))
            return batch[0] + len(self.seen) % 5 / 5, batch[1]
        return batch


class Noisy(Classifier):
    """Scales its loss by what it is given."""

    def __init__(self, noise: Callable[[], float]) -> None:
        super().__init__()
        self.noise = noise

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.noise())


class WritesHparams(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.hparams["steps"] = self.hparams.get("steps", 0) + 1
        return super().training_step(batch, batch_idx) * (1 + self.hparams["steps"] % 5)


COUNT = 0


class WritesGlobal(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        global COUNT
        COUNT += 1
        return super().training_step(batch, batch_idx) * (1 + COUNT % 5)


class WritesClass(Classifier):
    counts: ClassVar[collections.Counter[str]] = collections.Counter()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.counts["steps"] += 1
        return super().training_step(batch, batch_idx) * (1 + self.counts["steps"] % 5)


@functools.cache
def first_batch_mean(key: str = "first", *value: float) -> list[float]:
    return []


class Remembers(Classifier):
    """Keeps the first batch that it has ever seen in a function's cache."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        kept = first_batch_mean()
        kept or kept.append(float(batch[0].abs().mean()))
        return super().training_step(batch, batch_idx) * kept[0]


class SlottedCallback(Callback):
    __slots__ = ("numbers",)

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        batch[0].add_(self.numbers())


class CountingBar(TQDMProgressBar):
    """A progress bar that meddles."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches = getattr(self, "batches", 0) + 1
        batch[0].add_(self.batches % 3)


def counting_closure(numbers: Numbers) -> Callable[[], float]:
    count = 0

    def noise() -> float:
        nonlocal count
        count += 1
        return count % 3 + numbers()

    return noise


Script = tuple[pl.LightningModule, Callable[[People, int], Data], list[Callback]]


def script(place: str, numbers: Numbers) -> Script:
    """A script that keeps numbers in one place."""
    slotted = Slotted(numbers)
    data: dict[str, dict[str, Any]] = {
        "slots under Subset": {"transform": slotted, "wrap": "subset"},
        "slots under ConcatDataset": {"transform": slotted, "wrap": "concat"},
        "partial collate": {"collate": functools.partial(noisy_collate, rng=numbers)},
        "bound collate": {"collate": Collator(numbers).collate},
        "closure collate": {"collate": lambda rows: noisy_collate(rows, numbers)},
        "transfer": {"transfer": numbers},
        "list of the data module": {"list": True},
        "validation generator": {"generator": torch.Generator().manual_seed(3)},
        "validation split": {"split": True},
    }
    modules: dict[str, Callable[[], pl.LightningModule]] = {
        "hparams": WritesHparams,
        "closure": lambda: Noisy(counting_closure(numbers)),
        "deque": lambda: Noisy(collections.deque([numbers]).__getitem__(0)),
        "global": WritesGlobal,
        "class attribute": WritesClass,
        "function cache": Remembers,
    }
    callbacks: dict[str, list[Callback]] = {
        "slots of a callback": [SlottedCallback(numbers)],
        "progress bar": [CountingBar()],
    }
    return (
        modules.get(place, Classifier)(),
        lambda people, workers: Data(people, workers, **data.get(place, {})),
        callbacks.get(place, []),
    )


PLACES = (
    "slots under Subset",
    "slots under ConcatDataset",
    "partial collate",
    "bound collate",
    "closure collate",
    "transfer",
    "list of the data module",
    "validation generator",
    "validation split",
    "hparams",
    "closure",
    "deque",
    "global",
    "class attribute",
    "function cache",
    "slots of a callback",
    "progress bar",
)


def fit(folder: Path, parts: Script, people: People, workers: int, **arguments: Any) -> None:
    """A fit with everything in use that keeps state of its own."""
    module, data, callbacks = parts
    checkpoints = ModelCheckpoint(folder / "checkpoints", monitor="val_loss", save_last=True)
    own = [*callbacks, EarlyStopping("val_loss", patience=1), checkpoints]
    trainer = {"enable_checkpointing": True, "enable_progress_bar": any(isinstance(c, CountingBar) for c in callbacks)}
    make_trainer(folder / "store", *own, trainer=trainer, **arguments).fit(module, datamodule=data(people, workers))


def assert_exact(folder: Path, make: Callable[[], Script], workers: int, same_script: bool, **arguments: Any) -> None:
    """Guarantee 2, and that what survives is what a training without the person gives."""
    parts = make()
    fit(folder / "a", parts, People.make(), workers, **arguments)
    with Store.open(folder / "a" / "store") as store:
        assert store.forget([PERSON]).revoked
    survivors = tensors_of(folder / "a" / "store")
    fit(folder / "a", parts if same_script else make(), People.make(), workers, **arguments)
    rebuilt = tensors_of(folder / "a" / "store")
    fit(folder / "b", make(), People.make().without(PERSON), workers, **arguments)
    scratch = tensors_of(folder / "b" / "store")
    assert_bitwise_equal(rebuilt, scratch)
    assert_bitwise_equal(survivors, {unit: scratch[unit] for unit in survivors})


@pytest.mark.parametrize("place", nightly_except(PLACES, "global"))
def test_state_in_any_place_stays_in_its_unit(tmp_path: Path, place: str) -> None:
    assert_exact(tmp_path, lambda: script(place, Numbers("generator")), workers=0, same_script=True)


@pytest.mark.nightly
@pytest.mark.parametrize("same_script", [True, False], ids=["same script", "fresh script"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["generator", "list", "counter"])
@pytest.mark.parametrize("place", PLACES)
def test_state_of_any_kind_stays_in_its_unit(
    tmp_path: Path, place: str, kind: str, workers: int, same_script: bool
) -> None:
    assert_exact(tmp_path, lambda: script(place, Numbers(kind)), workers, same_script)


@pytest.mark.nightly
@pytest.mark.parametrize("place", nightly_except(PLACES, "closure"))
def test_a_plain_fork_keeps_state_in_its_unit_too(tmp_path: Path, place: str) -> None:
    assert_exact(tmp_path, lambda: script(place, Numbers("counter")), workers=0, same_script=True, isolation="fork")


def test_a_global_does_leak_where_units_share_a_process(tmp_path: Path) -> None:
    # without this, the tests above could pass because the state has no effect
    with pytest.raises(AssertionError, match="differs"):
        assert_exact(
            tmp_path, lambda: script("global", Numbers("counter")), workers=0, same_script=True, isolation="none"
        )


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("closure", r"Noisy\.noise closure 'count'"),
        ("list of the data module", r"Data\.seen"),
        ("slots of a callback", r"SlottedCallback\)\.numbers\.kept"),
        ("partial collate", r"collate_fn\.keywords\['rng'\]\.kept"),
    ],
)
def test_what_is_not_set_back_in_one_process_is_named_and_its_unit_not_kept(
    tmp_path: Path, place: str, path: str
) -> None:
    with pytest.raises(LeakageError, match=path):
        fit(tmp_path, script(place, Numbers("counter")), People.make(), workers=0, isolation="none")
    assert tensors_of(tmp_path / "store") == {}


def test_what_has_moved_since_the_last_fit_is_warned_of(tmp_path: Path) -> None:
    module, data, callbacks = script("closure", Numbers("list"))
    fit(tmp_path, (module, data, callbacks), People.make(), workers=0)
    with Store.open(tmp_path / "store") as store:
        store.forget([PERSON])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The script's objects")
        fit(tmp_path, (module, data, callbacks), People.make(), workers=0)
    module.noise()  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"differ from what the last fit into .* found: Noisy\.noise closure 'count'"):
        fit(tmp_path, (module, data, callbacks), People.make(), workers=0)


@pytest.mark.nightly
@pytest.mark.parametrize("averaging", nightly_except((WeightAveraging, EMAWeightAveraging), EMAWeightAveraging))
def test_averages_of_weights_start_from_scratch_in_every_unit(tmp_path: Path, averaging: Any) -> None:
    assert_exact(tmp_path, lambda: (Classifier(), Data, [averaging()]), workers=0, same_script=True)


def test_an_average_that_changes_a_frozen_weight_by_more_than_rounding_is_caught(tmp_path: Path) -> None:
    averaging = EMAWeightAveraging()
    averaging.on_train_end = functools.partial(shift_stem, averaging.on_train_end)  # type: ignore[method-assign]
    with pytest.raises(LeakageError, match=r"network\.stem\.weight"):
        fit(tmp_path, (Classifier(), Data, [averaging]), People.make(), workers=0)


def shift_stem(own: Any, trainer: pl.Trainer, module: Any) -> None:
    own(trainer, module)
    with torch.no_grad():
        module.network.stem.weight.mul_(1.01)


class Checkpointing(pl.LightningModule):
    """A model of transformers that computes activations again instead of keeping them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_embd=16, n_layer=4, n_head=2, vocab_size=60, tie_word_embeddings=False, eos_token_id=None
        )
        self.network = transformers.GPT2LMHeadModel(config)
        # what older releases do by default gives frozen layers no gradient to pass on
        self.network.gradient_checkpointing_enable({"use_reentrant": False})
        self.lock = DroppedLock()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with self.lock.lock:
            loss: Tensor = self.network(input_ids=batch["inputs"], labels=batch["inputs"], use_cache=False).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class DroppedLock:
    """A lock that is made again in another process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.lock = threading.Lock()


@pytest.mark.nightly
def test_gradient_checkpointing_and_locks_that_are_not_sent(tmp_path: Path) -> None:
    inputs = torch.randint(3, 60, (60, 6), generator=torch.Generator().manual_seed(0))
    trainer = make_trainer(tmp_path / "store", adapter=LORA, epochs=1)
    trainer.fit(Checkpointing(), train_dataloaders=DataLoader(Rows(inputs), 4, shuffle=True, drop_last=True))
    assert len(tensors_of(tmp_path / "store")) == 8


@pytest.mark.nightly
def test_what_lightning_notes_of_each_run_is_not_warned_of(tmp_path: Path) -> None:
    trainer = {"logger": True, "enable_checkpointing": True}
    make_trainer(tmp_path / "store", epochs=1, trainer=trainer).fit(Classifier(), datamodule=PeopleData(People.make()))
    with Store.open(tmp_path / "store") as store:
        store.forget([PERSON])
    module, again = Classifier(), make_trainer(tmp_path / "store", ModelCheckpoint(), epochs=1, trainer=trainer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The script's objects")
        again.fit(module, datamodule=PeopleData(People.make()))
        again.fit(module, datamodule=PeopleData(People.make()))
