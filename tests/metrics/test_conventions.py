"""What all metrics do as torchmetrics has it: states that merge, plots, copies, processes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import multiprocessing
from torchmetrics import Metric, MetricCollection

from lightning_s3t import metrics
from lightning_s3t.metrics import functional
from tests.metrics.cases import CASES, values

pytestmark = pytest.mark.filterwarnings("ignore:.*false positive.*:UserWarning")
each_metric = pytest.mark.parametrize("name", list(CASES))


def _same(one: object, two: object) -> None:
    assert values(one) == pytest.approx(values(two), rel=1e-6, nan_ok=True)


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def test_every_metric_has_a_case_and_stands_in_the_docs() -> None:
    assert sorted(CASES) == sorted(metrics.__all__)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [name for name in metrics.__all__ if f"`{name}`" not in page] == []


@each_metric
def test_merged_states_are_one_state(name: str) -> None:
    case = CASES[name]
    whole, one, two = case.make(), case.make(), case.make()
    for batch, part in zip(case.batches, (one, two), strict=True):
        whole.update(*batch)
        part.update(*batch)
    one.merge_state(two)
    _same(one.compute(), whole.compute())


@each_metric
def test_the_order_of_updates_does_not_matter(name: str) -> None:
    case = CASES[name]
    one, two = case.make(), case.make()
    for first, second in zip(case.batches, reversed(case.batches), strict=True):
        one.update(*first)
        two.update(*second)
    _same(one.compute(), two.compute())


@each_metric
def test_forward_gives_the_value_of_the_batch(name: str) -> None:
    if name == "RobustMembershipInference":
        pytest.skip("rows of the population alone have no value")
    case = CASES[name]
    metric, alone = case.make(), case.make()
    metric.update(*case.batches[0])
    whole = metric.clone()
    alone.update(*case.batches[1])
    _same(metric(*case.batches[1]), alone.compute())
    whole.update(*case.batches[1])
    _same(metric.compute(), whole.compute())


@each_metric
def test_plot_gives_a_figure(name: str) -> None:
    case = CASES[name]
    metric = case.make()
    for batch in case.batches:
        metric.update(*batch)
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert axes.get_ylabel() == name
    figure, _ = metric.plot([metric.compute()] * 3)
    assert isinstance(figure, Figure)


@each_metric
def test_copies_and_resets(name: str) -> None:
    case = CASES[name]
    metric = case.make()
    for batch in case.batches:
        metric.update(*batch)
    result = metric.compute()
    _same(pickle.loads(pickle.dumps(metric)).compute(), result)
    copied = metric.clone()
    metric.reset()
    assert not any(len(state) if isinstance(state, list) else state.any() for state in metric.metric_state.values())
    _same(copied.compute(), result)


@each_metric
def test_it_says_its_source_its_direction_and_its_limits(name: str) -> None:
    documentation = inspect.getdoc(getattr(metrics, name))
    for part in (".. math::", "**What it cannot show.**", "Source: ", "Example:"):
        assert part in documentation, part
    assert "**Direction.**" in documentation or "direction" in documentation
    assert getattr(metrics, name).full_state_update is False


def test_every_public_function_has_an_example() -> None:
    for name in functional.__all__:
        assert ">>> " in inspect.getdoc(getattr(functional, name)), name


def test_attacks_go_together_in_a_collection() -> None:
    names = ["LossMembershipInference", "ModifiedEntropyMembershipInference"]
    collection = MetricCollection({name: CASES[name].make() for name in names})
    for batch in CASES[names[0]].batches:
        collection.update(*batch)
    assert {f"{name}_auc" for name in names} <= set(collection.compute())


def test_attacks_stay_apart_where_their_first_scores_are_equal() -> None:
    """A collection takes metrics with the same states for one: while all rows are right, losses are confidences."""
    attacks = {"loss": metrics.LossMembershipInference(0.5), "confidence": metrics.ConfidenceMembershipInference(0.5)}
    collection = MetricCollection(attacks)
    collection.update(logits=torch.eye(3), target=torch.arange(3), is_member=True)
    collection.update(logits=torch.eye(3), target=2 - torch.arange(3), is_member=False)
    found = collection.compute()
    assert found["loss_auc"] > found["confidence_auc"] == 0.5


def _gather(rank: int, rendezvous: str, queue: object) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for name, case in CASES.items():
        if name == "RobustMembershipInference":
            continue  # one of its batches has only rows of the population
        metric: Metric = case.make()
        metric.update(*case.batches[rank])
        found[name] = values(metric.compute())
        metric.reset()
        if rank == 0:
            for batch in case.batches:
                metric.update(*batch)
        found[f"{name}, all in one process"] = values(metric.compute())
    torch.distributed.barrier()
    if rank == 0:
        queue.put(found)
    torch.distributed.destroy_process_group()


def test_two_processes_compute_as_one(tmp_path: object) -> None:
    """States are gathered under DDP; also where a process has had no rows at all."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_gather, args=(rank, f"{tmp_path}/rendezvous", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = queue.get()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name, result in found.items():
        case = CASES[name.split(",")[0]]
        metric = case.make()
        for batch in case.batches:
            metric.update(*batch)
        assert result == pytest.approx(values(metric.compute()), rel=1e-5, nan_ok=True), name
