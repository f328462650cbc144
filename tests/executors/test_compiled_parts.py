"""What torch compiles arrives in another process with the arguments that it was compiled with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import OptimizedModule

from lightning_s3t.executors.processes.packing import pack
from lightning_s3t.tuning.compiled import compile_arguments, has_compiled_parts


def send(found: Any) -> Any:
    package = pack(found, {})
    try:
        return package.load()
    finally:
        package.close()


def own_backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    return graph.forward


def wrapped(**options: Any) -> Any:
    return torch.compile(nn.Linear(2, 2), **options)


def in_place(**options: Any) -> Any:
    module = nn.Linear(2, 2)
    module.compile(**options)
    return module


def call_of(module: Any) -> Any:
    return module if isinstance(module, OptimizedModule) else module._compiled_call_impl


@pytest.mark.parametrize("make", [wrapped, in_place])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "max-autotune", "dynamic": True},
        {"options": {"epilogue_fusion": False}, "dynamic": False},
        {"backend": "eager", "fullgraph": True},
        {"backend": "aot_eager"},
        {"backend": own_backend},
    ],
)
def test_a_module_arrives_with_its_arguments(make: Callable[..., Any], options: dict[str, Any]) -> None:
    module = make(**options)
    arrived = send(module)
    assert has_compiled_parts(arrived)
    sent, got = compile_arguments(call_of(module)), compile_arguments(call_of(arrived))
    assert sent is not None
    assert got is not None
    assert {**sent, "backend": vars(sent["backend"])} == {**got, "backend": vars(got["backend"])}
    assert got["nopython"] is options.get("fullgraph", False)
    assert got["dynamic"] is options.get("dynamic")


def test_hooks_on_the_wrapper_arrive() -> None:
    module = wrapped(backend="eager")
    module.register_forward_hook(lambda module, arguments, answer: answer + 1)
    arrived, x = send(module), torch.ones(1, 2)
    assert torch.equal(arrived(x), module(x))
    assert torch.equal(arrived(x), arrived._orig_mod(x) + 1)


def test_a_function_arrives() -> None:
    holder = nn.Module()
    holder.step = torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)  # type: ignore[assignment]
    arrived = send(holder)
    assert compile_arguments(arrived.step)["nopython"]
    assert torch.equal(arrived.step(torch.ones(2)), torch.full((2,), 2.0))


def test_a_compiled_method_calls_the_module_that_arrived() -> None:
    module: Any = nn.Linear(2, 2, bias=False)
    module.forward = torch.compile(module.forward, backend="eager")
    arrived = send(module)
    with torch.no_grad():
        arrived.weight.zero_()
    assert torch.equal(arrived(torch.ones(2)), torch.zeros(2))
    assert not torch.equal(module(torch.ones(2)), torch.zeros(2))


def test_what_two_places_share_is_one_there() -> None:
    module = wrapped(backend="eager")
    first, second = send([module, module._orig_mod])
    assert first._orig_mod is second
