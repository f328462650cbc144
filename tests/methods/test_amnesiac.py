"""Amnesiac unlearning: a training is the sum of its steps, and some are taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from lightning_s3t.engine.step_rows import PREFIX, records_in
from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.methods import Amnesiac, EditSession
from lightning_s3t.store import Store
from tests.methods.sessions import Mlp, make_rows, make_session, state
from tests.people import People, assert_bitwise_equal, fit, tensors_of
from tests.tiers import nightly_except

ROWS = make_rows(20, seed=1)
BATCHES = [[0, 1, 2], [3, 4, 5], [0, 6], [7, 8, 9, 10], [11, 3], [12, 13]]


def recorded(method: Amnesiac) -> tuple[Mlp, dict[str, Tensor], list[dict[str, Tensor]]]:
    """A network that was trained in steps, what was kept of them, and its weights before each step and in the end."""
    net = Mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    recorder = method.recorder()
    recorder.start(dict(net.named_parameters()))
    states = [state(net)]
    for batch in BATCHES:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(ROWS[0][batch]), ROWS[1][batch]).backward()
        optimizer.step()
        recorder.step(batch)
        states.append(state(net))
    return net, recorder.records(states[-1]), states


def session(net: Mlp, records: dict[str, Tensor], forget: Sequence[int], count: int = 20) -> EditSession:
    stays = [row for row in range(count) if row not in forget]
    made = make_session(net, (ROWS[0][list(forget)], ROWS[1][list(forget)]), (ROWS[0][stays], ROWS[1][stays]))
    return replace(made, records=records, places=forget)


def change(states: list[dict[str, Tensor]], steps: Sequence[int]) -> dict[str, Tensor]:
    return {name: sum(states[step + 1][name] - states[step][name] for step in steps) for name in states[0]}  # type: ignore[misc]


def assert_taken_back(net: Mlp, states: list[dict[str, Tensor]], steps: Sequence[int]) -> None:
    for name, taken in change(states, steps).items():
        torch.testing.assert_close(state(net)[name], states[-1][name] - taken)


def test_the_steps_that_saw_a_forgotten_row_are_taken_back_and_no_others() -> None:
    net, records, states = recorded(Amnesiac())
    report = Amnesiac(max_share=1.0).edit(session(net, records, [3]))
    assert report == {"steps_taken_back": 2, "steps": 6}
    assert_taken_back(net, states, [1, 4])


def test_all_steps_taken_back_are_the_weights_before_the_training() -> None:
    net, records, states = recorded(Amnesiac())
    Amnesiac(max_share=1.0).edit(session(net, records, range(14)))
    for name, tensor in state(net).items():
        torch.testing.assert_close(tensor, states[0][name])


def test_a_row_that_no_step_saw_changes_nothing() -> None:
    net, records, states = recorded(Amnesiac())
    assert Amnesiac().edit(session(net, records, [19]))["steps_taken_back"] == 0
    assert_taken_back(net, states, [])


def test_over_requests_each_step_is_taken_back_once_and_rows_keep_their_records() -> None:
    net, records, states = recorded(Amnesiac())
    method = Amnesiac(max_share=1.0)
    method.edit(session(net, records, [0, 19]))  # steps 0 and 2
    assert records["sizes"].tolist() == [3, 4, 2, 2]
    method.edit(session(net, records, [1], count=18))  # row 2, of step 0 alone, which is gone
    assert_taken_back(net, states, [0, 2])
    method.edit(session(net, records, [1], count=17))  # row 3
    assert_taken_back(net, states, [0, 2, 1, 4])
    assert records["rows"].tolist() == [4, 5, 6, 7, 9, 10]  # of rows 7 to 10, 12 and 13
    assert {len(tensor) for name, tensor in records.items() if name.startswith("values")} == {2}


def test_with_a_share_the_largest_changes_of_each_tensor_are_taken_back() -> None:
    net, records, states = recorded(Amnesiac(keep=0.25))
    Amnesiac(keep=0.25, max_share=1.0).edit(session(net, records, [12]))
    for name, whole in change(states, [5]).items():
        count = round(0.25 * whole.numel())
        taken = states[-1][name] - state(net)[name]
        assert int((taken != 0).sum()) == count
        largest = whole.flatten().abs().topk(count).indices
        torch.testing.assert_close(taken.flatten()[largest], whole.flatten()[largest])


def test_a_request_that_reaches_too_many_steps_is_refused_and_changes_nothing() -> None:
    net, records, states = recorded(Amnesiac())
    with pytest.raises(ConfigurationError, match="2 of the 6 steps contained a row"):
        Amnesiac(max_share=0.3).edit(session(net, records, [3]))
    assert_taken_back(net, states, [])
    assert len(records["sizes"]) == 6


def test_records_that_grow_too_large_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="more than `max_bytes`"):
        recorded(Amnesiac(max_bytes=1000))


def test_weights_that_are_not_those_of_the_last_step_are_refused() -> None:
    recorder = Amnesiac().recorder()
    net = Mlp()
    recorder.start(dict(net.named_parameters()))
    with pytest.raises(UnsupportedError, match=r"has changed 0\.weight"):
        recorder.records({**state(net), "0.weight": torch.zeros(8, 6)})


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"max_share": 1.5}, {"max_bytes": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Amnesiac(**arguments)


ACCUMULATED = {"trainer": {"accumulate_grad_batches": 3}}
LORA: dict[str, Any] = {}
WORKERS = {"workers": 2}
KINDS = [{"adapter": None, **ACCUMULATED}, LORA, {"adapter": None, **WORKERS}]


@pytest.mark.parametrize("arguments", nightly_except(KINDS, KINDS[0]), ids=str)
def test_in_a_store_the_sum_of_a_persons_steps_is_taken_back_and_its_records_are_erased(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    store, people = tmp_path / "store", People.make()
    method = Amnesiac(max_share=1.0)
    fit(store, people, method=method, **arguments)
    ((unit, before),) = tensors_of(store).items()
    records = records_in(before)
    steps = 10 if "trainer" in arguments else 30  # two epochs of 15 batches
    assert len(records["sizes"]) == steps
    mine = {row for row, owner in enumerate(people.owners) if owner == "user-3"}
    saw = [bool(mine & set(rows.tolist())) for rows in records["rows"].split(records["sizes"].tolist())]
    assert 0 < sum(saw) < steps
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    fit(store, people, method=method, **arguments)
    after = tensors_of(store)[unit]
    for name in (name.removeprefix("values.") for name in records if name.startswith("values.")):
        taken = records[f"values.{name}"][saw].double().sum(0).reshape(before[name].shape)
        torch.testing.assert_close(after[name], (before[name] - taken).float())
    assert len(records_in(after)["sizes"]) == steps - sum(saw)
    with Store.open(store) as opened:
        assert opened.provenance()[0]["edit"]["steps_taken_back"] == sum(saw)
        assert opened.receipts()[0].erased_files == 1  # the old model, with the records in it
        assert opened.receipts()[0].guarantee == "empirical"
    for file in store.rglob("*.safetensors"):
        for name, tensor in records.items():
            if name.startswith("values."):
                gone = tensor[saw]
                assert gone.numpy().tobytes() not in file.read_bytes()


def test_what_is_recorded_does_not_change_the_training(tmp_path: Path) -> None:
    from lightning_s3t.methods import Retrain

    for name, method in (("kept", Amnesiac()), ("plain", Retrain())):
        fit(tmp_path / name, People.make(), method=method, adapter=None)
    kept = {
        unit: {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
        for unit, tensors in tensors_of(tmp_path / "kept").items()
    }
    assert_bitwise_equal(kept, tensors_of(tmp_path / "plain"))


@pytest.mark.nightly
def test_an_average_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="weight averaging"):
        fit(tmp_path / "store", People.make(), WeightAveraging(), method=Amnesiac(), adapter=None)
