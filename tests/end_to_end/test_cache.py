"""Fits with the activation cache: the same results, the three guarantees bitwise, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from lightning_s3t.errors import CacheError, ConfigurationError, StoreMismatchError
from lightning_s3t.plan import Partition
from lightning_s3t.store import Store
from tests.end_to_end.everything import PERSON, Forgotten, callbacks, fit_with_everything, forget
from tests.people import (
    ARGUMENTS,
    Classifier,
    People,
    PeopleData,
    assert_bitwise_equal,
    fit,
    make_trainer,
    tensors_of,
)
from tests.tiers import nightly_except

ROOT = Path(__file__).parents[2]
KINDS = ["memory", "disk"]
NO_DROPOUT = {"peft_type": "LORA", "r": 2}
CELLS: dict[str, dict[str, Any]] = {
    f"{kind}, {name}": {"cache": kind, "adapter": adapter}
    for kind in KINDS
    for name, adapter in (("lora", ARGUMENTS["adapter"]), ("whole layers", None))
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


class WithoutDropout(Classifier):
    """Draws nothing, so that frozen layers do the same in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def configure_optimizers(self) -> Any:
        # Adam makes whole steps of gradients that are nothing but rounding, as those of a bias before a BatchNorm
        return torch.optim.SGD(self.parameters(), lr=0.02)


def assert_close(first: Path, second: Path) -> None:
    """Equal but for rounding."""
    tensors, others = tensors_of(first), tensors_of(second)
    assert sorted(tensors) == sorted(others)
    for unit, owned in tensors.items():
        for name, tensor in owned.items():
            torch.testing.assert_close(tensor, others[unit][name], rtol=1e-3, atol=1e-5)


def files_in(store: Path) -> list[Path]:
    return [path for path in (store / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", ["cumulative", "disjoint"])
@pytest.mark.parametrize("adapter", [NO_DROPOUT, None], ids=["lora", "whole layers"])
def test_results_are_those_without_the_cache(tmp_path: Path, adapter: Any, data: str) -> None:
    arguments = {"adapter": adapter, "data": data}
    fit(tmp_path / "without", People.make(), module=WithoutDropout(), **arguments)
    fit(tmp_path / "with", People.make(), module=WithoutDropout(), cache="memory", **arguments)
    assert_close(tmp_path / "with", tmp_path / "without")


@pytest.fixture(scope="module", params=nightly_except(CELLS, "memory, lora"))
def forgotten(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Forgotten:
    return Forgotten.make(tmp_path_factory.mktemp("forgotten"), **CELLS[request.param])


def test_what_serves_on_is_what_it_would_be_had_the_persons_rows_been_anything_else(
    forgotten: Forgotten, tmp_path: Path
) -> None:
    other = fit_with_everything(tmp_path, People.make().replaced(PERSON), **forgotten.arguments)
    forget(other, PERSON)
    assert forgotten.served
    assert_bitwise_equal(forgotten.served, tensors_of(other))


def test_a_rebuild_is_a_first_training_without_the_person(forgotten: Forgotten, tmp_path: Path) -> None:
    rebuilt = fit_with_everything(forgotten.folder, People.make(), **forgotten.arguments)
    scratch = fit_with_everything(tmp_path, People.make().without(PERSON), **forgotten.arguments)
    assert len(tensors_of(scratch)) == 8
    assert_bitwise_equal(tensors_of(rebuilt), tensors_of(scratch))


def test_units_that_did_not_see_rows_are_equal_whatever_rows_there_are_besides(tmp_path: Path) -> None:
    people = People.make()
    fit(tmp_path / "all", people, cache="memory")
    fit(tmp_path / "fewer", people.without(PERSON), cache="memory")
    place = Partition(ARGUMENTS["shards"], ARGUMENTS["slices"]).place(PERSON)
    every, fewer = tensors_of(tmp_path / "all"), tensors_of(tmp_path / "fewer")
    others = [unit for unit in every if not unit.reached_by(place)]
    assert others
    assert_bitwise_equal({unit: every[unit] for unit in others}, {unit: fewer[unit] for unit in others})


def test_memory_and_disk_give_the_same_bits_and_serve_one_store(tmp_path: Path) -> None:
    for kind in KINDS:
        fit(tmp_path / kind, People.make(), cache=kind)
    assert_bitwise_equal(tensors_of(tmp_path / "memory"), tensors_of(tmp_path / "disk"))
    forget(tmp_path / "memory", PERSON)
    fit(tmp_path / "memory", People.make(), cache="disk")
    fit(tmp_path / "scratch", People.make().without(PERSON), cache="memory")
    assert_bitwise_equal(tensors_of(tmp_path / "memory"), tensors_of(tmp_path / "scratch"))


def test_a_store_that_was_made_without_is_not_gone_on_with(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "store")
    with pytest.raises(StoreMismatchError, match=r"training.frozen: store absent, now eval"):
        fit(tmp_path / "store", People.make(), cache="memory")


class Stop(Callback):
    """Ends a fit with an error at some step."""

    def __init__(self, step: int) -> None:
        self.steps = step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        STEPS.append(1)
        if len(STEPS) == self.steps:
            raise RuntimeError("broken off")


STEPS: list[int] = []


@pytest.mark.parametrize("kind", nightly_except(KINDS, "disk"))
def test_a_fit_that_is_broken_off_and_resumed_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RuntimeError, match="broken off"):
        fit(tmp_path / "store", People.make(), Stop(10), cache=kind)
    with Store.open(tmp_path / "store") as store:
        assert 0 < len(store.alive()) < 8
    fit(tmp_path / "store", People.make(), cache=kind)
    fit(tmp_path / "whole", People.make(), cache=kind)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "whole"))


