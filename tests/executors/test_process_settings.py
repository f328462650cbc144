"""torch's settings of one process, set in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor

from lightning_s3t.executors.processes.process_settings import ProcessSettings

CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "matmul precision": (lambda: torch.set_float32_matmul_precision("high"), torch.get_float32_matmul_precision),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
    "only warn": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        torch.is_deterministic_algorithms_warn_only_enabled,
    ),
    "benchmark": (lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "denormals": (
        lambda: torch.set_flush_denormal(True),
        lambda: (torch.tensor(5e-324, dtype=torch.float64) * 1.0).item() == 0,
    ),
    "dynamo": (lambda: setattr(dynamo, "cache_size_limit", 3), lambda: dynamo.cache_size_limit),
    "inductor": (lambda: setattr(inductor, "epilogue_fusion", False), lambda: inductor.epilogue_fusion),
}


@pytest.fixture(autouse=True)
def _set_back() -> Iterator[None]:
    before = ProcessSettings.capture()
    yield
    before.apply()


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_comes_along(name: str) -> None:
    change, read = CHANGES[name]
    default, before = ProcessSettings.capture(), read()
    change()
    changed, after = ProcessSettings.capture(), read()
    assert after != before
    default.apply()
    assert read() == before
    changed.apply()
    assert read() == after
