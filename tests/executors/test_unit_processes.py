"""Processes of units: how one has ended is heard, whatever else is waited for at that moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import wait
from typing import Any

import pytest

from lightning_s3t.errors import WorkerError
from lightning_s3t.executors.processes.forkserver import ForkServer
from lightning_s3t.executors.processes.messages import Begin
from lightning_s3t.executors.processes.packing import pack
from lightning_s3t.executors.processes.process_settings import ProcessSettings
from lightning_s3t.executors.processes.unit_processes import UnitProcess, UnitProcesses


class Training:
    """What has been sent of a fit, for processes that never get as far as a training."""

    def prepare(self) -> None:
        """Nothing has to be prepared."""


class Call:
    """A task that is a call, made as it arrives."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def die(code: int) -> None:
    """End the process at once. `os._exit` itself cannot be pickled while coverage is measured."""
    os._exit(code)


def begin(function: Callable[..., Any], *arguments: Any) -> Begin:
    return Begin(Call(function, *arguments), None)  # type: ignore[arg-type]


@pytest.fixture
def launcher() -> ForkServer:
    with closing(pack((None, Training(), ProcessSettings.capture()), {})) as package:
        return ForkServer(package)


@pytest.fixture
def processes(launcher: ForkServer) -> Iterator[UnitProcesses]:
    with closing(UnitProcesses(launcher)) as found:
        yield found


@pytest.fixture
def sleeping(processes: UnitProcesses) -> UnitProcess:
    return processes.start(begin(time.sleep, 600), "one slept")


@pytest.fixture
def dead(processes: UnitProcesses, sleeping: UnitProcess, launcher: ForkServer) -> UnitProcess:
    """One whose end has not been waited for yet."""
    found = processes.start(begin(die, 3), "the other left")
    assert wait(launcher.sources, 60)
    return found


def test_a_death_is_told(processes: UnitProcesses, dead: UnitProcess) -> None:
    with pytest.raises(WorkerError, match=r"While the other left, its process died \(exit code 3\)"):
        list(processes.listen([dead], 60))


def test_a_death_while_another_is_killed_is_told(
    processes: UnitProcesses, sleeping: UnitProcess, dead: UnitProcess
) -> None:
    processes.kill(sleeping)
    start = time.monotonic()
    with pytest.raises(WorkerError, match="While the other left"):
        list(processes.listen([dead], 60))
    assert time.monotonic() - start < 30


def test_one_that_has_died_while_another_was_killed_can_be_killed(
    processes: UnitProcesses, sleeping: UnitProcess, dead: UnitProcess
) -> None:
    processes.kill(sleeping)
    processes.kill(dead)
    assert sleeping.closed
    assert dead.closed