SEEN: list[list[Path]] = []  # a callback's own attributes are set back between units


class Watch(Callback):
    """Notes, at each step, which files of activations there are; after the third, it does something."""

    def __init__(self, store: Path, ask: Any = None) -> None:
        self.store = store
        self.ask = ask

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        SEEN.append(files_in(self.store))
        if self.ask is not None and len(SEEN) == 3:
            self.ask()
            SEEN.append(files_in(self.store))


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()
    STEPS.clear()


def test_files_are_there_during_the_fit_and_gone_after_it(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), Watch(tmp_path / "store"), cache="disk")
    assert SEEN
    assert all(SEEN)
    assert not (tmp_path / "store" / "cache").exists()


def test_files_are_gone_after_a_fit_that_was_broken_off(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken off"):
        fit(tmp_path / "store", People.make(), Stop(10), cache="disk")
    assert not (tmp_path / "store" / "cache").exists()


def person_at(shard: int, slice_: int) -> str:
    places = {owner: Partition(2, 2).place(owner) for owner in People.make().owners}
    return next(owner for owner, place in places.items() if (place.shard, place.slice) == (shard, slice_))


@pytest.mark.parametrize("shard", nightly_except([0, 1], 0), ids=["of the unit that runs", "of another shard"])
def test_a_request_from_another_process_removes_the_files_and_the_fit_goes_on(tmp_path: Path, shard: int) -> None:
    store, person = tmp_path / "store", person_at(shard, 0)

    def ask() -> None:
        code = f"from lightning_s3t.store import Store; Store.open({str(store)!r}).forget([{person!r}])"
        subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)

    fit(store, People.make(), Watch(store, ask), cache="disk")
    assert SEEN[2]
    assert SEEN[3] == [], "the request has erased them before it returned"
    assert not set(SEEN[2]) & {path for later in SEEN[4:] for path in later}
    assert SEEN[-1], "the fit has begun new ones"
    with Store.open(store) as opened:
        assert opened.receipts()[0].erased_files >= len(SEEN[2])
    fit(tmp_path / "scratch", People.make().without(person), cache="disk")
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


