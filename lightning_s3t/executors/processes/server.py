"""The fork server of units: a clean process that contains nothing of the script except the objects that a fit has sent.

One process (the base) imports the packages once. For each fit it forks a process that loads these objects, which in
turn forks a process for each unit. None of them runs a computation before it forks: OpenMP's threads and a device's
context do not survive a fork, so they may only begin in a unit's own process.

Run as `python -m lightning_s3t.executors.processes.server DESCRIPTOR`; `forkserver.py` does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from lightning_s3t.executors.processes.messages import Failed, receive, send
from lightning_s3t.executors.processes.package import Package

LINGER = 60.0  # seconds that the base waits for another fit when none runs
_PATIENCE = 10.0  # seconds that a forked process may take to add up a million numbers


@dataclass(frozen=True)
class BeginFit:
    """To the base: fork a process for a fit. Beside it come its channel, the package, standard output and error.

    Attributes:
        header: The layout that `Package` needs besides its file.
        on_device: Likewise.
        load_in_unit: Whether each unit's process loads the package for itself.
        environment: The script's environment variables.
        folder: Its working directory.
        path: The search path of modules.
        arguments: Its command line.
    """

    header: Any
    on_device: bool
    load_in_unit: bool
    environment: dict[str, str]
    folder: str
    path: list[str]
    arguments: list[str]


@dataclass(frozen=True)
class Loaded:
    """From a fit's process: it can fork units."""


@dataclass(frozen=True)
class Threaded:
    """From a fit's process: loading has started OpenMP's threads, so this process cannot be forked."""


@dataclass(frozen=True)
class Fork:
    """To a fit's process: fork one for a unit. Beside it comes the unit's channel."""

    number: int


@dataclass(frozen=True)
class Kill:
    """To a fit's process: end a unit's, and the data loaders that it has started."""

    number: int


@dataclass(frozen=True)
class Import:
    """To a fit's process: units import these modules, so they had better be there before a unit is forked.

    Only modules of installed packages: the script's own modules may draw random numbers or keep state when imported,
    and must do so equally in each unit.
    """

    modules: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """From a fit's process: a unit's has ended.

    Attributes:
        number: Which.
        code: Its exit code, or the negative number of the signal that has killed it.
    """

    number: int
    code: int


def serve(channel: socket.socket) -> None:
    """Fork a process for each fit, until none was requested for a while or the script has ended.

    Args:
        channel: To the script.
    """
    while True:
        if not select.select([channel], [], [], LINGER)[0]:
            if _has_children():
                continue
            return
        try:
            begin, descriptors = receive(channel)
        except (EOFError, ConnectionResetError):
            return
        if os.fork() == 0:
            channel.close()
            run_and_leave(_serve_fit, begin, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _reap()


def can_compute_after_fork() -> bool:
    """Test whether a process forked from this one can use torch with several threads.

    If OpenMP had threads in this process, it waits for them forever in a forked one. Other threads (OpenBLAS starts
    some when it is loaded) do no harm, so it is tried, and threads are not counted.
    """
    import torch  # not in a process that only uses the messages

    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(2)
        torch.ones(1 << 20).sum()
        os._exit(0)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _serve_fit(begin: BeginFit, descriptors: list[int]) -> None:
    parent, package_file, output, error = descriptors
    channel = socket.socket(fileno=parent)
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(error, 2)
    package = Package(os.fdopen(package_file, "rb"), begin.header, begin.on_device)
    os.environ.clear()
    os.environ.update(begin.environment)
    sys.path[:] = begin.path
    sys.argv = begin.arguments
    objects: Any = None
    try:
        os.chdir(begin.folder)
        if not begin.load_in_unit:
            objects = package.load()
            objects[1].prepare()
    except Exception as raised:
        send(channel, Failed.of(raised))
        return
    if objects is not None and not can_compute_after_fork():
        send(channel, Threaded())
        return
    gc.freeze()  # so that garbage collections in units' processes do not write to shared pages
    send(channel, Loaded())
    _fork_units(channel, package, objects)


def _fork_units(channel: socket.socket, package: Package, objects: Any) -> None:
    running: dict[int, int] = {}
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        while True:
            sources: list[Any] = [channel, woken]
            ready = select.select(sources, [], [])[0]
            if woken in ready:
                os.read(woken, 512)
                for pid, code in _reap():
                    if pid in running:
                        send(channel, Ended(running.pop(pid), code))
            if channel not in ready:
                continue
            message, descriptors = receive(channel)
            if isinstance(message, Import):
                _import_if_safe(message.modules)
                continue
            if not descriptors:
                kill_all([pid for pid, number in running.items() if number == message.number])
                continue
            (descriptor,) = descriptors
            pid = os.fork()
            if pid == 0:
                for inherited in (channel.fileno(), woken, wakes):
                    os.close(inherited)
                channel.detach()
                run_and_leave(_run_unit, package, objects, descriptor)
            os.close(descriptor)
            running[pid] = message.number
    except (EOFError, ConnectionError):
        return  # the script has ended, or has no further units
    finally:
        kill_all(running)
        for pid in running:  # their unfinished files are erased when this process has ended
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _import_if_safe(modules: tuple[str, ...]) -> None:
    """Import modules, unless their import starts computations that a forked process could not survive."""
    pid = os.fork()
    if pid == 0:
        _import(modules)
        os._exit(0 if can_compute_after_fork() else 1)
    _, status = os.waitpid(pid, 0)
    if status == 0:
        _import(modules)
        gc.freeze()


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        with contextlib.suppress(BaseException):
            importlib.import_module(module)


def kill_all(pids: Iterable[int]) -> None:
    """Kill units' processes, with the data loaders that they have started.

    Args:
        pids: The processes.
    """
    for pid in pids:
        # its group, once it has one
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)


def _run_unit(package: Package, objects: Any, descriptor: int) -> None:
    from lightning_s3t.executors.processes.unit_process import train_unit

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    train_unit(objects if objects is not None else package.load(), Connection(descriptor))


def run_and_leave(run: Callable[..., None], *arguments: Any) -> None:
    """Run a forked process's work, and exit without the exit handlers of the parent process.

    Args:
        run: The work.
        arguments: For it.
    """
    code = 1
    try:
        run(*arguments)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _reap() -> list[tuple[int, int]]:
    """Return the processes that have ended since the last time, with their exit codes."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, os.waitstatus_to_exitcode(status)))


# the modules that every fit needs and sends; of the callbacks, only the name is used here
_PRELOADED = ("lightning_s3t.executors.processes.unit_process", "lightning_s3t.callbacks.s3t")


def main() -> None:
    """Serve the script that has started this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the script's to answer
    channel = socket.socket(fileno=int(sys.argv[1]))
    for module in _PRELOADED:  # there once, and before anything is forked
        importlib.import_module(module)
    with contextlib.suppress(BrokenPipeError):
        serve(channel)


if __name__ == "__main__":
    main()
