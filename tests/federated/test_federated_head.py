"""A federated closed-form head: it equals the head of one store with all rows, and forgets as that one does."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t import EnsembleModule, Store
from lightning_s3t.core.floor import FloorPart
from lightning_s3t.core.manifest import LayersPart
from lightning_s3t.errors import ConfigurationError, DataError, NoSurvivorError, StoreError, StoreMismatchError
from lightning_s3t.federated import Contribution, FederatedHead
from lightning_s3t.federated.contribution import Terms
from lightning_s3t.methods import ClosedForm
from lightning_s3t.store.disk.files import write_atomically
from lightning_s3t.store.heads.feature_sums import FeatureRows, FeatureSums
from tests.people import Classifier, People, fit

PART = FloorPart(layer="head", width=5, outputs=3, bits=8, target_step=1.0)
TERMS = Terms(
    part=PART, task="multiclass", layers=LayersPart(network="", groups=[], head=["head"]), pretrained="p", head="h"
)


def rows_of(count: int, seed: int) -> FeatureRows:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randint(-127, 128, (count, 5), generator=draw, dtype=torch.int8)
    return FeatureRows(features, torch.randint(3, (count,), generator=draw).int())


def contribution(count: int = 6, seed: int = 0, requests: int = 0, store: str = "one") -> Contribution:
    sums = FeatureSums(PART, "multiclass")
    sums.add(rows_of(count, seed))
    return Contribution(TERMS, requests, sums, store)


def tensors(sums: FeatureSums) -> dict[str, list[int]]:
    return {name: tensor.tolist() for name, tensor in sums.to_tensors().items()}


@pytest.fixture
def head(tmp_path: Path) -> FederatedHead:
    return FederatedHead(tmp_path / "head")


def test_a_message_is_the_contribution() -> None:
    sent = contribution(requests=3)
    arrived = Contribution.decode(sent.encode())
    assert (arrived.terms, arrived.requests, arrived.digest) == (TERMS, 3, sent.digest)
    assert tensors(arrived.sums) == tensors(sent.sums)


@given(st.randoms(use_true_random=False))
def test_the_sums_are_those_of_the_newest_contributions_in_any_order(chance: random.Random) -> None:
    clients = [f"client {number}" for number in range(3)]
    order = [(client, version) for client in clients for version in range(3)]
    chance.shuffle(order)
    order.sort(key=lambda each: each[1])  # no client's older message after its newer one
    with tempfile.TemporaryDirectory() as folder:
        head = FederatedHead(folder)
        for client, version in order:
            head.update(client, contribution(4 - version, seed=int(client[-1]), requests=version))
        wanted = FeatureSums(PART, "multiclass")
        for number in range(3):
            wanted.add(rows_of(2, seed=number))
        assert tensors(head.sums()) == tensors(wanted)
        assert FederatedHead(folder).clients() == dict.fromkeys(clients, 2)


def test_each_change_is_in_the_history(head: FederatedHead) -> None:
    changes = [head.update("a", contribution(5)), head.update("a", contribution(4, requests=1)), head.remove("a")]
    assert head.history() == changes
    assert [(change.rows_before, change.rows, change.requests) for change in changes] == [
        (0, 5, 0),
        (5, 4, 1),
        (4, 0, None),
    ]
    assert changes[1].digest == contribution(4, requests=1).digest


def test_a_message_from_before_a_request_is_refused(head: FederatedHead) -> None:
    head.update("a", contribution(4, requests=1))
    with pytest.raises(StoreError, match=r"older message"):
        head.update("a", contribution(5, requests=0))
    assert head.clients() == {"a": 4}


def test_an_old_message_is_refused_under_another_name_too(head: FederatedHead) -> None:
    head.update("a", contribution(4, requests=1))
    head.remove("a")
    with pytest.raises(StoreError, match=r"older message"):
        head.update("b", contribution(5, requests=0))
    assert head.clients() == {}


def test_an_old_message_is_refused_after_the_client_has_left_too(head: FederatedHead) -> None:
    head.update("a", contribution(4, requests=1))
    head.remove("a")
    with pytest.raises(StoreError, match=r"taken in 0 requests, but an earlier one 1"):
        FederatedHead(head.folder).update("a", contribution(5, requests=0))
    assert head.clients() == {}
    head.update("a", contribution(4, requests=1))  # it is there again


def test_a_new_store_of_a_client_takes_over_when_the_client_was_removed(head: FederatedHead) -> None:
    head.update("a", contribution(4, requests=1))
    with pytest.raises(StoreError, match=r"from another store than its last one.*remove the client first"):
        head.update("a", contribution(5, requests=7, store="two"))
    head.remove("a")
    assert head.update("a", contribution(5, store="two")).rows == 5


def test_what_a_kill_has_cut_off_is_in_the_history_later(head: FederatedHead) -> None:
    first = head.update("a", contribution(6))
    write_atomically(head.folder / "clients" / "a.safetensors", contribution(4, requests=1).encode())
    with open(head.folder / "history.jsonl", "a") as file:
        file.write('{"client": "a", "ti')
    assert head.history() == [first]
    again = FederatedHead(head.folder)
    again.update("a", contribution(4, requests=1))
    (head.folder / "clients" / "a.safetensors").unlink()
    FederatedHead(head.folder)
    assert [(change.requests, change.rows_before, change.rows) for change in head.history()] == [
        (0, 0, 6),
        (1, 6, 4),
        (1, 4, 4),
        (None, 4, 0),
    ]


def test_what_a_killed_process_has_half_written_goes_with_the_client(head: FederatedHead) -> None:
    head.update("a", contribution(4))
    (head.folder / "clients" / ".a.safetensors.4711.tmp").write_bytes(contribution(5).encode())
    head.remove("a")
    assert not any((head.folder / "clients").iterdir())


def test_a_file_from_a_backup_brings_nothing_back(head: FederatedHead) -> None:
    file = head.folder / "clients" / "a.safetensors"
    head.update("a", contribution(5))
    backup = file.read_bytes()
    head.update("a", contribution(4, requests=1))
    file.write_bytes(backup)
    for opened in (head, FederatedHead(head.folder)):
        with pytest.raises(StoreError, match="restored from a backup"):
            opened.sums()
    head.update("a", contribution(4, requests=1))
    assert head.sums().rows == 4
    head.remove("a")
    file.write_bytes(backup)
    with pytest.raises(StoreError, match="restored from a backup"):
        FederatedHead(head.folder).clients()
    head.remove("a")
    assert head.clients() == {}


def test_a_damaged_contribution_is_named_and_can_be_replaced(head: FederatedHead) -> None:
    head.update("a", contribution(4))
    (head.folder / "clients" / "a.safetensors").write_bytes(b"s3t")
    with pytest.raises(StoreError, match=r"of 'a' cannot be read: .*a.safetensors is damaged.*Remove the client"):
        head.sums()
    head.remove("a")
    assert head.update("a", contribution(4)).rows_before == 0


@pytest.mark.parametrize(
    "other", [{"pretrained": "q"}, {"head": "g"}, {"part": PART.model_copy(update={"bits": 6})}, {"task": "multilabel"}]
)
def test_contributions_to_another_head_are_refused(head: FederatedHead, other: dict[str, object]) -> None:
    head.update("a", contribution())
    terms = TERMS.model_copy(update=other)
    with pytest.raises(StoreMismatchError, match=f"another head than that of 'a': {next(iter(other))} differ"):
        head.update("b", replace(contribution(), terms=terms))
    assert head.clients() == {"a": 6}


def test_a_client_alone_may_change_its_settings(head: FederatedHead) -> None:
    head.update("a", contribution())
    head.update("a", replace(contribution(), terms=TERMS.model_copy(update={"pretrained": "q"})))


@pytest.mark.parametrize(
    "damage", [b"", b"s3t", contribution().encode()[:-8], contribution().encode().replace(b"bits", b"bots")]
)
def test_what_is_not_a_contribution_is_refused(damage: bytes) -> None:
    with pytest.raises(DataError, match="not a contribution to a federated head"):
        Contribution.decode(damage)


def test_without_rows_there_is_no_answer(head: FederatedHead) -> None:
    with pytest.raises(NoSurvivorError, match="No client has rows"):
        head.sums()
    head.update("a", contribution(0))
    with pytest.raises(NoSurvivorError, match="No client has rows"):
        head.module(Classifier())


def test_names_of_clients_may_have_any_characters(head: FederatedHead) -> None:
    names = ["../a", "a/b", ".", "Klinik Süd", "a.safetensors"]
    for name in names:
        head.update(name, contribution(2))
    assert head.clients() == dict.fromkeys(sorted(names), 2)
    with pytest.raises(ConfigurationError, match="Expected a short text"):
        head.update("x" * 201, contribution(2))
    with pytest.raises(ConfigurationError, match="no contribution of 'z'"):
        head.remove("z")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigurationError, match="other files"):
        FederatedHead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.nightly
def test_a_killed_server_has_each_contribution_as_it_was_or_as_it_is(tmp_path: Path) -> None:
    head = FederatedHead(tmp_path / "head")
    head.update("a", contribution(6))
    wanted = [tensors(contribution(count, requests=6 - count).sums) for count in range(7)]
    for moment in range(12):
        child = os.fork()
        if child == 0:
            for count in (5, 4, 3, 2, 1):
                head.update("a", contribution(count, requests=6))
            os._exit(0)
        time.sleep(0.002 * moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        again = FederatedHead(head.folder)
        assert tensors(again.sums()) in wanted
        assert [path.suffix for path in (head.folder / "clients").iterdir()] == [".safetensors"]


def people_at(client: int) -> People:
    """Half of the people."""
    return People.make().without(*[f"user-{number}" for number in range(40) if number % 2 != client])


@pytest.mark.nightly
def test_it_is_the_head_of_one_store_with_all_rows_before_and_after_a_request(
    tmp_path: Path, head: FederatedHead
) -> None:
    for client in (0, 1):
        fit(tmp_path / f"client-{client}", people_at(client), method=ClosedForm())
    fit(tmp_path / "all", People.make(), method=ClosedForm())
    with (
        Store.open(tmp_path / "client-0") as first,
        Store.open(tmp_path / "client-1") as second,
        Store.open(tmp_path / "all") as everything,
    ):
        for name, store in (("first", first), ("second", second)):
            head.update(name, Contribution.of(store))
        assert tensors(head.sums()) == tensors(Contribution.of(everything).sums)
        for person in ("user-3", "user-8"):
            (second if int(person[5:]) % 2 else first).forget([person])
            everything.forget([person])
        for name, store in (("first", first), ("second", second)):
            head.update(name, Contribution.of(store))
        assert tensors(head.sums()) == tensors(Contribution.of(everything).sums)
    served, test = head.module(Classifier()), People.make(30, seed=6)
    with EnsembleModule.from_store(tmp_path / "all", Classifier()) as alone:
        assert torch.equal(served(test.features), alone(test.features))
    assert float((served(test.features).argmax(-1) == test.labels).float().mean()) > 0.8


@pytest.mark.nightly
def test_another_model_is_refused(tmp_path: Path, head: FederatedHead) -> None:
    fit(tmp_path / "client", people_at(0), method=ClosedForm())
    with Store.open(tmp_path / "client") as store:
        head.update("a", Contribution.of(store))
    other = Classifier()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(StoreMismatchError, match="other pretrained weights"):
        head.module(other)
    with pytest.raises(StoreMismatchError, match="does not have the layers"):
        head.module(pl.LightningModule())


def test_a_store_without_a_head_has_nothing_to_contribute(tmp_path: Path) -> None:
    with (
        Store.create(tmp_path / "store", {"partition": {"shards": 2, "slices": 2, "seed": 0}}) as store,
        pytest.raises(ConfigurationError, match="no exact closed-form head to contribute"),
    ):
        Contribution.of(store)