KILLED = """
import sys, time
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from tests.people import People, fit

class Slow(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.05)

fit(Path(sys.argv[1]) / "store", People.make(), Slow(), cache="disk")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a fit that was killed in its third unit, for copying only."""
    folder = tmp_path_factory.mktemp("killed")
    store = folder / "store"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(list((store / "snapshots").glob("*.safetensors"))) < 3:
            assert process.poll() is None, "the fit ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    finally:
        process.kill()
    return store


@pytest.mark.parametrize("then", ["opening", "request", "fit"])
def test_files_of_a_fit_that_was_killed_go_at_the_next(killed: Path, tmp_path: Path, then: str) -> None:
    store = Path(shutil.copytree(killed, tmp_path / "store"))
    assert files_in(store)
    if then == "opening":
        Store.open(store).close()
    elif then == "request":
        forget(store, PERSON)
    else:
        fit(store, People.make(), cache="disk")
        fit(tmp_path / "whole", People.make(), cache="disk")
        assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "whole"))
    assert not (store / "cache").exists()


class Augmented(WithoutDropout):
    """Adds noise to every batch."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return super().training_step((x + 0.1 * torch.randn_like(x), y), batch_idx)


def test_augmented_rows_are_never_found_and_right_all_the_same(tmp_path: Path) -> None:
    arguments = {"adapter": NO_DROPOUT, "epochs": 3}
    fit(tmp_path / "without", People.make(), module=Augmented(), **arguments)
    with pytest.warns(UserWarning, match=r"found 0 of \d+ rows .* augmented"):
        fit(tmp_path / "with", People.make(), module=Augmented(), cache="memory", **arguments)
    assert_close(tmp_path / "with", tmp_path / "without")


def test_validation_finds_the_same_score(tmp_path: Path) -> None:
    for name, cache in (("without", None), ("with", "memory")):
        fit(tmp_path / name, People.make(), module=WithoutDropout(), adapter=NO_DROPOUT, cache=cache)
    losses = []
    for name in ("without", "with"):
        with Store.open(tmp_path / name) as store:
            losses.append([record["metrics"]["val_loss"] for record in store.provenance()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("precision", nightly_except(["bf16-mixed", "bf16-true"], "bf16-mixed"))
def test_other_precisions(tmp_path: Path, precision: str) -> None:
    for name in "ab":
        fit(tmp_path / name, People.make(), cache="memory", trainer={"precision": precision})
    assert len(tensors_of(tmp_path / "a")) == 8
    first, second = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert all(torch.equal(tensor, second[unit][name]) for unit in first for name, tensor in first[unit].items())


class TwoCalls(WithoutDropout):
    """Calls the network twice in a step, with other rows."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return super().training_step((x, y), batch_idx) + super().training_step((x.flip(1), y), batch_idx)


def test_a_step_may_call_the_network_several_times(tmp_path: Path) -> None:
    arguments = {"adapter": NO_DROPOUT}
    fit(tmp_path / "without", People.make(), module=TwoCalls(), **arguments)
    fit(tmp_path / "with", People.make(), module=TwoCalls(), cache="memory", **arguments)
    assert_close(tmp_path / "with", tmp_path / "without")


class Skipping(Classifier):
    """Reads the first block above the last."""

    def __init__(self) -> None:
        super().__init__()
        network = self.network

        def forward(x: Tensor) -> Tensor:
            first = x = network.blocks[0](network.stem(x))
            for block in network.blocks[1:]:
                x = block(x)
            return network.head(x + first)

        network.forward = forward  # type: ignore[method-assign]


def test_a_network_that_cannot_begin_in_the_middle_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"network does not answer the same .*cache=None"):
        fit(tmp_path / "store", People.make(), module=Skipping(), cache="disk")
    assert tensors_of(tmp_path / "store") == {}
    assert not (tmp_path / "store" / "cache").exists()


