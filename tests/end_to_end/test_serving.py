"""EnsembleModule: the user's module, answering as the ensemble of each shard's best survivor."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_s3t import DeletionHook, EnsembleModule, Receipt
from lightning_s3t.errors import (
    ConfigurationError,
    EnsembleError,
    NoSurvivorError,
    StoreError,
    StoreMismatchError,
    UnknownSubjectError,
    UnsupportedError,
)
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.swap import ModuleSwap
from tests.people import ARGUMENTS, Classifier, People, PeopleData, fit

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("trained") / "store"
    fit(store, People.make())
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A store of its own for each test, since a forget cannot be undone."""
    return Path(shutil.copytree(trained, tmp_path / "store"))


def trainer(*callbacks: Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def answer_of(store: Path, unit: UnitId, adapter: Any = ARGUMENTS["adapter"]) -> Tensor:
    """A unit's answer, put batched by hand."""
    module = Classifier().eval()
    layers = find_layers(module, ARGUMENTS["slices"])
    builder = StageBuilder(module, layers, resolve_adapter(adapter))
    with Store.open(store) as opened:
        built = builder.build(unit.stage, {ancestor.stage: opened.load(ancestor) for ancestor in unit.lineage})
    ModuleSwap(module, builder.originals).install({name: part.eval() for name, part in built.items()})
    with torch.no_grad():
        return module(X)


def person_in(store: Path, shard: int, slice_: int) -> str:
    with Store.open(store) as opened:
        return next(
            owner
            for owner in People.make().owners
            if opened.partition.place(owner) == type(opened.partition.place(owner))(shard, slice_)
            and not opened.forgotten([owner])
        )


@torch.no_grad()
def test_the_answer_is_the_mean_of_the_survivors_logits(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    expected = torch.stack([answer_of(store, unit) for unit in served.survivors.values()]).mean(0)
    assert torch.allclose(served(X), expected)


@torch.no_grad()
def test_after_a_forget_the_longest_prefix_that_was_not_reached_answers(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    served.forget([person_in(store, 0, 1)])
    assert served.survivors == {0: UnitId(0, (0,)), 1: UnitId(1, (0, 1))}
    expected = torch.stack([answer_of(store, unit) for unit in served.survivors.values()]).mean(0)
    assert torch.allclose(served(X), expected)
    reloaded = EnsembleModule.from_store(store, Classifier())
    assert torch.equal(served(X), reloaded(X))


@torch.no_grad()
def test_a_shard_without_a_survivor_is_left_out_and_without_any_the_error_says_what_to_do(
    store: Path,
) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    served.forget([person_in(store, 0, 0), person_in(store, 0, 1)])
    assert list(served.survivors) == [1]
    assert torch.allclose(served(X), answer_of(store, served.survivors[1]))
    receipt = served.forget([person_in(store, 1, 0), person_in(store, 1, 1)])
    assert receipt.serving == {"1": None}
    with pytest.raises(NoSurvivorError, match=r"Call trainer\.fit with the S3T callback"):
        served(X)


def test_the_users_own_test_step_and_metrics_run_on_the_ensemble(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    data = PeopleData(People.make())
    results = trainer().test(served, data, verbose=False)
    x, y = People.make(30, seed=6).features, People.make(30, seed=6).labels
    with torch.no_grad():
        expected = (served(x).argmax(-1) == y).float().mean()
    assert results[0]["test_accuracy"] == pytest.approx(float(expected))
    predictions = trainer().predict(served, data.test_dataloader())
    assert predictions is not None
    assert torch.allclose(torch.cat(predictions), served(x), atol=1e-5)  # type: ignore[arg-type]
    assert "val_loss" in trainer().validate(served, data, verbose=False)[0]


def test_a_process_that_loaded_the_model_before_a_forget_elsewhere_does_not_answer_with_it(
    store: Path,
) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    person = person_in(store, 0, 1)
    code = f"from lightning_s3t import Store; Store.open({str(store)!r}).forget([{person!r}])"
    subprocess.run([sys.executable, "-c", code], check=True)
    with torch.no_grad():
        answer = served(X)
    assert served.survivors[0] == UnitId(0, (0,))
    assert torch.equal(answer, EnsembleModule.from_store(store, Classifier())(X))


class RequestInside:
    """A hook on the network: a request from another process comes in while an answer is computed."""

    def __init__(self, store: Path, *people: str) -> None:
        self.store, self.people, self.calls = store, list(people), 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.people:
            with Store.open(self.store) as other:
                other.forget([self.people.pop()])


@torch.no_grad()
def test_an_answer_that_was_computed_while_a_request_came_in_is_computed_again(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    before = served(X)
    hook = RequestInside(store, person_in(store, 0, 0), person_in(store, 0, 1))  # each reaches shard 0
    served.network.stem.register_forward_hook(hook)
    answer = served(X)
    assert hook.people == []
    assert list(served.survivors) == [1]
    assert torch.equal(answer, EnsembleModule.from_store(store, Classifier())(X))
    assert not torch.equal(answer, before)


@torch.no_grad()
def test_a_request_in_mid_answer_that_leaves_no_survivor_leaves_no_answer(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    served.forget([person_in(store, 0, 0), person_in(store, 0, 1), person_in(store, 1, 0)])
    served.network.stem.register_forward_hook(RequestInside(store, person_in(store, 1, 1)))
    with pytest.raises(NoSurvivorError):
        served(X)


@torch.no_grad()
def test_an_answer_stands_if_a_request_in_between_reaches_nothing_that_it_came_from(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier(), aggregate="single")
    served.forget([person_in(store, 0, 0)])  # shard 1, at full depth, answers alone
    hook = RequestInside(store, person_in(store, 0, 1))
    served.network.stem.register_forward_hook(hook)
    served(X)
    assert hook.people == []
    assert hook.calls == 1
    assert list(served.survivors) == [1]


def test_forget_returns_a_receipt_and_tells_the_module(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    person = person_in(store, 1, 0)
    receipt = served.forget([person])
    assert served.module.forgotten == [receipt]
    assert (receipt.request, receipt.subjects, receipt.already_forgotten) == (1, 1, 0)
    assert set(receipt.revoked) == {"1/0", "1/0-1", "1/1-0"}
    assert receipt.serving == {"1": "1/1"}
    assert (receipt.guarantee, receipt.isolation) == ("exact", served.store.manifest.isolation)
    again = served.forget([person])
    assert (again.revoked, again.already_forgotten) == ((), 1)


def test_an_unknown_subject_is_refused_and_nothing_changes(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    before = dict(served.survivors)
    with pytest.raises(UnknownSubjectError, match="has never seen 'nobody'"):
        served.forget(["nobody", person_in(store, 0, 0)])
    assert served.survivors == before
    assert served.store.request_number == 0


class Listener(Callback):
    def __init__(self) -> None:
        self.heard: list[Receipt] = []

    def on_forget(self, receipt: Receipt) -> None:
        self.heard.append(receipt)


class ForgetInTheMiddle(Callback):
    """A request comes in, in another process, while a test runs."""

    def __init__(self, store: Path, person: str) -> None:
        self.store, self.person = store, person

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if args[2] == 0:
            with Store.open(self.store) as opened:
                opened.forget([self.person])


def test_the_deletion_hook_tells_module_and_callbacks_of_requests_from_elsewhere(store: Path) -> None:
    served, listener = EnsembleModule.from_store(store, Classifier()), Listener()
    request = ForgetInTheMiddle(store, person_in(store, 0, 1))
    trainer(DeletionHook(store), listener, request).test(served, PeopleData(People.make()), verbose=False)
    assert [receipt.revoked for receipt in listener.heard] == [("0/0-1", "0/1", "0/1-0")]
    assert served.module.forgotten == listener.heard
    assert served.survivors[0] == UnitId(0, (0,))


def test_the_users_module_is_not_touched_by_serving(store: Path) -> None:
    module = Classifier()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    parts = [id(part) for part in module.modules()]
    served = EnsembleModule.from_store(store, module)
    served(X)
    assert [id(part) for part in module.modules()] == parts
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training


def test_a_new_fit_is_taken_up_by_refresh(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    served.forget([person_in(store, 0, 1)])
    fit(store, People.make())
    served.refresh()
    assert served.survivors == {0: UnitId(0, (0, 1)), 1: UnitId(1, (0, 1))}


def test_a_served_module_is_not_trained(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    with pytest.raises(UnsupportedError, match="An EnsembleModule serves trained units"):
        trainer().fit(served, PeopleData(People.make()))


def test_a_served_module_stays_in_eval_mode(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    with pytest.raises(UnsupportedError, match="An EnsembleModule stays in eval mode"):
        served.train()
    assert served.eval() is served
    assert not any(part.training for part in served.modules())


def test_another_model_is_refused(store: Path) -> None:
    other = Classifier()
    other.network.stem.weight.data[0, 0] += 1
    with pytest.raises(StoreMismatchError, match=r"1 of \d+ pretrained tensors differ.*: network\.stem\.weight\.\n"):
        EnsembleModule.from_store(store, other)
    with pytest.raises(StoreMismatchError, match="layers that Classifier does not have"):
        EnsembleModule.from_store(store, Classifier(depth=2))


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        EnsembleModule.from_store(tmp_path, Classifier())


class CallsParts(Classifier):
    """A step that goes past the network's forward, part by part."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x = self.network.stem(batch[0])
        for block in self.network.blocks:
            x = block(x)
        self.log("test_accuracy", (self.network.head(x).argmax(-1) == batch[1]).float().mean())


def test_a_step_that_goes_past_the_networks_forward_is_refused(store: Path) -> None:
    served = EnsembleModule.from_store(store, CallsParts())
    with pytest.raises(EnsembleError, match=r"bypassing network\.forward"):
        trainer().test(served, PeopleData(People.make()), verbose=False)


class CallsOneBlock(Classifier):
    """A step that calls one block of a layer group of two."""

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.network.blocks[self.number](self.network.stem(batch[0]))

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class CallsOneLayer(Classifier):
    """A step that calls a layer within a block."""

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.network.blocks[0].linear(self.network.stem(batch[0]))


@pytest.mark.parametrize("make", [*(lambda n=n: CallsOneBlock(n) for n in range(4)), CallsOneLayer])
def test_a_step_that_calls_any_trained_part_of_the_network_by_itself_is_refused(store: Path, make: Any) -> None:
    module = make()
    module.hparams.clear()
    module.save_hyperparameters({"depth": 4, "learning_rate": 0.02})
    served = EnsembleModule.from_store(store, module)
    with pytest.raises(EnsembleError, match=r"calls a part of the network \((Block|Linear)\) directly"):
        trainer().predict(served, PeopleData(People.make()).test_dataloader())


def test_one_trainer_tests_the_module_and_then_the_ensemble(store: Path) -> None:
    tester, data = trainer(), PeopleData(People.make())
    before = tester.test(Classifier(), data, verbose=False)[0]["test_accuracy"]
    after = tester.test(EnsembleModule.from_store(store, Classifier()), data, verbose=False)[0]["test_accuracy"]
    assert after > before


@pytest.mark.parametrize("aggregate", ["mean_logits", "mean_probabilities", "vote"])
@torch.no_grad()
def test_the_aggregate_can_be_chosen(store: Path, aggregate: Any) -> None:
    served = EnsembleModule.from_store(store, Classifier(), aggregate=aggregate)
    logits = torch.stack([answer_of(store, unit) for unit in served.survivors.values()])
    expected = {
        "mean_logits": logits.mean(0).softmax(-1),
        "mean_probabilities": logits.softmax(-1).mean(0),
        "vote": nn.functional.one_hot(logits.argmax(-1), 3).float().mean(0),
    }
    assert torch.allclose(served(X).softmax(-1), expected[aggregate], atol=1e-5)


@torch.no_grad()
def test_shards_can_be_asked_in_one_pass(store: Path) -> None:
    batched, sequential = (
        EnsembleModule.from_store(store, Classifier(), passes=how) for how in ("batched", "sequential")
    )
    rows: list[int] = []
    batched.module.network.blocks[-1].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for _ in range(2):  # the first is a trial
        torch.testing.assert_close(batched(X), sequential(X))
    assert rows[-1] == len(X) * ARGUMENTS["shards"]
    receipt = batched.forget(["user-1"])
    assert receipt.revoked
    for _ in range(2):
        torch.testing.assert_close(batched(X), sequential(X))


@torch.no_grad()
def test_preloaded_units_serve_as_those_from_disk_do(store: Path) -> None:
    preloaded, from_disk = (EnsembleModule.from_store(store, Classifier(), preload=kept) for kept in (True, False))
    for person in ("user-1", "user-2"):
        preloaded.forget([person])
        assert torch.equal(preloaded(X), from_disk(X))
        assert preloaded.survivors == from_disk.survivors


class NotesFeatures(Classifier):
    """Keeps what a layer gives, by a hook that is made in `__init__`."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Any = None
        self.network.stem.register_forward_hook(lambda module, args, answer: setattr(self, "features", answer))


@torch.no_grad()
def test_hooks_of_the_served_module_write_to_it_and_not_to_the_users(store: Path) -> None:
    module = NotesFeatures()
    served = EnsembleModule.from_store(store, module)
    served(X)
    assert module.features is None
    assert torch.equal(served.module.features, module.network.stem(X))


WAYS_TO_SAVE: dict[str, Any] = {
    "state_dict": lambda served, path: served.state_dict(),
    "pickle": lambda served, path: torch.save(served, path),
    "deepcopy": lambda served, path: copy.deepcopy(served),
    "TorchScript": lambda served, path: served.to_torchscript(path, method="trace", example_inputs=X),
}


@pytest.mark.parametrize("way", WAYS_TO_SAVE)
def test_a_served_model_is_not_saved_and_the_export_is_named(store: Path, tmp_path: Path, way: str) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    with pytest.raises(UnsupportedError, match=r"served\.export\(path\), or s3t export"):
        WAYS_TO_SAVE[way](served, tmp_path / "saved.pt")


def test_a_trainer_saves_no_checkpoint_of_a_served_model(store: Path, tmp_path: Path) -> None:
    tester = trainer()
    tester.test(EnsembleModule.from_store(store, Classifier()), PeopleData(People.make()), verbose=False)
    with pytest.raises(UnsupportedError, match="no state dict or checkpoint of its own"):
        tester.save_checkpoint(tmp_path / "served.ckpt")
    assert not (tmp_path / "served.ckpt").exists()


def test_a_served_model_is_loaded_from_its_store_alone(store: Path) -> None:
    with pytest.raises(UnsupportedError, match="loaded from its store"):
        EnsembleModule.from_store(store, Classifier()).load_state_dict({})


@torch.no_grad()
def test_a_served_model_is_exported_by_torch_with_the_same_answers(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    exported = torch.export.export(served, (X,))
    assert torch.allclose(exported.module()(X), served(X))


def test_another_way_of_asking_shards_is_refused(store: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected argument `passes` to be one of .* but got 'at_once'"):
        EnsembleModule.from_store(store, Classifier(), passes="at_once")  # type: ignore[arg-type]


@torch.no_grad()
def test_whole_layers_go_back_to_the_pretrained_ones(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), adapter=None)
    served = EnsembleModule.from_store(tmp_path / "store", Classifier())
    served.forget([person_in(tmp_path / "store", 0, 1)])
    expected = torch.stack([answer_of(tmp_path / "store", unit, None) for unit in served.survivors.values()]).mean(0)
    assert torch.allclose(served(X), expected)
