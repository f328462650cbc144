"""One served model, asked by several threads at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import EnsembleError
from tests.people import Classifier, People, fit

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[EnsembleModule]:
    fit(tmp_path / "store", People.make())
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns all the time
    yield EnsembleModule.from_store(tmp_path / "store", Classifier())
    sys.setswitchinterval(before)


@torch.no_grad()
def test_threads_get_the_ensembles_answer_and_never_a_part_of_it(served: EnsembleModule) -> None:
    expected = served(X)

    def ask(_: int) -> Tensor:
        with torch.no_grad():
            return served(X)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, range(60)))
    assert all(torch.equal(answer, expected) for answer in answers)


def test_threads_that_ask_while_one_forgets_get_what_was_or_what_is(served: EnsembleModule) -> None:
    def ask(_: int = 0) -> tuple[float, ...]:
        with torch.no_grad():
            return tuple(served(X).flatten().tolist())

    people = list(dict.fromkeys(People.make().owners))[:3]
    allowed = {ask()}
    with ThreadPoolExecutor(4) as threads:
        for person in people:
            answers = [threads.submit(ask) for _ in range(20)]
            served.forget([person])
            after = ask()
            assert threads.submit(ask).result() == after
            allowed.add(after)
            assert {answer.result() for answer in answers} <= allowed


@pytest.mark.nightly
def test_a_part_of_the_network_is_refused_to_a_thread_while_another_answers(served: EnsembleModule) -> None:
    refused: list[bool] = []

    def look(*_: object) -> None:
        def call() -> None:
            head(torch.zeros(1, head.in_features))

        with ThreadPoolExecutor(1) as threads:
            refused.append(isinstance(threads.submit(call).exception(), EnsembleError))

    head = served.module.get_submodule(served._builder.layers.head[0])
    group = served.module.get_submodule(served._builder.layers.groups[0].modules[0])
    group.register_forward_pre_hook(look)
    served(X)
    assert refused
    assert all(refused)