@pytest.mark.nightly
def test_a_compiled_network_is_refused(tmp_path: Path) -> None:
    module = Classifier()
    module.network.compile()
    with pytest.raises(CacheError, match=r"torch\.compile"):
        fit(tmp_path / "store", People.make(), module=module, cache="memory")


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Expected argument `cache`"):
        S3T(tmp_path, shards=1, slices=2, budget=1, cache="ram")  # type: ignore[arg-type]


DDP = """
import sys
from pathlib import Path
from tests.people import People, fit

if __name__ == "__main__":
    trainer = {"strategy": "ddp", "devices": 2, "accelerator": "cpu"}
    fit(Path(sys.argv[1]) / "store", People.make(), cache=sys.argv[2], trainer=trainer)
"""


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "expected"), [("memory", 0), ("disk", 1)])
def test_several_processes_keep_their_own_in_memory_and_none_on_disk(tmp_path: Path, kind: str, expected: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(DDP)
    command = [sys.executable, str(script), str(tmp_path), kind]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (result.returncode != 0) == bool(expected), result.stderr[-3000:]
    assert len(tensors_of(tmp_path / "store")) == (0 if expected else 8)
    assert not expected or "with several processes" in result.stderr


class Padding(nn.Module):
    """Says which tokens are none."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids.eq(0)


class MaskedBlock(nn.Module):
    """Takes a mean over the tokens that are some."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        tokens = (~padding).float().unsqueeze(-1)
        mean = (x * tokens).sum(1, keepdim=True) / tokens.sum(1, keepdim=True).clamp_min(1)
        return x + torch.tanh(self.linear(x + mean))


class Texts(WithoutDropout):
    """Reads tokens, with a mask that a module of its own makes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.network: nn.Module = TextNetwork()


class TextNetwork(nn.Module):
    """Blocks that take a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.padding, self.embedding = Padding(), nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([MaskedBlock() for _ in range(4)])
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        padding, x = self.padding(ids), self.embedding(ids)
        for block in self.blocks:
            x = block(x, padding)
        return self.head(x.mean(1))


def make_texts(unpadded: range) -> People:
    """Tokens of people, padded but for some rows."""
    people = People.make(40, 3)
    ids = torch.randint(1, 20, (len(people), 6), generator=torch.Generator().manual_seed(1))
    for row in range(len(people)):
        if row not in unpadded:
            ids[row, 2 + row % 4 :] = 0
    return People(ids, people.labels, people.owners)


@pytest.mark.parametrize("unpadded", [range(0), range(120), range(0, 120, 2)], ids=["none", "all", "every other"])
def test_a_mask_is_each_rows_own_whatever_the_first_rows_have(tmp_path: Path, unpadded: range) -> None:
    for name, cache in (("cache", "memory"), ("plain", None)):
        trainer = make_trainer(tmp_path / name, epochs=1, cache=cache)
        trainer.fit(Texts(), DataLoader(make_texts(unpadded), 8, shuffle=True))
    assert_close(tmp_path / "cache", tmp_path / "plain")


@pytest.mark.nightly
def test_units_at_the_same_time_keep_their_own_and_have_the_same_bits(tmp_path: Path) -> None:
    fit(tmp_path / "serial", People.make(), cache="memory")
    fit(tmp_path / "parallel", People.make(), cache="disk", parallel_units=2)
    assert_bitwise_equal(tensors_of(tmp_path / "serial"), tensors_of(tmp_path / "parallel"))
    assert not (tmp_path / "parallel" / "cache").exists()


def test_the_fit_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module = fit(tmp_path / "store", People.make(), cache="memory")
    assert all("forward" not in vars(part) for part in module.modules())
    trainer = make_trainer(tmp_path / "other", *callbacks(tmp_path)[:1], cache="memory")
    trainer.fit(module, DataLoader(People.make(), 8), PeopleData(People.make()).val_dataloader())
    assert len(tensors_of(tmp_path / "other")) == 8
